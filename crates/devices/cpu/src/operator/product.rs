//! Matrix products: `matmul`, `grouped_matmul`, `grouped_outer`.

use super::{Execute, Sizes, Task};
use crate::bind::Layout;
use crate::kernel::{self, Matrix};
use toprope_program::operator::{GroupedMatmul, GroupedOuter, Matmul};

impl Execute for Matmul {
    fn layout(&self, index: usize) -> Layout {
        if index < 2 { Layout::Any } else { Layout::Dense }
    }

    fn adds_into(&self) -> Option<usize> {
        Some(0)
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (a, b) = (sizes.inputs[0].shape.sizes(), sizes.inputs[1].shape.sizes());
        kernel::product_workspace_bytes(a[0], b[1], a[1], sizes.threads)
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (a, b) = (task.inputs[0].matrix(), task.inputs[1].matrix());
        let bias = task.inputs.get(2).map(|bias| bias.floats());
        let Some((y, sums)) = task.outputs.split_first_mut() else { panic!("matmul has an output") };
        let product = kernel::Product {
            a,
            b,
            bias,
            out: y.floats(),
            out_row_stride: b.columns,
            accumulate: task.adds,
            row_sums: sums.first_mut().map(|sums| sums.f32()),
        };
        kernel::product(&task.context, product, task.workspace);
    }
}

impl Execute for GroupedMatmul {
    fn layout(&self, index: usize) -> Layout {
        if index < 2 { Layout::Any } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (a, b) = (sizes.inputs[0].shape.sizes(), sizes.inputs[1].shape.sizes());
        kernel::grouped_workspace_bytes(a[0], b[2], a[1], sizes.threads)
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (a, b) = (task.inputs[0].matrix(), task.inputs[1]);
        let weight = Matrix {
            values: b.floats(),
            rows: b.sizes()[1],
            columns: b.sizes()[2],
            row_stride: b.strides()[1],
            column_stride: b.strides()[2],
        };
        let offsets = task.inputs[2].i32();
        let Some((y, sums)) = task.outputs.split_first_mut() else { panic!("grouped_matmul has an output") };
        let product = kernel::GroupedProduct {
            a,
            weight,
            weight_stride: b.strides()[0],
            offsets,
            out: y.floats(),
            out_row_stride: weight.columns,
            row_sums: sums.first_mut().map(|sums| sums.f32()),
        };
        kernel::grouped_product(&task.context, product, task.workspace);
    }
}

impl Execute for GroupedOuter {
    fn layout(&self, index: usize) -> Layout {
        if index < 2 { Layout::Any } else { Layout::Dense }
    }

    fn adds_into(&self) -> Option<usize> {
        Some(0)
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (a, b) = (sizes.inputs[0].shape.sizes(), sizes.inputs[1].shape.sizes());
        let experts = sizes.inputs[2].shape.elements().saturating_sub(1);
        // One expert may have all rows.
        kernel::grouped_workspace_bytes(experts * a[1], b[1], a[0], sizes.threads)
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let Some((y, sums)) = task.outputs.split_first_mut() else { panic!("grouped_outer has an output") };
        let outer = kernel::GroupedOuter {
            a: task.inputs[0].matrix(),
            b: task.inputs[1].matrix(),
            offsets: task.inputs[2].i32(),
            out: y.floats(),
            accumulate: task.adds,
            row_sums: sums.first_mut().map(|sums| sums.f32()),
        };
        kernel::grouped_outer(&task.context, outer, task.workspace);
    }
}
