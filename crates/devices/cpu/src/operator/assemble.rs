//! `assemble`: parts added into windows of a value.
//!
//! Where all windows step through the outermost dimension alike, the result falls into rows that threads take one by one;
//! otherwise one thread adds part after part. Either way an element's contributions are added in the order of the parts,
//! each in row-major order.

use super::elementwise::{add_to, convert_part};
use super::parallel::{Parts, parts};
use super::{Execute, Sizes, Task};
use crate::bind::{Layout, View};
use crate::kernel::{Floats, FloatsMut};
use crate::level::Level;
use toprope_program::operator::Assemble;
use toprope_program::shape::View as Place;

/// Elements that one thread assembles at a time, roughly.
const PART: usize = 1 << 13;

/// Elements from a row of the result to the next, where every window steps by whole rows and stays inside each.
fn row_elements<'a>(views: &[Place], sizes_of: impl Fn(usize) -> &'a [usize], total: usize) -> Option<usize> {
    let row = *views.first()?.strides.first()?;
    if row == 0 || !total.is_multiple_of(row) {
        return None;
    }
    let fits = |(index, view): (usize, &Place)| {
        let sizes = sizes_of(index);
        let reach: usize =
            sizes.iter().zip(&view.strides).skip(1).map(|(size, stride)| (size - 1) * stride).sum();
        view.strides.first() == Some(&row) && view.offset % row + reach < row
    };
    views.iter().enumerate().all(fits).then_some(row)
}

/// Adds a part's elements `source..`, of these sizes and strides, from `target` on.
#[allow(clippy::too_many_arguments)]
fn add(
    level: Level,
    part: &Floats<'_>,
    sizes: &[usize],
    from: &[usize],
    to: &[usize],
    source: usize,
    target: usize,
    y: &mut [f32],
) {
    match (sizes, from, to) {
        ([], ..) => y[target] += at(part, source),
        ([size], [from], [to]) => add_run(level, part, *size, *from, *to, source, target, y),
        ([size, sizes @ ..], [step, from @ ..], [stride, to @ ..]) => {
            for index in 0..*size {
                add(level, part, sizes, from, to, source + index * step, target + index * stride, y);
            }
        }
        _ => {}
    }
}

fn at(part: &Floats<'_>, index: usize) -> f32 {
    match part {
        Floats::F32(values) => values[index],
        Floats::Bf16(values) => values[index].to_f32(),
    }
}

#[allow(clippy::too_many_arguments)]
fn add_run(
    level: Level,
    part: &Floats<'_>,
    count: usize,
    from: usize,
    to: usize,
    source: usize,
    target: usize,
    y: &mut [f32],
) {
    if from == 1 && to == 1 {
        let y = &mut y[target..target + count];
        match part {
            Floats::F32(values) => add_to(level, &values[source..][..count], y),
            Floats::Bf16(values) => add_to(level, &values[source..][..count], y),
        }
        return;
    }
    for index in 0..count {
        y[target + index * to] += at(part, source + index * from);
    }
}

/// What both ways need of the operator under its binding.
struct Plan<'a, 'm> {
    level: Level,
    places: &'a [Place],
    parts: &'a [View<'m>],
}

impl Plan<'_, '_> {
    /// Adds every part into a whole result.
    fn all(&self, y: &mut [f32]) {
        y.fill(0.0);
        for (place, part) in self.places.iter().zip(self.parts) {
            add(self.level, &part.floats(), part.sizes(), part.strides(), &place.strides, 0, place.offset, y);
        }
    }

    /// Adds what lands in row `row` of `width` elements.
    fn row(&self, row: usize, width: usize, y: &mut [f32]) {
        y.fill(0.0);
        for (place, part) in self.places.iter().zip(self.parts) {
            let index = row.checked_sub(place.offset / width).filter(|index| *index < part.sizes()[0]);
            let Some(index) = index else { continue };
            let (sizes, from, to) = (&part.sizes()[1..], &part.strides()[1..], &place.strides[1..]);
            add(
                self.level,
                &part.floats(),
                sizes,
                from,
                to,
                index * part.strides()[0],
                place.offset % width,
                y,
            );
        }
    }
}

impl Execute for Assemble {
    fn layout(&self, _: usize) -> Layout {
        Layout::Any
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let y = &sizes.outputs[0];
        let values =
            match row_elements(&self.views, |part| sizes.inputs[part].shape.sizes(), y.shape.elements()) {
                _ if y.dtype == toprope_program::DType::F32 => 0,
                Some(row) => row * sizes.threads,
                None => y.shape.elements(),
            };
        values * size_of::<f32>() + size_of::<f32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let pool = task.context.pool;
        let level = task.context.level;
        let plan = Plan { level, places: &self.views, parts: task.inputs };
        let total = task.outputs[0].elements();
        let row = row_elements(&self.views, |part| task.inputs[part].sizes(), total);
        // SAFETY: every bit pattern is an f32, and the middle part is aligned for it.
        let (_, scratch, _) = unsafe { task.workspace.align_to_mut::<f32>() };
        match (task.outputs[0].floats(), row) {
            (FloatsMut::F32(y), None) => plan.all(y),
            (FloatsMut::Bf16(y), None) => {
                plan.all(&mut scratch[..total]);
                convert_part(level, &scratch[..total], y);
            }
            (FloatsMut::F32(y), Some(width)) => {
                let rows = (PART / width).max(1);
                parts(pool, y, rows * width, |index, part| {
                    for (row, part) in part.chunks_exact_mut(width).enumerate() {
                        plan.row(index * rows + row, width, part);
                    }
                });
            }
            (FloatsMut::Bf16(y), Some(width)) => {
                let rows = (PART / width).max(1);
                let blocks = total.div_ceil(rows * width);
                let (scratch, y) = (Parts::new(&mut scratch[..width * pool.threads()]), Parts::new(y));
                pool.for_each_thread(blocks, |thread, index| {
                    // SAFETY: a thread's own scratch memory, and a block's own part of the result.
                    let (scratch, part) = unsafe {
                        (scratch.part(thread * width, width), y.part(index * rows * width, rows * width))
                    };
                    for (row, part) in part.chunks_exact_mut(width).enumerate() {
                        plan.row(index * rows + row, width, scratch);
                        convert_part(level, scratch, part);
                    }
                });
            }
        }
    }
}
