//! Elementwise operators: casts, sums, products, non-linear functions.

use super::parallel::{parts, parts_of};
use super::{Execute, Task};
use crate::bind::Layout;
use crate::kernel::{Context, Floats, FloatsMut};
use crate::lanes::{Element, Lanes, WIDTH, exp, sigmoid_pair, tanh};
use crate::level::{Level, kernel};
use crate::operator::floats::{with_floats, with_floats_mut};
use toprope_program::DType;
use toprope_program::operator::{
    Accumulate, Activation, ActivationGradient, ActivationKind, Add, Cast, Multiply, Scale, Swiglu,
    SwigluGradient,
};

/// Elements that one thread takes at a time.
const PART: usize = 1 << 13;

/// A function of one element.
trait Unary: Copy + Send + Sync + 'static {
    fn apply<L: Lanes>(self, x: L) -> L;
}

/// A function of two elements.
trait Binary: Copy + Send + Sync + 'static {
    fn apply<L: Lanes>(self, a: L, b: L) -> L;
}

kernel! {
    fn map_part[F: Unary, X: Element, Y: Element](f: F, x: &'a [X], y: &'a mut [Y]) {
        let count = y.len().min(x.len());
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let value = f.apply(X::load_first::<L>(x.as_ptr().add(start), width));
                Y::store_first::<L>(value, y.as_mut_ptr().add(start), width);
            }
            start += WIDTH;
        }
    }
}

kernel! {
    fn zip_part[F: Binary, A: Element, B: Element, Y: Element](f: F, a: &'a [A], b: &'a [B], y: &'a mut [Y]) {
        let count = y.len().min(a.len()).min(b.len());
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let first = A::load_first::<L>(a.as_ptr().add(start), width);
                let second = B::load_first::<L>(b.as_ptr().add(start), width);
                Y::store_first::<L>(f.apply(first, second), y.as_mut_ptr().add(start), width);
            }
            start += WIDTH;
        }
    }
}

/// `y = f(x)`, dense.
fn map(context: &Context<'_>, f: impl Unary, x: Floats<'_>, y: FloatsMut<'_>) {
    with_floats!(x, x => with_floats_mut!(y, y => {
        parts(context.pool, y, PART, |index, y| map_part(context.level, f, &x[index * PART..], y));
    }));
}

/// `y = f(a, b)`, dense.
fn zip(context: &Context<'_>, f: impl Binary, a: Floats<'_>, b: Floats<'_>, y: FloatsMut<'_>) {
    with_floats!(a, a => with_floats!(b, b => with_floats_mut!(y, y => {
        parts(context.pool, y, PART, |index, y| {
            zip_part(context.level, f, &a[index * PART..], &b[index * PART..], y);
        });
    })));
}

#[derive(Clone, Copy)]
struct Same;

impl Unary for Same {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        x
    }
}

/// Dense floats converted to the dtype of `y`.
pub(super) fn convert(context: &Context<'_>, x: Floats<'_>, y: FloatsMut<'_>) {
    map(context, Same, x, y);
}

/// One thread's share of [`convert`].
pub(super) fn convert_part<X: Element, Y: Element>(level: Level, x: &[X], y: &mut [Y]) {
    map_part(level, Same, x, y);
}

/// `target += x`.
pub(super) fn add_to<X: Element>(level: Level, x: &[X], target: &mut [f32]) {
    add_part(level, x, target);
}

impl Execute for Cast {
    fn run(&self, task: &mut Task<'_, '_>) {
        convert(&task.context, task.inputs[0].floats(), task.outputs[0].floats());
    }
}

#[derive(Clone, Copy)]
struct Sum;

impl Binary for Sum {
    #[inline(always)]
    fn apply<L: Lanes>(self, a: L, b: L) -> L {
        a.add(b)
    }
}

impl Execute for Add {
    fn run(&self, task: &mut Task<'_, '_>) {
        zip(&task.context, Sum, task.inputs[0].floats(), task.inputs[1].floats(), task.outputs[0].floats());
    }
}

#[derive(Clone, Copy)]
struct Times;

impl Binary for Times {
    #[inline(always)]
    fn apply<L: Lanes>(self, a: L, b: L) -> L {
        a.mul(b)
    }
}

impl Execute for Multiply {
    fn run(&self, task: &mut Task<'_, '_>) {
        zip(&task.context, Times, task.inputs[0].floats(), task.inputs[1].floats(), task.outputs[0].floats());
    }
}

#[derive(Clone, Copy)]
struct By(f32);

impl Unary for By {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        L::splat(self.0).mul(x)
    }
}

