//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// The shape of the curve behind the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// Stays.
    Constant,
    /// Half a cosine down to the smallest rate (Loshchilov and Hutter, arXiv 1608.03983).
    #[default]
    Cosine,
    /// Warm-up, stable, decay (MiniCPM, arXiv 2404.06395).
    Wsd,
}

/// How the last steps of `wsd` go down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// In a straight line.
    Linear,
    /// By one minus the root of the part that is done (Hägele et al., arXiv 2405.18392).
    #[default]
    Sqrt,
}

/// The recipe's `[schedule]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The shape.
    #[serde(default)]
    pub kind: Curve,
    /// The largest rate.
    pub learning_rate: f64,
    /// Steps in which the rate grows in a straight line; a run that is shorter than that ends on the way up.
    #[serde(default)]
    pub warmup_steps: u64,
    /// The smallest rate behind the warm-up, as a part of the largest.
    #[serde(default = "min_ratio")]
    pub min_ratio: f64,
    /// For `wsd`: the last steps, in which the rate goes down; a fifth of all where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// For `wsd`: how.
    #[serde(default)]
    pub decay: Decay,
}

fn min_ratio() -> f64 {
    0.1
}

/// What is wrong with a `[schedule]` table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ScheduleError {
    /// The key.
    pub key: &'static str,
    /// What it may be.
    pub reason: String,
}

/// A schedule over a fixed number of steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    config: ScheduleConfig,
    steps: u64,
}

impl Schedule {
    /// The schedule of a run of `steps`.
    ///
    /// # Errors
    /// The key that is wrong.
    pub fn new(config: &ScheduleConfig, steps: u64) -> Result<Schedule, ScheduleError> {
        let fail = |key, reason: String| Err(ScheduleError { key, reason });
        if !(config.learning_rate.is_finite() && config.learning_rate > 0.0) {
            return fail("learning_rate", format!("{} must be positive", config.learning_rate));
        }
        if !(0.0..=1.0).contains(&config.min_ratio) {
            return fail("min_ratio", format!("{} must lie in 0..=1", config.min_ratio));
        }
        if config.decay_steps.is_some_and(|decay| decay > steps.saturating_sub(config.warmup_steps)) {
            let left = steps.saturating_sub(config.warmup_steps);
            return fail("decay_steps", format!("more than the {left} steps behind the warm-up"));
        }
        Ok(Schedule { config: config.clone(), steps })
    }

    /// The rate of a step, counted from 0; the first one is above 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let ScheduleConfig { learning_rate, warmup_steps, min_ratio, .. } = self.config;
        if step < warmup_steps {
            return learning_rate * (step + 1) as f64 / warmup_steps as f64;
        }
        let between = |part: f64| learning_rate * (min_ratio + (1.0 - min_ratio) * part);
        let (behind, length) = (step - warmup_steps, self.steps.saturating_sub(warmup_steps));
        match self.config.kind {
            Curve::Constant => learning_rate,
            Curve::Cosine => {
                let done = (behind as f64 / length.max(1) as f64).min(1.0);
                between(0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
            }
            Curve::Wsd => {
                let decay = self.config.decay_steps.unwrap_or(self.steps / 5).min(length);
                let stable = length - decay;
                if behind < stable {
                    return learning_rate;
                }
                let done = ((behind - stable) as f64 / decay.max(1) as f64).min(1.0);
                between(match self.config.decay {
                    Decay::Linear => 1.0 - done,
                    Decay::Sqrt => 1.0 - done.sqrt(),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: Curve) -> ScheduleConfig {
        ScheduleConfig {
            kind,
            learning_rate: 2.0,
            warmup_steps: 4,
            min_ratio: 0.1,
            decay_steps: None,
            decay: Decay::Linear,
        }
    }

    #[test]
    fn warms_up_and_comes_down_to_the_smallest() {
        for kind in [Curve::Constant, Curve::Cosine, Curve::Wsd] {
            let schedule = Schedule::new(&config(kind), 24).unwrap();
            assert_eq!(schedule.learning_rate(0), 0.5);
            assert_eq!(schedule.learning_rate(3), 2.0);
            assert_eq!(schedule.learning_rate(4), 2.0);
            let rates: Vec<f64> = (4..24).map(|step| schedule.learning_rate(step)).collect();
            assert!(rates.windows(2).all(|pair| pair[1] <= pair[0]), "{kind:?} {rates:?}");
            let last = schedule.learning_rate(24);
            assert!(
                (last - if kind == Curve::Constant { 2.0 } else { 0.2 }).abs() < 1e-12,
                "{kind:?} {last}"
            );
        }
        assert_eq!(Schedule::new(&config(Curve::Wsd), 24).unwrap().learning_rate(19), 2.0);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_ends_on_the_way_up() {
        let schedule = Schedule::new(&config(Curve::Cosine), 2).unwrap();
        assert_eq!((schedule.learning_rate(1), schedule.learning_rate(4)), (1.0, 2.0));
    }

    #[test]
    fn what_cannot_be_names_its_key() {
        let key = |change: &dyn Fn(&mut ScheduleConfig)| {
            let mut config = config(Curve::Wsd);
            change(&mut config);
            Schedule::new(&config, 24).unwrap_err().key
        };
        assert_eq!(key(&|c| c.learning_rate = f64::NAN), "learning_rate");
        assert_eq!(key(&|c| c.min_ratio = 1.5), "min_ratio");
        assert_eq!(key(&|c| c.decay_steps = Some(21)), "decay_steps");
    }
}
