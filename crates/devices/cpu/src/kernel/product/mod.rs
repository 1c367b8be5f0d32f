//! Matrix products: `out = a·b`, one matrix or one for each expert.

mod block;
mod grouped;
mod pack;
mod pairs;
mod split;

pub(crate) use grouped::groups;
pub use grouped::{GroupedOuter, GroupedProduct, grouped_outer, grouped_product, grouped_workspace_bytes};

use super::view::{Source, Target, extent, with_floats, with_floats_mut};
use super::workspace::{Workspace, workspace_bytes};
use super::{Context, Floats, FloatsMut, Matrix};
use crate::level::Level;
use block::{Output, SUM_COLUMNS, multiply};
use pack::Block;
use pairs::Unit;
use split::Split;

#[cfg(target_arch = "x86_64")]
pub(crate) use pairs::tile_is_available;

/// `out[M, N] = a[M, K]·b[K, N] + bias[N]`, accumulated in f32 in ascending `k` by fused multiply-adds.
#[derive(Debug)]
pub struct Product<'a> {
    /// The left operand.
    pub a: Matrix<'a>,
    /// The right operand.
    pub b: Matrix<'a>,
    /// Added to each row in f32, before the store.
    pub bias: Option<Floats<'a>>,
    /// The result: `M` rows of `N` contiguous values.
    pub out: FloatsMut<'a>,
    /// Elements from a row of `out` to the next.
    pub out_row_stride: usize,
    /// Whether the result is added to `out` (one f32 sum) instead of replacing it.
    pub accumulate: bool,
    /// `row_sums[m] = Σ_n Σ_k a[m,k]·b[k,n]`, from the accumulators before bias, old value and rounding.
    pub row_sums: Option<&'a mut [f32]>,
}

/// Bytes of workspace for a product of these sizes on `threads` threads.
pub fn product_workspace_bytes(m: usize, n: usize, k: usize, threads: usize) -> usize {
    let split = Split::choose(m, n, k, 1, threads);
    workspace_bytes(&[
        split.scratch_values(k).next_multiple_of(16).saturating_mul(split.threads_used(m, n, threads)),
        m.saturating_mul(n.div_ceil(SUM_COLUMNS)),
        n,
    ])
}

/// Computes a [`Product`].
///
/// # Panics
/// When shapes don't fit each other or their slices, or the workspace is smaller than [`product_workspace_bytes`].
pub fn product(context: &Context<'_>, task: Product<'_>, workspace: &mut [u8]) {
    let unit = Unit::for_operands(context.level, task.a.values, task.b.values);
    product_on(unit, context, task, workspace);
}

/// As [`product`]; where there is a unit, it is available and both operands are bf16.
fn product_on(unit: Option<Unit>, context: &Context<'_>, task: Product<'_>, workspace: &mut [u8]) {
    let Product { a, b, bias, out, out_row_stride, accumulate, row_sums } = task;
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "product: the columns of a and the rows of b");
    a.check("product: a");
    b.check("product: b");
    assert!(m <= 1 || out_row_stride >= n, "product: the rows of out overlap");
    assert!(extent(&[(m, out_row_stride), (n, 1)]) <= out.len(), "product: out is too short");
    let threads = context.pool.threads();
    let split = Split::choose(m, n, k, 1, threads);
    let mut workspace = Workspace::new(workspace);
    let scratch_each = split.scratch_values(k).next_multiple_of(16);
    let scratch = Target::new(workspace.take(scratch_each * split.threads_used(m, n, threads)));
    let chunks = n.div_ceil(SUM_COLUMNS);
    let sums = Target::new(if row_sums.is_some() { workspace.take(m * chunks) } else { &mut [] });
    let takes_sums = row_sums.is_some();
    let bias = bias.map(|bias| {
        assert_eq!(bias.len(), n, "product: bias");
        let wide = workspace.take(n);
        super::elementwise::widen_into(context.level, bias, wide);
        Source::new(wide)
    });
    with_floats!(a.values, a_values: A => with_floats!(b.values, b_values: B => with_floats_mut!(out, out: O => {
        let a_block = Shared(block::<A>(a_values, &a));
        let b_block = Shared(block::<B>(b_values, &b));
        let out = Target::new(out);
        context.pool.for_each_thread(split.blocks(m, n), |thread, index| {
            let (row, rows, column, columns) = split.block(m, n, index);
            // SAFETY: shapes were checked; each block of the output, and each thread's scratch memory, has one user.
            unsafe {
                let output = Output::<O> {
                    pointer: out.pointer().add(row * out_row_stride + column),
                    row_stride: out_row_stride,
                    bias: bias.map_or(std::ptr::null(), |bias| bias.pointer().add(column)),
                    accumulate,
                    sums: if takes_sums {
                        sums.pointer().add(column / SUM_COLUMNS * m + row)
                    } else {
                        std::ptr::null_mut()
                    },
                    sums_stride: m,
                };
                let scratch = scratch.slice(thread * scratch_each, scratch_each);
                multiply::<A, B, O>(
                    unit,
                    context.level,
                    a_block.get().from(row, 0),
                    b_block.get().from(0, column),
                    output,
                    rows,
                    columns,
                    k,
                    scratch.as_mut_ptr(),
                );
            }
        });
    })));
    if let Some(row_sums) = row_sums {
        assert_eq!(row_sums.len(), m, "product: row_sums");
        // SAFETY: every block is done.
        add_chunks(context.level, unsafe { sums.slice(0, m * chunks) }, row_sums);
    }
}

/// Adds up what each `SUM_COLUMNS` columns gave to the rows' sums.
fn add_chunks(level: Level, chunks: &[f32], row_sums: &mut [f32]) {
    row_sums.fill(0.0);
    for chunk in chunks.chunks_exact(row_sums.len().max(1)) {
        super::elementwise::add_into(level, chunk, row_sums);
    }
}

/// A block's description, shared by threads that only read through it.
#[derive(Clone, Copy)]
struct Shared<T>(Block<T>);

// SAFETY: only read, and the operand is borrowed for as long as the job runs.
unsafe impl<T: Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> &Block<T> {
        &self.0
    }
}

fn block<T>(values: &[T], matrix: &Matrix<'_>) -> Block<T> {
    Block { pointer: values.as_ptr(), row_stride: matrix.row_stride, column_stride: matrix.column_stride }
}

#[cfg(test)]
mod tests;
