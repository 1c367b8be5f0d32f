//! What is done about which fault, how often: the `[guard]` section of a recipe.
//!
//! The table is class × count × window → action. Of the rules of a fault's class, the one with the highest count that was
//! reached on the fault's device within its window decides. A recipe that names a class replaces all of that class's
//! default rules. A class without a rule is met by the least that goes on: computing the step again, in a new worker where
//! the old one is gone.

use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use std::fmt;
use toprope_program::FaultClass;

/// How much is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// No checks; deaths, hangs and errors are still met.
    Off,
    /// A share of the checks in each step.
    #[default]
    Sampled,
    /// Every check in every step.
    Full,
    /// Everything is computed twice and compared.
    Shadow,
}

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Compute the step again on the same device.
    Retry,
    /// The same in a new worker.
    Restart,
    /// Take an older verified state and replay.
    RollBack,
    /// Do not use the device until it is tested again; stop where it is the last.
    Quarantine,
    /// The same where there is another device; go on with this one where there is none.
    FailOver,
    /// Leave the step's batch out. Journalled; never a default.
    SkipBatch,
    /// Stop with a durable checkpoint.
    Stop,
}

impl Remedy {
    /// The name in recipes and journals.
    pub fn name(self) -> &'static str {
        match self {
            Remedy::Retry => "retry",
            Remedy::Restart => "restart",
            Remedy::RollBack => "roll_back",
            Remedy::Quarantine => "quarantine",
            Remedy::FailOver => "fail_over",
            Remedy::SkipBatch => "skip_batch",
            Remedy::Stop => "stop",
        }
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The class of fault.
    pub class: FaultClass,
    /// From this many on, on one device.
    #[serde(default = "one")]
    pub count: u32,
    /// Within this many seconds; none counts over the whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<f64>,
    /// What is done.
    pub action: Remedy,
}

fn one() -> u32 {
    1
}

/// What is done about a batch that gives NaN or infinity on every device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadData {
    /// Stop with a durable checkpoint.
    #[default]
    Stop,
    /// Take an older verified state and replay, once; stop if the same comes again.
    RollBack,
    /// Leave the batch out, and say so in the journal.
    SkipBatch,
}

/// What is done about an operator that a device computes wrong again and again while another device agrees with its checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WrongOperator {
    /// The device is left until it passes a test.
    #[default]
    Quarantine,
    /// The operator alone runs on the next device of the list, the rest stays where it is. A device that is wrong in more
    /// than three operators is left all the same.
    Move,
}

/// When a worker is started again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    /// Two starts of a rank's worker are at least this far apart, in seconds.
    pub apart_seconds: f64,
    /// The wait after the second failure without a step between; it doubles with each more, in seconds.
    pub backoff_seconds: f64,
    /// The longest wait, in seconds.
    pub backoff_max_seconds: f64,
    /// Failures without a step between after which the device is given up.
    pub give_up_after: u32,
}

impl Default for Restart {
    fn default() -> Restart {
        Restart { apart_seconds: 0.5, backoff_seconds: 0.25, backoff_max_seconds: 30.0, give_up_after: 8 }
    }
}

/// When a quarantined device is tested again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retest {
    /// The first wait, doubled by each test that is not passed, in seconds.
    pub after_seconds: f64,
    /// The longest wait, in seconds.
    pub after_max_seconds: f64,
    /// A test that takes longer is not passed, in seconds.
    pub limit_seconds: f64,
}

impl Default for Retest {
    fn default() -> Retest {
        Retest { after_seconds: 60.0, after_max_seconds: 3600.0, limit_seconds: 600.0 }
    }
}

/// When a loss or a gradient norm is a spike: its logarithm lies `threshold` robust deviations above the median.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpikeRule {
    /// Whether spikes are looked for.
    pub enabled: bool,
    /// Committed steps that the median is of.
    pub window: usize,
    /// Committed steps before the first alarm.
    pub warm_up: usize,
    /// Deviations above the median that alarm. A deviation is 1.4826 times the median absolute deviation of the
    /// logarithms, and at least `floor`.
    pub threshold: f64,
    /// After a spike of the data, no further alarm until a value is this few deviations above the median.
    pub rearm: f64,
    /// The least deviation, in units of the natural logarithm.
    pub floor: f64,
}

