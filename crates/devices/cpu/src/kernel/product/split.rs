//! How an output is cut into blocks for threads. The bits never depend on it.

use super::block::{DEPTH, SUM_COLUMNS, scratch_values};
use crate::lanes::WIDTH;

/// Limits of a block: its packed right operand stays in the second- and third-level cache.
const ROWS_MAX: usize = 768;
const COLUMNS_MAX: usize = 1024;

/// Multiply-adds that one thread does before another could be told: some microseconds.
const WORK_ALONE: usize = 1 << 18;

/// Block sizes of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Split {
    /// The blocks of least cost for `threads` threads, of `copies` outputs of this size.
    ///
    /// Cost in vector steps: one for each 16 multiply-adds, and about 8 for packing 16 values once per block.
    pub(super) fn choose(rows: usize, columns: usize, depth: usize, copies: usize, threads: usize) -> Split {
        let mut best = Split { rows: rows.clamp(1, ROWS_MAX), columns: columns.clamp(1, COLUMNS_MAX) };
        let is_one = rows <= ROWS_MAX && columns <= COLUMNS_MAX;
        let work = rows.saturating_mul(columns).saturating_mul(depth).saturating_mul(copies);
        if is_one && (threads == 1 || work <= WORK_ALONE) {
            return best;
        }
        let mut best_cost = u128::MAX;
        for row_parts in parts(rows, ROWS_MAX, threads) {
            let height = rows.div_ceil(row_parts).max(1).next_multiple_of(12).min(rows.max(1));
            for column_parts in parts(columns, COLUMNS_MAX, threads) {
                let width = columns.div_ceil(column_parts).max(1).next_multiple_of(SUM_COLUMNS);
                let width = width.min(columns.max(1));
                let blocks = rows.div_ceil(height) * columns.div_ceil(width) * copies;
                let turns = blocks.div_ceil(threads) as u128;
                let vectors = height * width.div_ceil(WIDTH);
                let packed = (height + width) / 2;
                let cost = turns * (((vectors + packed) as u128) * depth as u128 + 2000);
                if cost < best_cost {
                    best_cost = cost;
                    best = Split { rows: height, columns: width };
                }
            }
        }
        best
    }

    pub(super) fn blocks(&self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }

    /// Threads that need scratch memory: a lone block runs on the caller.
    pub(super) fn threads_used(&self, rows: usize, columns: usize, threads: usize) -> usize {
        if self.blocks(rows, columns) <= 1 { 1 } else { threads }
    }

    /// The block's (first row, rows, first column, columns).
    pub(super) fn block(&self, rows: usize, columns: usize, index: usize) -> (usize, usize, usize, usize) {
        let across = columns.div_ceil(self.columns);
        let (row, column) = (index / across * self.rows, index % across * self.columns);
        (row, self.rows.min(rows - row), column, self.columns.min(columns - column))
    }

    /// Scratch values for one thread.
    pub(super) fn scratch_values(&self, depth: usize) -> usize {
        scratch_values(self.rows, self.columns, depth, depth > DEPTH)
    }
}

/// Numbers of parts worth trying: from as few as the largest block allows to a few for each thread.
fn parts(size: usize, largest: usize, threads: usize) -> impl Iterator<Item = usize> {
    let fewest = size.div_ceil(largest).max(1);
    let most = (fewest + 4 * threads).min(size.div_ceil(WIDTH).max(1)).max(fewest);
    fewest..most + 1
}
