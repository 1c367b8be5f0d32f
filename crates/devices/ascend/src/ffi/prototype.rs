//! What each of the vendor's operators takes in its first phase, in order; the one list of them.

use super::abi::{Code, Handle};
use std::ffi::{c_char, c_int, c_void};

/// From whom a prototype is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Witness {
    /// Compared by machine with the vendor's Apache-2.0 header.
    Header,
    /// Called so by ggml-cann.
    Ggml,
    /// Called so by torch_npu or op-plugin.
    Torch,
}

impl Witness {
    /// As the page says it.
    pub fn words(self) -> &'static str {
        match self {
            Witness::Header => "header",
            Witness::Ggml => "ggml-cann",
            Witness::Torch => "torch_npu, op-plugin",
        }
    }
}

/// An argument as it crosses: a pointer, or a number of its exact width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Raw {
    Pointer(*mut c_void),
    I64(i64),
    I8(i8),
    Type(c_int),
    Bool(bool),
    F64(f64),
}

/// An operator's first phase.
pub(crate) struct Prototype {
    /// The name without `aclnn`.
    pub(crate) name: &'static str,
    /// From whom it is known.
    pub(crate) witness: Witness,
    /// The kinds of its arguments, in order.
    pub(crate) parameters: &'static [&'static str],
    /// Calls it; none where the arguments are others than its own.
    pub(super) call: unsafe fn(*const c_void, &[Raw], *mut u64, *mut Handle) -> Option<Code>,
}

impl std::fmt::Debug for Prototype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// One parameter's C type, and how it is taken out of a [`Raw`].
macro_rules! parameter {
    (type Tensor) => { Handle };
    (type TensorList) => { Handle };
    (type Scalar) => { Handle };
    (type IntArray) => { Handle };
    (type Str) => { *const c_char };
    (type I64) => { i64 };
    (type I8) => { i8 };
    (type Type) => { c_int };
    (type Bool) => { bool };
    (type F64) => { f64 };
    (take $raw:expr, I64) => { match $raw { Raw::I64(x) => *x, _ => return None } };
    (take $raw:expr, I8) => { match $raw { Raw::I8(x) => *x, _ => return None } };
    (take $raw:expr, Type) => { match $raw { Raw::Type(x) => *x, _ => return None } };
    (take $raw:expr, Bool) => { match $raw { Raw::Bool(x) => *x, _ => return None } };
    (take $raw:expr, F64) => { match $raw { Raw::F64(x) => *x, _ => return None } };
    (take $raw:expr, Str) => { match $raw { Raw::Pointer(x) => (*x).cast::<c_char>().cast_const(), _ => return None } };
    (take $raw:expr, $other:ident) => { match $raw { Raw::Pointer(x) => *x, _ => return None } };
}

macro_rules! prototypes {
    ($($name:ident ($($kind:ident),*) $witness:ident;)*) => {
        /// Every operator that this device may call.
        pub(crate) const PROTOTYPES: &[Prototype] = &[$(Prototype {
            name: stringify!($name),
            witness: Witness::$witness,
            parameters: &[$(stringify!($kind)),*],
            call: {
                /// # Safety
                /// `symbol` is this operator's first phase; pointers are objects of its kinds that live until it returns.
                #[allow(non_snake_case)]
                unsafe fn $name(
                    symbol: *const c_void,
                    arguments: &[Raw],
                    workspace: *mut u64,
                    executor: *mut Handle,
                ) -> Option<Code> {
                    let mut next = arguments.iter();
                    type Phase = unsafe extern "C" fn($(parameter!(type $kind),)* *mut u64, *mut Handle) -> Code;
                    // SAFETY: promised by the caller.
                    let phase = unsafe { std::mem::transmute::<*const c_void, Phase>(symbol) };
                    // Evaluated in order: the vendor's order of arguments.
                    // SAFETY: promised by the caller.
                    let code = unsafe {
                        phase($(parameter!(take next.next()?, $kind),)* workspace, executor)
                    };
                    next.next().is_none().then_some(code)
                }
                $name
            },
        }),*];
    };
}