impl Default for SpikeRule {
    fn default() -> SpikeRule {
        SpikeRule { enabled: true, window: 64, warm_up: 20, threshold: 10.0, rearm: 5.0, floor: 0.05 }
    }
}

/// When a device is slow against its own history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlowRule {
    /// Times the median of its step time.
    pub factor: f64,
    /// Steps in a row.
    pub in_a_row: u32,
}

impl Default for SlowRule {
    fn default() -> SlowRule {
        SlowRule { factor: 2.0, in_a_row: 5 }
    }
}

/// How often the state is copied from a device to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotEvery {
    /// By Young and Daly: the square root of twice the snapshot's time times the mean time between faults.
    #[default]
    Auto,
    /// Steps.
    Steps(u64),
}

impl Serialize for SnapshotEvery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            SnapshotEvery::Auto => serializer.serialize_str("auto"),
            SnapshotEvery::Steps(steps) => serializer.serialize_u64(*steps),
        }
    }
}

impl<'de> Deserialize<'de> for SnapshotEvery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SnapshotEvery, D::Error> {
        struct Wanted;
        impl Visitor<'_> for Wanted {
            type Value = SnapshotEvery;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a number of steps from 1 on")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SnapshotEvery, E> {
                match text {
                    "auto" => Ok(SnapshotEvery::Auto),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_u64<E: Error>(self, steps: u64) -> Result<SnapshotEvery, E> {
                match steps {
                    0 => Err(E::invalid_value(serde::de::Unexpected::Unsigned(0), &self)),
                    steps => Ok(SnapshotEvery::Steps(steps)),
                }
            }

            fn visit_i64<E: Error>(self, steps: i64) -> Result<SnapshotEvery, E> {
                match u64::try_from(steps) {
                    Ok(steps) => self.visit_u64(steps),
                    Err(_) => Err(E::invalid_value(serde::de::Unexpected::Signed(steps), &self)),
                }
            }
        }
        deserializer.deserialize_any(Wanted)
    }
}

/// The `[guard]` section of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// How much is checked.
    pub level: Level,
    /// Whether a second worker stands by, and one on the device that would take over, so that taking over is a message and not
    /// a start.
    pub standby: bool,
    /// A command that is run on each fault, for paging.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_fault: Option<String>,
    /// What is done about a batch that is not finite on any device.
    pub bad_data: BadData,
    /// What is done about an operator that is wrong on one device alone.
    pub wrong_operator: WrongOperator,
    /// Executions of one step after which the run stops, whatever else the table says.
    pub attempts_max: u32,
    /// How long another device may take to confirm an alarm, in seconds.
    pub confirm_limit_seconds: f64,
    /// How long a worker may take to come up and to prepare the program, and how long a copy may take that it is asked for,
    /// in seconds.
    pub launch_limit_seconds: f64,
    /// How long a durable checkpoint may take before it counts as failed, in seconds.
    pub checkpoint_limit_seconds: f64,
    /// How often the state is copied from a device with its own memory to the host.
    pub snapshot_every: SnapshotEvery,
    /// When workers are started again.
    pub restart: Restart,
    /// When quarantined devices are tested again.
    pub retest: Retest,
    /// What a spike is.
    pub spike: SpikeRule,
    /// What slow is.
    pub slow: SlowRule,
    /// Rows of the table; those of a class replace that class's default rows.
    pub rule: Vec<Rule>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            level: Level::default(),
            standby: true,
            on_fault: None,
            bad_data: BadData::default(),
            wrong_operator: WrongOperator::default(),
            attempts_max: 20,
            confirm_limit_seconds: 600.0,
            launch_limit_seconds: 120.0,
            checkpoint_limit_seconds: 600.0,
            snapshot_every: SnapshotEvery::default(),
            restart: Restart::default(),
            retest: Retest::default(),
            spike: SpikeRule::default(),
            slow: SlowRule::default(),
            rule: Vec::new(),
        }
    }
}

