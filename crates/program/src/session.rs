//! A program with its buffers on a device: write inputs, run ranges, read values, by name.

use crate::device::{Allocation, Bindings, BufferId, CheckMask, Device, PreparedId, Progress, Span, Ticket};
use crate::dtype::{DType, Width};
use crate::fault::{Fault, FaultKind, Place};
use crate::memory::{Location, MemoryPlan, Region, StateLayout};
use crate::program::Range;
use crate::shape::{elements, sizes};
use crate::tensor::{Tensor, stored};
use crate::validate::Validated;
use crate::value::{Role, Value, ValueId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A prepared program and the buffers that it runs in.
pub struct Session {
    program: Arc<Validated>,
    plan: Arc<MemoryPlan>,
    prepared: PreparedId,
    bindings: Bindings,
    names: Arc<HashMap<String, ValueId>>,
    deadline: Duration,
    /// Whether the state's buffers belong to another session.
    borrowed: bool,
}

/// Where a session's buffers come from.
#[derive(Clone, Copy, Debug)]
pub struct Homes {
    /// The committed state.
    pub current: Allocation,
    /// The next state; none where the plan is in place.
    pub next: Option<Allocation>,
    /// Everything else.
    pub work: Allocation,
}

impl Homes {
    /// Memory of the device's own. A buffer of no bytes is no buffer: programs without state get a line all the same.
    pub fn own(plan: &MemoryPlan) -> Homes {
        let state = Allocation::Own(plan.state_bytes.max(64));
        Homes { current: state, next: Some(state), work: Allocation::Own(plan.work_bytes.max(64)) }
    }
}

/// No answer within this time is a hang. The guard computes a deadline from the step's cost; without one a step may take
/// long on slow devices.
const DEADLINE: Duration = Duration::from_secs(600);

impl Session {
    /// Prepares a program, allocates its buffers and writes its constants.
    ///
    /// # Errors
    /// What the device answers: `Unsupported`, `OutOfMemory` or worse.
    pub fn open(
        device: &mut dyn Device,
        program: Arc<Validated>,
        width: Width,
        layout: StateLayout,
    ) -> Result<Session, Fault> {
        let plan = Arc::new(MemoryPlan::new(&program, width, layout));
        let session = Session::open_in(device, program, plan.clone(), Homes::own(&plan))?;
        session.begun(device)
    }

    /// Prepares a program over memory that the caller chose, and touches none of it: constants are to be written
    /// ([`Session::write_constants`]) before the first run.
    ///
    /// # Errors
    /// What the device answers: `Unsupported`, `OutOfMemory` or worse.
    pub fn open_in(
        device: &mut dyn Device,
        program: Arc<Validated>,
        plan: Arc<MemoryPlan>,
        homes: Homes,
    ) -> Result<Session, Fault> {
        let prepared = device.prepare(program.clone(), plan.clone())?;
        let current = device.allocate(homes.current)?;
        let next = match (plan.layout, homes.next) {
            (StateLayout::Double, Some(home)) => device.allocate(home),
            _ => Ok(current),
        };
        let both = next.and_then(|next| match device.allocate(homes.work) {
            Ok(work) => Ok((next, work)),
            Err(fault) => {
                if next != current {
                    let _ = device.release(next);
                }
                Err(fault)
            }
        });
        let (next, work) = match both {
            Ok(both) => both,
            Err(fault) => {
                // What did not fit is what is told; the rest must not stay behind it.
                let _ = device.release(current);
                return Err(fault);
            }
        };
        let symbols = program.program().bounds();
        let bindings = Bindings { current, next, work, symbols, first: true, checks: CheckMask::default() };
        let names = names(&program);
        Ok(Session { program, plan, prepared, bindings, names, deadline: DEADLINE, borrowed: false })
    }

    /// Prepares a program that reads this session's committed state in place: its state must be a part of this one's, at
    /// the same places.
    ///
    /// # Errors
    /// What the device answers; a state that lies elsewhere.
    pub fn open_over(&self, device: &mut dyn Device, program: Arc<Validated>) -> Result<Session, Fault> {
        let plan = Arc::new(MemoryPlan::new(&program, self.plan.width, StateLayout::InPlace));
        for (id, value) in program.program().state() {
            if self.place(&value.name)?.1 != plan.place(id).unwrap_or(NOWHERE) {
                let message = format!("`{}` lies elsewhere in `{}`", value.name, program.program().name);
                return Err(Fault::new("session", FaultKind::Driver { code: 0, message }));
            }
        }
        let prepared = device.prepare(program.clone(), plan.clone())?;
        let work = device.allocate(Allocation::Own(plan.work_bytes.max(64)))?;
        let (current, symbols) = (self.bindings.current, program.program().bounds());
        let bindings =
            Bindings { current, next: current, work, symbols, first: true, checks: CheckMask::default() };
        let names = names(&program);
        let session =
            Session { program, plan, prepared, bindings, names, deadline: DEADLINE, borrowed: true };
        session.begun(device)
    }

    /// With its constants written; where that fails its buffers are given back, and the failure is what is told.
    fn begun(self, device: &mut dyn Device) -> Result<Session, Fault> {
        match self.write_constants(device) {
            Ok(()) => Ok(self),
            Err(fault) => {
                let _ = self.close(device);
                Err(fault)
            }
        }
    }

    /// The program.
    pub fn program(&self) -> &Validated {
        &self.program
    }

    /// The memory plan.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Writes the program's constants; they lie in the work buffer.
    ///
    /// # Errors
    /// The device's fault.
    pub fn write_constants(&self, device: &mut dyn Device) -> Result<(), Fault> {
        let program = self.program.program();
        for (id, value) in program.values_with_ids() {
            if let (Role::Constant { content }, Some(location)) = (&value.role, self.plan.place(id)) {
                let sizes = sizes(&value.shape, &self.bindings.symbols);
                let tensor = match self.plan.width {
                    Width::Native => Tensor::rounded(value.dtype, &sizes, content.values(&sizes)),
                    Width::Wide => Tensor { dtype: value.dtype, data: content.values(&sizes), sizes },
                };
                device.write(
                    self.buffer(location),
                    location.offset_bytes,
                    &tensor.to_bytes(self.plan.width),
                )?;
            }
        }
        Ok(())
    }

    /// The buffer that a place lies in, as the halves of the state stand now.
    pub fn buffer(&self, location: Location) -> BufferId {
        self.bindings.buffer(location.region)
    }

    /// Whether the program has a value of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    fn place(&self, name: &str) -> Result<(ValueId, Location), Fault> {
        let found = self.names.get(name).and_then(|id| Some((*id, self.plan.place(*id)?)));
        found.ok_or_else(|| {
            // A caller that asks for a value which the program lacks is a bug; it must not take the process down.
            let message = format!("the program `{}` has no value `{name}`", self.program.program().name);
            Fault::new("session", FaultKind::Driver { code: 0, message })
        })
    }

    /// Writes the stored bytes of a value; one of state that no update writes, to both halves.
    ///
    /// # Errors
    /// The device's fault.
    pub fn write(&self, device: &mut dyn Device, name: &str, bytes: &[u8]) -> Result<(), Fault> {
        let (id, location) = self.place(name)?;
        device.write(self.buffer(location), location.offset_bytes, bytes)?;
        if self.bindings.next != self.bindings.current && self.program.program().is_frozen(id) {
            device.write(self.bindings.next, location.offset_bytes, bytes)?;
        }
        Ok(())
    }

    /// Writes f32 numbers.
    ///
    /// # Errors
    /// The device's fault.
    pub fn write_f32(&self, device: &mut dyn Device, name: &str, numbers: &[f32]) -> Result<(), Fault> {
        self.write(device, name, &stored(DType::F32, self.plan.width, numbers))
    }

    /// Writes i32 numbers.
    ///
    /// # Errors
    /// The device's fault.
    pub fn write_i32(&self, device: &mut dyn Device, name: &str, numbers: &[i32]) -> Result<(), Fault> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.write(device, name, &bytes)
    }

    /// Reads the stored bytes of a value, at the symbols' current binding.
    ///
    /// # Errors
    /// The device's fault.
    pub fn read(&self, device: &mut dyn Device, name: &str) -> Result<Vec<u8>, Fault> {
        let (id, location) = self.place(name)?;
        let value = self.program.program().value(id);
        let count = elements(&sizes(&value.shape, &self.bindings.symbols));
        let mut bytes = vec![0; count * value.dtype.size_bytes(self.plan.width)];
        device.read(self.buffer(location), location.offset_bytes, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a part of a value's stored bytes, from an offset on.
    ///
    /// # Errors
    /// The device's fault; a part that the value does not have.
    pub fn read_part(
        &self,
        device: &mut dyn Device,
        name: &str,
        offset_bytes: usize,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        let (_, location) = self.place(name)?;
        if offset_bytes.checked_add(into.len()).is_none_or(|end| end > location.bytes) {
            let message = format!("`{name}` has no {} bytes from {offset_bytes} on", into.len());
            return Err(Fault::new("session", FaultKind::Driver { code: 0, message }));
        }
        device.read(self.buffer(location), location.offset_bytes + offset_bytes, into)
    }

    /// Reads a float value as f32 numbers.
    ///
    /// # Errors
    /// The device's fault.
    pub fn read_f32(&self, device: &mut dyn Device, name: &str) -> Result<Vec<f32>, Fault> {
        let bytes = self.read(device, name)?;
        Ok(match self.plan.width {
            Width::Native => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Width::Wide => bytes
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32)
                .collect(),
        })
    }

    /// Reads a scalar `[1]`.
    ///
    /// # Errors
    /// The device's fault.
    pub fn read_scalar(&self, device: &mut dyn Device, name: &str) -> Result<f32, Fault> {
        Ok(self.read_f32(device, name)?.first().copied().unwrap_or(f32::NAN))
    }

    /// Reads every output, and every carried scalar (losses), in as few reads as their places allow.
    ///
    /// # Errors
    /// The device's fault.
    pub fn read_outputs(&self, device: &mut dyn Device) -> Result<Outputs, Fault> {
        let program = self.program.program();
        let told = |value: &Value| match value.role {
            Role::Output => true,
            Role::Carried => value.shape.len() == 1 && value.shape[0].constant() == Some(1),
            _ => false,
        };
        let mut places: Vec<(ValueId, Location)> = program
            .values_with_ids()
            .filter(|(_, value)| told(value))
            .filter_map(|(id, _)| Some((id, self.plan.place(id)?)))
            .collect();
        places.sort_by_key(|(_, place)| place.offset_bytes);
        let mut outputs = Outputs { bytes: Vec::new(), places: HashMap::new(), names: self.names.clone() };
        let mut rest = places.as_slice();
        while let Some((_, first)) = rest.first() {
            let mut end = first.offset_bytes;
            let near = rest.iter().take_while(|(_, place)| {
                let close = place.offset_bytes <= end + READ_THROUGH_BYTES;
                end = end.max(place.offset_bytes + place.bytes);
                close
            });
            let (together, others) = rest.split_at(near.count());
            let start = first.offset_bytes;
            let end = together.iter().map(|(_, place)| place.offset_bytes + place.bytes).max();
            let base = outputs.bytes.len();
            outputs.bytes.resize(base + end.unwrap_or(start) - start, 0);
            device.read(self.bindings.work, start, &mut outputs.bytes[base..])?;
            for (id, place) in together {
                outputs.places.insert(*id, (base + place.offset_bytes - start, place.bytes));
            }
            rest = others;
        }
        Ok(outputs)
    }

    /// Binds the first symbol: the number of sequences, or of tokens in a window.
    pub fn bind(&mut self, number: usize) {
        if let Some(symbol) = self.bindings.symbols.first_mut() {
            *symbol = number;
        }
    }

    /// The largest number that the first symbol can be bound to.
    pub fn bound(&self) -> usize {
        self.program.program().symbols.first().map_or(1, |symbol| symbol.bound)
    }

    /// Says whether the next run of `accumulate` is the first of its step.
    pub fn set_first(&mut self, first: bool) {
        self.bindings.first = first;
    }

    /// Queues a whole range.
    ///
    /// # Errors
    /// The device's fault.
    pub fn queue(&self, device: &mut dyn Device, range: Range) -> Result<Ticket, Fault> {
        let span = Span { range, from: 0, to: self.program.program().range(range).len() };
        device.run(self.prepared, span, &self.bindings)
    }

    /// Waits for a ticket.
    ///
    /// # Errors
    /// The device's fault; `Hang` where the deadline passes, naming the operator where the device knows it.
    pub fn wait(&self, device: &mut dyn Device, range: Range, ticket: Ticket) -> Result<(), Fault> {
        match device.wait(ticket, self.deadline)? {
            Progress::Done => Ok(()),
            Progress::Running { instruction } => {
                let waited_ms = self.deadline.as_millis() as u64;
                let mut fault = Fault::new(device.describe().name, FaultKind::Hang { waited_ms });
                fault.place = instruction.and_then(|index| self.place_of(range, index));
                Err(fault)
            }
        }
    }

    /// Runs a whole range and waits for it.
    ///
    /// # Errors
    /// The device's fault.
    pub fn run(&self, device: &mut dyn Device, range: Range) -> Result<(), Fault> {
        let ticket = self.queue(device, range)?;
        self.wait(device, range, ticket)
    }

    /// Runs a range an instruction at a time and adds each one's seconds to `times`: what `--profile` shows. Fused
    /// instructions run apart, with the same bits.
    ///
    /// # Errors
    /// The device's fault.
    pub fn run_timed(
        &self,
        device: &mut dyn Device,
        range: Range,
        clock: &dyn Fn() -> Duration,
        times: &mut Vec<f64>,
    ) -> Result<(), Fault> {
        let count = self.program.program().range(range).len();
        times.resize(count, 0.0);
        for (index, seconds) in times.iter_mut().enumerate() {
            let started = clock();
            let span = Span { range, from: index, to: index + 1 };
            let ticket = device.run(self.prepared, span, &self.bindings)?;
            self.wait(device, range, ticket)?;
            *seconds += clock().saturating_sub(started).as_secs_f64();
        }
        Ok(())
    }

    /// Where an instruction stands, for faults.
    pub fn place_of(&self, range: Range, index: usize) -> Option<Place> {
        let instruction = self.program.program().range(range).get(index)?;
        let (operator, part) = (instruction.operator.name().into(), instruction.part.clone());
        Some(Place { range, index, operator, part })
    }

    /// Queues instructions `from..to` of a range.
    ///
    /// # Errors
    /// The device's fault.
    pub fn queue_span(&self, device: &mut dyn Device, span: Span) -> Result<Ticket, Fault> {
        device.run(self.prepared, span, &self.bindings)
    }

    /// How long a `wait` of this session waits before it calls it a hang.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Says which checks fire from now on.
    pub fn set_checks(&mut self, checks: CheckMask) {
        self.bindings.checks = checks;
    }

    /// What runs are bound to.
    pub fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    /// Makes the next state the current one.
    pub fn flip(&mut self) {
        std::mem::swap(&mut self.bindings.current, &mut self.bindings.next);
    }

    /// Gives the buffers back.
    ///
    /// # Errors
    /// The device's fault.
    pub fn close(self, device: &mut dyn Device) -> Result<(), Fault> {
        if !self.borrowed {
            device.release(self.bindings.current)?;
            if self.bindings.next != self.bindings.current {
                device.release(self.bindings.next)?;
            }
        }
        device.release(self.bindings.work)
    }
}

