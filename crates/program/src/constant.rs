//! What constants hold, described so that the host can write them for any device and the program's hash covers them.

use serde::{Deserialize, Serialize};

/// The content of a constant value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "content")]
pub enum Content {
    /// One number everywhere.
    Splat {
        /// The number, rounded to the dtype.
        value: f64,
    },
    /// Cosines and sines for rotary embedding: `f32[positions, 2, dim / 2]`, row 0 cosines, row 1 sines.
    Rope(Rope),
}

/// Rotary frequencies (RoFormer, section 3.2.2) with optional YaRN scaling (arXiv 2309.00071, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// The base of the frequencies, `theta_i = base^(-2i/dim)`.
    pub base: f64,
    /// How frequencies are stretched for a longer context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yarn: Option<Yarn>,
}

/// YaRN: low frequencies are interpolated, high ones kept, with a ramp between.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Yarn {
    /// Context extension factor, `s` in the paper.
    pub factor: f64,
    /// Context length of the pretraining, `L` in the paper.
    pub original_positions: f64,
    /// Rotations at which the ramp ends, `beta` in the paper.
    pub beta_fast: f64,
    /// Rotations at which the ramp begins, `alpha` in the paper.
    pub beta_slow: f64,
    /// Weight of the magnitude correction on the table.
    pub mscale: f64,
    /// Weight of the magnitude correction over all dimensions.
    pub mscale_all_dim: f64,
}

/// `0.1 · mscale · ln(factor) + 1`, and 1 where nothing is stretched (YaRN, section 3.4, DeepSeek's form).
pub fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl Rope {
    /// Angles per position, in radians: `dim / 2` of them, in f64.
    pub fn frequencies(&self, dim: usize) -> Vec<f64> {
        let half = dim / 2;
        let plain = |i: usize| self.base.powf(-(2.0 * i as f64) / dim as f64);
        let Some(yarn) = &self.yarn else { return (0..half).map(plain).collect() };
        // The dimension whose wave turns `rotations` times within the original context.
        let dimension = |rotations: f64| {
            dim as f64 * (yarn.original_positions / (rotations * 2.0 * std::f64::consts::PI)).ln()
                / (2.0 * self.base.ln())
        };
        let low = dimension(yarn.beta_fast).floor().max(0.0);
        let high = dimension(yarn.beta_slow).ceil().min(dim as f64 - 1.0);
        let width = if high == low { 0.001 } else { high - low };
        (0..half)
            .map(|i| {
                let interpolated = ((i as f64 - low) / width).clamp(0.0, 1.0);
                plain(i) / yarn.factor * interpolated + plain(i) * (1.0 - interpolated)
            })
            .collect()
    }

    /// What cosines and sines are multiplied by.
    pub fn magnitude(&self) -> f64 {
        self.yarn.as_ref().map_or(1.0, |yarn| {
            yarn_magnitude(yarn.factor, yarn.mscale) / yarn_magnitude(yarn.factor, yarn.mscale_all_dim)
        })
    }

    /// The whole table, `[positions, 2, dim / 2]`.
    pub fn table(&self, positions: usize, dim: usize) -> Vec<f64> {
        let (frequencies, magnitude) = (self.frequencies(dim), self.magnitude());
        let mut table = Vec::with_capacity(positions * dim);
        for position in 0..positions {
            let angle = |frequency: &f64| position as f64 * frequency;
            table.extend(frequencies.iter().map(|f| angle(f).cos() * magnitude));
            table.extend(frequencies.iter().map(|f| angle(f).sin() * magnitude));
        }
        table
    }
}

impl Content {
    /// The numbers, row-major, for the given sizes.
    pub fn values(&self, sizes: &[usize]) -> Vec<f64> {
        match self {
            Content::Splat { value } => vec![*value; crate::shape::elements(sizes)],
            Content::Rope(rope) => match sizes {
                [positions, 2, half] => rope.table(*positions, 2 * half),
                _ => Vec::new(),
            },
        }
    }
}
