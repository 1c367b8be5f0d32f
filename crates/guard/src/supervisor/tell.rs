//! What is told: decisions, what was injected, and what trouble cost.

use super::{News, SLOW_TOLD_WITHIN, STEPS_TIMED, Supervisor, Trouble};
use crate::decide::Entry;
use crate::inject::{Home, What};
use toprope_program::FaultKind;

impl Supervisor {
    /// Writes down what was injected, before the guard is told what came of it.
    pub(super) fn look_at_firings(&mut self) {
        let Some(injection) = &mut self.injection else { return };
        let step = injection.handle.step();
        for fired in injection.news() {
            self.injected_at = Some(step);
            (self.options.recorder)(News::Injected { fired: &fired, step });
        }
    }

    /// Carries out what the schedule has for this process.
    pub(super) fn own_faults(&mut self, step: u64) {
        let Some(injection) = &self.injection else { return };
        injection.handle.set_step(step);
        for (_, fault) in injection.handle.due_at_supervisor() {
            self.look_at_firings();
            match &fault.what {
                What::AtRest { home: Home::Snapshot, .. } => self.snapshot_faults.push(fault),
                what => (self.options.on_own_fault)(what),
            }
        }
    }

    pub(super) fn record(&mut self, entry: &Entry) {
        if let Entry::Fault { .. } = entry {
            // Trouble began with the execution under way; between two steps, now.
            let (since, before) = if self.executing { (self.step_started, 1) } else { (self.now(), 0) };
            let (executions, committed) = (self.executions - before, self.committed.0);
            self.trouble.get_or_insert(Trouble { since, executions, committed });
        }
        // A slow device is told some steps after it became slow; everything else in its step or the next one.
        let slow = matches!(entry, Entry::Fault { kind: FaultKind::Slow { .. }, .. });
        let window = if slow { SLOW_TOLD_WITHIN } else { 1 };
        let injected = self.injected_at.is_some_and(|at| self.committed.0 <= at + window);
        (self.options.recorder)(News::Decision { entry, injected });
    }

    /// Closes the books on trouble, at the commit by which the run is where it was.
    pub(super) fn recovered(&mut self) {
        self.executing = false;
        let now = self.now();
        let took = now.saturating_sub(self.step_started).as_secs_f64();
        let committed = self.committed.0;
        let Some(trouble) = self.trouble.take_if(|trouble| committed >= trouble.committed) else {
            if self.trouble.is_some() {
                return;
            }
            if self.step_seconds.len() == STEPS_TIMED {
                self.step_seconds.pop_front();
            }
            self.step_seconds.push_back(took);
            return;
        };
        let mut sorted: Vec<f64> = self.step_seconds.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let usual = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let gained = committed.saturating_sub(trouble.committed);
        let worth = usual * gained as f64;
        let seconds = (now.saturating_sub(trouble.since).as_secs_f64() - worth).max(0.0);
        let redone = (self.executions - trouble.executions).saturating_sub(gained);
        (self.options.recorder)(News::Recovered { step: committed, seconds, steps_redone: redone });
    }
}
