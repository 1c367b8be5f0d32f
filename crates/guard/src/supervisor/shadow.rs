//! Everything twice: a second worker computes each step from the same state and the same batch, and the bits of the state
//! that both wrote are compared.
//!
//! It runs on a fallback whose dispatch level is the primary's, where there is one; else on the same device in a process
//! of its own, which finds what does not repeat and leaves what repeats to the checks.

use super::Supervisor;
use super::keep::write_half;
use super::worker::{Crew, Start, ready_now};
use crate::decide::{Alarm, DeviceIndex, Digest, Rank, Suspect, Worker};
use toprope_program::{CheckMask, Device, Fault, FaultKind, Progress, Range};

/// The second worker.
pub(super) struct Shadow {
    crew: Crew,
    /// The device that it was raised beside, by name.
    beside: Option<String>,
    /// Committed steps that the state in it is of, and their digest.
    holds: Option<(u64, Digest)>,
}

impl Supervisor {
    /// Computes the step again elsewhere; an alarm where the bits differ.
    pub(super) fn shadow_step(&mut self, worker: Worker, step: u64, state: Digest) -> Option<Alarm> {
        // One that was raised beside another device, or beside this one before an operator was moved, compares two devices.
        let beside = self.name_of(worker);
        let mut shadow = match self.shadow.take().filter(|shadow| shadow.beside == beside) {
            Some(shadow) => shadow,
            None => match self.raise_shadow(worker) {
                Ok(shadow) => Box::new(shadow),
                Err(fault) => return Some(unheard(fault)),
            },
        };
        match self.second(&mut shadow, step) {
            Ok(other) => {
                let differs = other != state;
                shadow.holds = (!differs).then_some((step + 1, state));
                self.shadow = Some(shadow);
                let kind = FaultKind::Mismatch { operator: "step".into(), error: 1.0, tolerance: 0.0 };
                differs.then_some(Alarm { kind, place: None, suspect: Suspect::Compute })
            }
            // A shadow that fails is raised anew with the next step; this one is computed again.
            Err(fault) => Some(unheard(fault)),
        }
    }

    fn name_of(&self, worker: Worker) -> Option<String> {
        let index = self.crews.get(&worker)?.index;
        self.options.devices.get(usize::from(index.0)).map(|spec| spec.name.clone())
    }

    fn raise_shadow(&mut self, beside: Worker) -> Result<Shadow, Fault> {
        let level = self.describe().map(|description| description.level);
        let own = self.crews.get(&beside).map_or(DeviceIndex(0), |crew| crew.index);
        let start = Start { state: None, work: None, ..self.start.clone() };
        let devices = self.options.devices.clone();
        let others = (0..devices.len()).map(|index| DeviceIndex(index as u16)).filter(|index| *index != own);
        for index in others.chain([own]) {
            let Some(spec) = devices.get(usize::from(index.0)) else { continue };
            let generation = self.own_generation();
            let worker = Worker { rank: Rank(0), generation };
            let mut crew = ready_now(&*self.options.world, &start, worker, (index, spec))?;
            if index != own && Some(crew.device.describe().level) != level {
                continue;
            }
            crew.session.write_constants(&mut crew.device)?;
            return Ok(Shadow { crew, beside: self.name_of(beside), holds: None });
        }
        Err(Fault::new(
            "shadow",
            FaultKind::Lost { reason: "no device for the second execution".into(), for_good: false },
        ))
    }

    /// Both ranges of a step, from the committed state.
    fn second(&mut self, shadow: &mut Shadow, step: u64) -> Result<Digest, Fault> {
        let crew = &mut shadow.crew;
        if shadow.holds == Some(self.committed) {
            crew.session.flip();
        } else {
            write_half(&self.state, self.state.current(), crew)?;
        }
        crew.device.set_step(step);
        crew.session.set_checks(CheckMask::default());
        for micro_batch in 0..self.options.steps.micro_batches(step) {
            crew.session.set_first(micro_batch == 0);
            self.options.steps.write(step, micro_batch, &mut crew.session, &mut crew.device)?;
            run(crew, Range::Accumulate)?;
        }
        run(crew, Range::Update)?;
        let outputs = crew.session.read_outputs(&mut crew.device)?;
        self.state.digest_read(&outputs, |tensor| {
            let mut bytes = vec![0; tensor.bytes];
            crew.device.read(crew.session.bindings().next, tensor.location.offset_bytes, &mut bytes)?;
            Ok(bytes)
        })
    }
}

fn run(crew: &mut Crew, range: Range) -> Result<(), Fault> {
    let ticket = crew.session.queue(&mut crew.device, range)?;
    match crew.device.wait(ticket, super::COPY_LIMIT)? {
        Progress::Done => Ok(()),
        Progress::Running { .. } => {
            let waited_ms = super::COPY_LIMIT.as_millis() as u64;
            Err(Fault::new("shadow", FaultKind::Hang { waited_ms }))
        }
    }
}

/// The second execution could not be had: nothing is shown, so nothing is accepted.
fn unheard(fault: Fault) -> Alarm {
    let kind =
        FaultKind::Mismatch { operator: format!("shadow ({fault})"), error: f64::INFINITY, tolerance: 0.0 };
    Alarm { kind, place: None, suspect: Suspect::Compute }
}
