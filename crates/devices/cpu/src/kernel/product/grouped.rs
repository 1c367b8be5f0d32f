//! Products of experts: rows are sorted by expert, each group of rows has a matrix of its own.

use super::block::{DEPTH, Output, SUM_COLUMNS, multiply, scratch_values};
use super::pairs::Unit;
use super::split::Split;
use super::{Block, Shared, add_chunks, block};
use crate::kernel::view::{Target, extent, with_floats, with_floats_mut};
use crate::kernel::workspace::{Workspace, workspace_bytes};
use crate::kernel::{Context, FloatsMut, Matrix};
use crate::lanes::Element;

/// Largest block of a group: small, so that groups of any size spread over threads evenly.
const GROUP_ROWS: usize = 192;
const GROUP_COLUMNS: usize = 512;

/// `out[r, N] = a[r, K]·w[e][K, N]` for `offsets[e] ≤ r < offsets[e+1]`.
#[derive(Debug)]
pub struct GroupedProduct<'a> {
    /// All groups' rows.
    pub a: Matrix<'a>,
    /// The first expert's matrix, its `values` reaching over all experts' (`K` and `N` with any strides).
    pub weight: Matrix<'a>,
    /// Elements from an expert's matrix to the next.
    pub weight_stride: usize,
    /// `E + 1` row numbers: `offsets[0] = 0`, non-decreasing, `offsets[E] = a.rows`. Others are clipped; rows that no
    /// expert has become 0.
    pub offsets: &'a [i32],
    /// `a.rows` rows of `N` contiguous values.
    pub out: FloatsMut<'a>,
    /// Elements from a row of `out` to the next.
    pub out_row_stride: usize,
    /// `row_sums[r] = Σ_n out[r, n]` from the f32 accumulators.
    pub row_sums: Option<&'a mut [f32]>,
}

/// `out[e] = a[rows of e]ᵀ·b[rows of e]`, 0 for an expert without rows: the weight gradient of [`GroupedProduct`].
#[derive(Debug)]
pub struct GroupedOuter<'a> {
    /// `R × K`.
    pub a: Matrix<'a>,
    /// `R × N`.
    pub b: Matrix<'a>,
    /// As in [`GroupedProduct`].
    pub offsets: &'a [i32],
    /// `E` dense matrices `K × N`.
    pub out: FloatsMut<'a>,
    /// Whether the result is added to `out` (one f32 sum) instead of replacing it.
    pub accumulate: bool,
    /// `row_sums[e, k] = Σ_n` of the f32 accumulators, before old value and rounding.
    pub row_sums: Option<&'a mut [f32]>,
}

/// Bytes of workspace for a [`GroupedProduct`] (`rows`, `k`, `n`, and `depth = k`) or a [`GroupedOuter`] (`depth` the
/// number of rows that one expert may have at most; its `rows` are those of all experts' results).
pub fn grouped_workspace_bytes(rows: usize, n: usize, depth: usize, threads: usize) -> usize {
    let scratch = thread_scratch(depth);
    workspace_bytes(&[scratch * threads, rows.saturating_mul(n.div_ceil(SUM_COLUMNS))])
}

fn thread_scratch(depth: usize) -> usize {
    scratch_values(GROUP_ROWS, GROUP_COLUMNS, depth, depth > DEPTH).next_multiple_of(16)
}

/// Each group's first row and number of rows. Offsets are data: they are clipped to the rows that are there and to
/// where the group before ended, so that groups never overlap.
pub(crate) fn groups(offsets: &[i32], rows: usize) -> Vec<(usize, usize)> {
    let mut behind = 0;
    offsets
        .windows(2)
        .map(|pair| {
            let clip = |offset: i32| usize::try_from(offset).unwrap_or(0).clamp(behind, rows);
            let (start, end) = (clip(pair[0]), clip(pair[1]));
            behind = end.max(start);
            (start, behind - start)
        })
        .collect()
}

