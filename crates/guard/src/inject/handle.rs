//! The worker's and the supervisor's side of the injector: which step it is, what is due, what was done.

use super::change::{corrupt, store, words};
use super::firings::Firings;
use super::spec::{Corruption, Home, Scheduled, What};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use toprope_program::{DType, Place};

/// A fault that was injected, for journals and reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InjectedFault {
    /// Its index in the expanded schedule.
    pub id: usize,
    /// The step.
    pub step: u64,
    /// The device that it happened on.
    pub device: String,
    /// The fault as a schedule names it.
    pub what: String,
    /// The instruction, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Stored elements whose bits changed.
    #[serde(default)]
    pub elements: usize,
}

/// Moments that only the worker knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Half of the step's answer has been written.
    Answer,
    /// A snapshot is half taken.
    Snapshot,
}

/// Shared by a device with faults and whoever drives it. Clones are the same injector.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    step: AtomicU64,
    enabled: AtomicBool,
    armed: Mutex<Armed>,
    injected: Mutex<Vec<InjectedFault>>,
}

#[derive(Clone)]
struct Armed {
    faults: Arc<[Scheduled]>,
    firings: Arc<dyn Firings>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds these; what a panicking thread left is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    /// An injector of these faults; ids are indices. `firings` says which have happened before.
    pub fn new(faults: Vec<Scheduled>, firings: Arc<dyn Firings>) -> Handle {
        let armed = Mutex::new(Armed { faults: faults.into(), firings });
        let (step, enabled) = (AtomicU64::new(0), AtomicBool::new(true));
        Handle { shared: Arc::new(Shared { step, enabled, armed, injected: Mutex::default() }) }
    }

    /// Says which step comes next, counted from 0.
    pub fn set_step(&self, step: u64) {
        self.shared.step.store(step, Ordering::Release);
    }

    /// The step under way.
    pub fn step(&self) -> u64 {
        self.shared.step.load(Ordering::Acquire)
    }

    /// Turns the injector off and on: off is the control of an experiment.
    pub fn set_enabled(&self, enabled: bool) {
        self.shared.enabled.store(enabled, Ordering::Release);
    }

    /// Takes other faults in.
    pub fn replace(&self, faults: Vec<Scheduled>, firings: Arc<dyn Firings>) {
        *lock(&self.shared.armed) = Armed { faults: faults.into(), firings };
    }

    /// What was injected since this was asked last.
    pub fn take_injected(&self) -> Vec<InjectedFault> {
        std::mem::take(&mut *lock(&self.shared.injected))
    }

    /// Faults of a device or worker that may happen now on a device of this name.
    pub(super) fn due(&self, device: &str) -> Vec<(usize, Scheduled)> {
        let wanted = |fault: &Scheduled| {
            !fault.is_of_the_supervisor() && fault.device.as_ref().is_none_or(|name| name == device)
        };
        self.due_where(wanted)
    }

    fn due_where(&self, wanted: impl Fn(&Scheduled) -> bool) -> Vec<(usize, Scheduled)> {
        if !self.shared.enabled.load(Ordering::Acquire) {
            return Vec::new();
        }
        let (armed, step) = (lock(&self.shared.armed).clone(), self.step());
        let now = |id: usize, fault: &Scheduled| match &fault.what {
            What::Slow { steps, .. } if !fault.always => (fault.step..fault.step + steps).contains(&step),
            _ if fault.always => step >= fault.step,
            _ => step == fault.step && armed.firings.fired(id) == 0,
        };
        let due = armed.faults.iter().enumerate().filter(|(id, fault)| now(*id, fault) && wanted(fault));
        due.map(|(id, fault)| (id, fault.clone())).collect()
    }

    /// Counts a fault as fired, and says how often it had before. Comes before it is carried out, so that it does not meet
    /// the next worker again.
    pub(super) fn fire(&self, id: usize) -> u64 {
        let firings = lock(&self.shared.armed).firings.clone();
        let fired = firings.fired(id);
        firings.fire(id);
        fired
    }

    pub(super) fn record(&self, injected: InjectedFault) {
        lock(&self.shared.injected).push(injected);
    }

    /// Asks whether the worker is to die at a moment that only it knows of. `Some` counts and records the fault: die.
    pub fn due_at(&self, point: Point, device: &str) -> Option<usize> {
        let wanted = |what: &What| match point {
            Point::Answer => *what == What::DieWhileAnswering,
            Point::Snapshot => *what == What::DieInSnapshot,
        };
        let (id, fault) = self.due(device).into_iter().find(|(_, fault)| wanted(&fault.what))?;
        self.fire(id);
        self.record(self.injected(id, &fault, device));
        Some(id)
    }

    /// Faults that the supervisor is to carry out now: a full disk, its own death, bits of snapshots and checkpoints.
    /// Counts and records them.
    pub fn due_at_supervisor(&self) -> Vec<(usize, Scheduled)> {
        let due = self.due_where(Scheduled::is_of_the_supervisor);
        for (id, fault) in &due {
            self.fire(*id);
            self.record(self.injected(*id, fault, "supervisor"));
        }
        due
    }

    fn injected(&self, id: usize, fault: &Scheduled, device: &str) -> InjectedFault {
        let (step, what) = (self.step(), fault.what.to_string());
        InjectedFault { id, step, device: device.into(), what, place: None, elements: 0 }
    }

    /// Carries out corruption at rest on the stored bytes of a value whose innermost dimension has `row` elements: for
    /// snapshots and checkpoints, which no device holds. The number of elements that changed.
    pub fn corrupt_bytes(bytes: &mut [u8], dtype: DType, row: usize, corruption: &Corruption) -> usize {
        let mut elements = words(bytes, dtype);
        let changed = corrupt(&mut elements, dtype, row, corruption);
        for change in &changed {
            store(bytes, dtype, change.index, change.after);
        }
        changed.len()
    }

    /// The corruption of a value in `home`, where a fault is one.
    pub fn at_rest(fault: &Scheduled, home: Home) -> Option<(&str, &Corruption)> {
        match &fault.what {
            What::AtRest { corruption, home: there, value } if *there == home => Some((value, corruption)),
            _ => None,
        }
    }
}
