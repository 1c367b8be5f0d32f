//! Matrix products of two operands.

use half::f16;

use crate::call::{call, write_out};
use crate::code;
use crate::fault::Fault;
use crate::objects::INTS;
use crate::operator::arguments::{Arguments, Operand, not_implemented};
use crate::operator::gemm::{Matrix, Precision, TILE, product};
use crate::operator::movement::truncated;
use crate::operator::{Planned, kernel_with_workspace, operators};
use crate::tensor::{DataType, Domain, Scalar};

operators! {
    Matmul(self_: T, mat2: T, out: To, cubeMathType: i8) = |a| matmul(a, None);
    Mm(self_: T, mat2: T, out: To, cubeMathType: i8) = |a| matmul(a, Some(2));
    BatchMatMul(self_: T, mat2: T, out: To, cubeMathType: i8) = |a| matmul(a, Some(3));
    Mv(
        self_: T, vec: T, out: To, cubeMathType: i8,
    ) = |a| plan(a.tensor("self_")?, a.tensor("vec")?, a.tensor("out")?, a.integer("cubeMathType")?, None);
    Addmm(
        self_: T, mat1: T, mat2: T, beta: S, alpha: S, out: To, cubeMathType: i8,
    ) = |a| scaled(a, ["self_", "mat1", "mat2", "out"]);
    InplaceAddmm(
        selfRef: To, mat1: T, mat2: T, beta: S, alpha: S, cubeMathType: i8,
    ) = |a| scaled(a, ["selfRef", "mat1", "mat2", "selfRef"]);
    Baddbmm(
        self_: T, batch1: T, batch2: T, beta: S, alpha: S, out: To, cubeMathType: i8,
    ) = |a| scaled(a, ["self_", "batch1", "batch2", "out"]);
}

/// beta·added + alpha·product.
struct Scaled {
    added: Operand,
    beta: f32,
    alpha: f32,
}

fn matmul(a: &Arguments, rank: Option<usize>) -> Planned {
    let (left, right) = (a.tensor("self_")?, a.tensor("mat2")?);
    for operand in [&left, &right] {
        if rank.is_some_and(|rank| operand.rank() != rank) || operand.rank() == 0 {
            return Err(operand.refuse(format!("must have {} dimensions", rank.unwrap_or(1))));
        }
    }
    plan(left, right, a.tensor("out")?, a.integer("cubeMathType")?, None)
}

fn scaled(a: &Arguments, [added, left, right, out]: [&'static str; 4]) -> Planned {
    let (beta, alpha) = (a.scalar("beta")?, a.scalar("alpha")?);
    let out = a.tensor(out)?;
    let single = |scalar: Scalar| scalar.float() as f32;
    let scaled =
        Scaled { added: a.tensor(added)?.expand(&out.shape)?, beta: single(beta), alpha: single(alpha) };
    plan(a.tensor(left)?, a.tensor(right)?, out, a.integer("cubeMathType")?, Some(scaled))
}

/// Axes before the last two, broadcast against each other.
fn batches(left: &Operand, right: &Operand) -> Result<Vec<usize>, Fault> {
    let (a, b) = (&left.shape[..left.rank() - 2], &right.shape[..right.rank() - 2]);
    let rank = a.len().max(b.len());
    let at =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis]);
    let mut shape = Vec::new();
    for axis in 0..rank {
        shape.push(match (at(a, axis), at(b, axis)) {
            (one, other) if one == other => one,
            (1, size) | (size, 1) => size,
            _ => return Err(right.refuse(format!("its batches do not fit to {a:?}"))),
        });
    }
    Ok(shape)
}

/// With an axis of one element at a place.
fn unsqueeze(operand: &Operand, axis: usize) -> Operand {
    let (mut shape, mut strides) = (operand.shape.clone(), operand.strides.clone());
    shape.insert(axis, 1);
    strides.insert(axis, 0);
    operand.view(shape, strides, operand.offset)
}

/// The matrix of one batch: the first axes fixed.
fn matrix_of(operand: &Operand, index: &[usize]) -> Operand {
    let offset = index.iter().zip(&operand.strides).map(|(&at, &stride)| at as i64 * stride).sum::<i64>();
    let outer = index.len();
    operand.view(operand.shape[outer..].to_vec(), operand.strides[outer..].to_vec(), operand.offset + offset)
}

