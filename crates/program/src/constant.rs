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
    /// 0, `step`, 2 · `step`, …, row-major.
    Ramp {
        /// The distance of neighbours.
        step: f64,
    },
    /// Cosines and sines for rotary embedding: `f32[positions, 2, dim / 2]`, row 0 cosines, row 1 sines.
    Rope(Rope),
}

/// Rotary frequencies (RoFormer, section 3.2.2), stretched where the context was extended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Rope {
    /// The base of the frequencies, `theta_i = base^(-2i/dim)`.
    pub base: f64,
    /// How frequencies are stretched for a longer context.
    pub stretch: Option<Stretch>,
}

/// A way to stretch rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum Stretch {
    /// All frequencies are divided by one factor (Chen et al., arXiv 2306.15595, equation 4).
    Linear(f64),
    /// By wavelength, as Llama 3.1 was trained.
    Llama3(Llama3),
    /// YaRN (arXiv 2309.00071, section 3).
    Yarn(Yarn),
}

/// How frequencies are written: a key for each way to stretch, at most one of them there.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    base: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    linear: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    llama3: Option<Llama3>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    yarn: Option<Yarn>,
}

impl From<Rope> for Written {
    fn from(rope: Rope) -> Written {
        let mut written = Written { base: rope.base, linear: None, llama3: None, yarn: None };
        match rope.stretch {
            None => {}
            Some(Stretch::Linear(factor)) => written.linear = Some(factor),
            Some(Stretch::Llama3(llama3)) => written.llama3 = Some(llama3),
            Some(Stretch::Yarn(yarn)) => written.yarn = Some(yarn),
        }
        written
    }
}

impl TryFrom<Written> for Rope {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Rope, &'static str> {
        let stretch = match (written.linear, written.llama3, written.yarn) {
            (None, None, None) => None,
            (Some(factor), None, None) => Some(Stretch::Linear(factor)),
            (None, Some(llama3), None) => Some(Stretch::Llama3(llama3)),
            (None, None, Some(yarn)) => Some(Stretch::Yarn(yarn)),
            _ => return Err("frequencies are stretched in one way: linear, llama3 or yarn"),
        };
        Ok(Rope { base: written.base, stretch })
    }
}

/// Llama 3.1: frequencies of long waves are divided, those of short waves kept, with a ramp between (its published
/// `apply_scaling`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3 {
    /// What frequencies of long waves are divided by.
    pub factor: f64,
    /// Waves that turn fewer times than this within the original context are long.
    pub low_frequency_factor: f64,
    /// Waves that turn more often than this are short; above `low_frequency_factor`.
    pub high_frequency_factor: f64,
    /// Context length of the pretraining.
    pub original_positions: f64,
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
    /// The magnitude of the table itself, where it is given rather than computed from the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub magnitude: Option<f64>,
    /// Whether the ramp's ends are moved outwards to whole dimensions, as the paper's code does.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub truncate: bool,
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
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
        match &self.stretch {
            None => (0..half).map(plain).collect(),
            Some(Stretch::Linear(factor)) => (0..half).map(|i| plain(i) / factor).collect(),
            Some(Stretch::Llama3(llama3)) => (0..half).map(|i| llama3.stretched(plain(i))).collect(),
            Some(Stretch::Yarn(yarn)) => {
                let (low, high) = yarn.ramp(self.base, dim);
                let width = if high == low { 0.001 } else { high - low };
                let stretched = |i: usize| {
                    let interpolated = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    plain(i) / yarn.factor * interpolated + plain(i) * (1.0 - interpolated)
                };
                (0..half).map(stretched).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn magnitude(&self) -> f64 {
        let Some(Stretch::Yarn(yarn)) = &self.stretch else { return 1.0 };
        yarn.magnitude.unwrap_or_else(|| {
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

impl Llama3 {
    fn stretched(&self, frequency: f64) -> f64 {
        let turns = self.original_positions * frequency / (2.0 * std::f64::consts::PI);
        let (low, high) = (self.low_frequency_factor, self.high_frequency_factor);
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        frequency / self.factor * (1.0 - kept) + frequency * kept
    }
}

impl Yarn {
    /// The dimensions between which the ramp rises.
    fn ramp(&self, base: f64, dim: usize) -> (f64, f64) {
        // The dimension whose wave turns `rotations` times within the original context.
        let dimension = |rotations: f64| {
            dim as f64 * (self.original_positions / (rotations * 2.0 * std::f64::consts::PI)).ln()
                / (2.0 * base.ln())
        };
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low.max(0.0), high.min(dim as f64 - 1.0))
    }
}

impl Content {
    /// The numbers, row-major, for the given sizes.
    pub fn values(&self, sizes: &[usize]) -> Vec<f64> {
        match self {
            Content::Splat { value } => vec![*value; crate::shape::elements(sizes)],
            Content::Ramp { step } => {
                (0..crate::shape::elements(sizes)).map(|index| index as f64 * step).collect()
            }
            Content::Rope(rope) => match sizes {
                [positions, 2, half] => rope.table(*positions, 2 * half),
                _ => Vec::new(),
            },
        }
    }
}
