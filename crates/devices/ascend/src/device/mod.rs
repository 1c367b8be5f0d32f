//! The device: buffers, programs, one stream that computes and one that copies. Between the operators of a range the host
//! is not asked for anything.

pub(crate) mod cann; // libraries together, memory with an owner
pub(crate) mod open; // finding, checking, setting

pub(crate) use open::cann_of;
pub use open::{Listing, OpenError, Options, devices};

use crate::code::{Remedy, lookup};
use crate::fault::{fault, unsupported};
use crate::ffi::abi::{
    ACLNN_RUNTIME_ERROR, Code, DEVICE_TASK_ABORT, DRV_INTERNAL_ERROR, STREAM_SYNC_TIMEOUT, SUCCESS,
};
use crate::ffi::object::Bases;
use crate::ffi::runtime::{Context, Event, Stream};
use crate::name::Name;
use crate::plan::{Key, Prepared, Ready, Workshop, asks_for_first, place};
use crate::queue::{Entry, Mark, Queue, stride};
use cann::{Cann, Memory};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use toprope_program::{
    Allocation, Bindings, BufferId, Description, Device, Fault, FaultKind, HostRegion, MemoryPlan, Place,
    PreparedId, Progress, ProgressPlace, Range, Span, Ticket, Validated, Width,
};

/// One wait for a stream, in milliseconds: what a deadline is counted in, and how often progress is written.
const SLICE_MS: i32 = 4;

/// What is said of a place that an error met late is given.
const LATE: &str = "; the operator is the first that had not ended: +launch=sync names the true one";

/// What is said of a place where an operator was queued behind others that nobody had waited for.
const EARLIER: &str = ", which one queued before may have made fail: +launch=sync names the true one";

/// Runs that are waited for operator by operator: those of a step or two.
const CAREFUL_RUNS: u32 = 8;

/// What such a run waits for one operator, in milliseconds; the deadline of who waits for the run goes on after that.
const CAREFUL_MS: i32 = 1000;

/// The same where it was asked for by name.
const PATIENT_MS: i32 = 60_000;

/// An Ascend NPU, or CANN's emulator.
pub struct AscendDevice {
    name: String,
    parsed: Name,
    description: Description,
    cann: Arc<Cann>,
    context: Context,
    compute: Stream,
    copies: Stream,
    programs: Vec<Prepared>,
    buffers: Vec<Option<Memory>>,
    scratch: Option<Memory>,
    /// Grows whenever scratch moves: executors name its address.
    generation: u64,
    workspace: Option<Memory>,
    queue: Queue,
    progress: ProgressPlace,
    /// What ended the device: it is not used again.
    lost: Option<Fault>,
    /// So many more runs wait for each operator, so that an error names the true one: the first after the device was opened
    /// (the worker before it may have ended with an error that is about to come again), and after an error that passed.
    careful: u32,
}

impl AscendDevice {
    /// What the device says of CANN, for reports: files and missing operators.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Makes the device this thread's, unless it is lost.
    fn enter(&self) -> Result<(), Fault> {
        if let Some(fault) = &self.lost {
            return Err(fault.clone());
        }
        match self.cann.runtime.enter(self.context) {
            SUCCESS => Ok(()),
            code => Err(self.cann.fault(&self.name, code, "making the device's context this thread's")),
        }
    }

    /// A failed call as a fault, which everything under way has from here on; an error that sticks ends the device.
    /// Where streams must be made anew it does too, after memory was repaired: a new worker has new ones.
    fn failed(&mut self, code: Code, during: &str, at: Option<Place>) -> Fault {
        let runtime = &self.cann.runtime;
        // An operator tells that the runtime failed; the thread's last error tells how.
        let code = match (code, runtime.last_error()) {
            (ACLNN_RUNTIME_ERROR, last) if last != SUCCESS => last,
            _ => code,
        };
        // A device that an operator has lost answers every later call with one and the same code; its stream tells the operator's.
        if code == DRV_INTERNAL_ERROR {
            let first = runtime.synchronize_within(self.compute, CAREFUL_MS);
            if ![SUCCESS, STREAM_SYNC_TIMEOUT, code].contains(&first) {
                let _ = self.queue.poll(&self.cann, &self.progress);
                let at = self.queue.first_unfinished().or(at);
                return self.failed(
                    first,
                    &format!("{during}, where the failure of an operator was met{LATE}"),
                    at,
                );
            }
        }
        let mut fault = fault(&self.name, code, during, &runtime.message());
        fault.place = at;
        let remedy = lookup(code).remedy;
        if remedy == Remedy::Restart
            && let Some(count) = self.cann.runtime.stop_and_repair(self.parsed.index as i32)
            && let FaultKind::Driver { message, .. } = &mut fault.kind
        {
            message.push_str(&format!("; stopped, and {count} memory error(s) repaired"));
        }
        if remedy.is_sticky() || remedy == Remedy::Restart {
            self.lost = Some(fault.clone());
        } else {
            self.careful = CAREFUL_RUNS;
        }
        // A copy that is still under way writes to pinned memory.
        let settled = self.cann.runtime.synchronize_within(self.copies, CAREFUL_MS) == SUCCESS;
        self.queue.fail(&self.cann, &fault, settled);
        fault
    }

