//! Operands with their symbols bound: where each lies, how it is strided, and what a kernel may do with it.

use crate::kernel::{Floats, FloatsMut, Matrix};
use half::bf16;
use std::marker::PhantomData;
use toprope_program::memory::Location;
use toprope_program::{DType, Region, Slice, Width};

/// Dimensions that a value may have; the validator lets no more through.
pub(crate) const RANK_MAX: usize = 8;

/// Which strides a kernel reads without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Any strides.
    Any,
    /// Row-major without gaps.
    Dense,
    /// Contiguous rows, one distance from each row to the next.
    Rows,
    /// A contiguous innermost dimension.
    Inner,
}

/// Sizes and strides in elements, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    rank: usize,
    sizes: [usize; RANK_MAX],
    strides: [usize; RANK_MAX],
}

impl Shape {
    fn new(sizes: &[usize], strides: &[usize]) -> Shape {
        let mut shape =
            Shape { rank: sizes.len().min(RANK_MAX), sizes: [1; RANK_MAX], strides: [0; RANK_MAX] };
        shape.sizes[..shape.rank].copy_from_slice(&sizes[..shape.rank]);
        shape.strides[..shape.rank].copy_from_slice(&strides[..shape.rank]);
        shape
    }

    /// No elements at all.
    pub(crate) fn empty(&self) -> Shape {
        Shape::new(&[0], &[1])
    }

    /// Sizes, outermost first.
    pub(crate) fn sizes(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }

    /// Strides, outermost first.
    pub(crate) fn strides(&self) -> &[usize] {
        &self.strides[..self.rank]
    }

    /// The number of elements.
    pub(crate) fn elements(&self) -> usize {
        self.sizes().iter().product()
    }

    /// One past the last element reached, counted from the first.
    pub(crate) fn extent(&self) -> usize {
        if self.sizes().contains(&0) {
            return 0;
        }
        self.sizes().iter().zip(self.strides()).map(|(size, stride)| (size - 1) * stride).sum::<usize>() + 1
    }

    /// The same sizes without gaps.
    pub(crate) fn dense(&self) -> Shape {
        let mut dense = *self;
        let mut stride = 1;
        for axis in (0..self.rank).rev() {
            dense.strides[axis] = stride;
            stride *= self.sizes[axis];
        }
        dense
    }

    /// The same elements in the same order with as few dimensions as the strides allow, at least one.
    pub(crate) fn collapsed(&self) -> Shape {
        let mut short = Shape { rank: 0, sizes: [1; RANK_MAX], strides: [0; RANK_MAX] };
        for (&size, &stride) in self.sizes().iter().zip(self.strides()) {
            if size == 1 {
                continue;
            }
            let last = short.rank.wrapping_sub(1);
            if short.rank > 0 && short.strides[last] == stride * size {
                short.sizes[last] *= size;
                short.strides[last] = stride;
            } else {
                (short.sizes[short.rank], short.strides[short.rank]) = (size, stride);
                short.rank += 1;
            }
        }
        if short.rank == 0 {
            (short.rank, short.strides[0]) = (1, 1);
        }
        short
    }

    /// Whether a kernel that reads `layout` reads these strides.
    pub(crate) fn fits(&self, layout: Layout) -> bool {
        match layout {
            Layout::Any => true,
            Layout::Dense => {
                let short = self.collapsed();
                short.rank == 1 && (short.strides[0] == 1 || short.sizes[0] == 1)
            }
            Layout::Inner => {
                self.rank == 0 || self.strides[self.rank - 1] == 1 || self.sizes[self.rank - 1] == 1
            }
            Layout::Rows => self.row_stride().is_some(),
        }
    }

    /// The distance between rows of the last dimension, where they are contiguous and equally spaced without overlap.
    pub(crate) fn row_stride(&self) -> Option<usize> {
        let columns = *self.sizes().last()?;
        if columns > 1 && self.strides[self.rank - 1] != 1 {
            return None;
        }
        let outer = Shape::new(&self.sizes[..self.rank - 1], &self.strides[..self.rank - 1]).collapsed();
        if outer.rank > 1 {
            return None;
        }
        let stride = if outer.sizes[0] == 1 { columns } else { outer.strides[0] };
        (stride >= columns).then_some(stride)
    }
}

