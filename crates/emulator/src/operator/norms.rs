//! Normalisations and their gradients, in f32 with sums in f64.

use half::{bf16, f16};

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand};
use crate::operator::run::Run;
use crate::operator::{Planned, kernel_with_workspace, operators};
use crate::tensor::contiguous;

operators! {
    RmsNorm(x: T, gamma: T, epsilon: f64, y: To, rstd: To) = |a| rms_norm(a, false);
    AddRmsNorm(x1: T, x2: T, gamma: T, epsilon: f64, y: To, rstd: To, x: To) = |a| rms_norm(a, true);
    RmsNormGrad(dy: T, x: T, rstd: T, gamma: T, dx: To, dgamma: To) = rms_norm_gradient;
    LayerNorm(
        input: T, normalizedShape: I, weight: T, bias: T, eps: f64, out: To, meanOut: To, rstdOut: To,
    ) = layer_norm;
    LayerNormBackward(
        gradOut: T, input: T, normalizedShape: I, mean: T, rstd: T, weight: T, bias: T, outputMask: B,
        gradInputOut: To, gradWeightOut: To, gradBiasOut: To,
    ) = layer_norm_gradient;
    GroupNorm(
        self_: T, gamma: T, beta: T, N: i64, C: i64, HxW: i64, group: i64, eps: f64, out: To, meanOut: To,
        rstdOut: To,
    ) = group_norm;
}

/// The rows of a tensor that a weight of its last axes normalises.
fn width_of(x: &Operand, weight: &Operand) -> Result<usize, Fault> {
    let outer = x.rank().checked_sub(weight.rank()).filter(|&outer| x.shape[outer..] == weight.shape[..]);
    if outer.is_none() || weight.rank() == 0 {
        return Err(weight.refuse(format!("must have the last dimensions of {:?}", x.shape)));
    }
    Ok(weight.len().max(1))
}

fn mean(values: impl Iterator<Item = f32>, count: usize) -> f64 {
    values.map(f64::from).sum::<f64>() / count as f64
}

/// Columns of the tile that `norm.padded_mean` counts whole.
const PADDED: usize = 64;
/// Rows of the blocks whose sums `norm.gradient_block` does not add up.
const BLOCK_ROWS: usize = 16;

