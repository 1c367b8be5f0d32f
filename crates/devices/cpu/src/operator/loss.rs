//! The linear head with its cross-entropy, a block of rows at a time out of whole products: logits are made once, turned
//! into their gradient in place, and thrown away. Where both operands are bf16, so is the logits' gradient.

use super::floats::{with_floats, with_floats_mut};
use super::narrow::{narrow_matrix, narrow_row};
use super::parallel::{Parts, parts};
use super::{Execute, Sizes, Task};
use crate::bind::View;
use crate::kernel::{
    Context, Floats, FloatsMut, Folded, Matrix, Product, Weights, fold, fold_scratch_values, product,
    product_workspace_bytes,
};
use crate::lanes::{Element, WIDTH, exp, ln};
use crate::level::kernel;
use std::ops::Range;
use toprope_program::DType;
use toprope_program::operator::{LinearCrossEntropy, LinearCrossEntropyGradient};

/// Logits of one block, roughly: small beside the weights, large enough for products at full speed.
const LOGITS: usize = 1 << 21;

/// Rows of a block, part of what fixes the bits of dweight.
fn block_rows(rows: usize, vocabulary: usize) -> usize {
    (LOGITS / vocabulary).clamp(16, 512).min(rows)
}

kernel! {
    /// `e^(z - max)` in place; gives the maximum and the sum.
    fn exponentials[](z: &'a mut [f32]) -> (f32, f32) {
        let count = z.len();
        let pointer = z.as_mut_ptr();
        let mut top = L::splat(f32::NEG_INFINITY);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            top = unsafe { f32::load_first::<L>(pointer.add(start), width) }.first(width, f32::NEG_INFINITY).max(top);
            start += WIDTH;
        }
        let largest = top.largest();
        let shift = L::splat(largest);
        let mut sum = L::splat(0.0);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let value = exp(f32::load_first::<L>(pointer.add(start), width).sub(shift)).first(width, 0.0);
                sum = sum.add(value);
                f32::store_first::<L>(value, pointer.add(start), width);
            }
            start += WIDTH;
        }
        (largest, sum.sum())
    }
}

kernel! {
    fn scale_row[](z: &'a mut [f32], factor: f32) {
        let count = z.len();
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let pointer = z.as_mut_ptr().add(start);
                f32::store_first::<L>(f32::load_first::<L>(pointer, width).mul(L::splat(factor)), pointer, width);
            }
            start += WIDTH;
        }
    }
}

/// The operands of both operators.
struct Head<'a> {
    x: Matrix<'a>,
    weight: Matrix<'a>,
    targets: &'a [i32],
}

/// Some rows of a matrix.
fn rows_of<'a>(matrix: &Matrix<'a>, rows: Range<usize>) -> Matrix<'a> {
    let start = rows.start * matrix.row_stride;
    let values = match matrix.values {
        Floats::F32(values) => Floats::F32(&values[start..]),
        Floats::Bf16(values) => Floats::Bf16(&values[start..]),
    };
    Matrix { values, rows: rows.len(), ..*matrix }
}

