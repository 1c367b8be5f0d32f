//! What a fault does to a step: to its loss, and to what the step changes the state by.

use crate::scene::{Frozen, Named, Outcome};
use serde::Serialize;
use std::collections::BTreeMap;
use toprope_program::DType;

/// A loss that is off by more, relatively, is harm.
pub const LOSS_HARM: f64 = 1e-3;

/// A tensor's update that is off by more, relative to its norm, is harm.
pub const UPDATE_HARM: f64 = 1e-2;

/// Smaller tensors are judged together: one element of a norm's gain must not decide.
pub const POOLED_BELOW: usize = 1024;

/// What a step changes each group of tensors by.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// By group: the norm of the change.
    norms: BTreeMap<String, f64>,
}

/// The group that a tensor is judged in: its own, or the pool of its kind.
fn group(named: &Named) -> String {
    let elements: usize = named.sizes.iter().product();
    if elements >= POOLED_BELOW {
        return named.name.clone();
    }
    let kind = named.name.rsplit('.').next().filter(|kind| ["m", "v"].contains(kind)).unwrap_or("weights");
    format!("small {kind}")
}

fn floats(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::Bf16 => bytes
            .chunks_exact(2)
            .map(|b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)))
            .collect(),
        _ => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
    }
}

/// Σ (a - b)² by group, of the float tensors.
fn distances(states: &[Named], a: &[Vec<u8>], b: &[Vec<u8>]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for ((named, a), b) in states.iter().zip(a).zip(b).filter(|((named, _), _)| named.dtype.is_float()) {
        let sum = sums.entry(group(named)).or_default();
        if a != b {
            let (a, b) = (floats(a, named.dtype), floats(b, named.dtype));
            *sum += a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        }
    }
    sums
}

impl Change {
    /// What two states differ by.
    pub fn between(states: &[Named], from: &[Vec<u8>], to: &[Vec<u8>]) -> Change {
        let sums = distances(states, to, from);
        Change { norms: sums.into_iter().map(|(group, sum)| (group, sum.sqrt())).collect() }
    }

    /// The largest distance of two states, relative to this change, and the group that it is in. Infinite where a number
    /// is not one; a group that does not change at all is off by any difference.
    pub fn distance(&self, states: &[Named], a: &[Vec<u8>], b: &[Vec<u8>]) -> (f64, String) {
        let mut worst = (0.0, String::new());
        for (group, sum) in distances(states, a, b) {
            let norm = self.norms.get(&group).copied().unwrap_or(0.0);
            let distance = if sum == 0.0 { 0.0 } else { sum.sqrt() / norm };
            let distance = if distance.is_nan() { f64::INFINITY } else { distance };
            if distance > worst.0 {
                worst = (distance, group);
            }
        }
        worst
    }
}

/// What a fault did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Harm {
    /// Relative distance of the loss.
    pub loss: f64,
    /// Largest distance of a tensor's update, relative to its norm.
    pub update: f64,
    /// The tensor, or the pool of small ones.
    pub tensor: String,
    /// Whether a counter of the state is wrong.
    pub counters: bool,
}

impl Harm {
    /// What a step with a fault did, seen from the clean one.
    pub fn of(states: &[Named], frozen: &Frozen, outcome: &Outcome) -> Harm {
        let clean = &frozen.clean;
        let loss = ((outcome.loss - clean.loss) / clean.loss).abs();
        let (update, tensor) = frozen.change.distance(states, &outcome.next, &clean.next);
        let differ = |(named, (a, b)): (&Named, (&Vec<u8>, &Vec<u8>))| !named.dtype.is_float() && a != b;
        let counters = states.iter().zip(outcome.next.iter().zip(&clean.next)).any(differ);
        Harm { loss: if loss.is_nan() { f64::INFINITY } else { loss }, update, tensor, counters }
    }

    /// Whether it matters.
    pub fn is_harmful(&self) -> bool {
        self.loss > LOSS_HARM || self.update > UPDATE_HARM || self.counters
    }
}
