//! What each mutant does to an operator's outputs.

use super::recompute::{self, Slip};
use super::{Mutant, Scene, is_bf16};
use half::{bf16, f16};
use toprope_program::operator::{ActivationKind, Operator};
use toprope_program::tensor::round;
use toprope_program::{DType, Tensor};

const SMALLEST_NORMAL: f64 = 1.175_494_350_822_287_5e-38;

fn set(output: &mut Tensor, data: Vec<f64>) {
    output.data = data.into_iter().map(|x| round(output.dtype, x)).collect();
}

fn flush(output: &mut Tensor) {
    output.data.iter_mut().filter(|x| x.abs() < SMALLEST_NORMAL).for_each(|x| *x = 0.0);
}

/// Moves a number by one unit in its last place.
fn next(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::Bf16 => bf16::from_bits(bf16::from_f64(x).to_bits() ^ 1).to_f64(),
        _ => f64::from(f32::from_bits((x as f32).to_bits() ^ 1)),
    }
}

fn columns(tensor: &Tensor) -> usize {
    tensor.sizes.last().copied().unwrap_or(1).max(1)
}

/// Changes the outputs as the mutant would.
pub(super) fn corrupt(mutant: Mutant, scene: &Scene<'_>, outputs: &mut [Tensor]) {
    let operands = scene.operands;
    match mutant {
        Mutant::BfloatAccumulation => {
            let data = recompute::product(&operands[0], &operands[1], usize::MAX, |x| round(DType::Bf16, x));
            with_bias(operands, data, &mut outputs[0]);
        }
        Mutant::HalfAccumulation => {
            let keep = |x: f64| f16::from_f64(x).to_f64();
            let data = recompute::grouped(&operands[0], &operands[1], &operands[2], keep);
            set(&mut outputs[0], data);
        }
        Mutant::DroppedTailColumns => {
            let columns = columns(&outputs[0]);
            let kept = columns / 16 * 16;
            let tail = |at: usize| at % columns >= kept;
            outputs[0].data.iter_mut().enumerate().filter(|(at, _)| tail(*at)).for_each(|(_, x)| *x = 0.0);
        }
        Mutant::DroppedLastTerms => {
            let terms = operands[0].sizes[1] / 8 * 8;
            let data = recompute::product(&operands[0], &operands[1], terms, |x| x);
            with_bias(operands, data, &mut outputs[0]);
        }
        Mutant::RowSumsOfRoundedProduct => {
            if outputs.len() > 1 && is_bf16(&outputs[0]) && operands.len() == 2 {
                let columns = columns(&outputs[0]);
                let sums = outputs[0].data.chunks(columns).map(|row| row.iter().sum()).collect();
                set(&mut outputs[1], sums);
            }
        }
        Mutant::BiasTwice => {
            if let Some(bias) = operands.get(2) {
                let columns = columns(&outputs[0]);
                let twice = outputs[0].data.iter().enumerate().map(|(at, y)| y + bias.data[at % columns]);
                let data = twice.collect();
                set(&mut outputs[0], data);
            }
        }
        Mutant::MaskOffByOne => slip(scene, outputs, Slip::OneKeyMore),
        Mutant::SegmentStartIgnored => slip(scene, outputs, Slip::NoSegments),
        Mutant::ScaleSwapped => slip(scene, outputs, Slip::OtherScale),
        Mutant::HeadsInterleaved => slip(scene, outputs, Slip::HeadsInTurn),
        Mutant::CacheLengthIgnored => slip(scene, outputs, Slip::NoCacheLength),
        Mutant::BlindRowsNotZeroed => {
            let width = columns(&outputs[0]);
            for row in 0..outputs[1].data.len() {
                if outputs[1].data[row] == f64::NEG_INFINITY {
                    outputs[0].data[row * width..(row + 1) * width].fill(f64::NAN);
                }
            }
        }
        Mutant::FirstQueryMissing => {
            // The first query of a document sees its own key alone, with probability 1.
            let (group, width) = (operands[0].sizes[1] / operands[1].sizes[1], operands[2].sizes[2]);
            if operands[6].data[0] <= 0.0 {
                for head in 0..operands[1].sizes[1] {
                    for d in 0..width {
                        let terms = (0..group).map(|g| operands[5].data[(head * group + g) * width + d]);
                        outputs[2].data[head * width + d] -= terms.sum::<f64>();
                    }
                }
                let data = std::mem::take(&mut outputs[2].data);
                set(&mut outputs[2], data);
            }
        }
        Mutant::StaleOutput => {
            if let Some(previous) = scene.previous {
                outputs.clone_from_slice(previous);
            }
        }
        Mutant::SubnormalsFlushedInMultiply => flush(&mut outputs[0]),
        Mutant::SubnormalsFlushedInAdamw => outputs[1..3].iter_mut().for_each(flush),
        Mutant::SaturatingCast => {
            let largest = if is_bf16(&outputs[0]) { bf16::MAX.to_f64() } else { f64::from(f32::MAX) };
            let infinite = outputs[0].data.iter_mut().filter(|x| x.is_infinite());
            infinite.for_each(|x| *x = largest.copysign(*x));
        }
        Mutant::TruncatingCast => {
            if is_bf16(&outputs[0]) {
                let cut = |x: f64| f64::from(f32::from_bits((x as f32).to_bits() & 0xFFFF_0000));
                outputs[0].data =
                    operands[0].data.iter().map(|x| if x.is_nan() { *x } else { cut(*x) }).collect();
            }
        }
        Mutant::AllNan => outputs[0].data.fill(f64::NAN),
        Mutant::AllZero => outputs[0].data.fill(0.0),
        Mutant::StuckLane => {
            let count = outputs[0].data.len();
            outputs[0].data[4.min(count)..8.min(count)].fill(1.0);
        }
        Mutant::DiffersInRange => {
            if scene.in_range {
                flip_last_bit(&mut outputs[0]);
            }
        }
        Mutant::DiffersFromRunToRun => {
            if scene.turn.is_multiple_of(2) {
                flip_last_bit(&mut outputs[0]);
            }
        }
        Mutant::WrongEpsilon => {
            if let Operator::RmsNorm(norm) = scene.operator {
                let columns = columns(&operands[0]);
                for (row, x) in operands[0].data.chunks(columns).enumerate() {
                    let square = x.iter().map(|x| x * x).sum::<f64>() / columns as f64;
                    let rstd = 1.0 / (square + 10.0 * norm.epsilon).sqrt();
                    outputs[1].data[row] = round(DType::F32, rstd);
                    for (d, x) in x.iter().enumerate() {
                        let y = x * rstd * operands[1].data[d];
                        outputs[0].data[row * columns + d] = round(outputs[0].dtype, y);
                    }
                }
            }
        }
        Mutant::BiasCorrectionMissing => adamw(scene, outputs, true, false),
        Mutant::WeightDecayCoupled => adamw(scene, outputs, false, true),
        Mutant::DigestOfOldState => {
            if outputs.len() > 3 {
                outputs[3].data = digest_of([0, 2, 3].map(|index: usize| &operands[index]));
            }
        }
        Mutant::DoubledWeightGradient => outputs[1].data.iter_mut().for_each(|x| *x *= 2.0),
        Mutant::FirstIgnored => {
            if scene.first {
                let sum = operands[0].data.iter().zip(&operands[1].data).map(|(a, b)| a + b).collect();
                set(&mut outputs[0], sum);
            }
        }
        Mutant::TiesToHigherIndex => route(scene, outputs, true, true, false),
        Mutant::GroupLimitIgnored => route(scene, outputs, false, false, false),
        Mutant::WeightsWithBias => route(scene, outputs, false, true, true),
        Mutant::RopePairsSwapped => {
            if let Operator::Rope(rope) = scene.operator {
                let data = recompute::rope(operands, rope.start, !rope.interleaved, rope.inverse);
                set(&mut outputs[0], data);
            }
        }
        Mutant::RopeSign => {
            if let Operator::Rope(rope) = scene.operator {
                let data = recompute::rope(operands, rope.start, rope.interleaved, !rope.inverse);
                set(&mut outputs[0], data);
            }
        }
        Mutant::EmptyExpertNotZeroed => {
            let one = outputs[0].sizes[1] * outputs[0].sizes[2];
            for expert in 0..outputs[0].sizes[0] {
                if operands[2].data[expert] == operands[2].data[expert + 1] {
                    outputs[0].data[expert * one..(expert + 1) * one].fill(0.5);
                }
            }
        }
        Mutant::ScatterOverwrites => {
            let (columns, rows) = (columns(&operands[0]), outputs[0].sizes[0]);
            for (at, index) in operands[1].data.iter().enumerate() {
                if *index >= 0.0 && (*index as usize) < rows {
                    for d in 0..columns {
                        let x = operands[0].data[at * columns + d];
                        outputs[0].data[*index as usize * columns + d] = round(outputs[0].dtype, x);
                    }
                }
            }
        }
        Mutant::ReluGradientAtZero => {
            if let Operator::ActivationGradient(activation) = scene.operator
                && activation.kind == ActivationKind::Relu
            {
                for (at, x) in operands[0].data.iter().enumerate().filter(|(_, x)| **x == 0.0) {
                    outputs[0].data[at] = x + round(outputs[0].dtype, operands[1].data[at]);
                }
            }
        }
        Mutant::GatherClamps => {
            let (rows, columns) = (operands[0].sizes[0], columns(&operands[0]));
            for (at, index) in operands[1].data.iter().enumerate() {
                let row = (index.max(0.0) as usize).min(rows - 1);
                for d in 0..columns {
                    let x = operands[0].data[row * columns + d];
                    outputs[0].data[at * columns + d] = round(outputs[0].dtype, x);
                }
            }
        }
        Mutant::NonFiniteNormPasses => {
            if !outputs[0].data[0].is_finite() {
                outputs[1].data[0] = 1.0;
            }
        }
        Mutant::BiasUpdateSign => {
            let moved = operands[0].data.iter().zip(&outputs[0].data).map(|(old, new)| 2.0 * old - new);
            let moved = moved.collect();
            set(&mut outputs[0], moved);
        }
        Mutant::StrayTargetCounts => {
            let (columns, vocabulary) = (columns(&operands[0]), operands[1].sizes[0] as f64);
            for (t, target) in operands[2].data.iter().enumerate() {
                if *target < 0.0 || *target >= vocabulary {
                    let logit = |d: usize| operands[0].data[t * columns + d] * operands[1].data[d];
                    let logit: f64 = (0..columns).map(logit).sum();
                    outputs[0].data[t] = round(DType::F32, outputs[1].data[t] - logit);
                }
            }
        }
        Mutant::TargetTermMissing => {
            let (columns, vocabulary) = (columns(&operands[0]), operands[1].sizes[0] as f64);
            for (t, target) in operands[2].data.iter().enumerate() {
                if (0.0..vocabulary).contains(target) {
                    for d in 0..columns {
                        let term = operands[3].data[t] * operands[0].data[t * columns + d];
                        outputs[2].data[*target as usize * columns + d] += term;
                    }
                }
            }
            let data = std::mem::take(&mut outputs[2].data);
            set(&mut outputs[2], data);
        }
        Mutant::UnstableSort => {
            let k = columns(&operands[0]);
            let offsets = outputs[2].data.clone();
            for expert in 0..offsets.len() - 1 {
                let (start, end) = (offsets[expert] as usize, offsets[expert + 1] as usize);
                outputs[0].data[start..end].reverse();
                for slot in &mut outputs[1].data {
                    let at = *slot as usize;
                    if (start..end).contains(&at) {
                        *slot = (start + end - 1 - at) as f64;
                    }
                }
            }
            debug_assert!(k > 0);
        }
        Mutant::AppendWraps => {
            let one: usize = operands[1].sizes[1..].iter().product();
            let position = operands[2].data[0] as usize;
            for t in 0..operands[1].sizes[0] {
                if position + t >= operands[0].sizes[0] {
                    let row = operands[1].data[t * one..(t + 1) * one].to_vec();
                    outputs[0].data[..one].copy_from_slice(&row);
                }
            }
        }
        Mutant::StreamIgnored => {
            let key = [operands[0].data[0] as u32, operands[0].data[1] as u32];
            let counter = operands[1].data[0] as u32;
            for (at, y) in outputs[0].data.iter_mut().enumerate() {
                let block = toprope_program::philox::block([(at / 4) as u32, 0, counter, 0], key);
                *y = f64::from(block[at % 4]);
            }
        }
        Mutant::CheckAlwaysPasses
        | Mutant::CompareAlwaysPasses
        | Mutant::AttentionCheckAlwaysPasses
        | Mutant::LossCheckAlwaysPasses
        | Mutant::VerifyAlwaysPasses
        | Mutant::UpdateDigestConstant
        | Mutant::DigestConstant => outputs[0].data.fill(0.0),
        Mutant::SumsAlwaysOne => outputs.iter_mut().skip(3).for_each(|sums| sums.data.fill(1.0)),
        // These two act on the device, not on values.
        Mutant::WritesBehindOutput | Mutant::RefusesInRun => {}
    }
}

