//! Exponential, logistic function, hyperbolic tangent and logarithm out of fused multiply-adds.

use super::{Lanes, Portable};

/// `e^x` within 2 units in the last place: 0 below -104, infinity above 88.73, NaN for NaN, subnormal results kept.
///
/// `x = n·ln 2 + r` with `ln 2` in two parts (Cody and Waite), the Taylor series of `e^r` to degree 7 for
/// `|r| ≤ ln 2 / 2`, then two exact multiplications by powers of two of which only the last can round.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: L) -> L {
    // The bound comes first, so that a NaN passes through.
    let x = L::splat(-104.0).max(x);
    let x = L::splat(89.0).min(x);
    let n = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
    let r = n.fused(L::splat(-0.693_359_4), x);
    let r = n.fused(L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.0 / 5040.0);
    p = p.fused(r, L::splat(1.0 / 720.0));
    p = p.fused(r, L::splat(1.0 / 120.0));
    p = p.fused(r, L::splat(1.0 / 24.0));
    p = p.fused(r, L::splat(1.0 / 6.0));
    p = p.fused(r, L::splat(0.5));
    p = p.fused(r, L::splat(1.0));
    p = p.fused(r, L::splat(1.0));
    let half = n.mul(L::splat(0.5)).round();
    let rest = n.sub(half);
    p.mul(half.power_of_two()).mul(rest.power_of_two())
}

/// `e^x` of one value, with the bits of [`exp`].
pub(crate) fn exp_scalar(x: f32) -> f32 {
    exp(Portable::splat(x)).to_array()[0]
}

/// `1/(1+e^-x)` and `1/(1+e^x)`, each accurate where it is small.
#[inline(always)]
pub(crate) fn sigmoid_pair<L: Lanes>(x: L) -> (L, L) {
    let one = L::splat(1.0);
    let zero = L::splat(0.0);
    let small = exp(zero.sub(x.abs()));
    let scale = one.add(small);
    (x.select_less(zero, small, one).div(scale), x.select_less(zero, one, small).div(scale))
}

/// Hyperbolic tangent: an odd polynomial up to 0.625 (coefficients of Moshier's Cephes, `tanhf`), beyond that
/// `1 - 2/(e^2|x| + 1)`.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(x: L) -> L {
    let size = x.abs();
    let square = x.mul(x);
    let mut p = L::splat(-5.704_988_7e-3);
    p = p.fused(square, L::splat(2.063_908_8e-2));
    p = p.fused(square, L::splat(-5.373_971_6e-2));
    p = p.fused(square, L::splat(0.133_314_42));
    p = p.fused(square, L::splat(-0.333_332_8));
    let near = p.mul(square).fused(x, x);
    let one = L::splat(1.0);
    let far = one.sub(L::splat(2.0).div(exp(size.add(size)).add(one))).copy_sign(x);
    // An unordered comparison takes `far`, in which a NaN stays NaN.
    size.select_less(L::splat(0.625), near, far)
}

/// Natural logarithm, rounded from f64: -∞ for 0, NaN below 0, subnormals as they are. The same bits everywhere,
/// which a platform's `logf` does not promise.
///
/// `x = m·2^e` with `m` in `[√½, √2)`, `ln m = 2·artanh((m-1)/(m+1))` as a series.
pub(crate) fn ln(x: f32) -> f32 {
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x.is_infinite() {
        return x;
    }
    let wide = f64::from(x);
    let bits = wide.to_bits();
    let mut exponent = ((bits >> 52) as i64 - 1023) as f64;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for odd in (0..10).rev() {
        series = series * square + 1.0 / f64::from(2 * odd + 1);
    }
    (exponent * std::f64::consts::LN_2 + 2.0 * s * series) as f32
}