    /// A failure that a wait met: the first operator that had not ended stands for it, unless each was waited for.
    fn failed_under_way(&mut self, code: Code, during: &str) -> Fault {
        // What ended before the error is still told by its events.
        let _ = self.queue.poll(&self.cann, &self.progress);
        let at = self.queue.first_unfinished();
        let hint = if at.is_some() { format!("{during}{LATE}") } else { during.to_string() };
        self.failed(code, &hint, at)
    }

    /// Waits for everything that was queued.
    fn drain(&mut self) -> Result<(), Fault> {
        for (stream, what) in [(self.compute, "waiting for operators"), (self.copies, "waiting for copies")] {
            match self.cann.runtime.synchronize(stream) {
                SUCCESS => {}
                code => return Err(self.failed_under_way(code, what)),
            }
        }
        match self.queue.poll(&self.cann, &self.progress) {
            Ok(()) => Ok(()),
            Err(code) => Err(self.failed(code, "asking an event", None)),
        }
    }

    fn buffer(&self, id: BufferId) -> &Memory {
        match self.buffers.get(id.0 as usize) {
            Some(Some(memory)) => memory,
            _ => panic!("buffer {} is not one of this device", id.0),
        }
    }

    /// The address of a part of a buffer.
    fn part(&self, id: BufferId, offset_bytes: usize, bytes: usize) -> u64 {
        let memory = self.buffer(id);
        let end = offset_bytes.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= memory.bytes),
            "{bytes} bytes from {offset_bytes} leave the buffer"
        );
        memory.address + offset_bytes as u64
    }

    /// Makes temporaries' memory large enough. Where it moves, executors must be made again.
    fn reserve_scratch(&mut self, bytes: usize) -> Result<(), Fault> {
        if self.scratch.as_ref().is_none_or(|scratch| scratch.bytes < bytes) {
            self.drain()?;
            self.scratch = None;
            self.generation += 1;
            self.scratch = Some(self.cann.allocate(&self.name, bytes)?);
        }
        Ok(())
    }

    /// Makes the operators' own workspace large enough; launches name it, so it may move.
    fn reserve_workspace(&mut self, bytes: u64) -> Result<u64, Fault> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes > 0 && self.workspace.as_ref().is_none_or(|workspace| workspace.bytes < bytes) {
            self.drain()?;
            self.workspace = None;
            self.workspace = Some(self.cann.allocate(&self.name, bytes)?);
        }
        Ok(self.workspace.as_ref().map_or(0, |workspace| workspace.address))
    }

    /// Plans what a span needs, growing memory where it must.
    fn ready(
        &mut self,
        prepared: PreparedId,
        bindings: &Bindings,
        wanted: &[(Range, usize, bool)],
    ) -> Result<Ready, Fault> {
        let (state, work) = {
            let plan = &self.programs[prepared.0 as usize].plan;
            (plan.state_bytes, plan.work_bytes)
        };
        loop {
            let key = Key {
                symbols: bindings.symbols.clone(),
                buffers: [bindings.current, bindings.next, bindings.work],
                generation: self.generation,
            };
            if self.programs[prepared.0 as usize].is_full_for(&key) {
                self.drain()?;
            }
            let bases = Bases {
                current: self.part(bindings.current, 0, state),
                next: self.part(bindings.next, 0, state),
                work: self.part(bindings.work, 0, work),
                scratch: self.scratch.as_ref().map_or(0, |scratch| scratch.address),
                constants: 0,
            };
            let there = self.scratch.as_ref().map_or(0, |scratch| scratch.bytes);
            let shop = Workshop { cann: &self.cann, device: &self.name, settings: self.parsed.settings() };
            let ready = self.programs[prepared.0 as usize].ready(&shop, &key, bases, there, wanted)?;
            if ready.scratch_bytes <= there {
                return Ok(ready);
            }
            // Smaller sizes may be cut otherwise and take a little more.
            self.reserve_scratch(ready.scratch_bytes)?;
        }
    }

    /// Queues one span's instructions, with points between them in `marks`. Gives the first that is not known to have ended;
    /// `Err` has what failed, and where.
    fn launch(
        &mut self,
        prepared: PreparedId,
        ready: &Ready,
        wanted: &[(Range, usize, bool)],
        workspace: u64,
        ticket: Ticket,
        marks: &mut Vec<Mark>,
    ) -> Result<Option<Place>, (Code, String, Place)> {
        let every = stride(wanted.len());
        let patience_ms = if self.parsed.synchronous() { PATIENT_MS } else { CAREFUL_MS };
        let mut each = self.parsed.synchronous() || self.careful > 0;
        let program = self.programs[prepared.0 as usize].program.clone();
        let at = |which: (Range, usize, bool)| place(program.program(), which.0, which.1);
        let mut start = wanted.first().copied();
        for (turn, &which) in wanted.iter().enumerate() {
            let entry = &mut self.programs[prepared.0 as usize];
            let launched = entry.launch(&self.cann, ready.bound, which, workspace, self.compute);
            launched.map_err(|(code, name)| {
                // One that was queued before and not waited for may have failed meanwhile.
                let late = if each { "" } else { EARLIER };
                (code, format!("queueing aclnn{name}{late}"), at(which))
            })?;
            if each {
                // Everything before it has ended. It may hang itself: who waits for the run has a deadline.
                start = Some(which);
                self.progress.word().mark(ticket, which.1);
                let pending = self.wait_alone(patience_ms);
                let pending =
                    pending.map_err(|code| (code, "waiting for this operator alone".into(), at(which)))?;
                if let Some(event) = pending {
                    each = false;
                    let next = wanted.get(turn + 1).copied().unwrap_or(which);
                    marks.push(Mark { next: at(next), event });
                }
            } else if (turn + 1).is_multiple_of(every)
                && let Some(&next) = wanted.get(turn + 1)
            {
                let event = self.queue.record(&self.cann, self.compute);
                let event =
                    event.map_err(|code| (code, format!("recording an event{EARLIER}"), at(which)))?;
                marks.push(Mark { next: at(next), event });
            }
        }
        Ok(start.map(at))
    }
}

