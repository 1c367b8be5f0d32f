//! Each result is rounded once to its dtype, and in wide mode not at all.

use crate::numbers::{Numbers, floats};
use crate::session::Session;
use half::bf16;
use toprope_program::operator::*;
use toprope_program::{Builder, DType, Operator, Phase, Range, Tensor, Width};
use toprope_reference::evaluate;

/// The nearest of all bf16 numbers, ties to the even one: by looking at both neighbours.
fn nearest_bf16(x: f64) -> f64 {
    let below = f32::from_bits((x.abs() as f32).to_bits() & 0xffff_0000);
    let start = bf16::from_f32(below).to_bits().saturating_sub(1);
    let candidates = (start..start + 4).map(bf16::from_bits);
    let distance = |c: &bf16| (c.to_f64() - x.abs()).abs();
    let best = candidates
        .min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a.to_bits() & 1).cmp(&(b.to_bits() & 1))));
    best.unwrap().to_f64().copysign(x)
}

#[test]
fn bf16_products_are_rounded_once_on_store() {
    let mut b = Builder::new("rounding", Phase::Evaluate);
    let x = b.input("x", DType::Bf16, [16, 3]);
    let y = b.input("y", DType::Bf16, [3, 16]);
    let operator = Matmul { output: DType::Bf16, row_sums: false };
    let product = b.one("product", operator, [x.into(), y.into()]).unwrap();
    let wide = b.one("wide", Cast { output: DType::F32 }, [product.into()]).unwrap();
    b.accumulate("kept", wide).unwrap();
    let mut session = Session::new(b.finish(), Width::Native);
    let mut numbers = Numbers::new(9);
    let [x, y] = [[16, 3], [3, 16]].map(|sizes| {
        let exact = numbers.tensor(DType::Bf16, &sizes);
        Tensor::rounded(DType::Bf16, &sizes, exact.data)
    });
    session.write("x", &x);
    session.write("y", &y);
    session.run(Range::Accumulate);
    let kept = session.read("kept");
    let mut inexact = 0;
    for row in 0..16 {
        for column in 0..16 {
            // Three products of 8-bit significands: exact in f64.
            let exact: f64 = (0..3).map(|k| x.data[row * 3 + k] * y.data[k * 16 + column]).sum();
            let got = kept.data[row * 16 + column];
            assert_eq!(got, nearest_bf16(exact), "{row}, {column}: {exact:e}");
            inexact += usize::from(got != exact);
        }
    }
    assert!(inexact > 100, "only {inexact} results needed rounding");
}

#[test]
fn ties_in_bf16_go_to_even() {
    let step = 2f64.powi(-7);
    let x = floats(
        &[5],
        &[1.0 + step / 2.0, 1.0 + 1.5 * step, 1.0 + step / 2.0 + 2f64.powi(-23), -1.0 - step / 2.0, 1e-40],
    );
    let y = evaluate(&Cast { output: DType::Bf16 }.into(), std::slice::from_ref(&x), true, Width::Native)
        .remove(0);
    let want: Vec<f64> = x.data.iter().map(|x| nearest_bf16(*x)).collect();
    assert_eq!(y.data, want);
    assert_eq!(want[..4], [1.0, 1.0 + 2.0 * step, 1.0 + step, -1.0]);
    assert!(want[4] != 0.0, "a subnormal is kept");
    let wide =
        evaluate(&Cast { output: DType::Bf16 }.into(), std::slice::from_ref(&x), true, Width::Wide).remove(0);
    assert_eq!(wide.data, x.data);
}

/// The exact sum lies just above a tie of bf16 that an f32 in between would round it to.
#[test]
fn nothing_is_rounded_on_the_way_to_a_store() {
    let a = floats(&[1, 3], &[1.0, 2f64.powi(-8), 2f64.powi(-40)]);
    let b = floats(&[3, 1], &[1.0; 3]);
    let operator = Matmul { output: DType::Bf16, row_sums: false };
    let y = evaluate(&operator.into(), &[a, b], true, Width::Native).remove(0);
    assert_eq!(y.data, [1.0 + 2f64.powi(-7)]);
}

