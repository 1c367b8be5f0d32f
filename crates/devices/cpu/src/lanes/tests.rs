//! Every level's lanes against plain Rust and f64.

use super::portable::fused_by_odd_rounding;
use super::*;
use crate::level::{Level, kernel};

/// Values with every exponent, special values first.
pub(crate) fn samples() -> Vec<f32> {
    let special = [
        0.0f32,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        f32::MIN_POSITIVE,
        -f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
        1e-40,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        88.7,
        88.8,
        -87.4,
        -103.9,
        -104.1,
        0.625,
        0.624_999_9,
        16_777_216.0,
        8_388_609.0,
        f32::EPSILON,
        1.0 + f32::EPSILON,
    ];
    let mut state = 7u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let mut values: Vec<f32> = special.to_vec();
    for _ in 0..20_000 {
        values.push(f32::from_bits(random()));
        // Of everyday size too.
        values.push((random() as f32 / u32::MAX as f32 - 0.5) * 20.0);
    }
    values.resize(values.len().next_multiple_of(WIDTH), 1.0);
    values
}

pub(crate) fn same_bits(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan())
}

kernel! {
    fn operations[](a: &'a [f32], b: &'a [f32], c: &'a [f32], out: &'a mut Vec<f32>) {
        for start in (0..a.len()).step_by(WIDTH) {
            // SAFETY: lengths are multiples of 16.
            let (x, y, z) = unsafe {
                (L::load(a.as_ptr().add(start)), L::load(b.as_ptr().add(start)), L::load(c.as_ptr().add(start)))
            };
            let (s, t) = sigmoid_pair(x);
            let mut narrowed = [0u16; WIDTH];
            // SAFETY: 16 values.
            let widened = unsafe {
                x.store_bf16(narrowed.as_mut_ptr());
                L::load_bf16(narrowed.as_ptr())
            };
            for value in [
                x.add(y), x.sub(y), x.mul(y), x.div(y), x.sqrt(), x.fused(y, z), x.max(y), x.min(y),
                x.select_less(y, z, x), x.abs(), x.copy_sign(y), x.round(), exp(x), s, t, tanh(x),
                widened, x.first(start % 17, 3.0), z.min(L::splat(127.0)).max(L::splat(-126.0)).round().power_of_two(),
            ] {
                out.extend(value.to_array());
            }
            out.push(x.sum());
            out.push(x.largest());
        }
    }
}

#[test]
fn all_levels_give_the_same_bits() {
    let a = samples();
    let mut b = a.clone();
    b.rotate_left(1234);
    let mut c = a.clone();
    c.rotate_left(777);
    let mut want = Vec::new();
    operations(Level::Portable, &a, &b, &c, &mut want);
    for level in Level::ALL {
        if !level.is_available() {
            println!("not run: this machine has no {level}");
            continue;
        }
        let mut got = Vec::new();
        operations(level, &a, &b, &c, &mut got);
        assert_eq!(got.len(), want.len());
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(same_bits(*got, *want), "{level}, value {index}: {got:e} and {want:e}");
        }
    }
}

#[test]
fn plain_fused_multiply_add_is_the_libraries() {
    let a = samples();
    let mut b = a.clone();
    b.rotate_left(99);
    let mut c = a.clone();
    c.rotate_left(5432);
    let check = |a: f32, b: f32, c: f32| {
        let (got, want) = (fused_by_odd_rounding(a, b, c), a.mul_add(b, c));
        assert!(same_bits(got, want), "{a:e}·{b:e} + {c:e}: {got:e}, not {want:e}");
    };
    for ((a, b), c) in a.iter().zip(&b).zip(&c) {
        check(*a, *b, *c);
        // Near cancellation, where double rounding would show.
        check(*a, *b, -(a * b));
        check(*a, *b, a * b * f32::EPSILON * 0.25);
        check(*a, *b, -(a * b * f32::EPSILON * 0.5));
    }
}

kernel! {
    fn functions[](x: &'a [f32], out: &'a mut Vec<[f32; 4]>) {
        for start in (0..x.len()).step_by(WIDTH) {
            // SAFETY: the length is a multiple of 16.
            let value = unsafe { L::load(x.as_ptr().add(start)) };
            let (s, t) = sigmoid_pair(value);
            let (e, s, t, h) = (exp(value).to_array(), s.to_array(), t.to_array(), tanh(value).to_array());
            out.extend((0..WIDTH).map(|i| [e[i], s[i], t[i], h[i]]));
        }
    }
}

/// Distance in units in the last place of the result.
fn ulps(got: f32, want: f64) -> f64 {
    if got.is_nan() || want.is_nan() {
        return if got.is_nan() && want.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let rounded = want as f32;
    if rounded.is_infinite() || got.is_infinite() {
        return if rounded == got { 0.0 } else { f64::INFINITY };
    }
    let exponent = want.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (f64::from(got) - want).abs() / 2f64.powf(exponent - 23.0)
}

#[test]
fn functions_are_within_two_units_of_f64() {
    let x = samples();
    let mut got = Vec::new();
    functions(Level::detect(), &x, &mut got);
    let mut worst = [0.0f64; 5];
    for (x, got) in x.iter().zip(&got) {
        let wide = f64::from(*x);
        let small = (-wide.abs()).exp();
        let pair = if wide < 0.0 {
            [small / (1.0 + small), 1.0 / (1.0 + small)]
        } else {
            [1.0 / (1.0 + small), small / (1.0 + small)]
        };
        let want = [wide.exp(), pair[0], pair[1], wide.tanh(), wide.ln()];
        let got = [got[0], got[1], got[2], got[3], ln(*x)];
        for (index, (got, want)) in got.iter().zip(want).enumerate() {
            let distance = ulps(*got, want);
            assert!(distance <= 3.0, "function {index} of {x:e}: {got:e}, not {want:e} ({distance} ulp)");
            worst[index] = worst[index].max(distance);
        }
    }
    println!(
        "worst, in ulp: exp {:.2}, sigmoid {:.2} {:.2}, tanh {:.2}, ln {:.2}",
        worst[0], worst[1], worst[2], worst[3], worst[4]
    );
}

#[test]
fn bf16_rounds_as_the_half_crate_does() {
    for value in samples() {
        assert_eq!(narrow(value), half::bf16::from_f32(value).to_bits(), "{value:e}");
    }
    for bits in 0..=u16::MAX {
        assert!(same_bits(widen(bits), half::bf16::from_bits(bits).to_f32()));
        assert!(widen(bits).is_nan() || narrow(widen(bits)) == bits);
    }
}

kernel! {
    fn transposed[](x: &'a [f32], out: &'a mut [f32]) {
        // SAFETY: both hold 256 values.
        let rows = std::array::from_fn(|row| unsafe { L::load(x.as_ptr().add(row * WIDTH)) });
        for (row, lanes) in L::transpose(rows).into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { lanes.store(out.as_mut_ptr().add(row * WIDTH)) };
        }
    }
}

#[test]
fn transposes_sixteen_by_sixteen() {
    let x: Vec<f32> = (0..256).map(|value| value as f32).collect();
    for level in Level::available() {
        let mut out = vec![0.0; 256];
        transposed(level, &x, &mut out);
        for row in 0..WIDTH {
            for column in 0..WIDTH {
                assert_eq!(out[row * WIDTH + column], x[column * WIDTH + row], "{level}");
            }
        }
    }
}

#[test]
fn one_value_has_the_vectors_bits() {
    for value in samples().into_iter().take(2000) {
        assert!(same_bits(exp_scalar(value), exp(Portable::splat(value)).to_array()[7]));
    }
}
