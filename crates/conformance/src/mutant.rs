//! Devices that are wrong in one known way, to see that the suite says so: each wraps a right device and changes what one
//! operator reads or writes.

mod corrupt;
mod recompute;

use crate::lockstep::seen;
use crate::values::Values;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use toprope_program::operator::Operator;
use toprope_program::shape::sizes;
use toprope_program::{
    Around, Bindings, DType, Description, Device, Fault, FaultKind, MemoryPlan, PreparedId, Program, Span,
    Tensor, Ticket, Validated, ValueId,
};

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $name:ident in $operator:literal),* $(,)?) => {
        /// Ways to be wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Mutant { $($(#[doc = $doc])+ $name),* }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$name),*];

            /// The name.
            pub fn name(self) -> &'static str {
                match self { $(Mutant::$name => stringify!($name)),* }
            }

            /// The operator that it is wrong in.
            pub fn operator(self) -> &'static str {
                match self { $(Mutant::$name => $operator),* }
            }
        }
    };
}

mutants! {
    /// Products round their running sum to bf16.
    BfloatAccumulation in "matmul",
    /// Products of experts round their running sum to binary16.
    HalfAccumulation in "grouped_matmul",
    /// Columns of a product behind the last multiple of 16 are zero.
    DroppedTailColumns in "matmul",
    /// The last block of 8 terms of a product is left out where the sum does not divide by 8.
    DroppedLastTerms in "matmul",
    /// Row sums are taken from the rounded product.
    RowSumsOfRoundedProduct in "matmul",
    /// A bias is added twice.
    BiasTwice in "matmul",
    /// Attention sees one key too many.
    MaskOffByOne in "attention",
    /// Attention looks into earlier documents.
    SegmentStartIgnored in "attention",
    /// Attention divides by the root of the value's size instead of the head's.
    ScaleSwapped in "attention",
    /// Key heads are dealt out in turn instead of in blocks.
    HeadsInterleaved in "attention",
    /// Attention sees behind the cache's length.
    CacheLengthIgnored in "attention",
    /// Rows that see no key hold what was there.
    BlindRowsNotZeroed in "attention",
    /// The gradient of values misses the first query.
    FirstQueryMissing in "attention_gradient",
    /// Elements of a sum are those of the previous run.
    StaleOutput in "add",
    /// Products of elements below 2^-126 are zero.
    SubnormalsFlushedInMultiply in "multiply",
    /// Moments below 2^-126 are zero.
    SubnormalsFlushedInAdamw in "adamw",
    /// A cast gives the largest number instead of infinity.
    SaturatingCast in "cast",
    /// A cast to bf16 drops the lower half.
    TruncatingCast in "cast",
    /// A whole output is NaN.
    AllNan in "rms_norm",
    /// A whole output is zero.
    AllZero in "swiglu",
    /// Four neighbouring elements are stuck at 1.
    StuckLane in "scale",
    /// The lowest bit differs when the operator runs in a range.
    DiffersInRange in "activation",
    /// The lowest bit differs every second time.
    DiffersFromRunToRun in "dot",
    /// Epsilon is ten times too large.
    WrongEpsilon in "rms_norm",
    /// The optimizer does not correct its moments for their start at zero.
    BiasCorrectionMissing in "adamw",
    /// Weight decay goes through the moments.
    WeightDecayCoupled in "adamw",
    /// A digest is of the old weights.
    DigestOfOldState in "adamw",
    /// A weight's gradient is twice what it is.
    DoubledWeightGradient in "rms_norm_gradient",
    /// Gradients of a first micro-batch are added to what was there.
    FirstIgnored in "accumulate",
    /// A choice between equals goes to the higher index.
    TiesToHigherIndex in "router",
    /// Experts are chosen from all groups.
    GroupLimitIgnored in "router",
    /// Weights are the biased scores.
    WeightsWithBias in "router",
    /// Pairs are neighbours where they are halves, and the other way round.
    RopePairsSwapped in "rope",
    /// Rotates the wrong way.
    RopeSign in "rope",
    /// An expert without rows keeps a gradient.
    EmptyExpertNotZeroed in "grouped_outer",
    /// The last of colliding rows wins.
    ScatterOverwrites in "scatter_add",
    /// The gradient of relu at 0 is 1.
    ReluGradientAtZero in "activation_gradient",
    /// An index outside of the table gives its nearest row.
    GatherClamps in "gather",
    /// A norm that is not finite lets gradients through.
    NonFiniteNormPasses in "global_norm",
    /// The bias moves the wrong way.
    BiasUpdateSign in "bias_update",
    /// A target outside of the vocabulary counts as the first token.
    StrayTargetCounts in "linear_cross_entropy",
    /// The gradient of the head misses the target's term.
    TargetTermMissing in "linear_cross_entropy_gradient",
    /// Equal experts come in reverse order.
    UnstableSort in "expert_sort",
    /// Rows behind the cache's end are written to its first row.
    AppendWraps in "append",
    /// Random bits ignore the stream.
    StreamIgnored in "random_bits",
    /// A check always says that all is well.
    CheckAlwaysPasses in "product_check",
    /// Two runs are always the same.
    CompareAlwaysPasses in "compare",
    /// Attention always holds its identities.
    AttentionCheckAlwaysPasses in "attention_check",
    /// The head's loss is always right.
    LossCheckAlwaysPasses in "loss_check",
    /// Another route always leads to the same result.
    VerifyAlwaysPasses in "verify",
    /// Every update has the same digest.
    UpdateDigestConstant in "adamw_digest",
    /// Every value has the same digest.
    DigestConstant in "digest",
    /// Sums of probabilities are 1, whatever the log-sum-exp is.
    SumsAlwaysOne in "attention_gradient",
    /// Writes one element behind its output.
    WritesBehindOutput in "combine",
    /// Refuses a shape in the middle of a run.
    RefusesInRun in "column_sum",
}