#[test]
fn elementwise_results_are_those_of_f32_operations() {
    let mut numbers = Numbers::new(10);
    let mut draw = || Tensor::rounded(DType::F32, &[500], numbers.tensor(DType::F32, &[500]).data);
    let (a, b) = (draw(), draw());
    type InF32 = fn(f32, f32) -> f32;
    let operators: [(Operator, InF32); 2] = [
        (Add { output: DType::F32 }.into(), |a, b| a + b),
        (Multiply { output: DType::F32 }.into(), |a, b| a * b),
    ];
    for (operator, in_f32) in operators {
        let y = evaluate(&operator, &[a.clone(), b.clone()], true, Width::Native).remove(0);
        for i in 0..500 {
            let want = in_f32(a.data[i] as f32, b.data[i] as f32);
            assert_eq!((y.data[i] as f32).to_bits(), want.to_bits(), "{}", operator.name());
        }
    }
}

/// AdamW keeps to the record's order, one f32 operation at a time, subnormals among them: to the bit.
#[test]
fn adamw_has_the_bits_of_f32_arithmetic() {
    let operator = Adamw { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, digests: false };
    let mut numbers = Numbers::new(11);
    let count = 2000;
    let mut draw = |positive: bool| {
        let data = (0..count).map(|_| {
            // Sizes from 2^-75 to 1: squares reach the subnormal numbers.
            let size = 2f64.powi(-(numbers.below(76) as i32));
            let x = numbers.uniform() * size;
            if positive { x * x } else { x }
        });
        Tensor::rounded(DType::F32, &[count], data.collect::<Vec<_>>())
    };
    let (w, g, m, v) = (draw(false), draw(false), draw(false), draw(true));
    let factor = Tensor::rounded(DType::F32, &[1], [0.37]);
    let rates = Tensor::rounded(DType::F32, &[3], [1e-3, 0.271, 0.142]);
    let operands = [w, g, m, v, factor, rates];
    let next = evaluate(&operator.clone().into(), &operands, true, Width::Native);
    let f = |x: f64| x as f32;
    let at = |operand: usize, i: usize| operands[operand].data[i] as f32;
    let (beta1, rest1) = (f(operator.beta1), f(1.0 - operator.beta1));
    let (beta2, rest2) = (f(operator.beta2), f(1.0 - operator.beta2));
    let (rate, c1, c2) = (at(5, 0), at(5, 1), at(5, 2));
    let mut subnormal = 0;
    for i in 0..count {
        let g = at(1, i) * at(4, 0);
        let m = beta1 * at(2, i) + rest1 * g;
        let v = beta2 * at(3, i) + rest2 * g * g;
        let decayed = at(0, i) - rate * f(operator.weight_decay) * at(0, i);
        let w = decayed - rate * ((m / c1) / ((v / c2).sqrt() + f(operator.epsilon)));
        for (output, want) in [w, m, v].into_iter().enumerate() {
            let got = next[output].data[i] as f32;
            assert_eq!(got.to_bits(), want.to_bits(), "output {output}, element {i}: {got:e}, {want:e}");
        }
        subnormal += usize::from(v != 0.0 && v.is_subnormal());
    }
    assert!(subnormal > 10, "only {subnormal} subnormal second moments");
}

/// Wide mode: no rounding anywhere on the way through a program.
#[test]
fn wide_mode_rounds_nothing() {
    let program = || {
        let mut b = Builder::new("wide", Phase::Evaluate);
        let x = b.input("x", DType::F32, [4]);
        let scaled = b.one("scaled", Scale { factor: 1.0 / 3.0 }, [x.into()]).unwrap();
        let cast = b.one("cast", Cast { output: DType::Bf16 }, [scaled.into()]).unwrap();
        let back = b.one("back", Cast { output: DType::F32 }, [cast.into()]).unwrap();
        b.accumulate("y", back).unwrap();
        b.finish()
    };
    let x = floats(&[4], &[1.0, 0.5, -3.0, 0.1f32.into()]);
    let mut wide = Session::new(program(), Width::Wide);
    let mut native = Session::new(program(), Width::Native);
    for session in [&mut wide, &mut native] {
        session.write("x", &x);
        session.run(Range::Accumulate);
    }
    let exact: Vec<f64> = x.data.iter().map(|x| 1.0 / 3.0 * x).collect();
    assert_eq!(wide.read("y").data, exact);
    let third = f64::from((1.0f64 / 3.0) as f32);
    let rounded: Vec<f64> = x.data.iter().map(|x| nearest_bf16(f64::from((third * x) as f32))).collect();
    assert_eq!(native.read("y").data, rounded);
}
