//! Kinds that no mutant of conformance has: devices that are spoiled by a function of operands and right outputs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use support::spoiled::Spoiled;
use toprope_conformance::values::Regime;
use toprope_diagnose::search::search;
use toprope_diagnose::{Effort, Guess, Kind, Probe, guess};
use toprope_program::operator::Attention;
use toprope_program::tensor::round;
use toprope_program::*;

/// As a function alone.
type Spoil = fn(&Operator, &[Tensor], &mut [Tensor], u64);

/// `a·b` of what `narrow` makes of the operands, the running sum passed through `keep`.
fn product(a: &Tensor, b: &Tensor, narrow: impl Fn(f64) -> f64, keep: impl Fn(f64) -> f64) -> Vec<f64> {
    let (m, k, n) = (a.sizes[0], a.sizes[1], b.sizes[1]);
    let cell = |r: usize, c: usize| {
        (0..k).fold(0.0, |sum, i| keep(sum + narrow(a.data[r * k + i]) * narrow(b.data[i * n + c])))
    };
    (0..m).flat_map(|r| (0..n).map(move |c| (r, c))).map(|(r, c)| cell(r, c)).collect()
}

fn tf32(x: f64) -> f64 {
    f64::from(f32::from_bits(((x as f32).to_bits() + 0x1000) & 0xFFFF_E000))
}

fn half(x: f64) -> f64 {
    half::f16::from_f64(x).to_f64()
}

/// Attention of one row over keys `from..to`, without taking the largest score off where `plain`.
fn attend(
    scale: f64,
    o: &[Tensor],
    out: &mut [Tensor],
    range: impl Fn(usize, usize) -> (usize, usize),
    plain: bool,
) {
    let (q, k, v) = (&o[0], &o[1], &o[2]);
    let (t, h, d, s, g, w) = (q.sizes[0], q.sizes[1], q.sizes[2], k.sizes[0], k.sizes[1], v.sizes[2]);
    let offset = o.get(4).map_or(0, |x| x.data[0] as usize);
    let length = o.get(5).map_or(s, |x| x.data[0] as usize);
    for i in 0..t {
        let (from, to) = range(i, o[3].data[i].max(0.0) as usize);
        let to = (to + offset).min(s).min(length);
        if from >= to {
            continue;
        }
        for head in 0..h {
            let key = head * g / h;
            let score = |j: usize| {
                scale
                    * (0..d)
                        .map(|x| q.data[(i * h + head) * d + x] * k.data[(j * g + key) * d + x])
                        .sum::<f64>()
            };
            let scores: Vec<f64> = (from..to).map(score).collect();
            let most = if plain { 0.0 } else { scores.iter().copied().fold(f64::NEG_INFINITY, f64::max) };
            let e: Vec<f64> = scores.iter().map(|x| f64::from((x - most).exp() as f32)).collect();
            let sum = f64::from(e.iter().sum::<f64>() as f32);
            for x in 0..w {
                let value: f64 = (from..to).map(|j| e[j - from] / sum * v.data[(j * g + key) * w + x]).sum();
                out[0].data[(i * h + head) * w + x] = value;
            }
            out[1].data[i * h + head] = most + sum.ln();
        }
    }
}

fn guessed(device: &mut Spoiled, probe: Option<Probe>) -> Guess {
    let mut oracle = support::oracle();
    let (probe, observed) = match probe {
        Some(probe) => (probe, None),
        None => {
            let operator = device.operator;
            let failing = search(device, &mut oracle, operator, 60, 1).unwrap().0.unwrap();
            (failing.probe, failing.observed)
        }
    };
    guess(device, &mut oracle, &probe, observed.as_ref(), Effort { repeats: 60, ..Effort::default() })
        .unwrap()
}