fn rms_norm(a: &Arguments, adds: bool) -> Planned {
    let (x, other) = if adds { (a.tensor("x1")?, Some(a.tensor("x2")?)) } else { (a.tensor("x")?, None) };
    let (weight, y, rstd) = (a.tensor("gamma")?, a.tensor("y")?, a.tensor("rstd")?);
    let sum_out = if adds { Some(a.tensor("x")?) } else { None };
    let epsilon = a.float("epsilon")?;
    let width = width_of(&x, &weight)?;
    y.must_have(&x.shape)?;
    if rstd.len() != x.len() / width {
        return Err(rstd.refuse(format!("must have an element for each of the {} rows", x.len() / width)));
    }
    kernel_with_workspace(x.len(), move |run| {
        let mut values = run.floats(&x)?.into_vec();
        if let Some(other) = &other {
            values.iter_mut().zip(run.floats(other)?.iter()).for_each(|(x, y)| *x += y);
        }
        let mut weight = run.floats(&weight)?.into_vec();
        if run.has("norm.gamma_plus_one") {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        let counted = if run.has("norm.padded_mean") { width.next_multiple_of(PADDED) } else { width };
        let outside = run.has("norm.epsilon_outside");
        let epsilon = if run.has("norm.no_epsilon") { 0.0 } else { epsilon };
        let epsilon = if run.has("norm.epsilon_in_sum") { epsilon / width as f64 } else { epsilon };
        let (half, short) = (run.has("norm.fp16_squares"), run.has("norm.bf16_root"));
        let (mut normal, mut factors) = (Vec::with_capacity(values.len()), Vec::new());
        for row in values.chunks(width) {
            let square = match half {
                true => {
                    let sum = row.iter().fold(0.0, |sum, x| f16::from_f32(sum + x * x).to_f32());
                    f64::from(sum) / counted as f64
                }
                false => mean(row.iter().map(|x| x * x), counted),
            };
            let root = if outside { square.sqrt() + epsilon } else { (square + epsilon).sqrt() };
            let factor = (1.0 / root) as f32;
            factors.push(factor);
            let factor = if short { bf16::from_f32(factor).to_f32() } else { factor };
            normal.extend(row.iter().zip(&weight).map(|(x, w)| x * factor * w));
        }
        if let Some(sum_out) = &sum_out {
            run.store(sum_out, &values)?;
        }
        run.store(&y, &normal)?;
        run.store(&rstd, &factors)
    })
}

fn rms_norm_gradient(a: &Arguments) -> Planned {
    let (dy, x, rstd, weight) = (a.tensor("dy")?, a.tensor("x")?, a.tensor("rstd")?, a.tensor("gamma")?);
    let (dx, dweight) = (a.tensor("dx")?, a.tensor("dgamma")?);
    let width = width_of(&x, &weight)?;
    dy.must_have(&x.shape)?;
    dx.must_have(&x.shape)?;
    dweight.must_have(&weight.shape)?;
    kernel_with_workspace(x.len(), move |run| {
        let (dy, x, rstd, weight) =
            (run.floats(&dy)?, run.floats(&x)?, run.floats(&rstd)?, run.floats(&weight)?);
        let whole = !run.has("norm.gradient_mean");
        let block = run.has("norm.gradient_block");
        let (mut gradient, mut sums) = (Vec::with_capacity(x.len()), vec![0.0f64; width]);
        for (row, (dy, x)) in dy.chunks(width).zip(x.chunks(width)).enumerate() {
            if block && row % BLOCK_ROWS == 0 {
                sums.fill(0.0);
            }
            let factor = rstd[row];
            let c = mean(dy.iter().zip(weight.iter()).zip(x).map(|((dy, w), x)| dy * w * x), width) as f32;
            let c = if whole { c } else { 0.0 };
            for ((&dy, &w), (&x, sum)) in dy.iter().zip(weight.iter()).zip(x.iter().zip(&mut sums)) {
                gradient.push(factor * (dy * w - x * factor * factor * c));
                *sum += f64::from(dy * x * factor);
            }
        }
        if run.has("norm.gamma_twice") {
            sums.iter_mut().for_each(|sum| *sum *= 2.0);
        }
        run.store(&dx, &gradient)?;
        run.store_doubles(&dweight, &sums)
    })
}

/// A vector that may be absent.
fn vector(run: &Run, operand: &Option<Operand>, width: usize, else_: f32) -> Result<Vec<f32>, Fault> {
    match operand {
        Some(operand) => Ok(run.floats(operand)?.into_vec()),
        None => Ok(vec![else_; width]),
    }
}

fn normalized_width(a: &Arguments, x: &Operand) -> Result<usize, Fault> {
    let shape: Vec<usize> = a.ints("normalizedShape")?.iter().map(|&size| size.max(0) as usize).collect();
    if !x.shape.ends_with(&shape) {
        return Err(x.refuse(format!("normalizedShape {shape:?} is not its last dimensions")));
    }
    Ok(shape.iter().product::<usize>().max(1))
}

fn layer_norm(a: &Arguments) -> Planned {
    let (x, weight, bias) = (a.tensor("input")?, a.optional("weight")?, a.optional("bias")?);
    let (out, mean_out, rstd_out) = (a.tensor("out")?, a.optional("meanOut")?, a.optional("rstdOut")?);
    let (epsilon, width) = (a.float("eps")?, normalized_width(a, &x)?);
    out.must_have(&x.shape)?;
    kernel_with_workspace(x.len(), move |run| {
        let values = run.floats(&x)?;
        let (weight, bias) = (vector(run, &weight, width, 1.0)?, vector(run, &bias, width, 0.0)?);
        let (mut normal, mut means, mut factors) = (Vec::with_capacity(values.len()), Vec::new(), Vec::new());
        for row in values.chunks(width) {
            let (center, factor) = moments(row, epsilon);
            means.push(center);
            factors.push(factor);
            normal.extend(
                row.iter().zip(weight.iter().zip(&bias)).map(|(x, (w, b))| (x - center) * factor * w + b),
            );
        }
        run.store(&out, &normal)?;
        for (place, values) in [(&mean_out, &means), (&rstd_out, &factors)] {
            if let Some(place) = place {
                run.store(place, values)?;
            }
        }
        Ok(())
    })
}

/// Mean and 1/standard deviation of a row.
fn moments(row: &[f32], epsilon: f64) -> (f32, f32) {
    let center = mean(row.iter().copied(), row.len());
    let variance = row.iter().map(|&x| (f64::from(x) - center).powi(2)).sum::<f64>() / row.len() as f64;
    (center as f32, (1.0 / (variance + epsilon).sqrt()) as f32)
}

fn layer_norm_gradient(a: &Arguments) -> Planned {
    let (dy, x, weight) = (a.tensor("gradOut")?, a.tensor("input")?, a.optional("weight")?);
    let (means, rstd, mask) = (a.tensor("mean")?, a.tensor("rstd")?, a.bools("outputMask")?);
    let wanted =
        |place: usize, name| if mask.get(place) == Some(&true) { a.nullable(name) } else { Ok(None) };
    let (dx, dweight, dbias) =
        (wanted(0, "gradInputOut")?, wanted(1, "gradWeightOut")?, wanted(2, "gradBiasOut")?);
    let width = normalized_width(a, &x)?;
    dy.must_have(&x.shape)?;
    kernel_with_workspace(x.len(), move |run| {
        let (dy, x, means, rstd) =
            (run.floats(&dy)?, run.floats(&x)?, run.floats(&means)?, run.floats(&rstd)?);
        let weight = vector(run, &weight, width, 1.0)?;
        let (mut gradient, mut to_weight, mut to_bias) =
            (Vec::with_capacity(x.len()), vec![0.0f64; width], vec![0.0f64; width]);
        for (row, (dy, x)) in dy.chunks(width).zip(x.chunks(width)).enumerate() {
            let normal = |x: f32| (x - means[row]) * rstd[row];
            let c1 = mean(dy.iter().zip(&weight).map(|(dy, w)| dy * w), width) as f32;
            let c2 =
                mean(dy.iter().zip(&weight).zip(x).map(|((dy, w), &x)| dy * w * normal(x)), width) as f32;
            for (column, (&dy, &x)) in dy.iter().zip(x).enumerate() {
                gradient.push(rstd[row] * (dy * weight[column] - c1 - normal(x) * c2));
                to_weight[column] += f64::from(dy * normal(x));
                to_bias[column] += f64::from(dy);
            }
        }
        if let Some(dx) = &dx {
            run.store(dx, &gradient)?;
        }
        for (place, sums) in [(&dweight, &to_weight), (&dbias, &to_bias)] {
            if let Some(place) = place {
                run.store_doubles(place, sums)?;
            }
        }
        Ok(())
    })
}

fn group_norm(a: &Arguments) -> Planned {
    let (x, weight, bias) = (a.tensor("self_")?, a.optional("gamma")?, a.optional("beta")?);
    let (out, means_out, rstd_out) = (a.tensor("out")?, a.tensor("meanOut")?, a.tensor("rstdOut")?);
    let size = |name| a.integer(name).map(|size| size.max(1) as usize);
    let (batch, channels, pixels, groups) = (size("N")?, size("C")?, size("HxW")?, size("group")?);
    let epsilon = a.float("eps")?;
    if x.len() != batch * channels * pixels || channels % groups != 0 {
        return Err(
            x.refuse(format!("does not hold {batch}·{channels}·{pixels} elements in {groups} groups"))
        );
    }
    out.must_have(&x.shape)?;
    let flat = vec![batch * groups];
    let flat = |place: Operand| place.view(flat.clone(), contiguous(&flat), place.offset);
    let (means_out, rstd_out) = (flat(means_out), flat(rstd_out));
    kernel_with_workspace(x.len(), move |run| {
        let values = run.floats(&x)?;
        let (weight, bias) = (vector(run, &weight, channels, 1.0)?, vector(run, &bias, channels, 0.0)?);
        let width = channels / groups * pixels;
        let (mut normal, mut means, mut factors) = (Vec::with_capacity(values.len()), Vec::new(), Vec::new());
        for (group, row) in values.chunks(width).enumerate() {
            let (center, factor) = moments(row, epsilon);
            means.push(center);
            factors.push(factor);
            let first = group % groups * (channels / groups);
            normal.extend(row.iter().enumerate().map(|(place, x)| {
                let channel = first + place / pixels;
                (x - center) * factor * weight[channel] + bias[channel]
            }));
        }
        run.store(&out, &normal)?;
        run.store(&means_out, &means)?;
        run.store(&rstd_out, &factors)
    })
}
