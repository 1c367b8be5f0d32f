//! What each operator computes, in f64 over dense tensors: one function each, dispatched in the order of the contract.

pub(crate) mod attention; // attention and its gradient
pub(crate) mod bits; // random bits, digests
pub(crate) mod elementwise; // functions of single elements
pub(crate) mod loss; // linear head with cross-entropy
pub(crate) mod norm; // root-mean-square normalisation
pub(crate) mod optimizer; // norm, AdamW, counters, accumulation
pub(crate) mod place; // elements and rows moved to other places
pub(crate) mod product; // products and sums
pub(crate) mod rotary; // rotary position embedding
pub(crate) mod routing; // experts: choice, order, balance
pub(crate) mod verify; // results against the same by another route

use toprope_program::tensor::round;
use toprope_program::{DType, Operator, Tensor, Width, shape};

/// What an operator gives on these operands, dense and in the order of its record: rounded once to its dtype, or as it is
/// in [`Width::Wide`] (integers are wrapped in both). `first` is [`toprope_program::Bindings::first`].
///
/// The operands must fit the operator's record. Attributes must hold no symbol: see [`evaluate_bound`].
pub fn evaluate(operator: &Operator, operands: &[Tensor], first: bool, width: Width) -> Vec<Tensor> {
    evaluate_bound(operator, operands, &[], first, width)
}

/// As [`evaluate`], with a value for each symbol that the attributes name.
pub fn evaluate_bound(
    operator: &Operator,
    operands: &[Tensor],
    symbols: &[usize],
    first: bool,
    width: Width,
) -> Vec<Tensor> {
    let mut outputs = exact(operator, operands, symbols, first, width);
    for output in &mut outputs {
        if width == Width::Native || !output.dtype.is_float() {
            let dtype = output.dtype;
            output.data.iter_mut().for_each(|x| *x = round(dtype, *x));
        }
    }
    outputs
}

/// As [`evaluate_bound`], nothing rounded at the end.
fn exact(
    operator: &Operator,
    operands: &[Tensor],
    symbols: &[usize],
    first: bool,
    width: Width,
) -> Vec<Tensor> {
    match operator {
        Operator::Cast(a) => elementwise::cast(a, operands),
        Operator::Add(a) => elementwise::add(a, operands),
        Operator::Multiply(a) => elementwise::multiply(a, operands),
        Operator::Scale(a) => elementwise::scale(a, operands, width),
        Operator::Activation(a) => elementwise::activation(a, operands),
        Operator::ActivationGradient(a) => elementwise::activation_gradient(a, operands),
        Operator::Swiglu(a) => elementwise::swiglu(a, operands),
        Operator::SwigluGradient(a) => elementwise::swiglu_gradient(a, operands),
        Operator::Assemble(a) => place::assemble(a, operands, &shape::sizes(&a.shape, symbols)),
        Operator::Gather(a) => place::gather(a, operands),
        Operator::ScatterAdd(a) => place::scatter_add(a, operands, a.rows.value(symbols)),
        Operator::ColumnSum(a) => product::column_sum(a, operands),
        Operator::Dot(a) => product::dot(a, operands),
        Operator::Matmul(a) => product::matmul(a, operands),
        Operator::GroupedMatmul(a) => product::grouped_matmul(a, operands),
        Operator::GroupedOuter(a) => product::grouped_outer(a, operands),
        Operator::Attention(a) => attention::attention(a, operands, width),
        Operator::AttentionGradient(a) => attention::attention_gradient(a, operands, width),
        Operator::RmsNorm(a) => norm::rms_norm(a, operands, width),
        Operator::RmsNormGradient(a) => norm::rms_norm_gradient(a, operands),
        Operator::Rope(a) => rotary::rope(a, operands),
        Operator::LinearCrossEntropy(a) => loss::linear_cross_entropy(a, operands),
        Operator::LinearCrossEntropyGradient(a) => loss::linear_cross_entropy_gradient(a, operands),
        Operator::Router(a) => routing::router(a, operands, width),
        Operator::RouterGradient(a) => routing::router_gradient(a, operands, width),
        Operator::BalanceLoss(a) => routing::balance_loss(a, operands),
        Operator::BalanceLossGradient(a) => routing::balance_loss_gradient(a, operands),
        Operator::ExpertSort(a) => routing::expert_sort(a, operands),
        Operator::Combine(a) => routing::combine(a, operands),
        Operator::CombineGradient(a) => routing::combine_gradient(a, operands),
        Operator::GlobalNorm(a) => optimizer::global_norm(a, operands, width),
        Operator::Adamw(a) => optimizer::adamw(a, operands, width),
        Operator::BiasUpdate(a) => optimizer::bias_update(a, operands, width),
        Operator::Increment(a) => optimizer::increment(a, operands),
        Operator::Accumulate(a) => optimizer::accumulate(a, operands, first),
        Operator::RandomBits(a) => bits::random_bits(a, operands, &shape::sizes(&a.shape, symbols)),
        Operator::Append(a) => place::append(a, operands),
        Operator::Digest(a) => bits::digest(a, operands),
        Operator::ProductCheck(a) => product::product_check(a, operands),
        Operator::Compare(a) => bits::compare(a, operands),
        Operator::AttentionCheck(a) => attention::attention_check(a, operands),
        Operator::LossCheck(a) => loss::loss_check(a, operands),
        Operator::AdamwDigest(a) => optimizer::adamw_digest(a, operands, width),
        Operator::Verify(a) => verify::verify(a, operands, width),
    }
}

/// An attribute as operators use it: rounded to f32, except in wide mode.
pub(crate) fn attribute(x: f64, width: Width) -> f64 {
    match width {
        Width::Native => round(DType::F32, x),
        Width::Wide => x,
    }
}

/// A tensor of these elements.
pub(crate) fn tensor(dtype: DType, sizes: &[usize], data: Vec<f64>) -> Tensor {
    debug_assert_eq!(data.len(), shape::elements(sizes));
    Tensor { dtype, sizes: sizes.to_vec(), data }
}

/// `Σ a·b`, in order.
pub(crate) fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `y += factor · x`.
pub(crate) fn add_scaled(y: &mut [f64], factor: f64, x: &[f64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

/// An index into `0..count`, where it lies in there.
pub(crate) fn within(index: f64, count: usize) -> Option<usize> {
    (index >= 0.0 && index < count as f64).then_some(index as usize)
}
