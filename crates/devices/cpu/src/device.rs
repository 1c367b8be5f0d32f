//! The device: buffers, programs and queues behind the contract's interface.

use crate::fault::DEVICE;
use crate::level::{Level, LevelError};
use crate::memory::{Buffer, Memory, physical_bytes};
use crate::pool::Pool;
use crate::prepare::{Bound, Prepared};
use crate::profile::ProfileEntry;
use crate::queue::{Copy, Queue};
use crate::run::{Bases, Engine, Run};
use std::sync::Arc;
use std::time::Duration;
use toprope_program::{
    Allocation, Bindings, BufferId, DType, Description, Device, Fault, HostRegion, MemoryPlan, PreparedId,
    Progress, ProgressPlace, Span, Ticket, Validated,
};

/// Bindings of one program whose resolved operands are kept.
const BOUND_KEPT: usize = 8;

/// How to open the device.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads; all that the process may use where not given.
    pub threads: Option<usize>,
    /// The dispatch level; the best of this machine where not given.
    pub level: Option<Level>,
    /// Where progress is written.
    pub progress: ProgressPlace,
    /// Whether time per instruction is kept for [`CpuDevice::take_profile`].
    pub profile: bool,
}

/// Why the device can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The machine lacks the level that was asked for.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// The operating system gives no thread.
    #[error("cannot start the device's threads: {0}; ask for fewer with `--threads`")]
    Threads(#[from] std::io::Error),
    /// No threads were asked for.
    #[error("the device needs at least one thread")]
    NoThreads,
}

/// A program and its bindings so far, the latest last.
struct Entry {
    prepared: Arc<Prepared>,
    bound: Vec<Arc<Bound>>,
}

/// The embedded device: this machine's processor.
pub struct CpuDevice {
    level: Level,
    threads: usize,
    // Dropped first: it joins the threads, after which nobody uses memory.
    queue: Queue,
    buffers: Vec<Option<Buffer>>,
    programs: Vec<Entry>,
    workspace: Arc<Memory>,
}

// SAFETY: adopted regions are addresses whose owner promised exclusive use; everything else is `Send` by itself.
unsafe impl Send for CpuDevice {}

impl CpuDevice {
    /// Starts the device's threads.
    ///
    /// # Errors
    /// The level is not of this machine, or threads can't be started.
    pub fn new(options: Options) -> Result<CpuDevice, OpenError> {
        let level = match options.level {
            None => Level::detect(),
            Some(level) => Level::named(&level.to_string())?,
        };
        let threads = match options.threads {
            Some(0) => return Err(OpenError::NoThreads),
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let engine = Engine { level, pool: Pool::new(threads)?, alone: Pool::new(1)? };
        let queue = Queue::new(engine, options.progress, options.profile)?;
        let workspace = Memory::new(1).map_err(|fault| std::io::Error::other(fault.to_string()))?;
        Ok(CpuDevice {
            level,
            threads,
            queue,
            buffers: Vec::new(),
            programs: Vec::new(),
            workspace: Arc::new(workspace),
        })
    }

    /// The dispatch level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Bytes of scratch memory beside the plan's: packed operands and copies of strided ones, for all programs prepared
    /// so far at their symbols' bounds.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    /// Time per instruction since the last call; empty unless [`Options::profile`] was set.
    pub fn take_profile(&mut self) -> Vec<ProfileEntry> {
        self.queue.profile().map(|profile| profile.take()).unwrap_or_default()
    }

    fn buffer(&self, id: BufferId) -> &Buffer {
        match self.buffers.get(id.0 as usize) {
            Some(Some(buffer)) => buffer,
            _ => panic!("buffer {} is not one of this device", id.0),
        }
    }

    /// The address of a part of a buffer.
    fn part(&self, id: BufferId, offset_bytes: usize, bytes: usize) -> *mut u8 {
        let buffer = self.buffer(id);
        let end = offset_bytes.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= buffer.bytes()),
            "{bytes} bytes from {offset_bytes} leave the buffer"
        );
        buffer.address().wrapping_add(offset_bytes)
    }

    /// Makes the workspace large enough. Runs that are queued keep the one that they were given.
    fn reserve(&mut self, bytes: usize) -> Result<(), Fault> {
        if self.workspace.bytes() < bytes {
            self.workspace = Arc::new(Memory::new(bytes)?);
        }
        Ok(())
    }
}