fn plan(left: Operand, right: Operand, out: Operand, cube_math_type: i64, scaled: Option<Scaled>) -> Planned {
    for operand in [&left, &right, &out] {
        if operand.dtype.domain() != Domain::Single {
            return Err(not_implemented(format!(
                "a product with {} of {}",
                operand.label(),
                operand.dtype.name()
            )));
        }
    }
    // Operands of two float types are promoted, as ggml-cann relies on for f32 activations with f16 weights.
    let precision = Precision::of(cube_math_type, &[&left, &right])?;
    let (row, column) = (left.rank() == 1, right.rank() == 1);
    let left = if row { unsqueeze(&left, 0) } else { left };
    let right = if column { unsqueeze(&right, 1) } else { right };
    let (rows, inner) = (left.shape[left.rank() - 2], left.shape[left.rank() - 1]);
    let columns = right.shape[right.rank() - 1];
    if right.shape[right.rank() - 2] != inner {
        return Err(right.refuse(format!("its inner dimension must be {inner}, as that of {}", left.label())));
    }
    let batch = batches(&left, &right)?;
    let mut shape = batch.clone();
    shape.extend((!row).then_some(rows));
    shape.extend((!column).then_some(columns));
    out.must_have(&shape)?;
    let full = |rows, columns| [batch.as_slice(), &[rows, columns]].concat();
    let left = left.expand(&full(rows, inner))?;
    let right = right.expand(&full(inner, columns))?;
    let widen = |operand: Operand| {
        let operand = if row { unsqueeze(&operand, batch.len()) } else { operand };
        if column { unsqueeze(&operand, batch.len() + 1) } else { operand }
    };
    let scaled = scaled.map(|scaled| Scaled { added: widen(scaled.added), ..scaled });
    let out = widen(out);
    kernel_with_workspace(out.len(), move |run| {
        // All results are made before the first is stored: operands may lie where the result does.
        let mut results = Vec::new();
        let mut index = vec![0; batch.len()];
        for _ in 0..batch.iter().product() {
            let (a, b) = (matrix_of(&left, &index), matrix_of(&right, &index));
            let (left, right) = (Matrix::read(run, &a)?, Matrix::read(run, &b)?.right(run));
            let mut result = product(run, left, right, precision);
            if let Some(scaled) = &scaled {
                let added = run.floats(&matrix_of(&scaled.added, &index))?;
                for (value, &added) in result.iter_mut().zip(added.iter()) {
                    let added = if scaled.beta == 0.0 { 0.0 } else { scaled.beta * added };
                    *value = added + scaled.alpha * *value;
                }
            }
            if run.has("matmul.fp16_out") && out.dtype == DataType::F32 {
                result.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
            }
            if run.has("matmul.truncate") {
                result.iter_mut().for_each(|value| *value = truncated(*value, out.dtype));
            }
            let mut window = matrix_of(&out, &index);
            if run.has("matmul.row_tail") && window.shape[0] > TILE {
                window = window.narrow(0, 0, window.shape[0] / TILE * TILE);
                result.truncate(window.len());
            }
            results.push((window, result));
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < batch[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        results.iter().try_for_each(|(window, values)| run.store(window, values))
    })
}

unsafe fn weight_size(name: &'static str, shape: usize, place: *mut u64) -> i32 {
    call(name, || {
        // No format of its own here: a weight has as many elements as its shape says.
        let elements = INTS.get(shape).map_err(|fault| Fault { code: code::PARAM_NULLPTR, ..fault })?;
        let elements = elements.iter().map(|&size| size.max(0) as u64).product();
        // SAFETY: the caller gives a place for the size, or null, which is refused.
        unsafe { write_out("weightTensorSize", place, elements) }
    })
}

unsafe extern "C" fn weight_size_v1(shape: usize, place: *mut u64) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { weight_size("aclnnCalculateMatmulWeightSize", shape, place) }
}

unsafe extern "C" fn weight_size_v2(shape: usize, dtype: i32, place: *mut u64) -> i32 {
    if DataType::from_number(dtype).is_none() {
        let unknown = Fault::new(code::ACLNN_PARAM_INVALID, format!("{dtype} is no data type"));
        return crate::fault::tell("aclnnCalculateMatmulWeightSizeV2", &unknown);
    }
    // SAFETY: the caller's promise.
    unsafe { weight_size("aclnnCalculateMatmulWeightSizeV2", shape, place) }
}

/// Functions of one phase.
pub fn single_calls() -> Vec<(&'static str, usize)> {
    vec![
        ("aclnnCalculateMatmulWeightSize", weight_size_v1 as *const () as usize),
        ("aclnnCalculateMatmulWeightSizeV2", weight_size_v2 as *const () as usize),
    ]
}