#[test]
fn kinds_that_no_mutant_has() {
    let matmul: &[(&str, Spoil, &[Kind])] = &[
        (
            "tf32 operands",
            |_, o, y, _| {
                if o.len() == 2 && y.len() == 1 {
                    y[0].data = product(&o[0], &o[1], tf32, |x| x)
                }
            },
            &[Kind::LowPrecisionOperands],
        ),
        (
            "fp16 sums",
            |_, o, y, _| {
                if o.len() == 2 && y.len() == 1 {
                    y[0].data = product(&o[0], &o[1], |x| x, half)
                }
            },
            &[Kind::LowPrecisionAccumulation],
        ),
        (
            "sums cut to 12 bits",
            |_, o, y, _| {
                if o.len() == 2 && y.len() == 1 {
                    y[0].data = product(
                        &o[0],
                        &o[1],
                        |x| x,
                        |x| f64::from(f32::from_bits((x as f32).to_bits() & 0xFFFF_F000)),
                    )
                }
            },
            &[Kind::LowPrecisionAccumulation],
        ),
        (
            "stored in fp16",
            |_, _, y, _| y[0].data.iter_mut().for_each(|x| *x = half(*x)),
            &[Kind::LowPrecisionStore],
        ),
        (
            "stored in bf16, cut",
            |_, _, y, _| {
                y[0].data
                    .iter_mut()
                    .for_each(|x| *x = f64::from(f32::from_bits((*x as f32).to_bits() & 0xFFFF_0000)))
            },
            &[Kind::TruncatingStore],
        ),
        (
            "tail of 32 columns",
            |_, _, y, _| {
                let n = y[0].sizes[1];
                let kept = n / 32 * 32;
                y[0].data.iter_mut().enumerate().filter(|(i, _)| i % n >= kept).for_each(|(_, x)| *x = 0.0)
            },
            &[Kind::DroppedTail],
        ),
        (
            "tail of 8 rows",
            |_, _, y, _| {
                let (m, n) = (y[0].sizes[0], y[0].sizes[1]);
                let kept = m / 8 * 8;
                y[0].data.iter_mut().enumerate().filter(|(i, _)| i / n >= kept).for_each(|(_, x)| *x *= 0.5)
            },
            &[Kind::DroppedTail],
        ),
        (
            "b read by columns",
            |_, o, y, _| {
                if o.len() == 2 && y.len() == 1 {
                    let (k, n) = (o[1].sizes[0], o[1].sizes[1]);
                    let data = (0..k * n).map(|i| o[1].data[i % n * k + i / n]).collect();
                    y[0].data = product(&o[0], &Tensor { data, ..o[1].clone() }, |x| x, |x| x)
                }
            },
            &[Kind::Layout],
        ),
        (
            "a race in one of seven runs",
            |_, _, y, turn| {
                if turn.is_multiple_of(7) {
                    let n = y[0].data.len();
                    y[0].data[n / 2..].fill(0.25)
                }
            },
            &[Kind::Race],
        ),
        (
            "a bit flipped in one of five runs",
            |_, _, y, turn| {
                if turn.is_multiple_of(5) {
                    let x = y[0].data[0];
                    y[0].data[0] = f64::from(f32::from_bits((x as f32).to_bits() ^ 1 << 28))
                }
            },
            &[Kind::BitFlips],
        ),
        (
            "the last term missing",
            |_, o, y, _| {
                if o.len() == 2 && y.len() == 1 {
                    let (k, n) = (o[0].sizes[1], o[1].sizes[1]);
                    for (i, x) in y[0].data.iter_mut().enumerate() {
                        *x -= o[0].data[i / n * k + k - 1] * o[1].data[(k - 1) * n + i % n]
                    }
                }
            },
            &[Kind::MissingTerms],
        ),
        (
            "saturating",
            |_, _, y, _| {
                y[0].data
                    .iter_mut()
                    .filter(|x| x.is_infinite())
                    .for_each(|x| *x = f64::from(f32::MAX).copysign(*x))
            },
            &[Kind::Saturation],
        ),
    ];
    let attention: &[(&str, Spoil, &[Kind])] = &[
        (
            "a corner not masked",
            |op, o, y, _| {
                if let Operator::Attention(a) = op {
                    let t = o[0].sizes[0];
                    let last = t.saturating_sub(4);
                    attend(a.scale, o, y, |i, start| (start, if i >= last { t } else { i + 1 }), false)
                }
            },
            &[Kind::Mask],
        ),
        (
            "the own key hidden",
            |op, o, y, _| {
                if let Operator::Attention(a) = op {
                    attend(a.scale, o, y, |i, start| (start, i.max(start + 1)), false)
                }
            },
            &[Kind::Mask],
        ),
        (
            "scores not scaled",
            |op, o, y, _| {
                if let Operator::Attention(_) = op {
                    attend(1.0, o, y, |i, start| (start, i + 1), false)
                }
            },
            &[Kind::WrongAttribute],
        ),
    ];
    let others: &[(&'static str, &str, Spoil, &[Kind])] = &[
        (
            "rms_norm",
            "a mean over whole tiles",
            |op, o, y, _| {
                if let Operator::RmsNorm(n) = op {
                    let d = *o[0].sizes.last().unwrap();
                    let kept = d / 8 * 8;
                    if kept > 0 {
                        for row in 0..o[0].data.len() / d {
                            let x = &o[0].data[row * d..(row + 1) * d];
                            let r = 1.0
                                / (x[..kept].iter().map(|x| x * x).sum::<f64>() / kept as f64 + n.epsilon)
                                    .sqrt();
                            y[1].data[row] = r;
                            for (i, x) in x.iter().enumerate() {
                                y[0].data[row * d + i] = x * r * o[1].data[i];
                            }
                        }
                    }
                }
            },
            &[Kind::DroppedTail],
        ),
        (
            "rms_norm",
            "epsilon outside of the root",
            |op, o, y, _| {
                if let Operator::RmsNorm(n) = op {
                    let d = *o[0].sizes.last().unwrap();
                    for row in 0..o[0].data.len() / d {
                        let x = &o[0].data[row * d..(row + 1) * d];
                        let r = 1.0 / ((x.iter().map(|x| x * x).sum::<f64>() / d as f64).sqrt() + n.epsilon);
                        y[1].data[row] = r;
                        for (i, x) in x.iter().enumerate() {
                            y[0].data[row * d + i] = x * r * o[1].data[i];
                        }
                    }
                }
            },
            &[Kind::Epsilon],
        ),
        (
            "column_sum",
            "bf16 sums",
            |_, o, y, _| {
                let d = *o[0].sizes.last().unwrap();
                for c in 0..d {
                    y[0].data[c] =
                        o[0].data.iter().skip(c).step_by(d).fold(0.0, |s, x| round(DType::Bf16, s + x))
                }
            },
            &[Kind::LowPrecisionAccumulation],
        ),
        (
            "swiglu",
            "the halves exchanged",
            |_, o, y, _| {
                let d = *o[0].sizes.last().unwrap();
                let h = d / 2;
                for (i, y) in y[0].data.iter_mut().enumerate() {
                    let (row, c) = (i / h, i % h);
                    let (u, g) = (o[0].data[row * d + c], o[0].data[row * d + h + c]);
                    *y = g / (1.0 + (-g).exp()) * u
                }
            },
            &[Kind::Layout],
        ),
        (
            "gather",
            "the index off by one",
            |_, o, y, _| {
                let (rows, d) = (o[0].sizes[0], *o[0].sizes.last().unwrap());
                for (at, i) in o[1].data.iter().enumerate() {
                    let i = *i + 1.0;
                    for c in 0..d {
                        y[0].data[at * d + c] =
                            if i >= 0.0 && (i as usize) < rows { o[0].data[i as usize * d + c] } else { 0.0 }
                    }
                }
            },
            &[Kind::StrayIndex],
        ),
        (
            "combine",
            "rows backwards",
            |_, _, y, _| {
                let d = *y[0].sizes.last().unwrap();
                let rows: Vec<f64> = y[0].data.chunks(d).rev().flatten().copied().collect();
                y[0].data = rows
            },
            &[Kind::Layout],
        ),
        ("global_norm", "the square of the norm", |_, _, y, _| y[0].data[0] *= 3.0, &[Kind::WrongFactor]),
        (
            "adamw",
            "the rate twice",
            |_, o, y, _| {
                let w: Vec<f64> =
                    y[0].data.iter().zip(&o[0].data).map(|(new, old)| 2.0 * new - old).collect();
                y[0].data = w
            },
            &[Kind::WrongFactor, Kind::WrongOperand],
        ),
        (
            "dot",
            "half of its terms",
            |_, o, y, _| {
                let n = o[0].data.len() / 16 * 16;
                y[0].data[0] = (0..n).map(|i| o[0].data[i] * o[1].data[i]).sum()
            },
            &[Kind::DroppedTail],
        ),
    ];
    let mut all: Vec<(&'static str, &str, Spoil, &[Kind])> = others.to_vec();
    all.extend(matmul.iter().map(|(name, spoil, kinds)| ("matmul", *name, *spoil, *kinds)));
    all.extend(attention.iter().map(|(name, spoil, kinds)| ("attention", *name, *spoil, *kinds)));
    let mut wrong = Vec::new();
    for (operator, name, spoil, kinds) in &all {
        let guess = guessed(&mut Spoiled::new(operator, Arc::new(*spoil)), None);
        println!("{operator:<12} {name:<34} {:<28} {}", guess.kind.name(), guess.sentence);
        if !kinds.contains(&guess.kind) {
            wrong.push(format!("{operator} with {name}: {guess:#?}"));
        }
    }
    // Large logits, as no case draws them.
    let shape = [
        Type::new(DType::F32, [9usize, 2, 8]),
        Type::new(DType::F32, [9usize, 2, 8]),
        Type::new(DType::F32, [9usize, 2, 5]),
        Type::new(DType::I32, [9usize]),
    ];
    let probe = Probe::of(&Attention { scale: 40.0 }.into(), &shape, 1, Regime::Normal, true).unwrap();
    let spoil: Spoil = |op, o, y, _| {
        if let Operator::Attention(a) = op {
            attend(a.scale, o, y, |i, start| (start, i + 1), true)
        }
    };
    let guess = guessed(&mut Spoiled::new("attention", Arc::new(spoil)), Some(probe));
    println!("attention    {:<34} {:<28} {}", "no maximum", guess.kind.name(), guess.sentence);
    if guess.kind != Kind::SoftmaxOverflow {
        wrong.push(format!("softmax without maximum: {guess:#?}"));
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len() + 1, wrong.join("\n"));
}
