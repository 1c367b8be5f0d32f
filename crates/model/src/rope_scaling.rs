//! How rotary frequencies are stretched, with Hugging Face's key names, and what that means for the computation.

use crate::config::validate::{positive, size};
use crate::error::{ModelError, key};
use serde::{Deserialize, Serialize};
use toprope_program::constant::{Llama3, Rope, Stretch, Yarn, yarn_magnitude};

/// The published `rope_scaling`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// `linear`, `llama3` or `yarn`.
    #[serde(rename = "type", alias = "rope_type")]
    pub kind: String,
    /// Context extension factor.
    pub factor: f64,
    /// The context length of the pretraining; for `llama3` and `yarn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
    /// `yarn`: rotations above which a frequency is kept; 32 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_fast: Option<f64>,
    /// `yarn`: rotations below which a frequency is interpolated; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_slow: Option<f64>,
    /// `yarn`: weight of the magnitude correction on cosines and sines; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f64>,
    /// `yarn`: weight of the magnitude correction on attention's scale; 0 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f64>,
    /// `yarn`: what cosines and sines are multiplied by, where it does not follow from the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// `yarn`: whether the ramp ends at whole dimensions; true where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
    /// `llama3`: rotations below which a frequency is divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_freq_factor: Option<f64>,
    /// `llama3`: rotations above which a frequency is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_freq_factor: Option<f64>,
}

/// Keys that only one kind reads.
const YARN_KEYS: [&str; 6] = [
    "rope_scaling.beta_fast",
    "rope_scaling.beta_slow",
    "rope_scaling.mscale",
    "rope_scaling.mscale_all_dim",
    "rope_scaling.attention_factor",
    "rope_scaling.truncate",
];
const LLAMA3_KEYS: [&str; 2] = ["rope_scaling.low_freq_factor", "rope_scaling.high_freq_factor"];
const ORIGINAL: &str = "rope_scaling.original_max_position_embeddings";