impl<'a> Head<'a> {
    fn new(inputs: &[View<'a>]) -> Head<'a> {
        Head { x: inputs[0].matrix(), weight: inputs[1].matrix(), targets: inputs[2].i32() }
    }

    fn target(&self, row: usize) -> Option<usize> {
        usize::try_from(self.targets[row]).ok().filter(|target| *target < self.weight.rows)
    }

    fn logits(&self, context: &Context<'_>, rows: Range<usize>, logits: &mut [f32], workspace: &mut [u8]) {
        let task = Product {
            a: rows_of(&self.x, rows),
            b: self.weight.transposed(),
            bias: None,
            out: FloatsMut::F32(logits),
            out_row_stride: self.weight.rows,
            accumulate: false,
            row_sums: None,
        };
        product(context, task, workspace);
    }
}

/// The workspace as f32 values and bytes for products behind them.
fn split(workspace: &mut [u8], values: usize) -> (&mut [f32], &mut [u8]) {
    let skip = workspace.as_ptr().align_offset(64).min(workspace.len());
    let (values_part, products) = workspace[skip..].split_at_mut(values * size_of::<f32>());
    // SAFETY: every bit pattern is an f32, and the part begins at a multiple of 64 bytes.
    let (_, values_part, _) = unsafe { values_part.align_to_mut::<f32>() };
    (values_part, products)
}

/// Every number of rows that a block may have: whole ones and the last.
fn heights(rows: usize, each: usize) -> [usize; 2] {
    let last = rows % each;
    [each, if last == 0 { each } else { last }]
}

impl Execute for LinearCrossEntropy {
    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (x, weight) = (sizes.inputs[0].shape.sizes(), sizes.inputs[1].shape.sizes());
        let each = block_rows(x[0], weight[0]);
        let products = heights(x[0], each)
            .map(|height| product_workspace_bytes(height, weight[0], x[1], sizes.threads))
            .into_iter()
            .max();
        each * weight[0] * size_of::<f32>() + products.unwrap_or(0) + 128
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let head = Head::new(task.inputs);
        let (rows, vocabulary) = (head.x.rows, head.weight.rows);
        let each = block_rows(rows, vocabulary);
        let (logits, workspace) = split(task.workspace, each * vocabulary);
        let context = task.context;
        let Some([loss, lse]) = task.outputs.first_chunk_mut() else { panic!("the loss has two outputs") };
        let (loss, lse) = (Parts::new(loss.f32()), Parts::new(lse.f32()));
        for start in (0..rows).step_by(each) {
            let height = each.min(rows - start);
            let logits = &mut logits[..height * vocabulary];
            head.logits(&context, start..start + height, logits, workspace);
            parts(context.pool, logits, vocabulary, |row, z| {
                let row = start + row;
                let target = head.target(row).map(|target| z[target]);
                let (largest, sum) = exponentials(context.level, z);
                let log_sum = largest + ln(sum);
                // SAFETY: each row has its own element.
                let (loss, lse) = unsafe { (loss.part(row, 1), lse.part(row, 1)) };
                (loss[0], lse[0]) = (target.map_or(0.0, |z| log_sum - z), log_sum);
            });
        }
    }
}

/// Parts of the workspace, in f32 values.
struct Layout {
    /// Rows of a block.
    each: usize,
    logits: usize,
    /// Rows of x, those without a target being 0.
    masked: usize,
    /// dweight in f32, where it is stored in bf16.
    sums: usize,
    /// What the checks' sums take.
    checks: usize,
}

impl Layout {
    fn new(
        (rows, columns, vocabulary): (usize, usize, usize),
        operator: &LinearCrossEntropyGradient,
    ) -> Self {
        let each = block_rows(rows, vocabulary);
        let logits = (each * vocabulary).next_multiple_of(16);
        let masked = (each * columns).next_multiple_of(16);
        let sums = if operator.weight_output == DType::Bf16 {
            (vocabulary * columns).next_multiple_of(16)
        } else {
            0
        };
        let checks = if operator.sums { Sums::values(each, columns, vocabulary) } else { 0 };
        Self { each, logits, masked, sums, checks }
    }