/// Rows that no group holds, as (first, count): none when offsets are as they should be.
fn uncovered(groups: &[(usize, usize)], rows: usize) -> Vec<(usize, usize)> {
    let mut gaps = Vec::new();
    let mut behind = 0;
    for (start, count) in groups.iter().copied().chain([(rows, 0)]) {
        if start > behind {
            gaps.push((behind, start - behind));
        }
        behind = start + count;
    }
    gaps
}

/// The first block of each group, and their number at the end.
fn first_blocks(counts: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut total = 0;
    let mut first = vec![0];
    for count in counts {
        total += count;
        first.push(total);
    }
    first
}

/// Computes a [`GroupedProduct`].
///
/// # Panics
/// When shapes don't fit, or the workspace is smaller than [`grouped_workspace_bytes`].
pub fn grouped_product(context: &Context<'_>, task: GroupedProduct<'_>, workspace: &mut [u8]) {
    let GroupedProduct { a, weight, weight_stride, offsets, out, out_row_stride, row_sums } = task;
    let (rows, n, k) = (a.rows, weight.columns, a.columns);
    let groups = groups(offsets, rows);
    assert_eq!(k, weight.rows, "grouped product: the columns of a and the rows of weight");
    a.check("grouped product: a");
    let needed = extent(&[(groups.len(), weight_stride), (k, weight.row_stride), (n, weight.column_stride)]);
    assert!(needed <= weight.values.len(), "grouped product: weight is too short");
    assert!(rows <= 1 || out_row_stride >= n, "grouped product: the rows of out overlap");
    assert!(extent(&[(rows, out_row_stride), (n, 1)]) <= out.len(), "grouped product: out is too short");

    let threads = context.pool.threads();
    let unit = Unit::for_operands(context.level, a.values, weight.values);
    let split = Split { rows: GROUP_ROWS, columns: n.clamp(1, GROUP_COLUMNS) };
    let first = first_blocks(groups.iter().map(|(_, count)| split.blocks(*count, n)));
    let mut workspace = Workspace::new(workspace);
    let scratch_each = thread_scratch(k);
    let scratch = Target::new(workspace.take(scratch_each * threads));
    let chunks = n.div_ceil(SUM_COLUMNS);
    let takes_sums = row_sums.is_some();
    let sums_each = if takes_sums { chunks } else { 0 };
    let sums = Target::new(workspace.take(rows * sums_each));
    with_floats!(a.values, a_values: A => with_floats!(weight.values, values: B => with_floats_mut!(out, out: O => {
        let a_block = Shared(block::<A>(a_values, &a));
        let b_block = Shared(block::<B>(values, &weight));
        let out = Target::new(out);
        for (start, count) in uncovered(&groups, rows) {
            for row in start..start + count {
                // SAFETY: inside the output, before the other threads begin.
                unsafe { out.slice(row * out_row_stride, n) }.fill(O::from_f32(0.0));
            }
            // SAFETY: as above.
            (0..sums_each).for_each(|chunk| unsafe { sums.slice(chunk * rows + start, count) }.fill(0.0));
        }
        context.pool.for_each_thread(first[groups.len()], |thread, index| {
            let group = first.partition_point(|first| *first <= index) - 1;
            let (start, count) = groups[group];
            let (row, height, column, width) = split.block(count, n, index - first[group]);
            let row = row + start;
            // SAFETY: shapes were checked; each block of the output, and each thread's scratch memory, has one user.
            unsafe {
                let output = Output::<O> {
                    pointer: out.pointer().add(row * out_row_stride + column),
                    row_stride: out_row_stride,
                    bias: std::ptr::null(),
                    accumulate: false,
                    sums: if takes_sums {
                        sums.pointer().add(column / SUM_COLUMNS * rows + row)
                    } else {
                        std::ptr::null_mut()
                    },
                    sums_stride: rows,
                };
                let weight = b_block.get();
                let weight =
                    Block { pointer: weight.pointer.wrapping_add(group * weight_stride), ..*weight };
                multiply::<A, B, O>(
                    unit,
                    context.level,
                    a_block.get().from(row, 0),
                    weight.from(0, column),
                    output,
                    height,
                    width,
                    k,
                    scratch.slice(thread * scratch_each, scratch_each).as_mut_ptr(),
                );
            }
        });
    })));
    if let Some(row_sums) = row_sums {
        assert_eq!(row_sums.len(), rows, "grouped product: row_sums");
        // SAFETY: every block is done.
        add_chunks(context.level, unsafe { sums.slice(0, rows * chunks) }, row_sums);
    }
}