impl RopeScaling {
    /// Checks each key, and that every key which is given is read by the kind.
    pub(crate) fn validate(&self) -> Result<(), ModelError> {
        if !["linear", "llama3", "yarn"].contains(&self.kind.as_str()) {
            return Err(key(
                "rope_scaling.type",
                format!("is \"{}\"", self.kind),
                "only \"linear\", \"llama3\" and \"yarn\" are supported",
            ));
        }
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            return Err(key("rope_scaling.factor", format!("is {}", self.factor), "it must be at least 1"));
        }
        let yarn = [
            self.beta_fast.is_some(),
            self.beta_slow.is_some(),
            self.mscale.is_some(),
            self.mscale_all_dim.is_some(),
            self.attention_factor.is_some(),
            self.truncate.is_some(),
        ];
        let llama3 = [self.low_freq_factor.is_some(), self.high_freq_factor.is_some()];
        let given = YARN_KEYS.into_iter().zip(yarn).map(|(key, given)| (key, "yarn", given));
        let given =
            given.chain(LLAMA3_KEYS.into_iter().zip(llama3).map(|(key, given)| (key, "llama3", given)));
        for (name, kind, given) in given {
            if given && self.kind != kind {
                let reason = format!("is given, and the kind is \"{}\"", self.kind);
                return Err(key(name, reason, format!("only \"{kind}\" reads it; remove it")));
            }
        }
        match (self.kind.as_str(), self.original_max_position_embeddings) {
            ("linear", _) => return Ok(()),
            (_, Some(positions)) => size(ORIGINAL, positions)?,
            (kind, None) => {
                return Err(key(
                    ORIGINAL,
                    "is missing",
                    format!("\"{kind}\" needs the pretraining's context"),
                ));
            }
        }
        if self.kind == "llama3" { self.validate_llama3() } else { self.validate_yarn() }
    }

    fn validate_llama3(&self) -> Result<(), ModelError> {
        let [low, high] = [self.low_freq_factor, self.high_freq_factor].map(|x| x.unwrap_or(f64::NAN));
        positive(LLAMA3_KEYS[0], low)?;
        positive(LLAMA3_KEYS[1], high)?;
        if high <= low {
            let reason = format!("is {high}, not above low_freq_factor {low}");
            return Err(key(LLAMA3_KEYS[1], reason, "short waves turn more often; exchange them"));
        }
        Ok(())
    }

    fn validate_yarn(&self) -> Result<(), ModelError> {
        let (fast, slow) = (self.beta_fast(), self.beta_slow());
        positive("rope_scaling.beta_slow", slow)?;
        positive("rope_scaling.beta_fast", fast)?;
        if fast < slow {
            return Err(key(
                "rope_scaling.beta_fast",
                format!("is {fast}, below beta_slow {slow}"),
                "the fast end of the ramp has more rotations; exchange them",
            ));
        }
        for (name, value) in
            [("rope_scaling.mscale", self.mscale()), ("rope_scaling.mscale_all_dim", self.mscale_all_dim())]
        {
            if !(value.is_finite() && value >= 0.0) {
                return Err(key(name, format!("is {value}"), "it must not be negative"));
            }
        }
        self.attention_factor.map_or(Ok(()), |factor| positive("rope_scaling.attention_factor", factor))
    }

    fn beta_fast(&self) -> f64 {
        self.beta_fast.unwrap_or(32.0)
    }

    fn beta_slow(&self) -> f64 {
        self.beta_slow.unwrap_or(1.0)
    }

    fn mscale(&self) -> f64 {
        self.mscale.unwrap_or(1.0)
    }

    fn mscale_all_dim(&self) -> f64 {
        self.mscale_all_dim.unwrap_or(0.0)
    }

    fn stretch(&self) -> Stretch {
        let original_positions = self.original_max_position_embeddings.unwrap_or(1) as f64;
        match self.kind.as_str() {
            "linear" => Stretch::Linear(self.factor),
            "llama3" => Stretch::Llama3(Llama3 {
                factor: self.factor,
                low_frequency_factor: self.low_freq_factor.unwrap_or(1.0),
                high_frequency_factor: self.high_freq_factor.unwrap_or(4.0),
                original_positions,
            }),
            _ => {
                // As transformers has it: the two weights count together or not at all.
                let (mscale, mscale_all_dim) = match (self.mscale(), self.mscale_all_dim()) {
                    (mscale, all) if mscale != 0.0 && all != 0.0 => (mscale, all),
                    _ => (1.0, 0.0),
                };
                Stretch::Yarn(Yarn {
                    factor: self.factor,
                    original_positions,
                    beta_fast: self.beta_fast(),
                    beta_slow: self.beta_slow(),
                    mscale,
                    mscale_all_dim,
                    magnitude: self.attention_factor,
                    truncate: self.truncate.unwrap_or(true),
                })
            }
        }
    }

    /// What DeepSeek's attention scores are multiplied by beside `1/√d`: YaRN's magnitude squared, where
    /// `mscale_all_dim` is set (its published modelling code).
    pub(crate) fn score_magnitude(&self) -> f64 {
        let magnitude = match self.mscale_all_dim() {
            0.0 => 1.0,
            weight => yarn_magnitude(self.factor, weight),
        };
        magnitude * magnitude
    }
}

/// What rotary tables hold.
pub(crate) fn rope(base: f64, scaling: Option<&RopeScaling>) -> Rope {
    Rope { base, stretch: scaling.map(RopeScaling::stretch) }
}

/// Checks the base of the frequencies and how they are stretched.
pub(crate) fn validate(base: f64, scaling: Option<&RopeScaling>) -> Result<(), ModelError> {
    positive("rope_theta", base)?;
    if base <= 1.0 {
        return Err(key("rope_theta", format!("is {base}"), "it must be above 1"));
    }
    scaling.map_or(Ok(()), RopeScaling::validate)
}
