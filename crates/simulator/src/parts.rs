//! What the simulated world is made of: what happens, processes, memory, files.

use crate::checker::{Bits, Deviation};
use crate::schedule::Fault;
use std::time::Duration;
use toprope_guard::decide::{Attempt, Duty, Event, Worker};

/// What happens at some time.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // nearly all of them are the large one
pub enum Happening {
    /// The guard hears of something; where a worker says it, something became of its work.
    Heard {
        /// What.
        event: Event,
        /// From whom.
        from: Option<Worker>,
        /// What became of the work.
        effect: Effect,
    },
    /// A worker's process ends by itself.
    Dies {
        /// Which.
        worker: Worker,
    },
    /// Something of the schedule.
    Fault(Fault),
}

/// What becomes of a call when it is done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// The process is up.
    Up,
    /// It holds a state.
    Took {
        /// Committed steps.
        step: u64,
        /// What it reads instead of the memory that it shares, where it does.
        own: Option<Bits>,
        /// What the shared memory holds from then on, where it changes.
        shared: Option<Bits>,
    },
    /// It has gradients.
    Gradients(Attempt, Bits, Deviation),
    /// It has the next state.
    Next(Attempt, Bits, Deviation),
    /// The host has a copy.
    Copied(u64, Bits),
    /// The disk has a file.
    Wrote(File),
}

/// A durable checkpoint.
#[derive(Clone, Debug)]
pub struct File {
    pub(crate) step: u64,
    pub(crate) states: Vec<Bits>,
    pub(crate) intact: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Half {
    pub(crate) step: u64,
    pub(crate) bits: Bits,
    pub(crate) whole: bool,
}

/// What outlives the workers of a rank.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) halves: [Half; 2],
    pub(crate) current: usize,
    pub(crate) copies: Vec<(u64, Bits)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) device: u16,
    pub(crate) duty: Duty,
    pub(crate) alive: bool,
    /// Ended by the guard: what it said before may still arrive.
    pub(crate) killed: bool,
    pub(crate) hangs: bool,
    pub(crate) holds: Option<u64>,
    pub(crate) own: Option<Bits>,
    pub(crate) gradients: Option<(Attempt, Bits, Deviation)>,
    pub(crate) next: Option<(Attempt, Bits, Deviation)>,
    /// Steps whose states are being copied to the host.
    pub(crate) copying: Vec<u64>,
    pub(crate) free_at: Duration,
}
