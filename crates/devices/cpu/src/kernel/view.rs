//! Views of the caller's memory: floats of either dtype, strided matrices, and pointers that threads share.

use half::bf16;

/// Read-only floats.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// IEEE binary32.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// Floats to write.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// IEEE binary32.
    F32(&'a mut [f32]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl Floats<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(values) => values.len(),
            Floats::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the elements are bf16.
    pub fn is_bf16(&self) -> bool {
        matches!(self, Floats::Bf16(_))
    }
}

impl FloatsMut<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            FloatsMut::F32(values) => values.len(),
            FloatsMut::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the elements are bf16.
    pub fn is_bf16(&self) -> bool {
        matches!(self, FloatsMut::Bf16(_))
    }
}

/// A matrix of floats with any strides (in elements); a transpose is the same values with rows and columns exchanged.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The elements; row `r`, column `c` is at `r·row_stride + c·column_stride`.
    pub values: Floats<'a>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements from a row to the next.
    pub row_stride: usize,
    /// Elements from a column to the next.
    pub column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A dense row-major matrix.
    pub fn dense(values: Floats<'a>, rows: usize, columns: usize) -> Matrix<'a> {
        Matrix { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transpose: the same elements.
    pub fn transposed(self) -> Matrix<'a> {
        Matrix {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// The matrix of the same shape whose first element lies `offset` elements further on.
    pub(crate) fn behind(self, offset: usize) -> Matrix<'a> {
        let values = match self.values {
            Floats::F32(values) => Floats::F32(&values[offset.min(values.len())..]),
            Floats::Bf16(values) => Floats::Bf16(&values[offset.min(values.len())..]),
        };
        Matrix { values, ..self }
    }

    /// `count` rows from `start`.
    pub(crate) fn some_rows(self, start: usize, count: usize) -> Matrix<'a> {
        Matrix { rows: count, ..self.behind(start * self.row_stride) }
    }

    /// # Panics
    /// When an element lies outside `values`.
    pub(crate) fn check(&self, name: &str) {
        let needed = extent(&[(self.rows, self.row_stride), (self.columns, self.column_stride)]);
        assert!(needed <= self.values.len(), "{name}: {needed} elements needed, {} given", self.values.len());
    }
}

/// Elements spanned by dimensions of (size, stride): 0 when a size is 0, `usize::MAX` on overflow.
pub(crate) fn extent(dimensions: &[(usize, usize)]) -> usize {
    if dimensions.iter().any(|(size, _)| *size == 0) {
        return 0;
    }
    let last = dimensions.iter().try_fold(0usize, |sum, (size, stride)| {
        (size - 1).checked_mul(*stride).and_then(|offset| sum.checked_add(offset))
    });
    last.and_then(|last| last.checked_add(1)).unwrap_or(usize::MAX)
}

/// A pointer to read that threads share.
#[derive(Clone, Copy)]
pub(crate) struct Source<T>(*const T);

// SAFETY: only read, and the slice it came from is borrowed for as long as the job runs.
unsafe impl<T: Sync> Send for Source<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Source<T> {}

impl<T> Source<T> {
    pub(crate) fn new(slice: &[T]) -> Self {
        Source(slice.as_ptr())
    }

    #[inline(always)]
    pub(crate) fn pointer(&self) -> *const T {
        self.0
    }
}

/// A pointer to write through which threads share; each takes a part of its own.
#[derive(Clone, Copy)]
pub(crate) struct Target<T> {
    pointer: *mut T,
    length: usize,
}

// SAFETY: the parts that threads take are disjoint, as `slice` demands.
unsafe impl<T: Send> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<T> {}

impl<T> Target<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Target { pointer: slice.as_mut_ptr(), length: slice.len() }
    }

    #[inline(always)]
    pub(crate) fn pointer(&self) -> *mut T {
        self.pointer
    }

    /// The part `start..start + length`.
    ///
    /// # Safety
    /// No other thread uses an element of the part while it is in use, and the slice that this came from outlives it.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, length: usize) -> &mut [T] {
        assert!(start <= self.length && length <= self.length - start, "a part outside its slice");
        // SAFETY: inside the slice; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), length) }
    }
}

/// Runs `$body` with `$slice` the slice inside and `$element` its type.
macro_rules! with_floats {
    ($floats:expr, $slice:ident : $element:ident => $body:expr) => {
        match $floats {
            $crate::kernel::Floats::F32($slice) => {
                #[allow(dead_code)]
                type $element = f32;
                $body
            }
            $crate::kernel::Floats::Bf16($slice) => {
                #[allow(dead_code)]
                type $element = half::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_floats;

/// As `with_floats!`, for floats to write.
macro_rules! with_floats_mut {
    ($floats:expr, $slice:ident : $element:ident => $body:expr) => {
        match $floats {
            $crate::kernel::FloatsMut::F32($slice) => {
                #[allow(dead_code)]
                type $element = f32;
                $body
            }
            $crate::kernel::FloatsMut::Bf16($slice) => {
                #[allow(dead_code)]
                type $element = half::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_floats_mut;
