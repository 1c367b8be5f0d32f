//! What is injected into a run, as the supervisor sees it: which faults of the schedule have fired, in whatever worker.

use crate::inject::{Firings, Handle, Schedule, Scheduled, SharedFirings};
use crate::protocol::Faults;
use std::sync::Arc;
use toprope_world::SharedRegion;

/// A fault that was injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// Its index in the schedule.
    pub id: usize,
    /// The schedule's words for it.
    pub what: String,
}

/// The schedule of a run with its words of firings.
pub struct Injection {
    faults: Vec<Scheduled>,
    firings: SharedFirings,
    seen: Vec<u64>,
    /// Carries out what is the supervisor's to carry out.
    pub handle: Handle,
}

impl Injection {
    /// `None` where the region is too short for so many faults.
    pub fn new(faults: Vec<Scheduled>, region: &Arc<SharedRegion>, offset: usize) -> Option<Injection> {
        let firings = SharedFirings::new(region.clone(), offset, faults.len())?;
        let handle = Handle::new(faults.clone(), Arc::new(firings.clone()));
        let seen = vec![0; faults.len()];
        Some(Injection { faults, firings, seen, handle })
    }

    /// What a worker is told.
    pub fn told(&self, region: u32, offset: u64) -> Faults {
        Faults { schedule: Schedule::of(self.faults.clone()).to_string(), firings: (region, offset) }
    }

    /// What has fired since this was asked last, whether or not the worker that it fired in is still alive.
    pub fn news(&mut self) -> Vec<Fired> {
        let mut news = Vec::new();
        for (id, seen) in self.seen.iter_mut().enumerate() {
            let fired = self.firings.fired(id);
            if fired > *seen {
                *seen = fired;
                news.push(Fired { id, what: self.faults[id].to_string() });
            }
        }
        news
    }
}
