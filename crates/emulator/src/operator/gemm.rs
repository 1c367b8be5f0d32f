//! Products of matrices in f32, by `matrixmultiply`; and the ways in which a cube unit can get them wrong.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};

use crate::fault::Fault;
use crate::operator::arguments::{Operand, invalid};
use crate::operator::run::{Dense, Run};
use crate::runtime::device::has_bf16;
use crate::tensor::DataType;

/// Inner length of a cube unit's tile.
pub const TILE: usize = 16;

/// From this inner length on, two cores share a product.
const SPLIT: usize = 64;

/// What a cube unit makes of f32 operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// f32 as it is.
    Full,
    /// Rounded to f16 first.
    Half,
    /// HF32: 11 bits of mantissa.
    Hf32,
}

impl Precision {
    /// What `cubeMathType` asks for, for these operands.
    pub fn of(cube_math_type: i64, operands: &[&Operand]) -> Result<Precision, Fault> {
        let single = operands.iter().any(|operand| operand.dtype == DataType::F32);
        match cube_math_type {
            0 if single && !has_bf16() => {
                Err(invalid("cubeMathType 0 keeps float32, which this chip's cube unit cannot multiply"))
            }
            1 if single && !has_bf16() => Ok(Precision::Half),
            2 if single => Ok(Precision::Half),
            1 | 3 if single => Ok(Precision::Hf32),
            0..=4 => Ok(Precision::Full),
            other => Err(invalid(format!("cubeMathType {other} is none of 0 to 4"))),
        }
    }
}

/// Packed matrices by device, address, offset and shape.
type Packs = BTreeMap<(i32, usize, i64, Vec<usize>), Vec<f32>>;
static PACKS: Mutex<Packs> = Mutex::new(BTreeMap::new());

/// A matrix in memory: dense, or dense and transposed.
pub struct Matrix {
    values: Dense<f32>,
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
}

impl Matrix {
    /// Reads a window of two axes; one that is dense when transposed is not copied.
    pub fn read(run: &Run, operand: &Operand) -> Result<Matrix, Fault> {
        let (rows, columns) = (operand.shape[0], operand.shape[1]);
        let transposed = operand.permute(&[1, 0]);
        if !operand.is_contiguous() && transposed.is_contiguous() {
            let values = run.floats(&transposed)?;
            let wrong = run.has("matmul.transposed") && rows == columns;
            let (row_stride, column_stride) = if wrong { (columns, 1) } else { (1, rows) };
            let (row_stride, column_stride) = (row_stride as isize, column_stride as isize);
            return Ok(Matrix { values, rows, columns, row_stride, column_stride });
        }
        Ok(Matrix::dense(run.floats(operand)?, rows, columns))
    }

    /// A window as it was when it was first read: the defect of a pack that is kept.
    pub fn first_seen(run: &Run, operand: &Operand) -> Result<Matrix, Fault> {
        let place = (run.device.index, operand.data, operand.offset, operand.shape.clone());
        let mut packs = PACKS.lock().unwrap_or_else(PoisonError::into_inner);
        if !packs.contains_key(&place) {
            packs.insert(place.clone(), run.floats(operand)?.into_vec());
        }
        let values = packs.get(&place).cloned().unwrap_or_default();
        Ok(Matrix::dense(Dense::Own(values), operand.shape[0], operand.shape[1]))
    }

    /// As a right operand is read; with a defect, memory is taken for columns of [`TILE`] elements, one behind the other.
    pub fn right(self, run: &Run) -> Matrix {
        let transposed = self.row_stride == 1;
        let (rows, columns) = if transposed { (self.columns, self.rows) } else { (self.rows, self.columns) };
        let whole = rows.is_multiple_of(TILE) && columns.is_multiple_of(TILE);
        if !run.has("matmul.fractal") || !whole || columns == TILE {
            return self;
        }
        let place = |flat: usize| {
            let (row, column) = (flat / columns, flat % columns);
            column / TILE * (rows * TILE) + row * TILE + column % TILE
        };
        let values = Dense::Own((0..rows * columns).map(|flat| self.values[place(flat)]).collect());
        Matrix { values, ..self }
    }

