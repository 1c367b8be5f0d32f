//! The device interface. A device is a translator of programs; it knows nothing of models, recipes or faults' policy.

use crate::dtype::DType;
use crate::fault::Fault;
use crate::memory::{MemoryPlan, Region};
use crate::program::Range;
use crate::validate::Validated;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The name that opens it, such as `cpu` or `cuda:0`.
    pub name: String,
    /// The hardware, as it calls itself.
    pub hardware: String,
    /// The dispatch level, such as `avx2`; part of what makes bits repeat.
    pub level: String,
    /// Driver, library and own versions, by name.
    pub versions: Vec<(String, String)>,
    /// Dtypes that it computes on.
    pub dtypes: Vec<DType>,
    /// Memory that it may use, in bytes, where known.
    pub memory_bytes: Option<u64>,
    /// Threads or other units that work at once.
    pub units: usize,
    /// Whether the same inputs always give the same bits.
    pub deterministic: bool,
    /// Whether it runs on an emulator or a software renderer rather than on the chip that it names.
    pub emulated: bool,
    /// Problems that it reports about itself; empty when healthy.
    pub health: Vec<String>,
}

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u32);

/// A program made ready on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PreparedId(pub u32);

/// Work that was queued; tickets grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Host memory that outlives the device's use of it, such as a shared-memory region of the supervisor.
#[derive(Clone, Copy, Debug)]
pub struct HostRegion {
    /// First byte; aligned to 64 bytes.
    pub address: *mut u8,
    /// Bytes.
    pub bytes: usize,
}

// SAFETY: a HostRegion is an address and a length; whoever makes one promises exclusive use (`HostRegion::new`).
unsafe impl Send for HostRegion {}

impl HostRegion {
    /// Names host memory.
    ///
    /// # Safety
    /// The memory must stay mapped until every device that adopted it has released it, and nobody else may write it
    /// while a ticket that uses it is under way.
    pub unsafe fn new(address: *mut u8, bytes: usize) -> HostRegion {
        HostRegion { address, bytes }
    }
}

/// What [`Device::allocate`] is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Allocation {
    /// Zeroed memory of the device's own, in bytes.
    Own(usize),
    /// Host memory to compute on in place; devices with memory of their own answer `Unsupported`.
    Adopt(HostRegion),
}

/// Which instructions to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The range.
    pub range: Range,
    /// The first instruction.
    pub from: usize,
    /// One past the last instruction.
    pub to: usize,
}

/// Which checks fire: one bit each, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckMask(pub Vec<u64>);

impl CheckMask {
    /// Whether check `index` fires.
    pub fn fires(&self, index: u16) -> bool {
        self.0.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// All of the first `count` checks.
    pub fn all(count: usize) -> CheckMask {
        let mut words = vec![u64::MAX; count / 64];
        if !count.is_multiple_of(64) {
            words.push((1 << (count % 64)) - 1);
        }
        CheckMask(words)
    }
}

/// What a run is bound to.
#[derive(Clone, Debug)]
pub struct Bindings {
    /// The committed state; at least the plan's `state_bytes`.
    pub current: BufferId,
    /// Where the next state goes; the same buffer where the plan is in place.
    pub next: BufferId,
    /// Everything else; at least the plan's `work_bytes`.
    pub work: BufferId,
    /// A value for each symbol, within its bound.
    pub symbols: Vec<usize>,
    /// Whether this is the first micro-batch of its step: `accumulate` then writes rather than adds.
    pub first: bool,
    /// Which checks fire.
    pub checks: CheckMask,
}

impl Bindings {
    /// The buffer that a region stands for.
    pub fn buffer(&self, region: Region) -> BufferId {
        match region {
            Region::Current => self.current,
            Region::Next => self.next,
            Region::Work => self.work,
        }
    }
}

/// What became of a ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything up to the ticket is done.
    Done,
    /// The deadline passed first.
    Running {
        /// The instruction that was last seen to start, where known.
        instruction: Option<usize>,
    },
}

/// Three words that tell how far a device is. They lie in memory that the caller gave, so that they can be read when the
/// device hangs or its process is dead.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ProgressWord {
    /// The worker's generation, written by the caller.
    pub generation: AtomicU64,
    /// The ticket under way.
    pub ticket: AtomicU64,
    /// 1 + the index of the instruction that started last in the ticket's span; 0 before the first.
    pub instruction: AtomicU64,
}

impl ProgressWord {
    /// Marks the start of an instruction.
    pub fn mark(&self, ticket: Ticket, instruction: usize) {
        self.ticket.store(ticket.0, Ordering::Relaxed);
        self.instruction.store(instruction as u64 + 1, Ordering::Release);
    }
}

/// Where a device writes its progress.
#[derive(Clone, Debug)]
pub enum ProgressPlace {
    /// Memory of this process.
    Own(Arc<ProgressWord>),
    /// Memory that somebody else mapped.
    Shared(SharedWord),
}

/// A progress word in memory that the caller gave.
#[derive(Clone, Copy, Debug)]
pub struct SharedWord(*const ProgressWord);

// SAFETY: the word consists of atomics, and `SharedWord::new` promises that it stays mapped.
unsafe impl Send for SharedWord {}
// SAFETY: as above.
unsafe impl Sync for SharedWord {}

impl SharedWord {
    /// Uses mapped memory as a progress word.
    ///
    /// # Safety
    /// `word` must be aligned to 8 bytes and stay mapped as long as any device that it is given to.
    pub unsafe fn new(word: *const ProgressWord) -> SharedWord {
        SharedWord(word)
    }
}

impl ProgressPlace {
    /// The word.
    pub fn word(&self) -> &ProgressWord {
        match self {
            ProgressPlace::Own(word) => word,
            // SAFETY: promised at `SharedWord::new`.
            ProgressPlace::Shared(word) => unsafe { &*word.0 },
        }
    }
}

impl Default for ProgressPlace {
    fn default() -> ProgressPlace {
        ProgressPlace::Own(Arc::default())
    }
}

/// Anything that runs programs. One in-order queue of runs and one of copies.
///
/// `prepare` answers `Ok`, `Unsupported` or `OutOfMemory` for any validated program and never panics. The other methods
/// take ids that this device gave; a wrong one is a bug of the caller and may assert.
pub trait Device: Send {
    /// Dtypes, memory, versions, dispatch level, health.
    fn describe(&self) -> Description;

    /// Memory for [`Bindings`].
    fn allocate(&mut self, allocation: Allocation) -> Result<BufferId, Fault>;

    /// Copies host bytes into a buffer, after everything queued.
    fn write(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &[u8]) -> Result<(), Fault>;

    /// Copies from a buffer to the host, after everything queued.
    fn read(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Queues a copy of a buffer to the host behind `after`; what is queued later does not wait for it, and must not
    /// write the buffer before the returned ticket is done.
    fn copy_out(
        &mut self,
        buffer: BufferId,
        offset_bytes: usize,
        to: HostRegion,
        after: Ticket,
    ) -> Result<Ticket, Fault>;

    /// Makes a program ready: chooses kernels, sizes workspace, and refuses what the device lacks.
    fn prepare(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault>;

    /// Queues instructions.
    fn run(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault>;

    /// Waits for a ticket, at most `deadline`.
    fn wait(&mut self, ticket: Ticket, deadline: Duration) -> Result<Progress, Fault>;

    /// Gives memory back; adopted memory is left alone.
    fn release(&mut self, buffer: BufferId) -> Result<(), Fault>;
}
