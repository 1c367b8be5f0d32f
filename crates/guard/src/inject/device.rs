//! A device in which faults happen: it runs what it is asked to on another one, and splits spans where a fault strikes.
//! An instruction gives the same bits in a range and alone, so splitting changes nothing else.

use super::change::{Changed, corrupt, store, words};
use super::handle::{Handle, InjectedFault};
use super::select::draw;
use super::spec::{Corruption, Moment, Scheduled, What};
use super::target::{Strike, results, strikes};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use toprope_program::operator::digest_mix;
use toprope_program::shape::{elements, sizes};
use toprope_program::tensor::round;
use toprope_program::{
    Around, Bindings, DType, Device, Fault, FaultKind, Instruction, Location, MemoryPlan, Operator, Phase,
    Place, PreparedId, Program, Progress, ProgressPlace, Range, Role, Span, StateLayout, Ticket, Validated,
    ValueId, Width,
};

/// What only the process can do for an injected fault. A worker dies and hangs in earnest; where these return, the
/// device answers with the fault instead, which is how tests run in one process.
pub trait Hooks: Send {
    /// The process is to die now.
    fn die(&mut self) {}

    /// The device is not to answer any more.
    fn hang(&mut self) {}

    /// Time since any origin, for slowness.
    fn monotonic(&mut self) -> Duration {
        Duration::ZERO
    }

    /// Returns after `duration`, for slowness.
    fn sleep(&mut self, duration: Duration) {
        let _ = duration;
    }
}

/// Nothing dies, hangs or takes longer; the device answers with the fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {}

/// How long a split span may take before it is a hang of the real device: far beyond any deadline of a guard.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A device in which a schedule's faults happen.
pub struct Injected {
    inner: Box<dyn Device>,
    name: String,
    handle: Handle,
    hooks: Box<dyn Hooks>,
    progress: Option<ProgressPlace>,
    prepared: HashMap<PreparedId, (Arc<Validated>, Arc<MemoryPlan>)>,
    last: Ticket,
}

/// A fault that strikes in a span.
struct Struck {
    id: usize,
    fault: Scheduled,
    strike: Strike,
}

/// What a run is of.
struct Run<'a> {
    prepared: PreparedId,
    program: &'a Program,
    plan: &'a MemoryPlan,
    bindings: &'a Bindings,
}

impl Injected {
    /// Wraps a device. Faults that name a device happen where that is `inner`'s own name, or the one of
    /// [`Injected::named`].
    pub fn new(inner: Box<dyn Device>, handle: Handle, hooks: Box<dyn Hooks>) -> Injected {
        let name = inner.describe().name;
        let (prepared, last) = (HashMap::new(), Ticket(0));
        Injected { inner, name, handle, hooks, progress: None, prepared, last }
    }