impl AscendDevice {
    /// Waits for what was queued last; where the time was not enough, gives the event that comes behind it.
    fn wait_alone(&mut self, patience_ms: i32) -> Result<Option<Event>, Code> {
        let behind = self.queue.record(&self.cann, self.compute)?;
        let ended = self.ended(behind, patience_ms);
        if ended == Ok(false) {
            return Ok(Some(behind));
        }
        self.queue.give_back(behind);
        ended.map(|_| None)
    }

    fn ended(&self, behind: Event, patience_ms: i32) -> Result<bool, Code> {
        let runtime = &self.cann.runtime;
        let code = match runtime.synchronize_within(self.compute, patience_ms) {
            // An operator may fail with this very code, which is told once: the stream is at its end then, and what was
            // queued behind the operator never ran.
            STREAM_SYNC_TIMEOUT => match runtime.synchronize_within(self.compute, 1) {
                STREAM_SYNC_TIMEOUT => return Ok(false),
                SUCCESS if !runtime.is_complete(behind)? => STREAM_SYNC_TIMEOUT,
                code => code,
            },
            code => code,
        };
        if code == SUCCESS { Ok(true) } else { Err(code) }
    }
}

impl Device for AscendDevice {
    fn describe(&self) -> Description {
        self.description.clone()
    }

