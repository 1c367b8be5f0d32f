//! `rope`: pairs of columns turned by an angle from a table.

use super::parallel::parts;
use super::{Execute, Task};
use crate::bind::Layout;
use crate::kernel::{Floats, FloatsMut};
use crate::lanes::Element;
use crate::level::kernel;
use toprope_program::operator::Rope;

/// Elements that one thread turns at a time, roughly.
const PART: usize = 1 << 13;

kernel! {
    /// Turns one head's columns behind `start`; `angles` holds cosines, then sines. `sign` is -1 to turn back.
    fn turn_head[X: Element](x: &'a [X], start: usize, interleaved: bool, angles: &'a [f32], sign: f32, y: &'a mut [X]) {
        let pairs = (x.len() - start) / 2;
        y[..start].copy_from_slice(&x[..start]);
        let (x, y) = (&x[start..][..2 * pairs], &mut y[start..][..2 * pairs]);
        let (cosines, sines) = (&angles[..pairs], &angles[pairs..][..pairs]);
        if interleaved {
            for (((x, y), c), s) in x.chunks_exact(2).zip(y.chunks_exact_mut(2)).zip(cosines).zip(sines) {
                let (a, b, s) = (x[0].to_f32(), x[1].to_f32(), sign * s);
                y[0] = X::from_f32(a * c - b * s);
                y[1] = X::from_f32(a * s + b * c);
            }
            return;
        }
        let (a, b) = x.split_at(pairs);
        let (first, second) = y.split_at_mut(pairs);
        for i in 0..pairs {
            let (a, b, c, s) = (a[i].to_f32(), b[i].to_f32(), cosines[i], sign * sines[i]);
            first[i] = X::from_f32(a * c - b * s);
            second[i] = X::from_f32(a * s + b * c);
        }
    }
}

impl Execute for Rope {
    fn layout(&self, index: usize) -> Layout {
        if index == 0 { Layout::Inner } else { Layout::Dense }
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (sizes, strides) = (task.inputs[0].sizes(), task.inputs[0].strides());
        let (heads, columns) = (sizes[1], sizes[2]);
        let (token_stride, head_stride) = (strides[0], strides[1]);
        let (positions, table) = (task.inputs[1].i32(), task.inputs[2]);
        let (rows, angles_each) = (table.sizes()[0], 2 * table.sizes()[2]);
        let table = table.f32();
        let (context, start) = (task.context, self.start);
        let sign = if self.inverse { -1.0 } else { 1.0 };
        let tokens_each = (PART / (heads * columns)).max(1);
        macro_rules! run {
            ($x:expr, $y:expr) => {{
                let x = $x;
                parts(context.pool, $y, tokens_each * heads * columns, |block, y| {
                    for (token, y) in y.chunks_exact_mut(heads * columns).enumerate() {
                        let token = block * tokens_each + token;
                        let row = usize::try_from(positions[token]).ok().filter(|row| *row < rows);
                        let angles = row.map(|row| &table[row * angles_each..][..angles_each]);
                        for (head, y) in y.chunks_exact_mut(columns).enumerate() {
                            let x = &x[token * token_stride + head * head_stride..][..columns];
                            match angles {
                                Some(angles) => {
                                    turn_head(context.level, x, start, self.interleaved, angles, sign, y);
                                }
                                None => {
                                    y[..start].copy_from_slice(&x[..start]);
                                    y[start..].fill(Element::from_f32(0.0));
                                }
                            }
                        }
                    }
                })
            }};
        }
        match (task.inputs[0].floats(), task.outputs[0].floats()) {
            (Floats::F32(x), FloatsMut::F32(y)) => run!(x, y),
            (Floats::Bf16(x), FloatsMut::Bf16(y)) => run!(x, y),
            _ => panic!("rope keeps its operand's dtype"),
        }
    }
}