    /// Says what the run calls this device.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Injected {
        self.name = name.into();
        self
    }

    /// Says where to name the operator that an injected hang is in.
    #[must_use]
    pub fn with_progress(mut self, progress: ProgressPlace) -> Injected {
        self.progress = Some(progress);
        self
    }

    fn fault(&self, kind: FaultKind) -> Fault {
        let mut fault = Fault::new(self.name.clone(), kind);
        fault.step = Some(self.handle.step());
        fault
    }

    fn settle(&mut self, ticket: Option<Ticket>) -> Result<(), Fault> {
        let Some(ticket) = ticket else { return Ok(()) };
        match self.inner.wait(ticket, PATIENCE)? {
            Progress::Done => Ok(()),
            Progress::Running { .. } => {
                Err(self.fault(FaultKind::Hang { waited_ms: PATIENCE.as_millis() as u64 }))
            }
        }
    }

    fn queue(&mut self, run: &Run<'_>, range: Range, from: usize, to: usize) -> Result<Ticket, Fault> {
        self.last = self.inner.run(run.prepared, Span { range, from, to }, run.bindings)?;
        Ok(self.last)
    }

    fn run_struck(&mut self, run: &Run<'_>, span: Span, struck: &[Struck]) -> Result<Ticket, Fault> {
        let (range, mut from, mut ticket) = (span.range, span.from, None);
        for here in struck.chunk_by(|a, b| a.strike.index == b.strike.index) {
            let index = here[0].strike.index;
            if from < index {
                ticket = Some(self.queue(run, range, from, index)?);
            }
            let at = |moment: Moment| here.iter().filter(move |struck| struck.strike.moment == moment);
            let (inside, outside): (Vec<_>, Vec<_>) =
                at(Moment::In).partition(|struck| matches!(struck.fault.what, What::Compute { .. }));
            for struck in at(Moment::Before).chain(outside) {
                self.settle(ticket)?;
                if matches!(struck.fault.what, What::Die(_)) && struck.strike.moment == Moment::In {
                    // Queued and not waited for: the death falls into the operator or shortly before it.
                    self.queue(run, range, index, index + 1)?;
                }
                self.carry_out(run, struck)?;
            }
            ticket = Some(self.queue(run, range, index, index + 1)?);
            for struck in inside.into_iter().chain(at(Moment::After)) {
                self.settle(ticket)?;
                self.carry_out(run, struck)?;
            }
            from = index + 1;
        }
        match ticket {
            Some(ticket) if from >= span.to => Ok(ticket),
            _ => self.queue(run, range, from, span.to),
        }
    }

    fn carry_out(&mut self, run: &Run<'_>, struck: &Struck) -> Result<(), Fault> {
        let Strike { range, index, .. } = struck.strike;
        let instruction = &run.program.range(range)[index];
        let (operator, part) = (instruction.operator.name().to_string(), instruction.part.clone());
        let place = Place { range, index, operator, part };
        let fired = self.handle.fire(struck.id);
        // A fault that is never the same takes another seed each time.
        let choice = |corruption: &Corruption| match corruption.anew {
            true => {
                let seed = draw(corruption.seed, 2, fired);
                let count = 1 + (draw(seed, 3, 0) % corruption.count as u64) as usize;
                Corruption { seed, count, ..corruption.clone() }
            }
            false => corruption.clone(),
        };
        let mut injected = InjectedFault {
            id: struck.id,
            step: self.handle.step(),
            device: self.name.clone(),
            what: struck.fault.what.to_string(),
            place: Some(place.clone()),
            elements: 0,
        };
        let kind = match &struck.fault.what {
            What::Compute { corruption, .. } => {
                injected.elements = self.compute(run, instruction, &choice(corruption))?;
                None
            }
            What::AtRest { corruption, value, .. } => {
                injected.elements = self.at_rest(run, value, &choice(corruption))?;
                None
            }
            What::TearState => {
                injected.elements = self.tear(run)?;
                None
            }
            What::Die(_) => Some(FaultKind::Lost { reason: "injected death".into(), for_good: false }),
            What::Hang(_) => Some(FaultKind::Hang { waited_ms: 0 }),
            What::Driver { code, .. } => Some(FaultKind::Driver { code: *code, message: "injected".into() }),
            What::OutOfMemory(_) => Some(FaultKind::OutOfMemory { needed_bytes: 0, available_bytes: None }),
            What::Unsupported(_) => Some(FaultKind::Unsupported {
                operator: place.operator.clone(),
                dtype: None,
                shape: Vec::new(),
                reason: "injected".into(),
            }),
            What::DieWhileAnswering
            | What::DieInSnapshot
            | What::Slow { .. }
            | What::DiskFull
            | What::KillSupervisor => None,
        };
        self.handle.record(injected);
        let Some(kind) = kind else { return Ok(()) };
        match kind {
            FaultKind::Lost { .. } => self.hooks.die(),
            FaultKind::Hang { .. } => {
                if let Some(progress) = &self.progress {
                    progress.word().mark(Ticket(self.last.0 + 1), index);
                }
                self.hooks.hang();
            }
            _ => {}
        }
        let mut fault = self.fault(kind);
        fault.place = Some(place);
        Err(fault)
    }

    fn stored(&mut self, run: &Run<'_>, id: ValueId) -> Result<Option<(Location, Vec<u8>)>, Fault> {
        let Some(place) = run.plan.place(id) else { return Ok(None) };
        let value = run.program.value(id);
        let count = elements(&sizes(&value.shape, &run.bindings.symbols));
        let mut bytes = vec![0; count * value.dtype.size_bytes(Width::Native)];
        self.inner.read(run.bindings.buffer(place.region), place.offset_bytes, &mut bytes)?;
        Ok(Some((place, bytes)))
    }

    fn write_back(&mut self, run: &Run<'_>, place: Location, bytes: &[u8]) -> Result<(), Fault> {
        self.inner.write(run.bindings.buffer(place.region), place.offset_bytes, bytes)
    }

    fn row(run: &Run<'_>, id: ValueId) -> usize {
        sizes(&run.program.value(id).shape, &run.bindings.symbols).last().copied().unwrap_or(1)
    }

    /// The operator's accumulator comes out wrong: result and checksums follow.
    fn compute(
        &mut self,
        run: &Run<'_>,
        instruction: &Instruction,
        corruption: &Corruption,
    ) -> Result<usize, Fault> {
        let count = results(instruction);
        let Some(id) = instruction.outputs[..count].get(corruption.output).copied() else { return Ok(0) };
        let Some((place, mut bytes)) = self.stored(run, id)? else { return Ok(0) };
        let dtype = run.program.value(id).dtype;
        let row = Self::row(run, id);
        let before = words(&bytes, dtype);
        // What a bf16 holds is the upper half of the f32 that it was rounded from; the lower half is gone.
        let mut accumulators: Vec<u32> = match dtype {
            DType::Bf16 => before.iter().map(|bits| bits << 16).collect(),
            _ => before.clone(),
        };
        let kind = if dtype.is_float() { DType::F32 } else { dtype };
        let changed = corrupt(&mut accumulators, kind, row, corruption);
        let mut different = Vec::new();
        for change in &changed {
            let after = match dtype {
                DType::Bf16 => bf16_bits(f32::from_bits(change.after)),
                _ => change.after,
            };
            store(&mut bytes, dtype, change.index, after);
            if after != before[change.index] {
                different.push(Changed { index: change.index, before: before[change.index], after });
            }
        }
        self.write_back(run, place, &bytes)?;
        let sums = |index: usize| instruction.outputs.get(count + index).copied();
        match (&instruction.operator, corruption.output) {
            (Operator::Adamw(_), _) => self.follow_digest(run, sums(0), &different)?,
            // The sums of rows of dx and of dweight are the first of each row of sums.
            (Operator::LinearCrossEntropyGradient(_), 1) => {
                self.follow_sums(run, (sums(0), 5), row, &changed)?
            }
            (Operator::LinearCrossEntropyGradient(_), 2) => {
                self.follow_sums(run, (sums(1), 3), row, &changed)?
            }
            (Operator::LinearCrossEntropyGradient(_), _) => {}
            // The sums of attention's gradient are of the probabilities, which come before what is changed here.
            (Operator::AttentionGradient(_), _) => {}
            _ => self.follow_sums(run, (sums(0), 1), row, &changed)?,
        }
        Ok(different.len())
    }

    /// Adds what rows of a result changed by to their sums, where there are any: the first of `each` numbers of a row.
    fn follow_sums(
        &mut self,
        run: &Run<'_>,
        (sums, each): (Option<ValueId>, usize),
        row: usize,
        changed: &[Changed],
    ) -> Result<(), Fault> {
        let Some(sums) = sums else { return Ok(()) };
        let Some((place, mut bytes)) = self.stored(run, sums)? else { return Ok(()) };
        let mut deltas: HashMap<usize, f64> = HashMap::new();
        for change in changed {
            let number = |bits: u32| f64::from(f32::from_bits(bits));
            *deltas.entry(change.index / row.max(1)).or_default() +=
                number(change.after) - number(change.before);
        }
        let held = words(&bytes, DType::F32);
        for (index, delta) in deltas {
            if let Some(sum) = held.get(index * each) {
                let sum = (f64::from(f32::from_bits(*sum)) + delta) as f32;
                store(&mut bytes, DType::F32, index * each, sum.to_bits());
            }
        }
        self.write_back(run, place, &bytes)
    }

    fn follow_digest(
        &mut self,
        run: &Run<'_>,
        digest: Option<ValueId>,
        changed: &[Changed],
    ) -> Result<(), Fault> {
        let Some(digest) = digest else { return Ok(()) };
        let Some((place, mut bytes)) = self.stored(run, digest)? else { return Ok(()) };
        let held = words(&bytes, DType::U32);
        let [low, high] = held[..] else { return Ok(()) };
        let mut sum = u64::from(low) | (u64::from(high) << 32);
        for change in changed {
            let index = change.index as u64;
            sum = sum
                .wrapping_sub(digest_mix(change.before, index))
                .wrapping_add(digest_mix(change.after, index));
        }
        store(&mut bytes, DType::U32, 0, sum as u32);
        store(&mut bytes, DType::U32, 1, (sum >> 32) as u32);
        self.write_back(run, place, &bytes)
    }

    /// Stored bits change; nothing follows.
    fn at_rest(&mut self, run: &Run<'_>, name: &str, corruption: &Corruption) -> Result<usize, Fault> {
        let Some(id) = run.program.find(name) else { return Ok(0) };
        let Some((place, mut bytes)) = self.stored(run, id)? else { return Ok(0) };
        let row = Self::row(run, id);
        let changed = Handle::corrupt_bytes(&mut bytes, run.program.value(id).dtype, row, corruption);
        self.write_back(run, place, &bytes)?;
        Ok(changed)
    }

    /// The second half of the largest next state never arrives.
    fn tear(&mut self, run: &Run<'_>) -> Result<usize, Fault> {
        let next = run.program.values_with_ids().filter_map(|(id, value)| match value.role {
            Role::Next { of } => Some((run.plan.place(id)?.bytes, id, of)),
            _ => None,
        });
        let Some((_, id, of)) = next.max_by_key(|(bytes, ..)| *bytes) else { return Ok(0) };
        let (Some((place, mut bytes)), Some((_, old))) = (self.stored(run, id)?, self.stored(run, of)?)
        else {
            return Ok(0);
        };
        let half = bytes.len() / 2 / 4 * 4;
        let before = bytes.clone();
        match run.plan.layout {
            StateLayout::Double => bytes[half..].copy_from_slice(&old[half..]),
            StateLayout::InPlace => bytes[half..].fill(0),
        }
        self.write_back(run, place, &bytes)?;
        let size = run.program.value(id).dtype.size_bytes(Width::Native);
        Ok(bytes.chunks(size).zip(before.chunks(size)).filter(|(a, b)| a != b).count())
    }
}