/// An operand or output of an instruction under one binding of the symbols, before its buffer is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// The buffer.
    pub(crate) region: Region,
    /// Offset of the first element in the buffer.
    pub(crate) offset_bytes: usize,
    /// Element type.
    pub(crate) dtype: DType,
    /// Sizes and strides as the kernel sees them: dense where a copy is staged.
    pub(crate) shape: Shape,
    /// A dense copy that is made before the kernel runs, where the kernel can't read the operand itself.
    pub(crate) staged: Option<Staged>,
}

/// A dense copy of an operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Staged {
    /// Offset in the workspace.
    pub(crate) offset_bytes: usize,
    /// The operand's own strides.
    pub(crate) source: Shape,
}

impl Window {
    pub(crate) fn new(slice: &Slice) -> Window {
        let Location { region, offset_bytes, .. } = slice.location;
        Window {
            region,
            offset_bytes: offset_bytes + slice.offset * slice.dtype.size_bytes(Width::Native),
            dtype: slice.dtype,
            shape: Shape::new(&slice.sizes, &slice.strides),
            staged: None,
        }
    }

    /// Bytes of the elements when dense.
    pub(crate) fn dense_bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size_bytes(Width::Native)
    }

    /// Bytes from the first element to the end of the last.
    pub(crate) fn extent_bytes(&self) -> usize {
        self.shape.extent() * self.dtype.size_bytes(Width::Native)
    }

    /// Whether two windows of one buffer touch the same bytes.
    pub(crate) fn overlaps(&self, other: &Window) -> bool {
        self.region == other.region
            && self.offset_bytes < other.offset_bytes + other.extent_bytes()
            && other.offset_bytes < self.offset_bytes + self.extent_bytes()
    }
}

/// Memory that an operator reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    address: *const u8,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: a view is only read through.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// # Safety
    /// For `'a`, the extent of `shape` at `address` is readable, holds elements of `dtype` and is written by nobody.
    pub(crate) unsafe fn new(address: *const u8, dtype: DType, shape: Shape) -> View<'a> {
        View { address, dtype, shape, memory: PhantomData }
    }

    pub(crate) fn sizes(&self) -> &[usize] {
        self.shape.sizes()
    }

    pub(crate) fn strides(&self) -> &[usize] {
        self.shape.strides()
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.elements()
    }

    fn values<T>(&self, dtype: DType) -> &'a [T] {
        assert_eq!(self.dtype, dtype, "an operand's dtype");
        // SAFETY: promised at `new`; every bit pattern is a value of these types.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.shape.extent()) }
    }

    /// The whole extent, gaps included.
    pub(crate) fn f32(&self) -> &'a [f32] {
        self.values(DType::F32)
    }

    /// The whole extent, gaps included.
    pub(crate) fn i32(&self) -> &'a [i32] {
        self.values(DType::I32)
    }

    /// The whole extent, gaps included.
    pub(crate) fn u32(&self) -> &'a [u32] {
        self.values(DType::U32)
    }

    /// The whole extent, gaps included.
    pub(crate) fn floats(&self) -> Floats<'a> {
        match self.dtype {
            DType::Bf16 => Floats::Bf16(self.values::<bf16>(DType::Bf16)),
            _ => Floats::F32(self.f32()),
        }
    }

    /// The bits of a value of 4 bytes, or of 2 bytes; see [`View::dtype`].
    pub(crate) fn bits<T: Bits>(&self) -> &'a [T] {
        assert_eq!(self.dtype.size_bytes(Width::Native), size_of::<T>(), "an operand's width");
        // SAFETY: promised at `new`; every bit pattern is a value of these types.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.shape.extent()) }
    }

    /// A two-dimensional view as a matrix.
    pub(crate) fn matrix(&self) -> Matrix<'a> {
        assert_eq!(self.shape.rank, 2, "a matrix's dimensions");
        Matrix {
            values: self.floats(),
            rows: self.shape.sizes[0],
            columns: self.shape.sizes[1],
            row_stride: self.shape.strides[0],
            column_stride: self.shape.strides[1],
        }
    }

    /// Rows and columns of contiguous rows, and the distance between them ([`Layout::Rows`]).
    pub(crate) fn rows(&self) -> (usize, usize, usize) {
        let columns = self.sizes().last().copied().unwrap_or(1);
        let stride = self.shape.row_stride().unwrap_or(columns);
        (self.elements() / columns.max(1), columns, stride)
    }
}