/// What a corruption may look at.
struct Scene<'a> {
    operator: &'a Operator,
    operands: &'a [Tensor],
    first: bool,
    in_range: bool,
    /// Counts runs of the operator.
    turn: u64,
    /// The outputs of the previous run of the same instruction.
    previous: Option<&'a [Tensor]>,
}

/// A device with a mutant in it.
pub struct MutantDevice {
    inner: Box<dyn Device>,
    mutant: Mutant,
    prepared: HashMap<PreparedId, (Arc<Validated>, Arc<MemoryPlan>)>,
    previous: HashMap<(PreparedId, toprope_program::Range, usize), Vec<Tensor>>,
    turn: u64,
}

impl MutantDevice {
    /// Wraps a right device.
    pub fn new(inner: Box<dyn Device>, mutant: Mutant) -> MutantDevice {
        MutantDevice { inner, mutant, prepared: HashMap::new(), previous: HashMap::new(), turn: 0 }
    }

    fn read_value(
        &mut self,
        program: &Program,
        plan: &MemoryPlan,
        id: ValueId,
        bindings: &Bindings,
    ) -> Result<Option<Tensor>, Fault> {
        let Some(place) = plan.place(id) else { return Ok(None) };
        let value = program.value(id);
        let sizes = sizes(&value.shape, &bindings.symbols);
        let bytes = sizes.iter().product::<usize>() * value.dtype.size_bytes(plan.width);
        let mut raw = vec![0; bytes];
        self.inner.read(bindings.buffer(place.region), place.offset_bytes, &mut raw)?;
        Ok(Tensor::from_bytes(value.dtype, &sizes, plan.width, &raw))
    }