/// The stored bits of a number rounded to bf16.
fn bf16_bits(x: f32) -> u32 {
    (round(DType::Bf16, f64::from(x)) as f32).to_bits() >> 16
}

impl Around for Injected {
    fn inner(&self) -> &dyn Device {
        self.inner.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Device {
        self.inner.as_mut()
    }

    fn prepares(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        let id = self.inner.prepare(program.clone(), plan.clone())?;
        self.prepared.insert(id, (program, plan));
        Ok(id)
    }

    fn runs(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        let due = self.handle.due(&self.name);
        let held = if due.is_empty() { None } else { self.prepared.get(&prepared).cloned() };
        let held = held.filter(|(program, _)| program.program().phase == Phase::Train);
        let Some((program, plan)) = held else { return self.inner.run(prepared, span, bindings) };
        let run = Run { prepared, program: program.program(), plan: &plan, bindings };
        let mut struck = Vec::new();
        let mut slow: f64 = 1.0;
        for (id, fault) in due {
            if let What::Slow { factor, .. } = fault.what {
                slow = slow.max(factor);
                if span.range == Range::Accumulate && span.from == 0 && bindings.first {
                    self.handle.fire(id);
                    let (step, what) = (self.handle.step(), fault.what.to_string());
                    let device = self.name.clone();
                    self.handle.record(InjectedFault { id, step, device, what, place: None, elements: 0 });
                }
                continue;
            }
            let inside =
                |strike: &Strike| strike.range == span.range && (span.from..span.to).contains(&strike.index);
            for strike in strikes(run.program, &fault).into_iter().filter(inside) {
                struck.push(Struck { id, fault: fault.clone(), strike });
            }
        }
        struck.sort_by_key(|struck| struck.strike.index);
        let started = self.hooks.monotonic();
        let ticket = self.run_struck(&run, span, &struck)?;
        if slow > 1.0 {
            self.settle(Some(ticket))?;
            let took = self.hooks.monotonic().saturating_sub(started);
            self.hooks.sleep(took.mul_f64(slow - 1.0));
        }
        Ok(ticket)
    }
}

impl std::fmt::Debug for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Injected").field("name", &self.name).finish_non_exhaustive()
    }
}
