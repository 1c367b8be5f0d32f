//! Elements and rows moved to other places.

use super::{add_scaled, tensor, within};
use toprope_program::operator::{Append, Assemble, Gather, ScatterAdd};
use toprope_program::{Tensor, shape};

pub(crate) fn assemble(attributes: &Assemble, operands: &[Tensor], sizes: &[usize]) -> Vec<Tensor> {
    let mut y = vec![0.0; shape::elements(sizes)];
    for (view, part) in attributes.views.iter().zip(operands) {
        let mut index = vec![0usize; part.sizes.len()];
        let mut target = view.offset;
        for element in &part.data {
            y[target] += element;
            // The next element: the innermost index that does not run over.
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                target += view.strides[axis];
                if index[axis] < part.sizes[axis] {
                    break;
                }
                target -= part.sizes[axis] * view.strides[axis];
                index[axis] = 0;
            }
        }
    }
    vec![tensor(attributes.output, sizes, y)]
}

pub(crate) fn gather(attributes: &Gather, operands: &[Tensor]) -> Vec<Tensor> {
    let (table, indices) = (&operands[0], &operands[1]);
    let (rows, columns) = (table.sizes[0], table.sizes[1]);
    let mut y = vec![0.0; indices.data.len() * columns];
    for (y, index) in y.chunks_exact_mut(columns).zip(&indices.data) {
        if let Some(row) = within(*index, rows) {
            y.copy_from_slice(&table.data[row * columns..][..columns]);
        }
    }
    vec![tensor(attributes.output, &[indices.data.len(), columns], y)]
}

pub(crate) fn scatter_add(attributes: &ScatterAdd, operands: &[Tensor], rows: usize) -> Vec<Tensor> {
    let (x, indices) = (&operands[0], &operands[1]);
    let columns = x.sizes[1];
    let mut y = vec![0.0; rows * columns];
    for (x, index) in x.data.chunks_exact(columns).zip(&indices.data) {
        if let Some(row) = within(*index, rows) {
            add_scaled(&mut y[row * columns..][..columns], 1.0, x);
        }
    }
    vec![tensor(attributes.output, &[rows, columns], y)]
}

pub(crate) fn append(_: &Append, operands: &[Tensor]) -> Vec<Tensor> {
    let (mut cache, rows, position) = (operands[0].clone(), &operands[1], operands[2].data[0]);
    let row_size = shape::elements(&cache.sizes[1..]);
    for (t, row) in rows.data.chunks_exact(row_size).enumerate() {
        if let Some(at) = within(position + t as f64, cache.sizes[0]) {
            cache.data[at * row_size..][..row_size].copy_from_slice(row);
        }
    }
    vec![cache]
}
