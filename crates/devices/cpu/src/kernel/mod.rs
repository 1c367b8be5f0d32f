//! Compute kernels over plain memory: slices and strides in, no operators.
//!
//! Every kernel gives the same bits whatever the number of threads, and (AMX and `vdpbf16ps` products apart) at every
//! level. All arithmetic is f32 unless said otherwise; stores round once to nearest even; NaN and infinity propagate,
//! subnormals are kept. Sizes that don't fit their slices are a bug of the caller and panic before any memory is
//! touched.

mod elementwise;
mod fold;
pub mod peak;
mod product;
mod view;
mod workspace;

pub use fold::{Folded, Weights, fold, fold_scratch_values, largest_distance};
pub(crate) use product::groups;
pub use product::{
    GroupedOuter, GroupedProduct, Product, grouped_outer, grouped_product, grouped_workspace_bytes, product,
    product_workspace_bytes,
};
pub use view::{Floats, FloatsMut, Matrix};
pub use workspace::WORKSPACE_ALIGNMENT;

use crate::level::Level;
use crate::pool::Pool;

/// Where a kernel runs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Its threads.
    pub pool: &'a Pool,
    /// Its instructions.
    pub level: Level,
}

#[cfg(target_arch = "x86_64")]
pub(crate) use product::tile_is_available;

#[cfg(test)]
pub(crate) mod testing;
