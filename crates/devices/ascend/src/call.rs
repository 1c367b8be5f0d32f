//! A call of one of the vendor's operators, as data: no address in it, so that it can be made before memory is there.

use crate::ffi::abi::Element;
use crate::ffi::prototype::Prototype;
use std::ffi::CStr;

/// Which memory a view lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    /// `Bindings::current`.
    Current,
    /// `Bindings::next`.
    Next,
    /// `Bindings::work`.
    Work,
    /// Temporaries of one instruction.
    Scratch,
    /// What the host wrote once for a program: index ramps, keys.
    Constants,
}

/// A strided window of device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The memory.
    pub(crate) space: Space,
    /// The first byte of the value that it is a window of.
    pub(crate) byte: usize,
    /// Element type.
    pub(crate) element: Element,
    /// First element, counted from that byte.
    pub(crate) offset: usize,
    /// Sizes, outermost first.
    pub(crate) sizes: Vec<usize>,
    /// Strides, in elements.
    pub(crate) strides: Vec<usize>,
}

/// Row-major strides.
pub(crate) fn dense(sizes: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; sizes.len()];
    for axis in (0..sizes.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * sizes[axis + 1];
    }
    strides
}

impl View {
    /// The number of elements seen.
    pub(crate) fn elements(&self) -> usize {
        self.sizes.iter().product()
    }

    /// The number of dimensions.
    pub(crate) fn rank(&self) -> usize {
        self.sizes.len()
    }

    /// The last size; 1 where there is none.
    pub(crate) fn last(&self) -> usize {
        self.sizes.last().copied().unwrap_or(1)
    }

    /// Elements from its value's first to the last one seen.
    pub(crate) fn reach(&self) -> usize {
        let moved: usize =
            self.sizes.iter().zip(&self.strides).map(|(size, stride)| size.saturating_sub(1) * stride).sum();
        self.offset + moved + 1
    }

    /// Whether the elements follow one another without gaps.
    pub(crate) fn is_dense(&self) -> bool {
        let want = dense(&self.sizes);
        self.sizes
            .iter()
            .zip(&self.strides)
            .zip(&want)
            .all(|((size, stride), want)| *size == 1 || stride == want)
    }

    /// `count` elements of an axis from `start` on.
    pub(crate) fn narrow(&self, axis: usize, start: usize, count: usize) -> View {
        let mut view = self.clone();
        view.offset += start * view.strides[axis];
        view.sizes[axis] = count;
        view
    }

    /// One element of an axis, the axis left out.
    pub(crate) fn select(&self, axis: usize, index: usize) -> View {
        let mut view = self.narrow(axis, index, 1);
        view.sizes.remove(axis);
        view.strides.remove(axis);
        view
    }

    /// Every `step`-th element of an axis from `start` on.
    pub(crate) fn every(&self, axis: usize, start: usize, step: usize) -> View {
        let mut view = self.clone();
        view.offset += start * view.strides[axis];
        view.sizes[axis] = (self.sizes[axis] - start).div_ceil(step);
        view.strides[axis] *= step;
        view
    }

    /// Axes in another order.
    pub(crate) fn permute(&self, order: &[usize]) -> View {
        let mut view = self.clone();
        view.sizes = order.iter().map(|axis| self.sizes[*axis]).collect();
        view.strides = order.iter().map(|axis| self.strides[*axis]).collect();
        view
    }

    /// A new axis of this size that repeats the same elements.
    pub(crate) fn repeat(&self, axis: usize, size: usize) -> View {
        let mut view = self.clone();
        view.sizes.insert(axis, size);
        view.strides.insert(axis, 0);
        view
    }

    /// A new axis of one element.
    pub(crate) fn unsqueeze(&self, axis: usize) -> View {
        self.repeat(axis, 1)
    }

    /// One axis seen as two: `outer` times the rest.
    pub(crate) fn split(&self, axis: usize, outer: usize) -> View {
        let (inner, stride) = (self.sizes[axis] / outer.max(1), self.strides[axis]);
        let mut view = self.clone();
        view.sizes.splice(axis..=axis, [outer, inner]);
        view.strides.splice(axis..=axis, [stride * inner, stride]);
        view
    }

    /// A dense window under other sizes of the same product.
    pub(crate) fn reshape(&self, sizes: &[usize]) -> View {
        debug_assert!(self.is_dense() && sizes.iter().product::<usize>() == self.elements());
        View { sizes: sizes.to_vec(), strides: dense(sizes), ..self.clone() }
    }

    /// A dense window as one row.
    pub(crate) fn flat(&self) -> View {
        self.reshape(&[self.elements()])
    }

    /// The same memory under another element type of the same width.
    pub(crate) fn bits(&self, element: Element) -> View {
        debug_assert_eq!(element.bytes(), self.element.bytes());
        View { element, ..self.clone() }
    }

    /// The low (`0`) or high (`1`) 32-bit words of 64-bit numbers.
    pub(crate) fn words(&self, half: usize) -> View {
        debug_assert_eq!(self.element, Element::I64);
        let strides = self.strides.iter().map(|stride| stride * 2).collect();
        View { element: Element::I32, offset: self.offset * 2 + half, strides, ..self.clone() }
    }
}

/// A number that an operator takes by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    /// As an f32.
    F32(f32),
    /// As an i64.
    I64(i64),
}

/// What one parameter is given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Argument {
    /// A tensor, read or written.
    Tensor(View),
    /// Tensors that belong together.
    Tensors(Vec<View>),
    /// An object that is left out.
    Absent,
    /// A scalar object.
    Scalar(Number),
    /// A list of numbers.
    Ints(Vec<i64>),
    /// Numbers by value.
    I64(i64),
    /// Small numbers by value.
    I8(i8),
    /// An element type.
    Type(Element),
    /// A switch.
    Bool(bool),
    /// A real number by value.
    F64(f64),
    /// A word.
    Text(&'static CStr),
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// What is called.
    pub(crate) prototype: &'static Prototype,
    /// With what.
    pub(crate) arguments: Vec<Argument>,
}