impl Execute for Scale {
    fn run(&self, task: &mut Task<'_, '_>) {
        map(&task.context, By(self.factor as f32), task.inputs[0].floats(), task.outputs[0].floats());
    }
}

kernel! {
    fn add_part[X: Element](x: &'a [X], target: &'a mut [f32]) {
        let count = target.len().min(x.len());
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let pointer = target.as_mut_ptr().add(start);
                let sum = f32::load_first::<L>(pointer, width).add(X::load_first::<L>(x.as_ptr().add(start), width));
                f32::store_first::<L>(sum, pointer, width);
            }
            start += WIDTH;
        }
    }
}

impl Execute for Accumulate {
    fn reads(&self, index: usize) -> bool {
        index != 0
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (context, first, x) = (task.context, task.first, task.inputs[1]);
        let [target] = task.outputs();
        if first {
            let x = x.bits::<u32>();
            return parts_of(context.pool, target.bits::<u32>(), x, PART, |y, x| y.copy_from_slice(x));
        }
        if target.dtype == DType::I32 {
            let add =
                |y: &mut [i32], x: &[i32]| y.iter_mut().zip(x).for_each(|(y, x)| *y = y.wrapping_add(*x));
            return parts_of(context.pool, target.i32(), x.i32(), PART, add);
        }
        parts_of(context.pool, target.f32(), x.f32(), PART, |y, x| add_part(context.level, x, y));
    }
}

/// `sech²`, without cancellation.
#[inline(always)]
fn sech_squared<L: Lanes>(x: L) -> L {
    let one = L::splat(1.0);
    let size = x.abs();
    let small = exp(L::splat(0.0).sub(size.add(size)));
    let sum = one.add(small);
    L::splat(4.0).mul(small).div(sum.mul(sum))
}

/// gelu's inner function `√(2/π)(x + 0.044715 x³)` and its derivative.
#[inline(always)]
fn gelu_inner<L: Lanes>(x: L) -> (L, L) {
    let root = L::splat(0.797_884_6);
    let square = x.mul(x);
    let one = L::splat(1.0);
    let inner = root.mul(x).mul(L::splat(0.044_715).fused(square, one));
    (inner, root.mul(L::splat(3.0 * 0.044_715).fused(square, one)))
}

/// The function itself.
#[derive(Clone, Copy)]
struct Function(ActivationKind);

impl Unary for Function {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        match self.0 {
            ActivationKind::Silu => x.mul(sigmoid_pair(x).0),
            ActivationKind::Gelu => {
                let inner = tanh(gelu_inner(x).0);
                x.mul(L::splat(0.5)).mul(L::splat(1.0).add(inner))
            }
            ActivationKind::Relu => {
                let zero = L::splat(0.0);
                x.select_less(zero, zero, x).add(zero)
            }
            ActivationKind::Sigmoid => sigmoid_pair(x).0,
            ActivationKind::Tanh => tanh(x),
        }
    }
}

/// `dy` times the function's derivative at `x`.
#[derive(Clone, Copy)]
struct Slope(ActivationKind);

impl Binary for Slope {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, dy: L) -> L {
        let (zero, one) = (L::splat(0.0), L::splat(1.0));
        let slope = match self.0 {
            ActivationKind::Silu => {
                let (sigmoid, rest) = sigmoid_pair(x);
                sigmoid.mul(x.fused(rest, one))
            }
            ActivationKind::Gelu => {
                let (inner, slope) = gelu_inner(x);
                let half = L::splat(0.5);
                let left = half.mul(one.add(tanh(inner)));
                half.mul(x).mul(sech_squared(inner)).fused(slope, left)
            }
            // Neither comparison holds for a NaN, which stays.
            ActivationKind::Relu => zero.select_less(x, one, x.select_less(one, zero, x)),
            ActivationKind::Sigmoid => {
                let (sigmoid, rest) = sigmoid_pair(x);
                sigmoid.mul(rest)
            }
            ActivationKind::Tanh => sech_squared(x),
        };
        dy.mul(slope)
    }
}

impl Execute for Activation {
    fn run(&self, task: &mut Task<'_, '_>) {
        map(&task.context, Function(self.kind), task.inputs[0].floats(), task.outputs[0].floats());
    }
}

impl Execute for ActivationGradient {
    fn run(&self, task: &mut Task<'_, '_>) {
        let (x, dy) = (task.inputs[0].floats(), task.inputs[1].floats());
        zip(&task.context, Slope(self.kind), x, dy, task.outputs[0].floats());
    }
}

