//! The same work once more: on the same device, which tells a transient fault from one that repeats, and on another one,
//! since a repeatable fault repeats on its own chip.

use super::Supervisor;
use super::worker::{Crew, Start, ready_now};
use crate::decide::{Attempt, DeviceIndex, Event, Finding, Rank, Worker};
use std::time::Duration;
use toprope_program::{CheckMask, Device, Fault, FaultKind, Place, Progress, Range, StateLayout};

/// What a range gave when it was run again.
struct Again {
    /// Operators whose checks did not hold.
    suspects: Vec<Place>,
    loss: f64,
    gradient_norm: f64,
}

impl Again {
    /// The number that tells of a range.
    fn number(&self, range: Range) -> f64 {
        match range {
            Range::Accumulate => self.loss,
            Range::Update => self.gradient_norm,
        }
    }
}

/// How close a range's numbers on two devices that compute the same lie, relatively. Losses: the curve tolerance of bf16
/// (DESIGN, "Numerics"), which f32 is well within. A norm is of gradients whose elements each have bf16's rounding behind them;
/// what is asked about is above its median by half at least.
fn tolerance(range: Range) -> f64 {
    match range {
        Range::Accumulate => 2e-3,
        Range::Update => 0.05,
    }
}

impl Supervisor {
    /// Runs the step again on the worker that ran it, with every check, to the end of the range in question.
    pub(super) fn replay(&mut self, worker: Worker, attempt: Attempt, range: Range, place: Option<Place>) {
        let before = self.number_under_way(range);
        if self.is_damaged() {
            return self.event(Event::Replayed { worker, attempt, finding: Finding::StateDamaged });
        }
        if range == Range::Update && self.plan.layout == StateLayout::InPlace {
            // What `update` read is overwritten: it cannot be told.
            return self.event(Event::Replayed { worker, attempt, finding: Finding::Unknown });
        }
        let Some(mut crew) = self.crews.remove(&worker) else { return };
        let again = self.again(&mut crew, attempt.step, range);
        self.crews.insert(worker, crew);
        match again {
            Ok(again) => {
                let same = match &place {
                    Some(place) => again.suspects.iter().any(|other| same_operator(other, place)),
                    // The same bits give the same number, NaN among them.
                    None => again.number(range).to_bits() == before.to_bits(),
                };
                let finding = if same { Finding::Agrees } else { Finding::Differs };
                self.event(Event::Replayed { worker, attempt, finding });
            }
            Err(fault) => self.failed(worker, fault),
        }
    }

    /// Runs it on another device, from the same state and the same batch.
    pub(super) fn confirm(
        &mut self,
        attempt: Attempt,
        range: Range,
        place: Option<Place>,
        device: Option<DeviceIndex>,
    ) {
        let before = self.number_under_way(range);
        let active = self.active.and_then(|worker| self.crews.get(&worker)).map(|crew| crew.index);
        let others = 0..self.options.devices.len() as u16;
        let other = device.or_else(|| others.map(DeviceIndex).find(|index| Some(*index) != active));
        let unknown =
            Event::Confirmed { attempt, device: other, other_chip: false, finding: Finding::Unknown };
        if self.is_damaged() {
            let (device, finding) = (other, Finding::StateDamaged);
            return self.event(Event::Confirmed { attempt, device, other_chip: false, finding });
        }
        let Some(index) = other else { return self.event(unknown) };
        let hardware = self.describe().map(|description| description.hardware);
        match self.elsewhere(index, attempt.step, range) {
            Ok((again, other_hardware)) => {
                let number = again.number(range);
                let agrees = match &place {
                    // The other device's own check of the same operator, on the same inputs: where it holds there, the
                    // suspect computed something else.
                    Some(place) => again.suspects.iter().any(|other| same_operator(other, place)),
                    None if before.is_finite() && number.is_finite() => {
                        (number - before).abs() <= tolerance(range) * before.abs().max(1e-12)
                    }
                    None => before.is_finite() == number.is_finite(),
                };
                let finding = if agrees { Finding::Agrees } else { Finding::Differs };
                let other_chip = hardware.is_some_and(|own| own != other_hardware);
                self.event(Event::Confirmed { attempt, device: Some(index), other_chip, finding });
            }
            Err(fault) => {
                self.last_fault = Some(fault);
                self.event(unknown);
            }
        }
    }

