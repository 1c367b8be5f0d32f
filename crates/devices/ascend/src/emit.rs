//! Calls and their temporaries, one at a time: what lowerings are written in.

use crate::call::{Argument, Call, Number, Space, View, dense};
use crate::ffi::abi::Element;
use crate::ffi::prototype::prototype;
use std::collections::BTreeMap;
use toprope_program::{DType, Slice};

/// Every temporary begins at a multiple of this.
const ALIGNMENT_BYTES: usize = 512;

/// Temporaries of one call at most, where a lowering can cut its work: 64 MiB of f32.
pub(crate) const CHUNK_ELEMENTS: usize = 1 << 24;

/// Why an operator cannot be lowered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lacking(pub(crate) String);

/// What a lowering gives, or why there is none.
pub(crate) type Lowered<T = ()> = Result<T, Lacking>;

/// What may be chosen of how operators are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `cubeMathType`: 0 keeps f32, 3 allows HF32.
    pub(crate) cube: i8,
    /// Whether the vendor's fused operators are used where they are exact enough.
    pub(crate) fused: bool,
}

/// What the host writes once for a program.
#[derive(Debug, Default)]
pub(crate) struct Constants {
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
    places: BTreeMap<Vec<u8>, usize>,
}

impl Constants {
    fn place(&mut self, bytes: Vec<u8>) -> usize {
        if let Some(place) = self.places.get(&bytes) {
            return *place;
        }
        let place = self.bytes.len().next_multiple_of(64);
        self.bytes.resize(place, 0);
        self.bytes.extend(&bytes);
        self.places.insert(bytes, place);
        place
    }
}

/// Builds the calls of one instruction.
pub(crate) struct Emit<'a> {
    /// Whether the library has an operator.
    has: &'a dyn Fn(&str) -> bool,
    /// What was chosen.
    pub(crate) settings: Settings,
    /// The calls so far.
    pub(crate) calls: Vec<Call>,
    constants: &'a mut Constants,
    used_bytes: usize,
    /// The most that temporaries took.
    pub(crate) scratch_bytes: usize,
}