/// The default table: class, count, window in seconds, action.
const DEFAULTS: &[(FaultClass, u32, f64, Remedy)] = &[
    (FaultClass::Lost, 1, 600.0, Remedy::Restart),
    (FaultClass::Lost, 6, 120.0, Remedy::FailOver),
    (FaultClass::Hang, 1, 600.0, Remedy::Restart),
    (FaultClass::Hang, 3, 600.0, Remedy::FailOver),
    (FaultClass::Driver, 1, 600.0, Remedy::Restart),
    (FaultClass::Driver, 3, 600.0, Remedy::FailOver),
    (FaultClass::OutOfMemory, 1, 600.0, Remedy::Restart),
    (FaultClass::OutOfMemory, 3, 600.0, Remedy::FailOver),
    (FaultClass::Unsupported, 1, 600.0, Remedy::Quarantine),
    (FaultClass::NonFinite, 1, 600.0, Remedy::Retry),
    (FaultClass::NonFinite, 4, 3600.0, Remedy::Quarantine),
    (FaultClass::Mismatch, 1, 600.0, Remedy::Retry),
    (FaultClass::Mismatch, 4, 3600.0, Remedy::Quarantine),
    (FaultClass::Spike, 1, 600.0, Remedy::Retry),
    (FaultClass::Spike, 4, 3600.0, Remedy::Quarantine),
];

/// A policy that cannot be followed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// A count of zero.
    #[error("guard.rule for `{class}`: a count of 0 is never reached: give 1 or more")]
    Count {
        /// The class of the rule.
        class: FaultClass,
    },
    /// A number that must be positive.
    #[error("guard.{key} is {value}: give a number above 0")]
    Positive {
        /// The key.
        key: String,
        /// Its value.
        value: f64,
    },
    /// A worker gone is not mended by computing again.
    #[error(
        "guard.rule for `unsupported`: a device that lacks an operator lacks it again: use quarantine, fail_over or stop, not {action}"
    )]
    Unsupported {
        /// What was asked for.
        action: &'static str,
    },
    /// Rearming above the alarm.
    #[error("guard.spike.rearm is {rearm}, above guard.spike.threshold {threshold}: give a smaller one")]
    Rearm {
        /// The value.
        rearm: f64,
        /// What it must be below.
        threshold: f64,
    },
}

impl Policy {
    /// Whether the numbers make sense; the first that does not is the error.
    pub fn check(&self) -> Result<(), PolicyError> {
        for rule in &self.rule {
            if rule.count == 0 {
                return Err(PolicyError::Count { class: rule.class });
            }
            if let Some(value) = rule.window_seconds.filter(|value| !positive(*value)) {
                return Err(PolicyError::Positive { key: "rule.window_seconds".into(), value });
            }
            let leaves = matches!(rule.action, Remedy::Quarantine | Remedy::FailOver | Remedy::Stop);
            if rule.class == FaultClass::Unsupported && !leaves {
                return Err(PolicyError::Unsupported { action: rule.action.name() });
            }
        }
        let numbers = [
            ("attempts_max", f64::from(self.attempts_max)),
            ("confirm_limit_seconds", self.confirm_limit_seconds),
            ("launch_limit_seconds", self.launch_limit_seconds),
            ("checkpoint_limit_seconds", self.checkpoint_limit_seconds),
            ("restart.backoff_max_seconds", self.restart.backoff_max_seconds),
            ("restart.backoff_seconds", self.restart.backoff_seconds),
            ("restart.apart_seconds", self.restart.apart_seconds),
            ("restart.give_up_after", f64::from(self.restart.give_up_after)),
            ("retest.after_seconds", self.retest.after_seconds),
            ("retest.after_max_seconds", self.retest.after_max_seconds),
            ("retest.limit_seconds", self.retest.limit_seconds),
            ("spike.window", self.spike.window as f64),
            ("spike.threshold", self.spike.threshold),
            ("spike.rearm", self.spike.rearm),
            ("spike.floor", self.spike.floor),
            ("slow.factor", self.slow.factor),
            ("slow.in_a_row", f64::from(self.slow.in_a_row)),
        ];
        if let Some((key, value)) = numbers.into_iter().find(|(_, value)| !positive(*value)) {
            return Err(PolicyError::Positive { key: key.into(), value });
        }
        if self.spike.rearm > self.spike.threshold {
            return Err(PolicyError::Rearm { rearm: self.spike.rearm, threshold: self.spike.threshold });
        }
        Ok(())
    }