prototypes! {
    Abs(Tensor, Tensor) Header;
    Add(Tensor, Tensor, Scalar, Tensor) Header;
    Adds(Tensor, Scalar, Scalar, Tensor) Header;
    Amax(Tensor, IntArray, Bool, Tensor) Header;
    Amin(Tensor, IntArray, Bool, Tensor) Header;
    Any(Tensor, IntArray, Bool, Tensor) Header;
    BitwiseAndTensor(Tensor, Tensor, Tensor) Header;
    Cast(Tensor, Type, Tensor) Header;
    Clamp(Tensor, Scalar, Scalar, Tensor) Header;
    Cumsum(Tensor, I64, Type, Tensor) Header;
    Div(Tensor, Tensor, Tensor) Header;
    EqTensor(Tensor, Tensor, Tensor) Header;
    Exp(Tensor, Tensor) Header;
    FlashAttentionScore(
        Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, IntArray, F64, F64, I64, I64, I64, Str, I64, I64, Tensor,
        Tensor, Tensor, Tensor
    ) Torch;
    FlashAttentionScoreGrad(
        Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, IntArray, F64, F64,
        I64, I64, I64, Str, I64, I64, Tensor, Tensor, Tensor, Tensor
    ) Torch;
    FlashAttentionScoreGradV2(
        Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, IntArray, IntArray,
        IntArray, F64, F64, I64, I64, I64, Str, I64, I64, I64, Tensor, Tensor, Tensor, Tensor
    ) Torch;
    FlashAttentionScoreV2(
        Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, IntArray, IntArray, IntArray, F64, F64, I64, I64, I64, Str,
        I64, I64, I64, Tensor, Tensor, Tensor, Tensor
    ) Torch;
    Gather(Tensor, I64, Tensor, Tensor) Header;
    GeScalar(Tensor, Scalar, Tensor) Header;
    GeTensor(Tensor, Tensor, Tensor) Header;
    GeluV2(Tensor, I64, Tensor) Header;
    GroupedMatmulV3(
        TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, Tensor, I64, I64, TensorList
    ) Header;
    GroupedMatmulV4(
        TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, Tensor, TensorList,
        TensorList, TensorList, I64, I64, I64, I64, TensorList, TensorList, TensorList
    ) Torch;
    GroupedMatmulV5(
        TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, Tensor, TensorList,
        TensorList, TensorList, I64, I64, I64, I64, IntArray, TensorList, TensorList, TensorList
    ) Torch;
    GtScalar(Tensor, Scalar, Tensor) Header;
    GtTensor(Tensor, Tensor, Tensor) Header;
    IndexAdd(Tensor, I64, Tensor, Tensor, Scalar, Tensor) Header;
    IndexSelect(Tensor, I64, Tensor, Tensor) Header;
    InplaceAdd(Tensor, Tensor, Scalar) Header;
    InplaceClampMax(Tensor, Scalar) Header;
    InplaceCopy(Tensor, Tensor) Header;
    InplaceDiv(Tensor, Tensor) Header;
    InplaceExp(Tensor) Header;
    InplaceFillScalar(Tensor, Scalar) Header;
    InplaceIndexCopy(Tensor, I64, Tensor, Tensor) Header;
    InplaceMaskedFillScalar(Tensor, Tensor, Scalar) Header;
    InplaceMul(Tensor, Tensor) Header;
    InplaceMuls(Tensor, Scalar) Header;
    InplaceSub(Tensor, Tensor, Scalar) Header;
    InplaceZero(Tensor) Header;
    IsFinite(Tensor, Tensor) Header;
    Log(Tensor, Tensor) Header;
    LogicalAnd(Tensor, Tensor, Tensor) Header;
    LogicalNot(Tensor, Tensor) Header;
    LtScalar(Tensor, Scalar, Tensor) Header;
    LtTensor(Tensor, Tensor, Tensor) Header;
    Matmul(Tensor, Tensor, Tensor, I8) Header;
    Maximum(Tensor, Tensor, Tensor) Header;
    Minimum(Tensor, Tensor, Tensor) Header;
    Mul(Tensor, Tensor, Tensor) Header;
    Muls(Tensor, Scalar, Tensor) Header;
    NeTensor(Tensor, Tensor, Tensor) Header;
    ReduceSum(Tensor, IntArray, Bool, Type, Tensor) Header;
    Relu(Tensor, Tensor) Header;
    RmsNorm(Tensor, Tensor, F64, Tensor, Tensor) Ggml;
    RmsNormGrad(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor) Torch;
    RotaryPositionEmbedding(Tensor, Tensor, Tensor, I64, Tensor) Ggml;
    SWhere(Tensor, Tensor, Tensor, Tensor) Header;
    ScatterAdd(Tensor, I64, Tensor, Tensor, Tensor) Header;
    Sigmoid(Tensor, Tensor) Header;
    SigmoidBackward(Tensor, Tensor, Tensor) Header;
    Silu(Tensor, Tensor) Header;
    SiluBackward(Tensor, Tensor, Tensor) Header;
    Softmax(Tensor, I64, Tensor) Header;
    SoftmaxBackward(Tensor, Tensor, I64, Tensor) Header;
    Sort(Tensor, Bool, I64, Bool, Tensor, Tensor) Header;
    Sqrt(Tensor, Tensor) Header;
    Sub(Tensor, Tensor, Scalar, Tensor) Header;
    SwiGlu(Tensor, I64, Tensor) Ggml;
    SwiGluGrad(Tensor, Tensor, I64, Tensor) Torch;
    Tanh(Tensor, Tensor) Header;
    TanhBackward(Tensor, Tensor, Tensor) Header;
}

/// The prototype of this name.
pub(crate) fn prototype(name: &str) -> Option<&'static Prototype> {
    PROTOTYPES.binary_search_by(|known| known.name.cmp(name)).ok().map(|at| &PROTOTYPES[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prototypes_are_found_by_name() {
        assert!(PROTOTYPES.is_sorted_by(|a, b| a.name < b.name));
        for known in PROTOTYPES {
            assert_eq!(prototype(known.name).map(|found| found.name), Some(known.name));
        }
        assert!(prototype("NoSuchOperator").is_none());
    }
}
