//! The device: buffers, prepared programs and tickets. Everything runs within `run`, so a ticket is done when it is given.

use crate::memory::{Memory, copy_to_host, reserve};
use crate::operator::evaluate_bound;
use crate::view::{gather, store};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use toprope_program::{
    Allocation, Bindings, BufferId, DType, Description, Device, Fault, FaultKind, HostRegion, Instruction,
    MemoryPlan, Place, PreparedId, Program, Progress, ProgressPlace, Range, Span, Tensor, Ticket, Validated,
    Width,
};

/// The name that opens this device.
pub const NAME: &str = "reference";

/// How to open the reference device.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `Native` rounds every output to its dtype; `Wide` keeps every float value in f64.
    pub width: Width,
    /// Where progress is written.
    pub progress: ProgressPlace,
}

/// The oracle. Plans must have the device's width.
#[derive(Debug)]
pub struct ReferenceDevice {
    options: Options,
    buffers: Vec<Option<Memory>>,
    prepared: Vec<Prepared>,
    last_ticket: Ticket,
}

#[derive(Debug)]
struct Prepared {
    program: Arc<Validated>,
    plan: Arc<MemoryPlan>,
}

impl ReferenceDevice {
    /// Opens the device.
    pub fn new(options: Options) -> ReferenceDevice {
        ReferenceDevice { options, buffers: Vec::new(), prepared: Vec::new(), last_ticket: Ticket(0) }
    }

    fn memory(&self, buffer: BufferId) -> &[u8] {
        let memory = self.buffers.get(buffer.0 as usize).and_then(Option::as_ref);
        assert!(memory.is_some(), "{buffer:?} is not a buffer of this device");
        memory.map_or(&[], Memory::bytes)
    }

    fn memory_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        let memory = self.buffers.get_mut(buffer.0 as usize).and_then(Option::as_mut);
        assert!(memory.is_some(), "{buffer:?} is not a buffer of this device");
        memory.map_or(&mut [], Memory::bytes_mut)
    }

    fn next_ticket(&mut self) -> Ticket {
        self.last_ticket.0 += 1;
        self.last_ticket
    }

    /// Gathers the operands of an instruction, computes, and writes its outputs.
    fn execute(
        &mut self,
        program: &Program,
        plan: &MemoryPlan,
        instruction: &Instruction,
        bindings: &Bindings,
    ) -> Option<()> {
        let (operands, outputs) = plan.slices(program, instruction, &bindings.symbols)?;
        let operands: Vec<Tensor> = operands
            .iter()
            .map(|slice| gather(self.memory(bindings.buffer(slice.location.region)), slice, plan.width))
            .collect();
        let (symbols, first) = (&bindings.symbols, bindings.first);
        let results = evaluate_bound(&instruction.operator, &operands, symbols, first, plan.width);
        assert_eq!(results.len(), outputs.len(), "{} outputs", instruction.operator.name());
        for (slice, result) in outputs.iter().zip(&results) {
            store(self.memory_mut(bindings.buffer(slice.location.region)), slice, result, plan.width);
        }
        Some(())
    }
}

impl Device for ReferenceDevice {
    fn describe(&self) -> Description {
        Description {
            name: NAME.into(),
            hardware: format!("plain loops in f64 on {}", std::env::consts::ARCH),
            level: match self.options.width {
                Width::Native => "native".into(),
                Width::Wide => "wide".into(),
            },
            versions: vec![("toprope-reference".into(), env!("CARGO_PKG_VERSION").into())],
            dtypes: DType::ALL.to_vec(),
            memory_bytes: None,
            units: 1,
            deterministic: true,
            emulated: false,
            health: Vec::new(),
        }
    }

    fn allocate(&mut self, allocation: Allocation) -> Result<BufferId, Fault> {
        let memory = match allocation {
            Allocation::Own(bytes) => Memory::zeroed(bytes).map_err(|kind| Fault::new(NAME, kind))?,
            Allocation::Adopt(region) => Memory::Adopted(region),
        };
        self.buffers.push(Some(memory));
        Ok(BufferId(self.buffers.len() as u32 - 1))
    }