/// Plain bits of 2 or 4 bytes.
pub(crate) trait Bits: Copy + Send + Sync + 'static {}
impl Bits for u16 {}
impl Bits for u32 {}

/// Dense memory that an operator writes.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    address: *mut u8,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Output<'a> {
    /// # Safety
    /// For `'a`, the dense elements at `address` are writable and used by nobody else.
    pub(crate) unsafe fn new(address: *mut u8, dtype: DType, shape: Shape) -> Output<'a> {
        Output { address, dtype, shape, memory: PhantomData }
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.elements()
    }

    fn values<T>(&mut self, dtype: DType) -> &mut [T] {
        assert_eq!(self.dtype, dtype, "an output's dtype");
        // SAFETY: promised at `new`; every bit pattern is a value of these types.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast(), self.shape.elements()) }
    }

    pub(crate) fn f32(&mut self) -> &mut [f32] {
        self.values(DType::F32)
    }

    pub(crate) fn bf16(&mut self) -> &mut [bf16] {
        self.values(DType::Bf16)
    }

    pub(crate) fn i32(&mut self) -> &mut [i32] {
        self.values(DType::I32)
    }

    pub(crate) fn u32(&mut self) -> &mut [u32] {
        self.values(DType::U32)
    }

    pub(crate) fn floats(&mut self) -> FloatsMut<'_> {
        match self.dtype {
            DType::Bf16 => FloatsMut::Bf16(self.bf16()),
            _ => FloatsMut::F32(self.f32()),
        }
    }

    /// The bits of a value of 4 bytes, or of 2 bytes.
    pub(crate) fn bits<T: Bits>(&mut self) -> &mut [T] {
        assert_eq!(self.dtype.size_bytes(Width::Native), size_of::<T>(), "an output's width");
        // SAFETY: promised at `new`; every bit pattern is a value of these types.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast(), self.shape.elements()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_told_apart() {
        let dense = Shape::new(&[2, 3, 4], &[12, 4, 1]);
        assert!([Layout::Any, Layout::Dense, Layout::Rows, Layout::Inner].iter().all(|l| dense.fits(*l)));
        let columns = Shape::new(&[2, 3, 4], &[30, 10, 1]);
        assert!(!columns.fits(Layout::Dense) && columns.fits(Layout::Rows) && columns.fits(Layout::Inner));
        assert_eq!(columns.row_stride(), Some(10));
        let heads = Shape::new(&[2, 3, 4], &[40, 10, 1]);
        assert!(!heads.fits(Layout::Rows) && heads.fits(Layout::Inner));
        let transposed = Shape::new(&[4, 3], &[1, 4]);
        assert!(!transposed.fits(Layout::Inner) && transposed.fits(Layout::Any));
        let repeated = Shape::new(&[5, 4], &[0, 1]);
        assert!(!repeated.fits(Layout::Rows) && !repeated.fits(Layout::Dense));
        assert_eq!(repeated.extent(), 4);
        let one = Shape::new(&[1, 1], &[7, 9]);
        assert!(one.fits(Layout::Dense) && one.fits(Layout::Rows));
    }

    #[test]
    fn collapsing_keeps_the_elements() {
        let shape = Shape::new(&[2, 1, 3, 4], &[24, 99, 8, 1]);
        let short = shape.collapsed();
        assert_eq!((short.sizes(), short.strides()), (&[6, 4][..], &[8, 1][..]));
        let short = Shape::new(&[2, 3, 4], &[12, 4, 1]).collapsed();
        assert_eq!((short.sizes(), short.strides()), (&[24][..], &[1][..]));
    }
}