    /// The rows in force: the recipe's, and the default ones of the classes that it does not name.
    pub fn rules(&self) -> Vec<Rule> {
        let named = |class| self.rule.iter().any(|rule| rule.class == class);
        let defaults = DEFAULTS.iter().filter(|(class, ..)| !named(*class));
        let defaults = defaults.map(|&(class, count, seconds, action)| Rule {
            class,
            count,
            window_seconds: Some(seconds),
            action,
        });
        self.rule.iter().cloned().chain(defaults).collect()
    }
}

/// At most what a `Duration` holds, so that no length of time can overflow one.
fn positive(value: f64) -> bool {
    value > 0.0 && value < 1e15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_read() {
        let policy: Policy = toml::from_str(
            "level = \"full\"\nstandby = false\nsnapshot_every = 7\n[retest]\nafter_seconds = 5\n\
             [[rule]]\nclass = \"lost\"\ncount = 2\nwindow_seconds = 60\naction = \"stop\"",
        )
        .unwrap();
        assert_eq!(policy.level, Level::Full);
        assert_eq!(policy.snapshot_every, SnapshotEvery::Steps(7));
        assert_eq!(policy.retest.after_seconds, 5.0);
        assert_eq!(policy.retest.limit_seconds, 600.0);
        let lost: Vec<_> = policy.rules().into_iter().filter(|rule| rule.class == FaultClass::Lost).collect();
        assert_eq!(lost.len(), 1, "the default rows of a named class are replaced");
        assert!(policy.rules().iter().any(|rule| rule.class == FaultClass::Hang));
        policy.check().unwrap();
        let back: Policy = toml::from_str(&toml::to_string(&policy).unwrap()).unwrap();
        assert_eq!(back, policy);
    }

    #[test]
    fn wrong_words_are_told_with_the_right_ones() {
        let rule = |class: &str, action: &str| {
            toml::from_str::<Policy>(&format!("[[rule]]\nclass = \"{class}\"\naction = \"{action}\""))
                .unwrap_err()
                .to_string()
        };
        let class = rule("losst", "retry");
        for known in FaultClass::ALL {
            assert!(class.contains(known.name()), "{class}");
        }
        let action = rule("lost", "reboot");
        for known in ["retry", "restart", "roll_back", "quarantine", "fail_over", "skip_batch", "stop"] {
            assert!(action.contains(known), "{action}");
        }
        for (text, expected) in [
            ("levle = \"full\"", "level"),
            ("wrong_operator = \"leave\"", "move"),
            ("level = \"most\"", "shadow"),
            ("snapshot_every = 0", "from 1 on"),
            ("snapshot_every = -3", "from 1 on"),
            ("snapshot_every = \"often\"", "auto"),
        ] {
            let error = toml::from_str::<Policy>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_told() {
        Policy::default().check().unwrap();
        let bad = |text: &str| toml::from_str::<Policy>(text).unwrap().check().unwrap_err().to_string();
        assert!(bad("[[rule]]\nclass = \"lost\"\ncount = 0\naction = \"stop\"").contains("count of 0"));
        assert!(bad("[[rule]]\nclass = \"unsupported\"\naction = \"retry\"").contains("quarantine"));
        assert!(bad("[retest]\nafter_seconds = 0").contains("retest.after_seconds"));
        assert!(bad("[retest]\nafter_seconds = nan").contains("retest.after_seconds"));
        assert!(bad("confirm_limit_seconds = inf").contains("confirm_limit_seconds"));
        assert!(bad("[spike]\nrearm = 20").contains("rearm"));
    }
}