/// `silu(gate)·up`. For a negative gate, `e^gate` is taken as the square of `e^(gate/2)`, which is not subnormal where the
/// result is not.
#[inline(always)]
fn gated<L: Lanes>(gate: L, up: L) -> L {
    let (zero, one) = (L::splat(0.0), L::splat(1.0));
    let root = exp(L::splat(-0.5).mul(gate.abs()));
    let scale = root.fused(root, one);
    let factor = gate.select_less(zero, root, one);
    let (gate, up) = (gate.mul(factor), up.mul(factor));
    // The larger one is divided, so that no bit of a subnormal one is lost before the product.
    let (size, other) = (gate.abs(), up.abs());
    let larger = size.select_less(other, up, gate);
    let smaller = size.select_less(other, gate, up);
    larger.div(scale).mul(smaller)
}

kernel! {
    fn swiglu_row[X: Element](x: &'a [X], y: &'a mut [X]) {
        let columns = y.len();
        let (gate, up) = x.split_at(columns);
        let mut start = 0;
        while start < columns {
            let width = (columns - start).min(WIDTH);
            // SAFETY: start + width ≤ columns, and `up` is as long as `gate`.
            unsafe {
                let gate = X::load_first::<L>(gate.as_ptr().add(start), width);
                let up = X::load_first::<L>(up[..columns].as_ptr().add(start), width);
                let value = gated(gate, up);
                X::store_first::<L>(value, y.as_mut_ptr().add(start), width);
            }
            start += WIDTH;
        }
    }
}

kernel! {
    fn swiglu_gradient_row[X: Element, D: Element](x: &'a [X], dy: &'a [D], dx: &'a mut [X]) {
        let columns = dx.len() / 2;
        let (gate, up) = x[..2 * columns].split_at(columns);
        let (dgate, dup) = dx.split_at_mut(columns);
        let dy = &dy[..columns];
        let mut start = 0;
        while start < columns {
            let width = (columns - start).min(WIDTH);
            // SAFETY: start + width ≤ columns, the length of every slice.
            unsafe {
                let gate = X::load_first::<L>(gate.as_ptr().add(start), width);
                let up = X::load_first::<L>(up.as_ptr().add(start), width);
                let dy = D::load_first::<L>(dy.as_ptr().add(start), width);
                let (sigmoid, rest) = sigmoid_pair(gate);
                let slope = sigmoid.mul(gate.fused(rest, L::splat(1.0)));
                X::store_first::<L>(dy.mul(up).mul(slope), dgate.as_mut_ptr().add(start), width);
                X::store_first::<L>(dy.mul(gate).mul(sigmoid), dup.as_mut_ptr().add(start), width);
            }
            start += WIDTH;
        }
    }
}

impl Execute for Swiglu {
    fn layout(&self, _: usize) -> Layout {
        Layout::Rows
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (_, wide, stride) = task.inputs[0].rows();
        let (columns, context) = (wide / 2, task.context);
        let rows_each = (PART / columns).max(1);
        macro_rules! run {
            ($x:expr, $y:expr) => {{
                let x = $x;
                parts(context.pool, $y, rows_each * columns, |index, y| {
                    for (row, y) in y.chunks_exact_mut(columns).enumerate() {
                        swiglu_row(context.level, &x[(index * rows_each + row) * stride..][..wide], y);
                    }
                })
            }};
        }
        match (task.inputs[0].floats(), task.outputs[0].floats()) {
            (Floats::F32(x), FloatsMut::F32(y)) => run!(x, y),
            (Floats::Bf16(x), FloatsMut::Bf16(y)) => run!(x, y),
            _ => panic!("swiglu keeps its operand's dtype"),
        }
    }
}

impl Execute for SwigluGradient {
    fn layout(&self, _: usize) -> Layout {
        Layout::Rows
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (_, wide, stride) = task.inputs[0].rows();
        let (_, columns, dy_stride) = task.inputs[1].rows();
        let context = task.context;
        let rows_each = (PART / wide).max(1);
        let dy = task.inputs[1].floats();
        macro_rules! run {
            ($x:expr, $dx:expr) => {{
                let x = $x;
                with_floats!(dy, dy => parts(context.pool, $dx, rows_each * wide, |index, dx| {
                    for (row, dx) in dx.chunks_exact_mut(wide).enumerate() {
                        let row = index * rows_each + row;
                        let (x, dy) = (&x[row * stride..][..wide], &dy[row * dy_stride..][..columns]);
                        swiglu_gradient_row(context.level, x, dy, dx);
                    }
                }))
            }};
        }
        match (task.inputs[0].floats(), task.outputs[0].floats()) {
            (Floats::F32(x), FloatsMut::F32(dx)) => run!(x, dx),
            (Floats::Bf16(x), FloatsMut::Bf16(dx)) => run!(x, dx),
            _ => panic!("swiglu's gradient has its operand's dtype"),
        }
    }
}