    fn write(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.memory_mut(buffer)[offset_bytes..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        bytes.copy_from_slice(&self.memory(buffer)[offset_bytes..][..bytes.len()]);
        Ok(())
    }

    fn copy_out(
        &mut self,
        buffer: BufferId,
        offset_bytes: usize,
        to: HostRegion,
        after: Ticket,
    ) -> Result<Ticket, Fault> {
        assert!(after <= self.last_ticket, "{after:?} was never given");
        copy_to_host(&self.memory(buffer)[offset_bytes..][..to.bytes], to);
        Ok(self.next_ticket())
    }

    /// Every operator of the contract is there; what can lack is a plan of this width, and memory for operands in f64.
    fn prepare(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        let unsupported = |operator: &str, reason: String| {
            let kind =
                FaultKind::Unsupported { operator: operator.into(), dtype: None, shape: Vec::new(), reason };
            Fault::new(NAME, kind)
        };
        if plan.width != self.options.width {
            let reason = format!(
                "the plan is {:?} and the device was opened {:?}; make the plan with the device's width",
                plan.width, self.options.width
            );
            return Err(unsupported("plan", reason));
        }
        let bounds = program.program().bounds();
        for range in Range::ALL {
            for (index, instruction) in program.program().range(range).iter().enumerate() {
                let name = instruction.operator.name();
                let place = Place { range, index, operator: name.into(), part: instruction.part.clone() };
                let Some((operands, outputs)) = plan.slices(program.program(), instruction, &bounds) else {
                    let reason = "the plan was made for another program".into();
                    return Err(Fault { place: Some(place), ..unsupported(name, reason) });
                };
                // Gathered operands and computed outputs are f64, and the outputs are encoded once.
                let elements = operands
                    .iter()
                    .chain(&outputs)
                    .chain(&outputs)
                    .fold(0usize, |sum, slice| sum.saturating_add(slice.elements()));
                if let Err(kind) = reserve(elements.saturating_mul(size_of::<f64>())) {
                    return Err(Fault { place: Some(place), ..Fault::new(NAME, kind) });
                }
            }
        }
        self.prepared.push(Prepared { program, plan });
        Ok(PreparedId(self.prepared.len() as u32 - 1))
    }

    fn run(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        let Prepared { program, plan } = &self.prepared[prepared.0 as usize];
        let (program, plan) = (Arc::clone(program), Arc::clone(plan));
        let program = program.program();
        let bounds = program.bounds();
        let within = |(symbol, bound): (&usize, &usize)| (1..=*bound).contains(symbol);
        assert!(
            bindings.symbols.len() == bounds.len() && bindings.symbols.iter().zip(&bounds).all(within),
            "symbols {:?} do not lie within {bounds:?}",
            bindings.symbols
        );
        let ticket = self.next_ticket();
        let progress = self.options.progress.clone();
        progress.word().instruction.store(0, Ordering::Relaxed);
        progress.word().ticket.store(ticket.0, Ordering::Release);
        for index in span.from..span.to {
            let instruction = &program.range(span.range)[index];
            if instruction.check.is_some_and(|bit| !bindings.checks.fires(bit)) {
                continue;
            }
            progress.word().mark(ticket, index);
            let done = self.execute(program, &plan, instruction, bindings);
            assert!(done.is_some(), "`prepare` found a place for every operand");
        }
        Ok(ticket)
    }

    fn wait(&mut self, ticket: Ticket, _deadline: Duration) -> Result<Progress, Fault> {
        assert!(ticket <= self.last_ticket, "{ticket:?} was never given");
        Ok(Progress::Done)
    }

    fn release(&mut self, buffer: BufferId) -> Result<(), Fault> {
        let slot = self.buffers.get_mut(buffer.0 as usize);
        assert!(
            slot.as_ref().is_some_and(|slot| slot.is_some()),
            "{buffer:?} is not a buffer of this device"
        );
        if let Some(slot) = slot {
            *slot = None;
        }
        Ok(())
    }
}
