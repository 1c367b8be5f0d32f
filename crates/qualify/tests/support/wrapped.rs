//! Devices around the reference device: one whose f32 products round their operands, as TF32 does, and one that refuses an
//! operator.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use toprope_program::shape::sizes;
use toprope_program::{
    Around, Bindings, BufferId, DType, Description, Device, Fault, FaultKind, MemoryPlan, Operator,
    PreparedId, Range, Span, Tensor, Ticket, Validated, ValueId, Width,
};

/// A device that rounds the operands of f32 products to so many bits behind the leading one.
pub fn rounding(bits: u32) -> Box<dyn Device> {
    rounding_of(super::reference(), bits)
}

/// The same around a device that may be wrong besides.
pub fn rounding_of(inner: Box<dyn Device>, bits: u32) -> Box<dyn Device> {
    Box::new(Wrapped { inner, rounded: Some(bits), refused: None, prepared: HashMap::new() })
}

/// A device that lacks an operator.
pub fn refusing(operator: &'static str) -> Box<dyn Device> {
    Box::new(Wrapped {
        inner: super::reference(),
        rounded: None,
        refused: Some(operator),
        prepared: HashMap::new(),
    })
}

/// A device whose products of so many columns or more leave their last column out.
pub fn wide_column(inner: Box<dyn Device>, columns: usize) -> WideColumn {
    WideColumn { inner, columns, prepared: HashMap::new() }
}

/// See [`wide_column`].
pub struct WideColumn {
    inner: Box<dyn Device>,
    columns: usize,
    prepared: HashMap<PreparedId, (Arc<Validated>, Arc<MemoryPlan>)>,
}

impl Around for WideColumn {
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
        let ticket = self.inner.run(prepared, span, bindings)?;
        let Some((program, plan)) = self.prepared.get(&prepared).cloned() else { return Ok(ticket) };
        self.inner.wait(ticket, Duration::from_secs(60))?;
        for instruction in &program.program().range(span.range)[span.from..span.to] {
            let output = instruction.outputs[0];
            let sizes = sizes(&program.program().value(output).shape, &bindings.symbols);
            let place = Wrapped::place(&plan, output, bindings);
            let Some((buffer, offset)) =
                place.filter(|_| matches!(instruction.operator, Operator::Matmul(_)))
            else {
                continue;
            };
            if sizes[1] < self.columns {
                continue;
            }
            for row in 1..=sizes[0] {
                self.inner.write(buffer, offset + 4 * (row * sizes[1] - 1), &[0; 4])?;
            }
        }
        Ok(ticket)
    }
}

struct Wrapped {
    inner: Box<dyn Device>,
    rounded: Option<u32>,
    refused: Option<&'static str>,
    prepared: HashMap<PreparedId, (Arc<Validated>, Arc<MemoryPlan>)>,
}

fn round_to(x: f64, bits: u32) -> f64 {
    let unit = 1u32 << (23 - bits);
    let raw = (x as f32).to_bits();
    let rounded = raw.wrapping_add(unit / 2 - 1 + (raw >> (23 - bits) & 1)) & !(unit - 1);
    if x.is_finite() { f64::from(f32::from_bits(rounded)) } else { x }
}

impl Wrapped {
    fn place(plan: &MemoryPlan, id: ValueId, bindings: &Bindings) -> Option<(BufferId, usize)> {
        let place = plan.place(id)?;
        Some((bindings.buffer(place.region), place.offset_bytes))
    }
}

impl Around for Wrapped {
    fn inner(&self) -> &dyn Device {
        self.inner.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Device {
        self.inner.as_mut()
    }

    fn describes(&self) -> Description {
        Description { name: "wrapped".into(), ..self.inner.describe() }
    }

    fn prepares(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        for range in Range::ALL {
            for instruction in program.program().range(range) {
                let operator = instruction.operator.name();
                if self.refused == Some(operator) {
                    let kind = FaultKind::Unsupported {
                        operator: operator.into(),
                        dtype: None,
                        shape: Vec::new(),
                        reason: "not there".into(),
                    };
                    return Err(Fault::new("wrapped", kind));
                }
            }
        }
        let id = self.inner.prepare(program.clone(), plan.clone())?;
        self.prepared.insert(id, (program, plan));
        Ok(id)
    }

    /// Rounds the operands in place for the one instruction, and puts them back.
    fn runs(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        let (Some(bits), Some((program, plan))) = (self.rounded, self.prepared.get(&prepared).cloned())
        else {
            return self.inner.run(prepared, span, bindings);
        };
        let program = program.program();
        let mut last = None;
        for from in span.from..span.to {
            let instruction = &program.range(span.range)[from];
            let product = matches!(
                instruction.operator,
                Operator::Matmul(_) | Operator::GroupedMatmul(_) | Operator::GroupedOuter(_)
            );
            let mut saved = Vec::new();
            for operand in instruction.operands.iter().take(if product { 2 } else { 0 }) {
                let value = program.value(operand.value);
                let Some((buffer, offset)) = Self::place(&plan, operand.value, bindings) else { continue };
                if value.dtype != DType::F32 || saved.iter().any(|(b, o, _)| (*b, *o) == (buffer, offset)) {
                    continue;
                }
                let sizes = sizes(&value.shape, &bindings.symbols);
                let mut raw = vec![0; sizes.iter().product::<usize>() * 4];
                self.inner.read(buffer, offset, &mut raw)?;
                let mut tensor =
                    Tensor::from_bytes(DType::F32, &sizes, Width::Native, &raw).expect("its bytes");
                tensor.data.iter_mut().for_each(|x| *x = round_to(*x, bits));
                self.inner.write(buffer, offset, &tensor.to_bytes(Width::Native))?;
                saved.push((buffer, offset, raw));
            }
            let ticket = self.inner.run(prepared, Span { from, to: from + 1, ..span }, bindings)?;
            self.inner.wait(ticket, Duration::from_secs(60))?;
            for (buffer, offset, raw) in saved {
                self.inner.write(buffer, offset, &raw)?;
            }
            last = Some(ticket);
        }
        last.map_or_else(|| self.inner.run(prepared, span, bindings), Ok)
    }
}
