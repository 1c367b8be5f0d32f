//! How each operator of the contract is computed here: operands to kernels, and what has no kernel of its own.

mod assemble;
mod attention;
mod attention_check;
mod balance;
mod compare;
pub(crate) mod copy;
mod counter;
mod digest;
mod elementwise;
pub(crate) mod floats;
mod loss;
mod loss_check;
mod narrow;
mod norm;
mod optimizer;
mod parallel;
mod product;
mod product_check;
mod reduce;
mod rope;
mod routing;
mod rows;
mod verify;

use crate::bind::{Layout, Output, View, Window};
use crate::kernel::Context;

/// One instruction to compute, with everything that it touches.
///
/// `'t` is the instruction's time, `'m` the memory's.
pub(crate) struct Task<'t, 'm> {
    /// Threads and dispatch level.
    pub(crate) context: Context<'t>,
    /// The calling thread alone, for products within one thread's share of the work.
    pub(crate) alone: Context<'t>,
    /// The operands, in the order of the operator's record, laid out as [`Execute::layout`] asks.
    pub(crate) inputs: &'t [View<'m>],
    /// The outputs, in the order of the operator's record.
    pub(crate) outputs: &'t mut [Output<'m>],
    /// Scratch memory of at least [`Execute::workspace_bytes`], of arbitrary content.
    pub(crate) workspace: &'t mut [u8],
    /// Whether this is the first micro-batch of its step.
    pub(crate) first: bool,
    /// Whether the fused output is added to rather than written (see [`Execute::adds_into`]).
    pub(crate) adds: bool,
}

impl<'m> Task<'_, 'm> {
    /// All outputs of an operator that has `N`.
    pub(crate) fn outputs<const N: usize>(&mut self) -> &mut [Output<'m>; N] {
        match self.outputs.first_chunk_mut() {
            Some(outputs) => outputs,
            None => panic!("{N} outputs expected"),
        }
    }
}

/// The shapes that an instruction is sized by.
pub(crate) struct Sizes<'a> {
    /// The operands.
    pub(crate) inputs: &'a [Window],
    /// The outputs.
    pub(crate) outputs: &'a [Window],
    /// Threads that will compute it.
    pub(crate) threads: usize,
}

/// What this device needs to know of an operator.
pub(crate) trait Execute {
    /// The strides that operand `index` may have; others are copied to dense memory first.
    fn layout(&self, index: usize) -> Layout {
        let _ = index;
        Layout::Dense
    }

    /// Whether operand `index` is read at all. What an operator writes in place is not.
    fn reads(&self, index: usize) -> bool {
        let _ = index;
        true
    }

    /// Whether outputs may lie exactly where operands of their shape lie.
    fn in_place(&self) -> bool {
        false
    }

    /// Bytes of [`Task::workspace`].
    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let _ = sizes;
        0
    }

    /// The output, if any, that can be added straight into a carried value of f32 with the bits of a separate
    /// `accumulate`.
    fn adds_into(&self) -> Option<usize> {
        None
    }

    /// Computes it.
    fn run(&self, task: &mut Task<'_, '_>);
}