/// Computes a [`GroupedOuter`].
///
/// # Panics
/// When shapes don't fit, or the workspace is smaller than [`grouped_workspace_bytes`].
pub fn grouped_outer(context: &Context<'_>, task: GroupedOuter<'_>, workspace: &mut [u8]) {
    let GroupedOuter { a, b, offsets, out, accumulate, row_sums } = task;
    let (rows, k, n) = (a.rows, a.columns, b.columns);
    let groups = groups(offsets, rows);
    assert_eq!(rows, b.rows, "grouped outer: the rows of a and of b");
    a.check("grouped outer: a");
    b.check("grouped outer: b");
    let needed = groups.len().saturating_mul(k).saturating_mul(n);
    assert!(needed <= out.len(), "grouped outer: out is too short");

    let threads = context.pool.threads();
    let unit = Unit::for_operands(context.level, a.values, b.values);
    let split = Split { rows: k.clamp(1, GROUP_ROWS), columns: n.clamp(1, GROUP_COLUMNS) };
    let blocks = split.blocks(k, n);
    let scratch_each = thread_scratch(groups.iter().map(|(_, count)| *count).max().unwrap_or(0));
    let mut workspace = Workspace::new(workspace);
    let scratch = Target::new(workspace.take(scratch_each * threads));
    let chunks = n.div_ceil(SUM_COLUMNS);
    let takes_sums = row_sums.is_some();
    let sums = Target::new(workspace.take(if takes_sums { groups.len() * k * chunks } else { 0 }));
    // The largest groups first, so that no thread is left with one at the end.
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|group| std::cmp::Reverse(groups[*group].1));
    let transposed: Matrix<'_> = a.transposed();
    with_floats!(a.values, a_values: A => with_floats!(b.values, b_values: B => with_floats_mut!(out, out: O => {
        let a_block = Shared(block::<A>(a_values, &transposed));
        let b_block = Shared(block::<B>(b_values, &b));
        let out = Target::new(out);
        context.pool.for_each_thread(blocks * groups.len(), |thread, index| {
            let group = order[index / blocks];
            let (start, count) = groups[group];
            let (row, height, column, width) = split.block(k, n, index % blocks);
            // SAFETY: shapes were checked; each block of the output, and each thread's scratch memory, has one user.
            unsafe {
                let output = Output::<O> {
                    pointer: out.pointer().add((group * k + row) * n + column),
                    row_stride: n,
                    bias: std::ptr::null(),
                    accumulate,
                    sums: if takes_sums {
                        sums.pointer().add(column / SUM_COLUMNS * groups.len() * k + group * k + row)
                    } else {
                        std::ptr::null_mut()
                    },
                    sums_stride: groups.len() * k,
                };
                multiply::<A, B, O>(
                    unit,
                    context.level,
                    a_block.get().from(row, start),
                    b_block.get().from(start, column),
                    output,
                    height,
                    width,
                    count,
                    scratch.slice(thread * scratch_each, scratch_each).as_mut_ptr(),
                );
            }
        });
    })));
    if let Some(row_sums) = row_sums {
        assert_eq!(row_sums.len(), groups.len() * k, "grouped outer: row_sums");
        // SAFETY: every block is done.
        add_chunks(context.level, unsafe { sums.slice(0, groups.len() * k * chunks) }, row_sums);
    }
}