    fn allocate(&mut self, allocation: Allocation) -> Result<BufferId, Fault> {
        self.enter()?;
        let bytes = match allocation {
            Allocation::Own(bytes) => bytes,
            Allocation::Adopt(_) => {
                let reason = "an NPU computes in memory of its own".to_string();
                return Err(unsupported(&self.name, "allocate", reason));
            }
        };
        let memory = self.cann.allocate(&self.name, bytes)?;
        match self.cann.runtime.zero(memory.address, memory.bytes) {
            SUCCESS => {}
            code => return Err(self.failed(code, "zeroing memory", None)),
        }
        let free = self.buffers.iter().position(Option::is_none);
        let index = free.unwrap_or(self.buffers.len());
        if free.is_none() {
            self.buffers.push(None);
        }
        self.buffers[index] = Some(memory);
        Ok(BufferId(index as u32))
    }

    fn write(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.enter()?;
        let address = self.part(buffer, offset_bytes, bytes.len());
        self.drain()?;
        if bytes.is_empty() {
            return Ok(());
        }
        match self.cann.runtime.upload(address, bytes) {
            SUCCESS => Ok(()),
            code => Err(self.failed(code, "copying to the device", None)),
        }
    }

    fn read(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        self.enter()?;
        let address = self.part(buffer, offset_bytes, bytes.len());
        self.drain()?;
        if bytes.is_empty() {
            return Ok(());
        }
        match self.cann.runtime.download(bytes, address) {
            SUCCESS => Ok(()),
            code => Err(self.failed(code, "copying from the device", None)),
        }
    }

    fn copy_out(
        &mut self,
        buffer: BufferId,
        offset_bytes: usize,
        to: HostRegion,
        after: Ticket,
    ) -> Result<Ticket, Fault> {
        self.enter()?;
        assert!(self.queue.gave(after), "{after:?} was never given");
        let address = self.part(buffer, offset_bytes, to.bytes);
        if let Some(event) = self.queue.end_of(after) {
            match self.cann.runtime.wait_for(self.copies, event) {
                SUCCESS => {}
                code => return Err(self.failed(code, "ordering a copy behind a run", None)),
            }
        }
        let pinned = match self.cann.runtime.pin(to.bytes.max(64)) {
            Ok(pinned) => pinned,
            Err(code) => return Err(self.failed(code, "asking for pinned memory", None)),
        };
        let code = self.cann.runtime.download_later(&pinned, to.bytes, address, self.copies);
        let end = if code == SUCCESS { self.queue.record(&self.cann, self.copies) } else { Err(code) };
        match end {
            Ok(end) => {
                let ticket = self.queue.ticket();
                let copy = Some((pinned, to));
                self.queue.add_copy(Entry { ticket, start: None, marks: Vec::new(), end, copy });
                Ok(ticket)
            }
            Err(code) => {
                let fault = self.failed(code, "queueing a copy", None);
                // A copy that is still under way writes to it.
                if self.cann.runtime.synchronize_within(self.copies, CAREFUL_MS) == SUCCESS {
                    self.cann.runtime.unpin(pinned);
                }
                Err(fault)
            }
        }
    }

    fn prepare(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        self.enter()?;
        if plan.width != Width::Native {
            let reason = "only `reference` has the wide width".to_string();
            return Err(unsupported(&self.name, "plan", reason));
        }
        self.reserve_scratch(64)?;
        let probe = self.scratch.as_ref().map_or(0, |scratch| scratch.address);
        let probe = Bases { current: probe, next: probe, work: probe, scratch: probe, constants: probe };
        let shop = Workshop { cann: &self.cann, device: &self.name, settings: self.parsed.settings() };
        let (prepared, scratch_bytes) = shop.prepare(program, plan, probe)?;
        self.reserve_scratch(scratch_bytes)?;
        self.programs.push(prepared);
        Ok(PreparedId(self.programs.len() as u32 - 1))
    }