    /// Runs one instruction and corrupts what it wrote.
    fn mutate(
        &mut self,
        prepared: PreparedId,
        span: Span,
        in_range: bool,
        bindings: &Bindings,
    ) -> Result<Ticket, Fault> {
        let Some((program, plan)) = self.prepared.get(&prepared).cloned() else {
            return self.inner.run(prepared, span, bindings);
        };
        let program = program.program();
        let instruction = &program.range(span.range)[span.from];
        if self.mutant == Mutant::RefusesInRun {
            let operator = instruction.operator.name().to_string();
            let kind = FaultKind::Unsupported {
                operator,
                dtype: None,
                shape: Vec::new(),
                reason: "in the middle of a run".into(),
            };
            return Err(Fault::new(self.describe().name, kind));
        }
        let mut held: Values = vec![None; program.values.len()];
        for operand in &instruction.operands {
            held[operand.value.0 as usize] = self.read_value(program, &plan, operand.value, bindings)?;
        }
        let operands: Option<Vec<Tensor>> =
            instruction.operands.iter().map(|o| seen(program, o, &held, &bindings.symbols)).collect();
        let ticket = self.inner.run(prepared, span, bindings)?;
        self.inner.wait(ticket, Duration::from_secs(120))?;
        let mut outputs = Vec::new();
        for id in &instruction.outputs {
            outputs.extend(self.read_value(program, &plan, *id, bindings)?);
        }
        let Some(operands) = operands else { return Ok(ticket) };
        let right = outputs.clone();
        self.turn += 1;
        let key = (prepared, span.range, span.from);
        let scene = Scene {
            operator: &instruction.operator,
            operands: &operands,
            first: bindings.first,
            in_range,
            turn: self.turn,
            previous: self.previous.get(&key).map(Vec::as_slice),
        };
        corrupt::corrupt(self.mutant, &scene, &mut outputs);
        for ((id, output), right) in instruction.outputs.iter().zip(&outputs).zip(&right) {
            let Some(place) = plan.place(*id) else { continue };
            let bytes = output.to_bytes(plan.width);
            if bytes != right.to_bytes(plan.width) {
                self.inner.write(bindings.buffer(place.region), place.offset_bytes, &bytes)?;
            }
            let behind = place.offset_bytes + place.bytes.div_ceil(64) * 64;
            if self.mutant == Mutant::WritesBehindOutput {
                self.inner.write(bindings.work, behind, &[1, 2, 3, 4])?;
            }
        }
        self.previous.insert(key, right);
        Ok(ticket)
    }
}

impl Around for MutantDevice {
    fn inner(&self) -> &dyn Device {
        self.inner.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Device {
        self.inner.as_mut()
    }

    fn describes(&self) -> Description {
        let inner = self.inner.describe();
        Description { name: format!("{}+{}", inner.name, self.mutant.name()), ..inner }
    }

    fn prepares(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        let id = self.inner.prepare(program.clone(), plan.clone())?;
        self.prepared.insert(id, (program, plan));
        Ok(id)
    }

    fn runs(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        let affected = |device: &MutantDevice, index: usize| {
            device.prepared.get(&prepared).is_some_and(|(program, _)| {
                let list = program.program().range(span.range);
                list.get(index).is_some_and(|i| i.operator.name() == device.mutant.operator())
            })
        };
        if !(span.from..span.to).any(|index| affected(self, index)) {
            return self.inner.run(prepared, span, bindings);
        }
        let mut last = None;
        for from in span.from..span.to {
            let one = Span { from, to: from + 1, ..span };
            last = Some(if affected(self, from) {
                self.mutate(prepared, one, span.to - span.from > 1, bindings)?
            } else {
                self.inner.run(prepared, one, bindings)?
            });
        }
        match last {
            Some(ticket) => Ok(ticket),
            None => self.inner.run(prepared, span, bindings),
        }
    }
}

impl std::fmt::Debug for MutantDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MutantDevice").field("mutant", &self.mutant).finish_non_exhaustive()
    }
}

/// Whether a dtype is one that a mutant of rounding shows in.
fn is_bf16(tensor: &Tensor) -> bool {
    tensor.dtype == DType::Bf16
}
