//! Instructions as executors at fixed addresses: made once for a program and its bindings, launched as often as wanted.

use crate::call::Call;
use crate::device::cann::{Cann, Memory};
use crate::emit::{Constants, Emit, Settings, view};
use crate::fault::{fault, unsupported};
use crate::ffi::abi::{ACLNN_PARAM_INVALID, ACLNN_PARAM_NULLPTR, Code};
use crate::ffi::object::Bases;
use crate::ffi::operator::Plan;
use crate::ffi::runtime::Stream;
use crate::lower::{Site, lower};
use std::collections::BTreeMap;
use std::sync::Arc;
use toprope_program::{BufferId, Fault, Instruction, MemoryPlan, Operator, Place, Program, Range, Validated};

/// Bindings of one program whose executors are kept.
const BOUND_KEPT: usize = 4;

/// Where an instruction stands.
pub(crate) fn place(program: &Program, range: Range, index: usize) -> Place {
    let instruction = &program.range(range)[index];
    Place { range, index, operator: instruction.operator.name().into(), part: instruction.part.clone() }
}

/// An instruction as calls.
pub(crate) struct Lowering {
    pub(crate) calls: Vec<Call>,
    pub(crate) scratch_bytes: usize,
}

/// Lowers an instruction; `has` says which of the vendor's operators there are.
pub(crate) fn lowering(
    has: &dyn Fn(&str) -> bool,
    settings: Settings,
    (program, plan): (&Program, &MemoryPlan),
    instruction: &Instruction,
    symbols: &[usize],
    first: bool,
    constants: &mut Constants,
) -> Result<Lowering, String> {
    let slices = plan.slices(program, instruction, symbols);
    let (operands, outputs) = slices.ok_or("the plan was made for another program")?;
    let x: Vec<_> = operands.iter().map(view).collect();
    let y: Vec<_> = outputs.iter().map(view).collect();
    let types =
        (program.concrete_operands(instruction, symbols), program.concrete_outputs(instruction, symbols));
    let mut emit = Emit::new(has, settings, constants);
    let site = Site { x: &x, y: &y, types: (&types.0, &types.1), symbols, first };
    lower(&mut emit, &instruction.operator, &site).map_err(|lacking| lacking.0)?;
    Ok(Lowering { calls: emit.calls, scratch_bytes: emit.scratch_bytes })
}

/// A call and its executor; none after the launch that consumed it.
struct Step {
    call: Call,
    plan: Option<Plan>,
    workspace_bytes: u64,
}

/// An instruction's calls, and where its numbers from the host lie.
struct Planned {
    constants: u64,
    steps: Vec<Step>,
}

/// What executors of a program are made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// The symbols' values.
    pub(crate) symbols: Vec<usize>,
    /// Current, next and work.
    pub(crate) buffers: [BufferId; 3],
    /// Which scratch memory there was.
    pub(crate) generation: u64,
}

/// A program with its bindings.
pub(crate) struct Bound {
    key: Key,
    bases: Bases,
    /// By range, instruction and whether it is the first micro-batch (for those that ask).
    planned: BTreeMap<(Range, usize, bool), Planned>,
    constants: Vec<Memory>,
}

/// A program made ready.
pub(crate) struct Prepared {
    pub(crate) program: Arc<Validated>,
    pub(crate) plan: Arc<MemoryPlan>,
    bound: Vec<Bound>,
}

/// What a device lends to planning.
pub(crate) struct Workshop<'a> {
    /// The libraries.
    pub(crate) cann: &'a Arc<Cann>,
    /// The device's name, for faults.
    pub(crate) device: &'a str,
    /// How operators are computed.
    pub(crate) settings: Settings,
}

impl Workshop<'_> {
    /// The first phase of a call that was refused, as a fault: before a run it is `Unsupported`.
    fn refused(&self, call: &Call, code: Code, operator: &str) -> Fault {
        let text = self.cann.runtime.message();
        if matches!(code, ACLNN_PARAM_INVALID | ACLNN_PARAM_NULLPTR | 561_000..=561_003) {
            let record = crate::code::lookup(code);
            let name = call.prototype.name;
            return unsupported(self.device, operator, format!("aclnn{name} answers {record} {text}"));
        }
        let during = format!("aclnn{}GetWorkspaceSize", call.prototype.name);
        fault(self.device, code, &during, &text)
    }

    /// Makes a program ready: every operator can be lowered and every call passes its own checks. Answers the program and the
    /// bytes that its temporaries take.
    pub(crate) fn prepare(
        &self,
        program: Arc<Validated>,
        plan: Arc<MemoryPlan>,
        probe: Bases,
    ) -> Result<(Prepared, usize), Fault> {
        let bounds = program.program().bounds();
        let mut scratch_bytes = 0;
        let has = |name: &str| self.cann.operators.has(name);
        for range in Range::ALL {
            for (index, instruction) in program.program().range(range).iter().enumerate() {
                let operator = instruction.operator.name();
                let at =
                    |fault: Fault| Fault { place: Some(place(program.program(), range, index)), ..fault };
                let mut constants = Constants::default();
                let both = (program.program(), &*plan);
                let made = lowering(&has, self.settings, both, instruction, &bounds, false, &mut constants)
                    .map_err(|reason| at(unsupported(self.device, operator, reason)))?;
                scratch_bytes = scratch_bytes.max(made.scratch_bytes);
                if self.cann.operators.can_repeat() {
                    for call in &made.calls {
                        let planned = self.cann.operators.plan(call, &probe);
                        planned.map_err(|code| at(self.refused(call, code, operator)))?;
                    }
                }
            }
        }
        Ok((Prepared { program, plan, bound: Vec::new() }, scratch_bytes))
    }
}