impl Device for CpuDevice {
    fn describe(&self) -> Description {
        Description {
            name: DEVICE.into(),
            hardware: crate::hardware::name(),
            level: self.level.to_string(),
            versions: vec![("toprope-cpu".into(), env!("CARGO_PKG_VERSION").into())],
            dtypes: DType::ALL.to_vec(),
            memory_bytes: physical_bytes(),
            units: self.threads,
            deterministic: true,
            emulated: false,
            health: Vec::new(),
        }
    }

    fn allocate(&mut self, allocation: Allocation) -> Result<BufferId, Fault> {
        let buffer = match allocation {
            Allocation::Own(bytes) => Buffer::Own(Memory::new(bytes)?),
            Allocation::Adopt(region) => Buffer::adopt(region)?,
        };
        let free = self.buffers.iter().position(Option::is_none);
        let index = free.unwrap_or(self.buffers.len());
        if free.is_none() {
            self.buffers.push(None);
        }
        self.buffers[index] = Some(buffer);
        Ok(BufferId(index as u32))
    }

    fn write(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &[u8]) -> Result<(), Fault> {
        let to = self.part(buffer, offset_bytes, bytes.len());
        self.queue.drain()?;
        // SAFETY: inside the buffer, and nothing is queued that uses it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        let from = self.part(buffer, offset_bytes, bytes.len());
        self.queue.drain()?;
        // SAFETY: inside the buffer, and nothing is queued that uses it.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy_out(
        &mut self,
        buffer: BufferId,
        offset_bytes: usize,
        to: HostRegion,
        after: Ticket,
    ) -> Result<Ticket, Fault> {
        let from = self.part(buffer, offset_bytes, to.bytes);
        Ok(self.queue.copy(Copy { from, to, after }))
    }

    fn prepare(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        let bounds = program.program().bounds();
        let prepared = Arc::new(Prepared::new(program, plan)?);
        let bound = prepared.bind(&bounds, self.threads)?;
        self.reserve(bound.workspace_bytes)?;
        self.programs.push(Entry { prepared, bound: vec![Arc::new(bound)] });
        Ok(PreparedId(self.programs.len() as u32 - 1))
    }

    fn run(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        let threads = self.threads;
        let Some(entry) = self.programs.get_mut(prepared.0 as usize) else {
            panic!("program {} is not one of this device", prepared.0);
        };
        let program = entry.prepared.clone();
        let plan = &program.plan;
        let count = program.instructions(span.range).len();
        assert!(span.from <= span.to && span.to <= count, "span {span:?} of {count} instructions");
        let symbols = &program.program.program().symbols;
        let inside = |(symbol, value): (&toprope_program::Symbol, &usize)| (1..=symbol.bound).contains(value);
        assert!(
            symbols.len() == bindings.symbols.len() && symbols.iter().zip(&bindings.symbols).all(inside),
            "symbols {:?} lie outside their bounds",
            bindings.symbols
        );
        let bound = match entry.bound.iter().find(|bound| bound.symbols == bindings.symbols) {
            Some(bound) => bound.clone(),
            None => {
                let bound = Arc::new(program.bind(&bindings.symbols, threads)?);
                // The first one, at the bounds, stays.
                if entry.bound.len() == BOUND_KEPT {
                    entry.bound.remove(1);
                }
                entry.bound.push(bound.clone());
                bound
            }
        };
        // Smaller sizes may be cut differently and take a little more.
        self.reserve(bound.workspace_bytes)?;
        let bases = Bases {
            current: self.part(bindings.current, 0, plan.state_bytes),
            next: self.part(bindings.next, 0, plan.state_bytes),
            work: self.part(bindings.work, 0, plan.work_bytes),
        };
        let workspace = self.workspace.clone();
        let (first, checks) = (bindings.first, bindings.checks.clone());
        Ok(self.queue.run(|ticket| Run {
            ticket,
            id: prepared,
            prepared: program,
            bound,
            span,
            bases,
            first,
            checks,
            workspace,
        }))
    }

    fn wait(&mut self, ticket: Ticket, deadline: Duration) -> Result<Progress, Fault> {
        self.queue.wait(ticket, deadline)
    }

    fn release(&mut self, buffer: BufferId) -> Result<(), Fault> {
        self.buffer(buffer);
        self.queue.idle();
        self.buffers[buffer.0 as usize] = None;
        Ok(())
    }
}
