//! Operators of the contract as calls of the vendor's: one function each, in the contract's order. Products accumulate in
//! f32; everything else computes in f32 and rounds once, on store.

mod attention; // scores, softmax, values, and their gradient
mod attention_check; // identities of attention over runs of rows
mod attention_fused; // the same by the vendor's fused operator
mod bits; // random words, digests, comparisons of bits
mod check; // sums against products
mod elementwise; // functions of single elements
mod experts; // rows by expert, and back
mod loss; // linear head with cross-entropy
mod norm; // root-mean-square normalisation
mod optimizer; // norm, AdamW, counters, accumulation
mod place; // elements and rows moved to other places
mod product; // products and sums
mod rotary; // rotary position embedding
mod routing; // choice of experts, balance
mod verify; // results by another route

use crate::call::View;
use crate::emit::{Emit, Lowered};
use toprope_program::shape::sizes;
use toprope_program::{Concrete, Operator};

/// What an instruction is, with its symbols bound.
pub(crate) struct Site<'a> {
    /// What it reads.
    pub(crate) x: &'a [View],
    /// What it writes.
    pub(crate) y: &'a [View],
    /// Types of both, for bounds.
    pub(crate) types: (&'a [Concrete], &'a [Concrete]),
    /// The symbols.
    pub(crate) symbols: &'a [usize],
    /// [`toprope_program::Bindings::first`].
    pub(crate) first: bool,
}

/// Adds the calls of an operator. A new operator is a decision here: there is no wildcard.
pub(crate) fn lower(e: &mut Emit<'_>, operator: &Operator, site: &Site<'_>) -> Lowered {
    let (x, y) = (site.x, site.y);
    match operator {
        Operator::Cast(_) => e.copy(&y[0], &x[0]),
        Operator::Add(_) => elementwise::add(e, x, y),
        Operator::Multiply(_) => elementwise::multiply(e, x, y),
        Operator::Scale(it) => elementwise::scale(e, it, x, y),
        Operator::Activation(it) => elementwise::activation(e, it, x, y),
        Operator::ActivationGradient(it) => elementwise::activation_gradient(e, it, x, y),
        Operator::Swiglu(_) => elementwise::swiglu(e, x, y),
        Operator::SwigluGradient(_) => elementwise::swiglu_gradient(e, x, y),
        Operator::Assemble(it) => place::assemble(e, it, x, y),
        Operator::Gather(_) => place::gather(e, x, y),
        Operator::ScatterAdd(_) => place::scatter_add(e, x, y),
        Operator::ColumnSum(_) => product::column_sum(e, x, y),
        Operator::Dot(_) => product::dot(e, x, y),
        Operator::Matmul(it) => product::matmul(e, it, x, y),
        Operator::GroupedMatmul(it) => product::grouped_matmul(e, it, x, y),
        Operator::GroupedOuter(it) => product::grouped_outer(e, it, x, y),
        Operator::Attention(it) => attention::attention(e, it, x, y),
        Operator::AttentionGradient(it) => attention::attention_gradient(e, it, x, y),
        Operator::RmsNorm(it) => norm::rms_norm(e, it, x, y),
        Operator::RmsNormGradient(_) => norm::rms_norm_gradient(e, x, y),
        Operator::Rope(it) => rotary::rope(e, it, x, y),
        Operator::LinearCrossEntropy(_) => loss::linear_cross_entropy(e, x, y),
        Operator::LinearCrossEntropyGradient(it) => loss::linear_cross_entropy_gradient(e, it, x, y),
        Operator::Router(it) => routing::router(e, it, x, y),
        Operator::RouterGradient(it) => routing::router_gradient(e, it, x, y),
        Operator::BalanceLoss(it) => routing::balance_loss(e, it, x, y),
        Operator::BalanceLossGradient(it) => routing::balance_loss_gradient(e, it, x, y),
        Operator::ExpertSort(it) => experts::expert_sort(e, it, x, y),
        Operator::Combine(_) => experts::combine(e, x, y),
        Operator::CombineGradient(_) => experts::combine_gradient(e, x, y),
        Operator::GlobalNorm(it) => optimizer::global_norm(e, it, x, y),
        Operator::Adamw(it) => optimizer::adamw(e, it, x, y),
        Operator::BiasUpdate(it) => optimizer::bias_update(e, it, x, y),
        Operator::Increment(it) => optimizer::increment(e, it, x, y),
        Operator::Accumulate(_) => optimizer::accumulate(e, site.first, x, y),
        Operator::RandomBits(it) => bits::random_bits(e, it, &sizes(&it.shape, site.symbols), x, y),
        Operator::Append(_) => place::append(e, x, y),
        Operator::Digest(_) => bits::digest(e, x, &y[0]),
        Operator::ProductCheck(it) => check::product_check(e, it, x, y),
        Operator::Compare(_) => bits::compare(e, x, y),
        Operator::AttentionCheck(it) => attention_check::attention_check(e, it, x, y),
        Operator::LossCheck(_) => check::loss_check(e, x, y),
        Operator::AdamwDigest(it) => optimizer::adamw_digest(e, it, x, y),
        Operator::Verify(it) => verify::verify(e, it, site),
    }
}