/// Instructions that may be launched.
pub(crate) struct Ready {
    /// Bytes of temporaries; more than there are, where the key's scratch must grow.
    pub(crate) scratch_bytes: usize,
    /// Bytes of workspace that launches need.
    pub(crate) workspace_bytes: u64,
    /// Which entry of the program's bindings.
    pub(crate) bound: usize,
}

impl Prepared {
    /// Drops executors that name a buffer: it is being released.
    pub(crate) fn forget(&mut self, buffer: BufferId) {
        self.bound.retain(|bound| !bound.key.buffers.contains(&buffer));
    }

    /// Whether executors are to be dropped before new bindings are made, for which the stream must be idle.
    pub(crate) fn is_full_for(&self, key: &Key) -> bool {
        !self.bound.iter().any(|bound| bound.key == *key)
            && (self.bound.len() >= BOUND_KEPT
                || self.bound.iter().any(|bound| bound.key.generation != key.generation))
    }

    /// Plans instructions that were not planned yet, and uploads what they need of the host.
    pub(crate) fn ready(
        &mut self,
        shop: &Workshop<'_>,
        key: &Key,
        bases: Bases,
        scratch_there: usize,
        wanted: &[(Range, usize, bool)],
    ) -> Result<Ready, Fault> {
        let at = match self.bound.iter().position(|bound| bound.key == *key) {
            Some(at) => at,
            None => {
                self.bound.retain(|bound| bound.key.generation == key.generation);
                if self.bound.len() >= BOUND_KEPT {
                    self.bound.remove(0);
                }
                let (planned, constants) = (BTreeMap::new(), Vec::new());
                self.bound.push(Bound { key: key.clone(), bases, planned, constants });
                self.bound.len() - 1
            }
        };
        let program = self.program.program();
        let bound = &mut self.bound[at];
        let (mut constants, mut fresh) = (Constants::default(), Vec::new());
        let has = |name: &str| shop.cann.operators.has(name);
        let mut scratch_bytes = 0;
        for &(range, index, first) in wanted.iter().filter(|wanted| !bound.planned.contains_key(wanted)) {
            let instruction = &program.range(range)[index];
            let both = (program, &*self.plan);
            let made = lowering(&has, shop.settings, both, instruction, &key.symbols, first, &mut constants)
                .map_err(|reason| {
                    let kind = unsupported(shop.device, instruction.operator.name(), reason).kind;
                    Fault { place: Some(place(program, range, index)), ..Fault::new(shop.device, kind) }
                })?;
            scratch_bytes = scratch_bytes.max(made.scratch_bytes);
            fresh.push(((range, index, first), made.calls));
        }
        if scratch_bytes <= scratch_there {
            let mut bases = bound.bases;
            if !constants.bytes.is_empty() {
                let memory = shop.cann.allocate(shop.device, constants.bytes.len())?;
                shop.cann.upload(shop.device, &memory, 0, &constants.bytes)?;
                bases.constants = memory.address;
                bound.constants.push(memory);
            }
            for (which, calls) in fresh {
                let mut steps = Vec::with_capacity(calls.len());
                for call in calls {
                    let plan = shop.cann.operators.plan(&call, &bases).map_err(|code| {
                        let operator = program.range(which.0)[which.1].operator.name();
                        let fault = shop.refused(&call, code, operator);
                        Fault { place: Some(place(program, which.0, which.1)), ..fault }
                    })?;
                    let workspace_bytes = plan.workspace_bytes;
                    steps.push(Step { call, plan: Some(plan), workspace_bytes });
                }
                bound.planned.insert(which, Planned { constants: bases.constants, steps });
            }
        }
        let planned = wanted.iter().filter_map(|which| bound.planned.get(which));
        let workspace_bytes =
            planned.flat_map(|planned| &planned.steps).map(|step| step.workspace_bytes).max().unwrap_or(0);
        Ok(Ready { scratch_bytes, workspace_bytes, bound: at })
    }

    /// Queues an instruction's calls. `Err` has the code and the call.
    pub(crate) fn launch(
        &mut self,
        cann: &Cann,
        bound: usize,
        which: (Range, usize, bool),
        workspace: u64,
        stream: Stream,
    ) -> Result<(), (Code, &'static str)> {
        let Bound { bases, planned, .. } = &mut self.bound[bound];
        let Some(planned) = planned.get_mut(&which) else { return Ok(()) };
        let bases = Bases { constants: planned.constants, ..*bases };
        for step in &mut planned.steps {
            let name = step.call.prototype.name;
            let plan = match step.plan.take() {
                Some(plan) => plan,
                None => cann.operators.plan(&step.call, &bases).map_err(|code| (code, name))?,
            };
            let code = plan.launch(workspace, stream);
            step.plan = plan.is_repeatable().then_some(plan);
            if code != 0 {
                return Err((code, name));
            }
        }
        Ok(())
    }
}

/// Whether an instruction asks if the micro-batch is the first of its step.
pub(crate) fn asks_for_first(operator: &Operator) -> bool {
    matches!(operator, Operator::Accumulate(_))
}