    /// Whether the state that the alarm came from changed at rest: no device computes right from that. What an update
    /// under way has overwritten says nothing.
    fn is_damaged(&mut self) -> bool {
        matches!(self.held(), Ok(Some(half)) if self.state.digest(half) != self.committed.1)
    }

    fn number_under_way(&self, range: Range) -> f64 {
        if range == Range::Update {
            return self.result.gradient_norm;
        }
        let loss = self.result.scalars.iter().find(|(name, _)| name == "loss");
        loss.map_or(f64::NAN, |(_, loss)| *loss)
    }

    /// A worker that is started for this alone, with memory of its own, on a copy of the committed state.
    fn elsewhere(&mut self, index: DeviceIndex, step: u64, through: Range) -> Result<(Again, String), Fault> {
        let lost = |reason: String| Fault::new("confirmation", FaultKind::Lost { reason, for_good: false });
        let spec = self.options.devices.get(usize::from(index.0)).cloned();
        let spec = spec.ok_or_else(|| lost(format!("there is no device {}", index.0)))?;
        let half = self.verified()?;
        let generation = self.own_generation();
        let worker = Worker { rank: Rank(0), generation };
        let start = Start { state: None, work: None, ..self.start.clone() };
        let mut crew = ready_now(&*self.options.world, &start, worker, (index, &spec))?;
        crew.session.write_constants(&mut crew.device)?;
        for (name, bytes) in self.state.committed(half).values() {
            crew.session.write(&mut crew.device, name, bytes)?;
        }
        let again = self.again(&mut crew, step, through)?;
        let hardware = crew.device.describe().hardware;
        Ok((again, hardware))
    }

    /// Runs a step with every check, `update` only where it is asked for. Nothing is committed.
    fn again(&mut self, crew: &mut Crew, step: u64, through: Range) -> Result<Again, Fault> {
        let mut again = Again { suspects: Vec::new(), loss: f64::NAN, gradient_norm: f64::NAN };
        crew.device.set_step(step);
        crew.session.set_checks(CheckMask::all(self.judge.sites().len()));
        for micro_batch in 0..self.options.steps.micro_batches(step) {
            crew.session.set_first(micro_batch == 0);
            self.options.steps.write(step, micro_batch, &mut crew.session, &mut crew.device)?;
            self.range_again(crew, Range::Accumulate, &mut again)?;
        }
        if through == Range::Update {
            self.range_again(crew, Range::Update, &mut again)?;
        }
        Ok(again)
    }

    fn range_again(&self, crew: &mut Crew, range: Range, again: &mut Again) -> Result<(), Fault> {
        let limit = Duration::from_secs_f64(self.options.policy.confirm_limit_seconds);
        let ticket = crew.session.queue(&mut crew.device, range)?;
        if let Progress::Running { .. } = crew.device.wait(ticket, limit)? {
            let waited_ms = limit.as_millis() as u64;
            return Err(Fault::new("replay", FaultKind::Hang { waited_ms }));
        }
        let outputs = crew.session.read_outputs(&mut crew.device)?;
        let (program, mask) = (self.options.program.program(), &crew.session.bindings().checks);
        let alarms = self.judge.judge(program, range, mask, &outputs);
        again.suspects.extend(alarms.into_iter().filter_map(|alarm| alarm.place));
        let scalar = |name| outputs.scalar(name).map_or(f64::NAN, f64::from);
        match range {
            Range::Accumulate => again.loss = scalar("loss"),
            Range::Update => again.gradient_norm = scalar("gradient_norm"),
        }
        Ok(())
    }
}

fn same_operator(a: &Place, b: &Place) -> bool {
    a.range == b.range && a.index == b.index
}