    fn run(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        self.enter()?;
        let Some(entry) = self.programs.get(prepared.0 as usize) else {
            panic!("program {} is not one of this device", prepared.0);
        };
        let validated = entry.program.clone();
        let program = validated.program();
        let instructions = program.range(span.range);
        assert!(
            span.from <= span.to && span.to <= instructions.len(),
            "span {span:?} of {} instructions",
            instructions.len()
        );
        let bounds = program.bounds();
        let inside = |(symbol, bound): (&usize, &usize)| (1..=*bound).contains(symbol);
        assert!(
            bindings.symbols.len() == bounds.len() && bindings.symbols.iter().zip(&bounds).all(inside),
            "symbols {:?} do not lie within {bounds:?}",
            bindings.symbols
        );
        let fires = |index: &usize| instructions[*index].check.is_none_or(|bit| bindings.checks.fires(bit));
        let wanted: Vec<(Range, usize, bool)> = (span.from..span.to)
            .filter(fires)
            .map(|index| {
                let first = bindings.first && asks_for_first(&instructions[index].operator);
                (span.range, index, first)
            })
            .collect();
        let ready = self.ready(prepared, bindings, &wanted)?;
        let workspace = self.reserve_workspace(ready.workspace_bytes)?;
        if self.queue.first_unfinished().is_none() {
            self.progress.word().instruction.store(0, Ordering::Relaxed);
        }
        let ticket = self.queue.ticket();
        let mut marks = Vec::new();
        let start = match self.launch(prepared, &ready, &wanted, workspace, ticket, &mut marks) {
            Ok(start) => start,
            Err((code, during, at)) => {
                self.queue.give_back_all(marks);
                return Err(self.failed(code, &during, Some(at)));
            }
        };
        self.careful = self.careful.saturating_sub(1);
        let end = match self.queue.record(&self.cann, self.compute) {
            Ok(end) => end,
            Err(code) => {
                self.queue.give_back_all(marks);
                // The run is not in the queue yet: the first operator of it is the first that is not known to have ended.
                let _ = self.queue.poll(&self.cann, &self.progress);
                let at = self.queue.first_unfinished().or(start);
                return Err(self.failed(code, &format!("recording an event{LATE}"), at));
            }
        };
        self.queue.add_run(Entry { ticket, start, marks, end, copy: None });
        Ok(ticket)
    }

    fn wait(&mut self, ticket: Ticket, deadline: Duration) -> Result<Progress, Fault> {
        self.enter()?;
        assert!(self.queue.gave(ticket), "{ticket:?} was never given");
        if let Some(fault) = self.queue.failure_of(ticket) {
            return Err(fault);
        }
        let mut waited = Duration::ZERO;
        // A stream that has ended has brought a run's event, or never will.
        let mut ended = false;
        loop {
            if let Err(code) = self.queue.poll(&self.cann, &self.progress) {
                return Err(self.failed_under_way(code, "asking an event"));
            }
            let Some(is_copy) = self.queue.under_way(ticket) else { return Ok(Progress::Done) };
            if ended {
                let code = if waited.is_zero() { DEVICE_TASK_ABORT } else { STREAM_SYNC_TIMEOUT };
                return Err(self.failed_under_way(code, "waiting for a ticket whose stream dropped it"));
            }
            if waited >= deadline {
                let at = self.queue.first_unfinished();
                return Ok(Progress::Running { instruction: at.map(|at| at.index) });
            }
            // The wait itself is the clock: it takes its time whenever it does not succeed.
            let stream = if is_copy { self.copies } else { self.compute };
            match self.cann.runtime.synchronize_within(stream, SLICE_MS) {
                SUCCESS => ended = true,
                STREAM_SYNC_TIMEOUT => waited += Duration::from_millis(SLICE_MS as u64),
                code => return Err(self.failed_under_way(code, "waiting for a ticket")),
            }
        }
    }

    fn release(&mut self, buffer: BufferId) -> Result<(), Fault> {
        self.buffer(buffer);
        // Memory of a lost device goes with it.
        if self.lost.is_none() {
            self.enter()?;
            self.drain()?;
        }
        for program in &mut self.programs {
            program.forget(buffer);
        }
        self.buffers[buffer.0 as usize] = None;
        Ok(())
    }
}

impl Drop for AscendDevice {
    fn drop(&mut self) {
        let runtime = &self.cann.runtime;
        runtime.enter(self.context);
        let settled = if self.lost.is_none() {
            runtime.synchronize(self.compute);
            runtime.synchronize(self.copies) == SUCCESS
        } else {
            // What comes after may open the device anew; where the runtime cannot, a new process must.
            runtime.reset_by_force(self.parsed.index as i32);
            true
        };
        self.programs.clear();
        self.queue.close(&self.cann, settled);
        self.buffers.clear();
        (self.scratch, self.workspace) = (None, None);
        if self.lost.is_none() {
            runtime.destroy_stream(self.compute);
            runtime.destroy_stream(self.copies);
            runtime.destroy_context(self.context);
        }
    }
}
