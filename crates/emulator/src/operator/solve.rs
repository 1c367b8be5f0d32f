//! Triangular systems, and the weight format that stays plain here.

use crate::operator::arguments::Arguments;
use crate::operator::{Planned, kernel, kernel_with_workspace, operators};

operators! {
    TriangularSolve(
        self_: T, A: T, upper: Flag, transpose: Flag, unitriangular: Flag, xOut: To, mOut: To,
    ) = triangular;
    TransMatmulWeight(mmWeightRef: To) = transform;
}

/// x with A·x = self, A upper or lower triangular; mOut is a copy of A.
fn triangular(a: &Arguments) -> Planned {
    let (b, matrix, x, copy) = (a.tensor("self_")?, a.tensor("A")?, a.tensor("xOut")?, a.tensor("mOut")?);
    let (upper, transpose, unit) = (a.flag("upper")?, a.flag("transpose")?, a.flag("unitriangular")?);
    let rank = b.rank();
    if rank < 2 || matrix.rank() != rank || matrix.shape[rank - 1] != matrix.shape[rank - 2] {
        return Err(matrix.refuse("must be square matrices, as many as self has"));
    }
    let (rows, columns) = (b.shape[rank - 2], b.shape[rank - 1]);
    let mut shape = b.shape[..rank - 1].to_vec();
    shape.push(rows);
    matrix.must_have(&shape)?;
    x.must_have(&b.shape)?;
    kernel_with_workspace(b.len(), move |run| {
        let (all, right) = (run.doubles(&matrix)?, run.doubles(&b)?);
        let mut solved = vec![0.0f64; right.len()];
        for batch in 0..right.len() / (rows * columns).max(1) {
            let (m, b) = (&all[batch * rows * rows..], &right[batch * rows * columns..]);
            let x = &mut solved[batch * rows * columns..(batch + 1) * rows * columns];
            let at = |i: usize, j: usize| if transpose { m[j * rows + i] } else { m[i * rows + j] };
            // The transpose of an upper triangle is a lower one.
            let backwards = upper != transpose;
            for step in 0..rows {
                let i = if backwards { rows - 1 - step } else { step };
                let known = if backwards { i + 1..rows } else { 0..i };
                for column in 0..columns {
                    let sum: f64 = known.clone().map(|j| at(i, j) * x[j * columns + column]).sum();
                    let rest = b[i * columns + column] - sum;
                    x[i * columns + column] = if unit { rest } else { rest / at(i, i) };
                }
            }
        }
        run.store_doubles(&x, &solved)?;
        if copy.is_empty() { Ok(()) } else { run.store_doubles(&copy, &all) }
    })
}

/// The cube unit's own format is not emulated: `aclnnCalculateMatmulWeightSizeV2` asks for the plain size, and the
/// weight stays as it is. Its memory is looked up all the same.
fn transform(a: &Arguments) -> Planned {
    let weight = a.tensor("mmWeightRef")?;
    weight.must_be_float()?;
    kernel(move |run| run.locate(&weight).map(|_| ()))
}