    /// Row-major values.
    pub fn dense(values: Dense<f32>, rows: usize, columns: usize) -> Matrix {
        Matrix { values, rows, columns, row_stride: columns as isize, column_stride: 1 }
    }

    /// The transpose, which shares the values.
    pub fn transposed(self) -> Matrix {
        let Matrix { values, rows, columns, row_stride, column_stride } = self;
        Matrix { values, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    fn rounded(self, round: impl Fn(f32) -> f32) -> Matrix {
        let values = Dense::Own(self.values.iter().map(|&value| round(value)).collect());
        Matrix { values, ..self }
    }
}

/// Rounds to HF32: 8 bits of exponent, 11 of mantissa.
pub fn hf32(value: f32) -> f32 {
    if !value.is_finite() {
        return value;
    }
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7FF + ((bits >> 12) & 1)) & !0xFFF)
}

/// `a`'s columns `from..to` times `b`'s rows of the same numbers, row-major.
fn part(a: &Matrix, b: &Matrix, from: usize, to: usize) -> Vec<f32> {
    let mut product = vec![0.0; a.rows * b.columns];
    if product.is_empty() || from >= to {
        return product;
    }
    let left = a.values.as_ptr().wrapping_offset(from as isize * a.column_stride);
    let right = b.values.as_ptr().wrapping_offset(from as isize * b.row_stride);
    // SAFETY: both matrices hold rows × columns elements at their strides, and so does the product.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            to - from,
            b.columns,
            1.0,
            left,
            a.row_stride,
            a.column_stride,
            right,
            b.row_stride,
            b.column_stride,
            0.0,
            product.as_mut_ptr(),
            b.columns as isize,
            1,
        );
    }
    product
}

/// a·b, row-major, accumulated in f32.
pub fn product(run: &Run, a: Matrix, b: Matrix, precision: Precision) -> Vec<f32> {
    let precision = if run.has("matmul.hf32") { Precision::Hf32 } else { precision };
    let (a, b) = match precision {
        Precision::Full => (a, b),
        Precision::Half => {
            let round = |value| f16::from_f32(value).to_f32();
            (a.rounded(round), b.rounded(round))
        }
        Precision::Hf32 => (a.rounded(hf32), b.rounded(hf32)),
    };
    let mut inner = a.columns;
    if run.has("matmul.tail_k") {
        inner -= inner % TILE;
    }
    if run.has("matmul.split_k") && inner >= SPLIT {
        inner = (inner / 2).next_multiple_of(TILE);
    }
    if run.has("matmul.late_tile") {
        inner = inner.saturating_sub(1) / TILE * TILE;
    }
    let half = run.has("matmul.fp16_accumulate");
    let tiles = inner.div_ceil(TILE);
    let mut product = if half || run.has("matmul.bf16_accumulate") {
        let round =
            |value: f32| if half { f16::from_f32(value).to_f32() } else { bf16::from_f32(value).to_f32() };
        let mut sums = vec![0.0f32; a.rows * b.columns];
        for from in (0..inner).step_by(TILE) {
            let partial = part(&a, &b, from, (from + TILE).min(inner));
            for (sum, value) in sums.iter_mut().zip(partial) {
                *sum = round(*sum + value);
            }
        }
        sums
    } else if run.has("matmul.order") && tiles > 0 {
        let first = run.active.random(0x6E44) as usize % tiles;
        let mut sums = vec![0.0f32; a.rows * b.columns];
        for tile in (first..tiles).chain(0..first) {
            let partial = part(&a, &b, tile * TILE, ((tile + 1) * TILE).min(inner));
            sums.iter_mut().zip(partial).for_each(|(sum, value)| *sum += value);
        }
        sums
    } else {
        part(&a, &b, 0, inner)
    };
    if run.has("matmul.tail_n") {
        let whole = b.columns - b.columns % TILE;
        for row in product.chunks_mut(b.columns.max(1)) {
            row[whole..].fill(0.0);
        }
    }
    if run.has("matmul.overhang") && b.columns > TILE && !b.columns.is_multiple_of(TILE) {
        let padding = TILE - b.columns % TILE;
        product.chunks_mut(b.columns).skip(1).for_each(|row| row[..padding].fill(0.0));
    }
    product
}
