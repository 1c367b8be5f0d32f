//! The contract's operators: one file each with its whole record, one list of them all.
//!
//! Each is a struct of attributes that implements [`Definition`]. Devices match on [`Operator`] without a wildcard arm,
//! so a new operator makes each of them say yes or `Unsupported` when it is compiled.

use crate::autodiff::Gradients;
use crate::dtype::DType;
use crate::shape::{Concrete, Dim, Type};
use crate::tolerance::Tolerance;
use serde::{Deserialize, Serialize};

/// What dtypes an operand or output may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// f32 or bf16.
    Float,
    /// f32 only.
    F32,
    /// i32 only.
    I32,
    /// u32 only.
    U32,
    /// Anything.
    Any,
}

impl Accepts {
    /// Whether `dtype` is among them.
    pub fn includes(self, dtype: DType) -> bool {
        match self {
            Accepts::Float => dtype.is_float(),
            Accepts::F32 => dtype == DType::F32,
            Accepts::I32 => dtype == DType::I32,
            Accepts::U32 => dtype == DType::U32,
            Accepts::Any => true,
        }
    }
}

/// How often an operand or output occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occurs {
    /// Exactly once.
    Once,
    /// Once or not at all; only at the end of a list.
    Optional,
    /// Once or more; only at the end of a list.
    Many,
}

/// One operand or output of an operator.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Its name in the formula.
    pub name: &'static str,
    /// Its shape in the formula's letters.
    pub shape: &'static str,
    /// Its dtypes.
    pub accepts: Accepts,
    /// How often it occurs.
    pub occurs: Occurs,
}

const fn slot(name: &'static str, shape: &'static str, accepts: Accepts) -> Slot {
    Slot { name, shape, accepts, occurs: Occurs::Once }
}

const fn optional(name: &'static str, shape: &'static str, accepts: Accepts) -> Slot {
    Slot { name, shape, accepts, occurs: Occurs::Optional }
}

const fn many(name: &'static str, shape: &'static str, accepts: Accepts) -> Slot {
    Slot { name, shape, accepts, occurs: Occurs::Many }
}

/// How a result can be checked without a second device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// A cheap identity, in words.
    Identity(&'static str),
    /// None cheaper than computing it again.
    Recompute,
}

/// What is written down once about an operator.
#[derive(Debug)]
pub struct Record {
    /// The name in the printed form.
    pub name: &'static str,
    /// One line on what it is for.
    pub summary: &'static str,
    /// The exact meaning.
    pub formula: &'static str,
    /// Where the formula is from.
    pub source: &'static str,
    /// What it reads.
    pub operands: &'static [Slot],
    /// What it writes.
    pub outputs: &'static [Slot],
    /// Accumulation and rounding, and what the magnitude of its tolerance is.
    pub numerics: &'static str,
    /// The gradient rule in terms of other operators.
    pub gradient: &'static str,
    /// The cheap check.
    pub invariant: Invariant,
}

/// What every operator answers about itself.
pub trait Definition {
    /// The record.
    fn record(&self) -> &'static Record;

    /// The types of all outputs, or why these operands do not fit. Counts and dtypes of operands have been checked
    /// against the record.
    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String>;

    /// Floating-point operations for these sizes (a fused multiply-add counts two).
    fn flops(&self, operands: &[Concrete], outputs: &[Concrete]) -> u64;

    /// A tolerance for each output.
    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance>;

    /// Emits the gradient with respect to its operands. The default has none.
    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let _ = gradients;
        Err(format!("`{}` has no gradient", self.record().name))
    }
}