fn with_bias(operands: &[Tensor], data: Vec<f64>, output: &mut Tensor) {
    let columns = columns(output);
    let bias = |at: usize| operands.get(2).map_or(0.0, |bias| bias.data[at % columns]);
    let data = data.into_iter().enumerate().map(|(at, y)| y + bias(at)).collect();
    set(output, data);
}

fn flip_last_bit(output: &mut Tensor) {
    let dtype = output.dtype;
    if let Some(x) = output.data.iter_mut().find(|x| x.is_finite()) {
        *x = next(dtype, *x);
    }
}

fn slip(scene: &Scene<'_>, outputs: &mut [Tensor], slip: Slip) {
    if let Operator::Attention(attention) = scene.operator {
        let (out, lse) = recompute::attention(attention, scene.operands, slip);
        set(&mut outputs[0], out);
        set(&mut outputs[1], lse);
    }
}

fn route(scene: &Scene<'_>, outputs: &mut [Tensor], higher: bool, grouped: bool, biased_weights: bool) {
    if let Operator::Router(router) = scene.operator {
        let [indices, weights, counts] =
            recompute::router(router, &scene.operands[1], &outputs[0], higher, grouped, biased_weights);
        set(&mut outputs[1], indices);
        set(&mut outputs[2], weights);
        set(&mut outputs[3], counts);
    }
}

