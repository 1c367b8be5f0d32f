//! Initial state, drawn on the host from counter-based random bits so that it is the same everywhere.

use crate::philox;
use serde::{Deserialize, Serialize};

/// What a state value holds before the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "initial")]
pub enum Initial {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Independent normal numbers of mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

impl Initial {
    /// Draws `count` numbers for the value `name` of the run with `seed`. The same name and seed give the same
    /// numbers whatever else the program holds.
    pub fn draw(&self, seed: u64, name: &str, count: usize) -> Vec<f32> {
        match self {
            Initial::Zeros => vec![0.0; count],
            Initial::Ones => vec![1.0; count],
            Initial::Normal { std } => {
                let digest = blake3::hash(name.as_bytes());
                let word = |i: usize| {
                    let mut bytes = [0u8; 4];
                    bytes.copy_from_slice(&digest.as_bytes()[4 * i..4 * i + 4]);
                    u32::from_le_bytes(bytes)
                };
                let key = [seed as u32, (seed >> 32) as u32];
                let mut numbers = Vec::with_capacity(count + 3);
                let mut block = 0u64;
                while numbers.len() < count {
                    let bits = philox::block([block as u32, (block >> 32) as u32, word(0), word(1)], key);
                    numbers.extend(normal_pair(bits[0], bits[1]).map(|z| (z * std) as f32));
                    numbers.extend(normal_pair(bits[2], bits[3]).map(|z| (z * std) as f32));
                    block += 1;
                }
                numbers.truncate(count);
                numbers
            }
        }
    }
}

/// Box and Muller (1958): two uniform words give two independent standard normal numbers.
fn normal_pair(first: u32, second: u32) -> [f64; 2] {
    let uniform = |bits: u32| (f64::from(bits) + 0.5) / 4_294_967_296.0;
    let radius = (-2.0 * uniform(first).ln()).sqrt();
    let angle = 2.0 * std::f64::consts::PI * uniform(second);
    [radius * angle.cos(), radius * angle.sin()]
}