impl<'a> Emit<'a> {
    /// With nothing called yet.
    pub(crate) fn new(
        has: &'a dyn Fn(&str) -> bool,
        settings: Settings,
        constants: &'a mut Constants,
    ) -> Emit<'a> {
        Emit { has, settings, calls: Vec::new(), constants, used_bytes: 0, scratch_bytes: 0 }
    }

    /// Whether the library has an operator.
    pub(crate) fn has(&self, name: &str) -> bool {
        (self.has)(name)
    }

    /// Adds a call.
    pub(crate) fn call(&mut self, name: &str, arguments: Vec<Argument>) -> Lowered {
        let Some(prototype) = prototype(name).filter(|_| self.has(name)) else {
            return Err(Lacking(format!("this CANN has no aclnn{name}")));
        };
        self.calls.push(Call { prototype, arguments });
        Ok(())
    }

    /// A temporary; its content is undefined.
    pub(crate) fn temporary(&mut self, element: Element, sizes: &[usize]) -> View {
        let byte = self.used_bytes;
        let bytes = sizes.iter().product::<usize>().saturating_mul(element.bytes()).max(1);
        self.used_bytes = self.used_bytes.saturating_add(bytes).next_multiple_of(ALIGNMENT_BYTES);
        self.scratch_bytes = self.scratch_bytes.max(self.used_bytes);
        View { space: Space::Scratch, byte, element, offset: 0, sizes: sizes.to_vec(), strides: dense(sizes) }
    }

    /// How far temporaries reach: [`Emit::forget`] takes back what came later.
    pub(crate) fn mark(&self) -> usize {
        self.used_bytes
    }

    /// Lets later calls use the temporaries since a mark again: the stream runs calls in order.
    pub(crate) fn forget(&mut self, mark: usize) {
        self.used_bytes = mark;
    }

    fn constant(&mut self, element: Element, sizes: &[usize], bytes: Vec<u8>) -> View {
        let byte = self.constants.place(bytes);
        View {
            space: Space::Constants,
            byte,
            element,
            offset: 0,
            sizes: sizes.to_vec(),
            strides: dense(sizes),
        }
    }

    /// 32-bit integers from the host.
    pub(crate) fn constant_i32(&mut self, numbers: impl Iterator<Item = i32>) -> View {
        let bytes: Vec<u8> = numbers.flat_map(i32::to_le_bytes).collect();
        self.constant(Element::I32, &[bytes.len() / 4], bytes)
    }

    /// 64-bit integers from the host.
    pub(crate) fn constant_i64(&mut self, numbers: impl Iterator<Item = i64>) -> View {
        let bytes: Vec<u8> = numbers.flat_map(i64::to_le_bytes).collect();
        self.constant(Element::I64, &[bytes.len() / 8], bytes)
    }

    /// One f32 from the host.
    pub(crate) fn constant_f32(&mut self, number: f32) -> View {
        self.constant(Element::F32, &[1], number.to_le_bytes().to_vec())
    }

    /// `0, 1, …` of 32 bits.
    pub(crate) fn ramp(&mut self, count: usize) -> View {
        self.constant_i32((0..count).map(|at| at as i32))
    }

    // ---- moving and converting

    /// Writes a window: copies, converts, broadcasts.
    pub(crate) fn copy(&mut self, to: &View, from: &View) -> Lowered {
        if to.element == from.element {
            let from = self.fit(from, &to.sizes);
            return self.call("InplaceCopy", vec![tensor(to), tensor(&from)]);
        }
        let from = self.fit(from, &to.sizes);
        if to.is_dense() {
            return self.call("Cast", vec![tensor(&from), Argument::Type(to.element), tensor(to)]);
        }
        let converted = self.cast(&from, to.element)?;
        self.call("InplaceCopy", vec![tensor(to), tensor(&converted)])
    }

    /// A window broadcast to these sizes.
    fn fit(&self, view: &View, sizes: &[usize]) -> View {
        let mut fitted = view.clone();
        while fitted.rank() < sizes.len() {
            fitted = fitted.unsqueeze(0);
        }
        for (axis, size) in sizes.iter().enumerate() {
            if fitted.sizes[axis] != *size {
                debug_assert_eq!(fitted.sizes[axis], 1);
                fitted.sizes[axis] = *size;
                fitted.strides[axis] = 0;
            }
        }
        fitted
    }

    /// The window under another element type: itself, or a dense copy.
    pub(crate) fn cast(&mut self, from: &View, element: Element) -> Lowered<View> {
        if from.element == element {
            return Ok(from.clone());
        }
        let to = self.temporary(element, &from.sizes);
        self.call("Cast", vec![tensor(from), Argument::Type(element), tensor(&to)])?;
        Ok(to)
    }

    /// The window in f32.
    pub(crate) fn wide(&mut self, from: &View) -> Lowered<View> {
        self.cast(from, Element::F32)
    }

    /// The window without gaps: itself, or a copy.
    pub(crate) fn dense(&mut self, from: &View) -> Lowered<View> {
        if from.is_dense() {
            return Ok(from.clone());
        }
        let to = self.temporary(from.element, &from.sizes);
        self.copy(&to, from)?;
        Ok(to)
    }

    /// Where to compute what goes to `output`: there itself where it takes f32, else a temporary that [`Emit::finish`] stores.
    pub(crate) fn target(&mut self, output: &View) -> View {
        if output.element == Element::F32 {
            output.clone()
        } else {
            self.temporary(Element::F32, &output.sizes)
        }
    }

    /// Stores what was computed in a [`Emit::target`].
    pub(crate) fn finish(&mut self, output: &View, computed: &View) -> Lowered {
        if output == computed { Ok(()) } else { self.copy(output, computed) }
    }

    // ---- elementwise

    /// An operator of one operand into a new temporary.
    pub(crate) fn unary(&mut self, name: &str, x: &View) -> Lowered<View> {
        let y = self.temporary(x.element, &x.sizes);
        self.unary_into(name, x, &y)?;
        Ok(y)
    }

    /// An operator of one operand.
    pub(crate) fn unary_into(&mut self, name: &str, x: &View, y: &View) -> Lowered {
        if x == y && name == "Exp" {
            return self.call("InplaceExp", vec![tensor(y)]);
        }
        debug_assert_ne!(x, y);
        self.call(name, vec![tensor(x), tensor(y)])
    }

    /// The sizes that two windows have together.
    fn together(a: &View, b: &View) -> Vec<usize> {
        let rank = a.rank().max(b.rank());
        let size = |view: &View, axis: usize| {
            let lead = rank - view.rank();
            if axis < lead { 1 } else { view.sizes[axis - lead] }
        };
        (0..rank).map(|axis| size(a, axis).max(size(b, axis))).collect()
    }

    /// An operator of two operands, broadcast, into a new temporary.
    pub(crate) fn binary(&mut self, name: &str, a: &View, b: &View) -> Lowered<View> {
        let y = self.temporary(a.element, &Self::together(a, b));
        self.binary_into(name, a, b, &y)?;
        Ok(y)
    }

    /// An operator of two operands, broadcast.
    pub(crate) fn binary_into(&mut self, name: &str, a: &View, b: &View, y: &View) -> Lowered {
        if a == y {
            // A result in its operand's place has operators of its own.
            return match name {
                "Add" => self.call("InplaceAdd", vec![tensor(y), tensor(b), one(a.element)]),
                "Sub" => self.call("InplaceSub", vec![tensor(y), tensor(b), one(a.element)]),
                "Mul" => self.call("InplaceMul", vec![tensor(y), tensor(b)]),
                "Div" => self.call("InplaceDiv", vec![tensor(y), tensor(b)]),
                _ => {
                    let made = self.binary(name, a, b)?;
                    self.copy(y, &made)
                }
            };
        }
        debug_assert_ne!(b, y);
        let mut arguments = vec![tensor(a), tensor(b)];
        if matches!(name, "Add" | "Sub") {
            arguments.push(one(a.element));
        }
        arguments.push(tensor(y));
        self.call(name, arguments)
    }

    /// `x · factor`, the factor in f32.
    pub(crate) fn scaled(&mut self, x: &View, factor: f32) -> Lowered<View> {
        let y = self.temporary(x.element, &x.sizes);
        self.scale_into(x, factor, &y)?;
        Ok(y)
    }

    /// `x · factor`.
    pub(crate) fn scale_into(&mut self, x: &View, factor: f32, y: &View) -> Lowered {
        if x == y {
            return self.call("InplaceMuls", vec![tensor(y), number(factor)]);
        }
        self.call("Muls", vec![tensor(x), number(factor), tensor(y)])
    }

    /// `x + number`.
    pub(crate) fn plus(&mut self, x: &View, summand: Number) -> Lowered<View> {
        let y = self.temporary(x.element, &x.sizes);
        self.call("Adds", vec![tensor(x), Argument::Scalar(summand), one(x.element), tensor(&y)])?;
        Ok(y)
    }

    /// A comparison of two windows, broadcast.
    pub(crate) fn compare(&mut self, name: &str, a: &View, b: &View) -> Lowered<View> {
        let y = self.temporary(Element::Bool, &Self::together(a, b));
        self.call(name, vec![tensor(a), tensor(b), tensor(&y)])?;
        Ok(y)
    }

    /// A comparison with a number.
    pub(crate) fn compare_with(&mut self, name: &str, a: &View, b: Number) -> Lowered<View> {
        let y = self.temporary(Element::Bool, &a.sizes);
        self.call(name, vec![tensor(a), Argument::Scalar(b), tensor(&y)])?;
        Ok(y)
    }

    /// `condition ? a : b`, broadcast.
    pub(crate) fn choose(&mut self, condition: &View, a: &View, b: &View) -> Lowered<View> {
        let y = {
            let both = Self::together(a, b);
            let shape = View { sizes: both.clone(), strides: dense(&both), ..a.clone() };
            self.temporary(a.element, &Self::together(condition, &shape))
        };
        self.choose_into(condition, a, b, &y)?;
        Ok(y)
    }

    /// `condition ? a : b`.
    pub(crate) fn choose_into(&mut self, condition: &View, a: &View, b: &View, y: &View) -> Lowered {
        self.call("SWhere", vec![tensor(condition), tensor(a), tensor(b), tensor(y)])
    }

    /// Sets elements to a number where a mask, broadcast, holds.
    pub(crate) fn fill_where(&mut self, x: &View, mask: &View, with: f32) -> Lowered {
        self.call("InplaceMaskedFillScalar", vec![tensor(x), tensor(mask), number(with)])
    }

    /// A temporary full of one number.
    pub(crate) fn filled(&mut self, sizes: &[usize], with: f32) -> Lowered<View> {
        let y = self.temporary(Element::F32, sizes);
        self.call("InplaceFillScalar", vec![tensor(&y), number(with)])?;
        Ok(y)
    }

    /// A temporary of zeros.
    pub(crate) fn zeros(&mut self, sizes: &[usize]) -> Lowered<View> {
        let y = self.temporary(Element::F32, sizes);
        self.zero(&y)?;
        Ok(y)
    }

    /// Zeroes a window.
    pub(crate) fn zero(&mut self, x: &View) -> Lowered {
        self.call("InplaceZero", vec![tensor(x)])
    }

    /// Where an element is NaN.
    pub(crate) fn is_nan(&mut self, x: &View) -> Lowered<View> {
        self.compare("NeTensor", x, x)
    }

    /// NaN taken as infinity.
    pub(crate) fn nan_is_infinite(&mut self, x: &View) -> Lowered<View> {
        let (bad, infinite) = (self.is_nan(x)?, self.constant_f32(f32::INFINITY));
        self.choose(&bad, &infinite, x)
    }

    // ---- reductions

    /// The sum over axes, which are left out.
    pub(crate) fn sum(&mut self, x: &View, axes: &[usize]) -> Lowered<View> {
        let mut sizes: Vec<usize> =
            (0..x.rank()).filter(|axis| !axes.contains(axis)).map(|axis| x.sizes[axis]).collect();
        if sizes.is_empty() {
            sizes.push(1);
        }
        let y = self.temporary(x.element, &sizes);
        self.sum_into(x, axes, &y)?;
        Ok(y)
    }

    /// The sum over axes; a sum over all has one element.
    pub(crate) fn sum_into(&mut self, x: &View, axes: &[usize], y: &View) -> Lowered {
        self.reduce("ReduceSum", x, axes, y)
    }

    /// The largest over axes, which are left out.
    pub(crate) fn largest(&mut self, x: &View, axes: &[usize]) -> Lowered<View> {
        self.extreme("Amax", x, axes)
    }

    /// `Amax` or `Amin` over axes, which are left out.
    pub(crate) fn extreme(&mut self, name: &str, x: &View, axes: &[usize]) -> Lowered<View> {
        let mut sizes: Vec<usize> =
            (0..x.rank()).filter(|axis| !axes.contains(axis)).map(|axis| x.sizes[axis]).collect();
        if sizes.is_empty() {
            sizes.push(1);
        }
        let y = self.temporary(x.element, &sizes);
        self.reduce(name, x, axes, &y)?;
        Ok(y)
    }

    fn reduce(&mut self, name: &str, x: &View, axes: &[usize], y: &View) -> Lowered {
        // A reduction over everything keeps one axis of one element: no tensor here is without axes.
        let keep = axes.len() == x.rank();
        let target = if keep { y.reshape(&vec![1; x.rank()]) } else { y.clone() };
        let axes = Argument::Ints(axes.iter().map(|axis| *axis as i64).collect());
        let mut arguments = vec![tensor(x), axes, Argument::Bool(keep)];
        if name == "ReduceSum" {
            arguments.push(Argument::Type(x.element));
        }
        arguments.push(tensor(&target));
        self.call(name, arguments)
    }

    // ---- products

    /// `a·b` over the last two axes, those before broadcast.
    pub(crate) fn product(&mut self, a: &View, b: &View) -> Lowered<View> {
        let rank = a.rank();
        let mut sizes: Vec<usize> = (0..rank - 2).map(|axis| a.sizes[axis].max(b.sizes[axis])).collect();
        sizes.extend([a.sizes[rank - 2], b.last()]);
        let y = self.temporary(a.element, &sizes);
        self.product_into(a, b, &y)?;
        Ok(y)
    }

    /// `a·b`.
    pub(crate) fn product_into(&mut self, a: &View, b: &View, y: &View) -> Lowered {
        let cube = Argument::I8(if a.element == Element::F32 { self.settings.cube } else { 0 });
        self.call("Matmul", vec![tensor(a), tensor(b), tensor(y), cube])
    }

    // ---- indices

    /// Indices clamped to `0..bound`, and which of them lay there.
    pub(crate) fn within(&mut self, indices: &View, bound: usize) -> Lowered<(View, View)> {
        let clamped = self.temporary(Element::I32, &indices.sizes);
        let (least, most) = (Number::I64(0), Number::I64(bound as i64 - 1));
        self.call(
            "Clamp",
            vec![tensor(indices), Argument::Scalar(least), Argument::Scalar(most), tensor(&clamped)],
        )?;
        let there = self.compare("EqTensor", indices, &clamped)?;
        Ok((clamped, there))
    }

    /// Rows of a table by dense indices of one axis.
    pub(crate) fn rows(&mut self, table: &View, indices: &View) -> Lowered<View> {
        let mut sizes = table.sizes.clone();
        sizes[0] = indices.elements();
        let y = self.temporary(table.element, &sizes);
        self.call("IndexSelect", vec![tensor(table), Argument::I64(0), tensor(&indices.flat()), tensor(&y)])?;
        Ok(y)
    }

    /// Adds rows into a table in place.
    pub(crate) fn add_rows(&mut self, table: &View, indices: &View, rows: &View) -> Lowered {
        self.call(
            "IndexAdd",
            vec![
                tensor(table),
                Argument::I64(0),
                tensor(&indices.flat()),
                tensor(rows),
                one(table.element),
                tensor(table),
            ],
        )
    }
}

/// A tensor argument.
pub(crate) fn tensor(view: &View) -> Argument {
    Argument::Tensor(view.clone())
}

/// A scalar argument in f32.
pub(crate) fn number(x: f32) -> Argument {
    Argument::Scalar(Number::F32(x))
}

/// The factor of a second operand.
fn one(element: Element) -> Argument {
    Argument::Scalar(if element.is_float() { Number::F32(1.0) } else { Number::I64(1) })
}

/// A slice of the memory plan as a view.
pub(crate) fn view(slice: &Slice) -> View {
    let element = match slice.dtype {
        DType::F32 => Element::F32,
        DType::Bf16 => Element::Bf16,
        // Words are moved and masked, never compared: one 32-bit type serves both.
        DType::I32 | DType::U32 => Element::I32,
    };
    let space = match slice.location.region {
        toprope_program::Region::Current => Space::Current,
        toprope_program::Region::Next => Space::Next,
        toprope_program::Region::Work => Space::Work,
    };
    View {
        space,
        byte: slice.location.offset_bytes,
        element,
        offset: slice.offset,
        sizes: slice.sizes.clone(),
        strides: slice.strides.clone(),
    }
}
