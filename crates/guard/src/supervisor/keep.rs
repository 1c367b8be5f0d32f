//! Where the state is kept and where it comes back from: halves, snapshots, checkpoints.

use super::worker::Crew;
use super::{COPY_LIMIT, CommittedState, Copy, GuardError, SharedState, Supervisor};
use crate::decide::{Digest, Event, Source, StopReason, Worker};
use crate::inject::{Handle, Home};
use toprope_program::{Device, Fault, FaultKind, Progress};

/// A state that changes in memory again and again is a host to be left.
const VERIFY_TRIES: u32 = 3;

/// Writes a half to a device with memory of its own: to the buffer of its current state, and frozen values to that of the
/// next one too.
pub(super) fn write_half(state: &SharedState, half: usize, crew: &mut Crew) -> Result<(), Fault> {
    let (current, next) = (crew.session.bindings().current, crew.session.bindings().next);
    crew.device.write(current, 0, state.half(half))?;
    for tensor in state.tensors().iter().filter(|tensor| tensor.frozen && next != current) {
        crew.device.write(next, tensor.location.offset_bytes, state.value(half, tensor))?;
    }
    Ok(())
}

impl Supervisor {
    /// The committed state where it lies, verified against the digest chain. One that changed since it was committed is
    /// taken from an older one and the steps since, as after any other fault.
    ///
    /// # Errors
    /// Nothing is left to take it from; the guard gave up.
    pub fn committed_state(&mut self) -> Result<CommittedState<'_>, GuardError> {
        let wanted = self.committed.0;
        for _ in 0..VERIFY_TRIES {
            match (self.verified(), self.active) {
                (Ok(half), _) => return Ok(self.state.committed(half)),
                (Err(fault), None) => {
                    self.last_fault = Some(fault);
                    break;
                }
                // The guard refuses every state that is not the committed one, and goes back as far as it must.
                (Err(fault), Some(worker)) => {
                    self.failed(worker, fault);
                    self.drive(|this| this.committed.0 >= wanted && this.serves())?;
                }
            }
        }
        let (step, last) = (wanted, self.last_fault.clone().map(Box::new));
        Err(GuardError::Stopped { reason: StopReason::NoState, step, last })
    }

    /// The half with the committed state, fetched from the device where it lies there.
    ///
    /// # Errors
    /// It is not the one that was committed; the device could not be read.
    pub(super) fn verified(&mut self) -> Result<usize, Fault> {
        let wanted = self.committed.0;
        let half = self.held()?.unwrap_or(self.state.current());
        if self.state.digest(half) != self.committed.1 {
            let reason = format!("the state of {wanted} steps changed in memory after it was committed");
            return Err(Fault::new("state", FaultKind::Lost { reason, for_good: false }));
        }
        Ok(half)
    }

    /// The half that holds the committed state, fetched from the device where it lies there; none while an update is
    /// in its place.
    ///
    /// # Errors
    /// The device could not be read.
    pub(super) fn held(&mut self) -> Result<Option<usize>, Fault> {
        let wanted = self.committed.0;
        if self.options.state_on_device && self.begun && self.state.find(wanted).is_none() {
            self.fetch()?;
        }
        Ok(self.state.find(wanted))
    }

    /// Copies the state of the active worker into the older slot.
    fn fetch(&mut self) -> Result<(), Fault> {
        let Some(crew) = self.active.and_then(|worker| self.crews.get_mut(&worker)) else {
            let reason = "no worker holds the state".to_string();
            return Err(Fault::new("state", FaultKind::Lost { reason, for_good: false }));
        };
        let mut whole = vec![0; self.plan.state_bytes];
        crew.device.read(crew.session.bindings().current, 0, &mut whole)?;
        let slot = self.state.other();
        self.state.open(slot);
        self.state.fill(slot, &whole);
        self.state.close(slot, self.committed.0);
        Ok(())
    }

    pub(super) fn restore(&mut self, worker: Worker, source: Source, step: u64) -> Result<(), Fault> {
        let found = match source {
            Source::Committed | Source::Previous | Source::Snapshot => {
                let half = self.state.find(step).map(|half| (step, half));
                half.ok_or_else(|| format!("no half in memory is of {step} steps"))
            }
            Source::Checkpoint => self.load_checkpoint(),
        };
        let (step, half) = match found {
            Ok(found) => found,
            Err(reason) => {
                self.event(Event::RestoreFailed { worker, step, reason });
                return Ok(());
            }
        };
        self.state.choose(half);
        self.state.forget_after(step);
        let digest = self.state.digest(half);
        let Some(crew) = self.crews.get_mut(&worker) else { return Ok(()) };
        crew.session.write_constants(&mut crew.device)?;
        if crew.own_state {
            write_half(&self.state, half, crew)?;
        } else if crew.half != half {
            crew.session.flip();
            crew.half = half;
        }
        self.committed = (step, digest);
        self.judge.forget();
        self.last_run = None;
        self.active = Some(worker);
        self.event(Event::Restored { worker, step, state: digest });
        Ok(())
    }

    /// Takes the newest durable checkpoint into the current half, a value at a time.
    pub(super) fn load_checkpoint(&mut self) -> Result<(u64, usize), String> {
        let half = self.state.current();
        let state = &mut self.state;
        let step = self.options.durable.newest(&mut |name, bytes| {
            state.open(half);
            if state.store(half, name, bytes) {
                return Ok(());
            }
            Err(format!("the checkpoint's `{name}` does not fit the program"))
        })?;
        let step = step.ok_or_else(|| "there is no durable checkpoint".to_string())?;
        self.state.close(half, step);
        Ok((step, half))
    }

    /// Queues a copy of the committed state to the host, behind what the device does next.
    pub(super) fn copy_out(&mut self, worker: Worker) {
        self.finish_copy();
        let (slot, started) = (self.state.other(), self.now());
        self.state.open(slot);
        let to = self.state.home(slot);
        let (Some(crew), Some(after)) = (self.crews.get_mut(&worker), self.last_run) else { return };
        match crew.device.copy_out(crew.session.bindings().current, 0, to, after) {
            Ok(ticket) => {
                let (step, digest) = self.committed;
                self.copy = Some(Copy { worker, step, digest, ticket, slot, started });
            }
            Err(fault) => self.failed(worker, fault),
        }
    }

    /// Waits for the copy under way and digests what came.
    pub(super) fn finish_copy(&mut self) {
        let Some(copy) = self.copy.take() else { return };
        let Some(crew) = self.crews.get_mut(&copy.worker) else { return };
        match crew.device.wait(copy.ticket, COPY_LIMIT) {
            Ok(Progress::Done) => {}
            Ok(Progress::Running { .. }) => {
                let waited_ms = COPY_LIMIT.as_millis() as u64;
                return self.failed(copy.worker, Fault::new("copy", FaultKind::Hang { waited_ms }));
            }
            Err(fault) => return self.failed(copy.worker, fault),
        }
        self.corrupt_snapshot(copy.slot);
        let state = self.state.digest(copy.slot);
        if state == copy.digest {
            self.state.close(copy.slot, copy.step);
        }
        let seconds = self.now().saturating_sub(copy.started).as_secs_f64();
        self.event(Event::SnapshotTaken { worker: copy.worker, step: copy.step, state, seconds });
    }

    /// Carries out injected corruption of a snapshot between the copy and its digest.
    pub(super) fn corrupt_snapshot(&mut self, slot: usize) {
        for fault in std::mem::take(&mut self.snapshot_faults) {
            let Some((name, corruption)) = Handle::at_rest(&fault, Home::Snapshot) else { continue };
            let Some(tensor) = self.state.tensors().iter().find(|tensor| tensor.name == name).cloned() else {
                continue;
            };
            let mut bytes = self.state.value(slot, &tensor).to_vec();
            Handle::corrupt_bytes(&mut bytes, tensor.dtype, 1, corruption);
            self.state.write(slot, name, &bytes);
        }
    }

    pub(super) fn write_checkpoint(&mut self, step: u64, states: &[Digest]) -> Event {
        if states.first().is_some_and(|state| *state != self.committed.1) {
            let reason = "the state in memory is not the one that was committed".to_string();
            return Event::CheckpointFailed { step, reason, damaged: true };
        }
        match self.verified() {
            Ok(half) => match self.options.durable.write(self.committed.0, &self.state.committed(half)) {
                Ok(()) => Event::CheckpointWritten { step },
                Err(reason) => Event::CheckpointFailed { step, reason, damaged: false },
            },
            Err(error) => Event::CheckpointFailed { step, reason: error.to_string(), damaged: true },
        }
    }
}