/// Every output and carried scalar of a run, as read at once.
#[derive(Clone, Debug)]
pub struct Outputs {
    bytes: Vec<u8>,
    places: HashMap<ValueId, (usize, usize)>,
    names: Arc<HashMap<String, ValueId>>,
}

impl Outputs {
    /// The stored bytes of an output, at the symbols' bounds; none for what is no output.
    pub fn bytes(&self, id: ValueId) -> Option<&[u8]> {
        let (offset, count) = self.places.get(&id)?;
        self.bytes.get(*offset..offset + count)
    }

    /// The first element of an output of this name, as f32.
    pub fn scalar(&self, name: &str) -> Option<f32> {
        let bytes = self.bytes(*self.names.get(name)?)?;
        Some(f32::from_le_bytes(bytes.get(..4)?.try_into().ok()?))
    }
}

/// Values this close are read together: a read costs a round trip to a worker, these bytes next to nothing.
const READ_THROUGH_BYTES: usize = 16 << 10;

/// The place of a value that has none.
const NOWHERE: Location = Location { region: Region::Work, offset_bytes: usize::MAX, bytes: 0 };

fn names(program: &Validated) -> Arc<HashMap<String, ValueId>> {
    Arc::new(program.program().values_with_ids().map(|(id, value)| (value.name.clone(), id)).collect())
}