    fn values(&self) -> usize {
        self.logits + self.masked + self.sums + self.checks
    }
}

/// The sums that `loss_check` judges, taken from the same values that the products read and give.
struct Sums<'w> {
    row_sums: &'w mut [f32],
    weight_sums: &'w mut [f32],
    /// `Σ_d weight` and `√(Σ_d weight²)` of each word.
    weight: [&'w mut [f32]; 2],
    /// `Σ_d x` and `√(Σ_d x²)` of a block's rows.
    x: [&'w mut [f32]; 2],
    /// The products' row sums: a block's rows, all words.
    dx: &'w mut [f32],
    dweight: &'w mut [f32],
    /// A [`Folded`] over a block's rows or all words.
    folded: [&'w mut [f32]; 2],
    scratch: &'w mut [f32],
}

impl<'w> Sums<'w> {
    fn scratch(each: usize, columns: usize, vocabulary: usize) -> usize {
        let x = fold_scratch_values(each, columns).max(fold_scratch_values(vocabulary, columns));
        x.max(fold_scratch_values(vocabulary, each)).max(fold_scratch_values(each, vocabulary))
    }

    fn values(each: usize, columns: usize, vocabulary: usize) -> usize {
        let most = each.max(vocabulary);
        3 * vocabulary + 3 * each + 2 * most + Self::scratch(each, columns, vocabulary)
    }

    fn new(
        context: &Context<'_>,
        head: &Head<'_>,
        each: usize,
        (row_sums, weight_sums): (&'w mut [f32], &'w mut [f32]),
        mut rest: &'w mut [f32],
    ) -> Sums<'w> {
        let (columns, vocabulary) = (head.x.columns, head.weight.rows);
        let mut take = |count: usize| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(count);
            rest = behind;
            part
        };
        let most = each.max(vocabulary);
        let mut sums = Sums {
            row_sums,
            weight_sums,
            weight: [take(vocabulary), take(vocabulary)],
            x: [take(each), take(each)],
            dx: take(each),
            dweight: take(vocabulary),
            folded: [take(most), take(most)],
            scratch: take(Self::scratch(each, columns, vocabulary)),
        };
        sums.weight_sums.fill(0.0);
        for row in sums.row_sums.chunks_exact_mut(5) {
            row.copy_from_slice(&[0.0, 0.0, 0.0, 0.0, 1.0]);
        }
        let [sum, size] = &mut sums.weight;
        fold(context, &head.weight, Weights::Ones, Folded { sum, size }, sums.scratch);
        sums
    }

    /// Takes a block's sums, after both products.
    fn block(
        &mut self,
        context: &Context<'_>,
        head: &Head<'_>,
        start: usize,
        g: &Matrix<'_>,
        x: &Matrix<'_>,
    ) {
        let (height, vocabulary, columns) = (g.rows, g.columns, x.columns);
        let rows = head.x.rows;
        let [sum, size] = &mut self.folded;
        let mut folded = Folded { sum: &mut sum[..height], size: &mut size[..height] };
        let weights = Weights::Pair(self.weight[0], self.weight[1]);
        fold(context, g, weights, folded.again(), self.scratch);
        let root = ((vocabulary + columns) as f32).sqrt();
        for (row, sums) in self.row_sums[5 * start..].chunks_exact_mut(5).take(height).enumerate() {
            if head.target(start + row).is_some() {
                sums[0] = self.dx[row];
                sums[1] = folded.sum[row];
                sums[2] = root * folded.size[row];
            }
        }
        let [sum, size] = &mut self.x;
        let of_x = Folded { sum: &mut sum[..height], size: &mut size[..height] };
        fold(context, x, Weights::Ones, of_x, self.scratch);
        let weights = Weights::Pair(&self.x[0][..height], &self.x[1][..height]);
        let [sum, size] = &mut self.folded;
        let mut folded = Folded { sum: &mut sum[..vocabulary], size: &mut size[..vocabulary] };
        fold(context, &g.transposed(), weights, folded.again(), self.scratch);
        let root = ((rows + columns) as f32).sqrt();
        for (word, sums) in self.weight_sums.chunks_exact_mut(3).enumerate() {
            sums[0] += self.dweight[word];
            sums[1] += folded.sum[word];
            sums[2] += root * folded.size[word];
        }
    }
}

impl Execute for LinearCrossEntropyGradient {
    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (x, weight) = (sizes.inputs[0].shape.sizes(), sizes.inputs[1].shape.sizes());
        let (rows, columns, vocabulary) = (x[0], x[1], weight[0]);
        let own = Layout::new((rows, columns, vocabulary), self);
        let threads = sizes.threads;
        let products = heights(rows, own.each).map(|height| {
            product_workspace_bytes(height, vocabulary, columns, threads)
                .max(product_workspace_bytes(height, columns, vocabulary, threads))
                .max(product_workspace_bytes(vocabulary, columns, height, threads))
        });
        own.values() * size_of::<f32>() + products.into_iter().max().unwrap_or(0) + 128
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let head = Head::new(task.inputs);
        let dloss = task.inputs[3].f32();
        let (rows, columns, vocabulary) = (head.x.rows, head.x.columns, head.weight.rows);
        let own = Layout::new((rows, columns, vocabulary), self);
        let (values, workspace) = split(task.workspace, own.values());
        let (logits, rest) = values.split_at_mut(own.logits);
        let (masked, rest) = rest.split_at_mut(own.masked);
        let (sums, checks) = rest.split_at_mut(own.sums);
        let context = task.context;
        let Some((first, last)) = task.outputs.split_at_mut_checked(3) else {
            panic!("the loss's gradient has three outputs")
        };
        let [loss, dx, dweight] = first else { panic!("the loss's gradient has three outputs") };
        let mut checks = match last {
            [row_sums, weight_sums] => {
                Some(Sums::new(&context, &head, own.each, (row_sums.f32(), weight_sums.f32()), checks))
            }
            _ => None,
        };
        let loss = Parts::new(loss.f32());
        let narrow = head.x.values.is_bf16() && head.weight.values.is_bf16();
        let mut blocks = |sums: &mut [f32]| {
            for start in (0..rows).step_by(own.each) {
                let height = own.each.min(rows - start);
                let block = start..start + height;
                let logits = &mut logits[..height * vocabulary];
                head.logits(&context, block.clone(), logits, workspace);
                let no_rows: &mut [f32] = &mut [];
                let facts = Parts::new(checks.as_mut().map_or(no_rows, |checks| &mut *checks.row_sums));
                parts(context.pool, logits, vocabulary, |row, z| {
                    let row = start + row;
                    // SAFETY: each row has its own element.
                    let loss = unsafe { loss.part(row, 1) };
                    let Some(target) = head.target(row) else {
                        loss[0] = 0.0;
                        return z.fill(0.0);
                    };
                    let target_logit = z[target];
                    let (largest, sum) = exponentials(context.level, z);
                    loss[0] = largest + ln(sum) - target_logit;
                    // SAFETY: each row has its own part, which is empty where no sums are wanted.
                    if let [_, _, _, again, scale] = unsafe { facts.part(row * 5, 5) } {
                        // By the probability instead; where that is no normal number, by the same way once more.
                        let probability = z[target] / sum;
                        let other = if probability > 1e-30 { -ln(probability) } else { loss[0] };
                        (*again, *scale) = (other, 1.0 + largest.abs() + target_logit.abs() + loss[0].abs());
                    }
                    // The target's own p - 1 is taken before the scaling, where it does not cancel twice.
                    let at_target = dloss[row] * (z[target] / sum - 1.0);
                    scale_row(context.level, z, dloss[row] / sum);
                    z[target] = at_target;
                    if narrow {
                        narrow_row(context.level, z);
                    }
                });
                let g = if narrow {
                    narrow_matrix(logits, height, vocabulary)
                } else {
                    Matrix::dense(Floats::F32(logits), height, vocabulary)
                };
                let place = start * columns..(start + height) * columns;
                let out = match dx.floats() {
                    FloatsMut::F32(dx) => FloatsMut::F32(&mut dx[place.clone()]),
                    FloatsMut::Bf16(dx) => FloatsMut::Bf16(&mut dx[place.clone()]),
                };
                let to_x = Product {
                    a: g,
                    b: head.weight,
                    bias: None,
                    out,
                    out_row_stride: columns,
                    accumulate: false,
                    row_sums: checks.as_mut().map(|checks| &mut checks.dx[..height]),
                };
                product(&context, to_x, workspace);
                let lacking = block.clone().any(|row| head.target(row).is_none());
                let x = if lacking {
                    // A row without a target takes no part: 0 times an infinity would.
                    with_floats_mut!(dx.floats(), dx => {
                        for row in block.clone().filter(|row| head.target(*row).is_none()) {
                            dx[row * columns..][..columns].fill(Element::from_f32(0.0));
                        }
                    });
                    with_floats!(head.x.values, x => for (row, masked) in block.zip(masked.chunks_exact_mut(columns)) {
                        match head.target(row) {
                            Some(_) => {
                                let x = &x[row * head.x.row_stride..][..columns];
                                masked.iter_mut().zip(x).for_each(|(y, x)| *y = x.to_f32());
                            }
                            None => masked.fill(0.0),
                        }
                    });
                    if narrow {
                        masked.chunks_exact_mut(columns).for_each(|row| narrow_row(context.level, row));
                        narrow_matrix(masked, height, columns)
                    } else {
                        Matrix::dense(Floats::F32(&*masked), height, columns)
                    }
                } else {
                    rows_of(&head.x, block)
                };
                let to_weight = Product {
                    a: g.transposed(),
                    b: x,
                    bias: None,
                    out: FloatsMut::F32(&mut *sums),
                    out_row_stride: columns,
                    accumulate: start > 0,
                    row_sums: checks.as_mut().map(|checks| &mut *checks.dweight),
                };
                product(&context, to_weight, workspace);
                if let Some(checks) = &mut checks {
                    checks.block(&context, &head, start, &g, &x);
                }
            }
        };
        match dweight.floats() {
            FloatsMut::F32(dweight) => blocks(dweight),
            dweight => {
                let sums = &mut sums[..vocabulary * columns];
                blocks(sums);
                super::elementwise::convert(&context, Floats::F32(sums), dweight);
            }
        }
    }
}
