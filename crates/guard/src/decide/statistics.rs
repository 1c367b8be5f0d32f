//! Robust statistics over what was committed: medians of step times, and what a spike is.

use crate::policy::SpikeRule;
use std::collections::VecDeque;

/// The median of some values; none of none.
pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    let middle = sorted.len() / 2;
    if sorted.is_empty() {
        return None;
    }
    let (below, at, _) = sorted.select_nth_unstable_by(middle, f64::total_cmp);
    let at = *at;
    let below = below.iter().copied().max_by(f64::total_cmp);
    match (below, sorted.len() % 2) {
        (Some(below), 0) => Some(f64::midpoint(below, at)),
        _ => Some(at),
    }
}

/// The last values of something, bounded.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    values: VecDeque<f64>,
    bound: usize,
}

impl Recent {
    pub(super) fn new(bound: usize) -> Recent {
        Recent { values: VecDeque::new(), bound: bound.max(1) }
    }

    pub(super) fn push(&mut self, value: f64) {
        if self.values.len() == self.bound {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn median(&self) -> Option<f64> {
        median(self.values.iter().copied())
    }

    /// The median, and the median of the distances from it.
    fn spread(&self) -> Option<(f64, f64)> {
        let middle = self.median()?;
        let spread = median(self.values.iter().map(|value| (value - middle).abs()))?;
        Some((middle, spread))
    }
}

/// Watches one metric for spikes, in the space of logarithms: losses and norms are positive and jump by factors.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    rule: SpikeRule,
    logarithms: Recent,
    armed: bool,
}

/// A standard deviation of a normal distribution, in median absolute deviations.
const NORMAL: f64 = 1.4826;

impl Watch {
    pub(super) fn new(rule: &SpikeRule) -> Watch {
        Watch { rule: rule.clone(), logarithms: Recent::new(rule.window), armed: true }
    }

    /// The value that is so many deviations above the median.
    fn bound(&self, deviations: f64) -> Option<f64> {
        let (middle, spread) = self.logarithms.spread()?;
        Some((middle + deviations * (NORMAL * spread).max(self.rule.floor)).exp())
    }

    /// The limit that a finite value is above, where it is a spike.
    pub(super) fn exceeded(&self, value: f64) -> Option<f64> {
        if !self.rule.enabled || !self.armed || self.logarithms.len() < self.rule.warm_up.max(1) {
            return None;
        }
        self.bound(self.rule.threshold).filter(|limit| value > *limit)
    }

    /// Takes a committed value in. One above the limit was found to be the data's: the alarm rests until it is over.
    pub(super) fn commit(&mut self, value: f64) {
        if self.exceeded(value).is_some() {
            self.armed = false;
        } else if !self.armed && self.bound(self.rule.rearm).is_some_and(|bound| value <= bound) {
            self.armed = true;
        }
        self.logarithms.push(value.max(f64::MIN_POSITIVE).ln());
    }
}

/// Young's and Daly's interval in steps: the square root of twice the cost of a copy times the mean time between faults.
pub(super) fn interval(copy_seconds: f64, between_faults_seconds: f64, step_seconds: f64) -> u64 {
    let steps = (2.0 * copy_seconds * between_faults_seconds).sqrt() / step_seconds;
    if steps.is_finite() { steps.clamp(1.0, 1e9) as u64 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0].into_iter()), Some(3.0));
        assert_eq!(median([3.0, 1.0].into_iter()), Some(2.0));
        assert_eq!(median([9.0, 1.0, 2.0].into_iter()), Some(2.0));
    }

    #[test]
    fn a_spike_alarms_once_and_after_it_is_over_again() {
        let mut watch = Watch::new(&SpikeRule::default());
        for step in 0..40 {
            assert_eq!(watch.exceeded(1000.0).is_some(), step >= 20, "warm-up, step {step}");
            watch.commit(2.0 + 0.01 * f64::from(step % 5));
        }
        assert!(watch.exceeded(2.3).is_none());
        assert!(watch.exceeded(20.0).is_some());
        watch.commit(20.0);
        assert!(watch.exceeded(25.0).is_none(), "the alarm rests");
        watch.commit(25.0);
        watch.commit(2.0);
        assert!(watch.exceeded(20.0).is_some(), "armed again");
    }

    #[test]
    fn a_falling_loss_never_alarms() {
        let mut watch = Watch::new(&SpikeRule::default());
        for step in 0..2000 {
            let noise = 1.0 + 0.1 * f64::from(step * 7919 % 13) / 13.0;
            let loss = (8.0 * (-f64::from(step) / 300.0).exp() + 2.0) * noise;
            assert!(watch.exceeded(loss).is_none(), "step {step}");
            watch.commit(loss);
        }
    }

    #[test]
    fn the_interval_is_youngs() {
        // 2 · 4 s · 5,000 s = 40,000 s²; its root is 200 s: 400 steps of half a second.
        assert_eq!(interval(4.0, 5000.0, 0.5), 400);
        assert_eq!(interval(0.0, 5000.0, 0.5), 1);
        assert_eq!(interval(1.0, 1.0, 0.0), 1);
    }
}