macro_rules! operators {
    ($($module:ident :: $name:ident),* $(,)?) => {
        $(mod $module; pub use $module::$name;)*

        /// An operator with its attributes.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "operator", rename_all = "snake_case")]
        #[allow(missing_docs, reason = "each variant is documented on the struct of its name")]
        pub enum Operator { $($name($name)),* }

        /// Every operator's record, in the order of the contract.
        pub const OPERATORS: &[&Record] = &[$(&$module::RECORD),*];

        impl Operator {
            /// The operator's definition.
            pub fn definition(&self) -> &dyn Definition {
                match self { $(Operator::$name(operator) => operator),* }
            }
        }

        $(impl From<$name> for Operator {
            fn from(operator: $name) -> Operator { Operator::$name(operator) }
        })*
    };
}

operators! {
    cast::Cast,
    add::Add,
    multiply::Multiply,
    scale::Scale,
    activation::Activation,
    activation_gradient::ActivationGradient,
    swiglu::Swiglu,
    swiglu_gradient::SwigluGradient,
    assemble::Assemble,
    gather::Gather,
    scatter_add::ScatterAdd,
    column_sum::ColumnSum,
    dot::Dot,
    matmul::Matmul,
    grouped_matmul::GroupedMatmul,
    grouped_outer::GroupedOuter,
    attention::Attention,
    attention_gradient::AttentionGradient,
    rms_norm::RmsNorm,
    rms_norm_gradient::RmsNormGradient,
    rope::Rope,
    linear_cross_entropy::LinearCrossEntropy,
    linear_cross_entropy_gradient::LinearCrossEntropyGradient,
    router::Router,
    router_gradient::RouterGradient,
    balance_loss::BalanceLoss,
    balance_loss_gradient::BalanceLossGradient,
    expert_sort::ExpertSort,
    combine::Combine,
    combine_gradient::CombineGradient,
    global_norm::GlobalNorm,
    adamw::Adamw,
    bias_update::BiasUpdate,
    increment::Increment,
    accumulate::Accumulate,
    random_bits::RandomBits,
    append::Append,
    digest::Digest,
    product_check::ProductCheck,
    compare::Compare,
    attention_check::AttentionCheck,
    loss_check::LossCheck,
    adamw_digest::AdamwDigest,
    verify::Verify,
}

pub use activation::ActivationKind;
pub use attention_check::attention_limit;
pub use digest::{
    BLOCK as DIGEST_BLOCK, KEYS as DIGEST_KEYS, factor as digest_factor, mix as digest_mix, scramble,
};
pub use loss_check::LOSS_LIMIT;
pub use product_check::{PRODUCT_LIMIT, ProductForm};
pub use router::Scoring;
pub use verify::VERIFY_LIMIT;

impl Operator {
    /// The name in the printed form.
    pub fn name(&self) -> &'static str {
        self.definition().record().name
    }

    /// The operand that the output shares its storage with, for the operators that write in place.
    pub fn writes_in_place(&self) -> Option<usize> {
        match self {
            Operator::Accumulate(_) | Operator::Append(_) => Some(0),
            _ => None,
        }
    }
}

// What `infer` functions say again and again.

fn same_shape(what: &str, first: &Type, second: &Type) -> Result<(), String> {
    if first.shape == second.shape { Ok(()) } else { Err(format!("{what} must have the same shape")) }
}

fn rank(what: &str, value: &Type, rank: usize) -> Result<(), String> {
    if value.rank() == rank {
        Ok(())
    } else {
        Err(format!("{what} must have {rank} dimension(s), it has {}", value.rank()))
    }
}

fn dims(what: &str, value: &Type, want: &[Dim]) -> Result<(), String> {
    if value.shape == want { Ok(()) } else { Err(format!("{what} has the wrong shape")) }
}

fn constant(what: &str, dim: Dim) -> Result<usize, String> {
    dim.constant().ok_or_else(|| format!("{what} must be a constant dimension"))
}

fn scalar(what: &str, value: &Type) -> Result<(), String> {
    dims(what, value, &[1.into()])
}

fn positive(what: &str, value: f64) -> Result<(), String> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { Err(format!("{what} must be positive")) }
}

fn count(values: &[Concrete]) -> u64 {
    values.first().map_or(0, |first| first.elements() as u64)
}