fn adamw(scene: &Scene<'_>, outputs: &mut [Tensor], uncorrected: bool, coupled: bool) {
    let Operator::Adamw(adamw) = scene.operator else { return };
    let operands = scene.operands;
    let (factor, rates) = (operands[4].data[0], &operands[5].data);
    let (c1, c2) = if uncorrected { (1.0, 1.0) } else { (rates[1], rates[2]) };
    for at in 0..operands[0].data.len() {
        let w = operands[0].data[at];
        let decay = adamw.weight_decay * w;
        let g = operands[1].data[at] * factor + if coupled { decay } else { 0.0 };
        let m = adamw.beta1 * operands[2].data[at] + (1.0 - adamw.beta1) * g;
        let v = adamw.beta2 * operands[3].data[at] + (1.0 - adamw.beta2) * g * g;
        let step = rates[0] * ((m / c1) / ((v / c2).sqrt() + adamw.epsilon));
        let kept = if coupled { w } else { w - rates[0] * decay };
        outputs[0].data[at] = round(DType::F32, kept - step);
        outputs[1].data[at] = round(DType::F32, m);
        outputs[2].data[at] = round(DType::F32, v);
    }
    if outputs.len() > 3 {
        outputs[3].data = digest_of([&outputs[0], &outputs[1], &outputs[2]]);
    }
}

/// The digest of f32 tensors, as its two words.
fn digest_of(tensors: [&Tensor; 3]) -> Vec<f64> {
    let elements = tensors.into_iter().flat_map(|tensor| tensor.data.iter().enumerate());
    let sum = elements.fold(0u64, |sum, (index, x)| {
        sum.wrapping_add(toprope_program::operator::digest_mix((*x as f32).to_bits(), index as u64))
    });
    vec![(sum & 0xFFFF_FFFF) as f64, (sum >> 32) as f64]
}
