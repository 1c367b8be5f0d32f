//! Time per instruction, where asked for.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use toprope_program::{PreparedId, Range};

/// Time that one instruction took since the profile was last taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfileEntry {
    /// The program.
    pub prepared: PreparedId,
    /// Its range.
    pub range: Range,
    /// The instruction's index in the range. What was fused into it is counted here.
    pub index: usize,
    /// How often it ran.
    pub calls: u64,
    /// Time in all.
    pub nanoseconds: u64,
}

/// Calls and nanoseconds by program, range and index.
type Times = BTreeMap<(u32, Range, usize), (u64, u64)>;

/// Accumulates times on the queue's thread.
#[derive(Debug, Default)]
pub(crate) struct Profile(Mutex<Times>);

impl Profile {
    pub(crate) fn add(&self, prepared: PreparedId, range: Range, index: usize, time: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = times.entry((prepared.0, range, index)).or_default();
        entry.0 += 1;
        entry.1 += time.as_nanos() as u64;
    }

    pub(crate) fn take(&self) -> Vec<ProfileEntry> {
        let times = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let entry = |((prepared, range, index), (calls, nanoseconds))| ProfileEntry {
            prepared: PreparedId(prepared),
            range,
            index,
            calls,
            nanoseconds,
        };
        times.into_iter().map(entry).collect()
    }
}
