//! A device whose outputs of one operator are changed by a function.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use toprope_conformance::lockstep::seen;
use toprope_program::shape::sizes;
use toprope_program::tensor::round;
use toprope_program::*;

/// Changes right outputs, given operator, operands, and how often it ran.
pub type Spoil = Arc<dyn Fn(&Operator, &[Tensor], &mut [Tensor], u64) + Send + Sync>;

pub struct Spoiled {
    inner: Box<dyn Device>,
    pub operator: &'static str,
    spoil: Spoil,
    prepared: HashMap<PreparedId, (Arc<Validated>, Arc<MemoryPlan>)>,
    turn: u64,
}

impl Spoiled {
    pub fn new(operator: &'static str, spoil: Spoil) -> Spoiled {
        Spoiled { inner: Box::new(super::reference()), operator, spoil, prepared: HashMap::new(), turn: 0 }
    }

    fn value(&mut self, program: &Program, plan: &MemoryPlan, id: ValueId, bindings: &Bindings) -> Tensor {
        let (value, place) = (program.value(id), plan.place(id).unwrap());
        let sizes = sizes(&value.shape, &bindings.symbols);
        let mut raw = vec![0; sizes.iter().product::<usize>() * value.dtype.size_bytes(plan.width)];
        self.inner.read(bindings.buffer(place.region), place.offset_bytes, &mut raw).unwrap();
        Tensor::from_bytes(value.dtype, &sizes, plan.width, &raw).unwrap()
    }
}

impl Around for Spoiled {
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
        let (program, plan) = self.prepared[&prepared].clone();
        let program = program.program();
        let instruction = &program.range(span.range)[span.from];
        if instruction.operator.name() != self.operator || span.to != span.from + 1 {
            return self.inner.run(prepared, span, bindings);
        }
        let mut held = vec![None; program.values.len()];
        for operand in &instruction.operands {
            held[operand.value.0 as usize] = Some(self.value(program, &plan, operand.value, bindings));
        }
        let operands: Vec<Tensor> = instruction
            .operands
            .iter()
            .map(|o| seen(program, o, &held, &bindings.symbols).unwrap())
            .collect();
        let ticket = self.inner.run(prepared, span, bindings)?;
        self.inner.wait(ticket, Duration::from_secs(60))?;
        let mut outputs: Vec<Tensor> =
            instruction.outputs.iter().map(|id| self.value(program, &plan, *id, bindings)).collect();
        self.turn += 1;
        (self.spoil)(&instruction.operator, &operands, &mut outputs, self.turn);
        for (id, output) in instruction.outputs.iter().zip(&outputs) {
            let place = plan.place(*id).unwrap();
            let data = output.data.iter().map(|x| round(output.dtype, *x)).collect();
            let bytes = Tensor { data, ..output.clone() }.to_bytes(plan.width);
            self.inner.write(bindings.buffer(place.region), place.offset_bytes, &bytes)?;
        }
        Ok(ticket)
    }
}
