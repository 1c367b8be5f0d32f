//! Small exact operators: counters, the routing bias, random bits and cache rows.

use super::parallel::parts;
use super::{Execute, Task};
use crate::bind::Bits;
use toprope_program::operator::{Append, BiasUpdate, Increment, RandomBits};
use toprope_program::{Width, philox};

/// Blocks of four words that one thread draws at a time.
const BLOCKS: usize = 1 << 11;

impl Execute for Increment {
    fn run(&self, task: &mut Task<'_, '_>) {
        let x = task.inputs[0].i32()[0];
        let [y] = task.outputs();
        y.i32()[0] = x.wrapping_add(self.by);
    }
}

impl Execute for BiasUpdate {
    fn run(&self, task: &mut Task<'_, '_>) {
        let (bias, counts) = (task.inputs[0].f32(), task.inputs[1].i32());
        let total: i64 = counts.iter().map(|count| i64::from(*count)).sum();
        let rate = self.rate as f32;
        let [next] = task.outputs();
        for ((next, bias), count) in next.f32().iter_mut().zip(bias).zip(counts) {
            let sign = (total - counts.len() as i64 * i64::from(*count)).signum();
            *next = bias + rate * sign as f32;
        }
    }
}

impl Execute for RandomBits {
    fn run(&self, task: &mut Task<'_, '_>) {
        let (key, counter) = (task.inputs[0].u32(), task.inputs[1].u32()[0]);
        let (key, stream) = ([key[0], key[1]], self.stream);
        let pool = task.context.pool;
        let [y] = task.outputs();
        parts(pool, y.u32(), 4 * BLOCKS, |index, part| {
            for (block, words) in part.chunks_mut(4).enumerate() {
                let number = (index * BLOCKS + block) as u32;
                words.copy_from_slice(&philox::block([number, 0, counter, stream], key)[..words.len()]);
            }
        });
    }
}

impl Execute for Append {
    fn reads(&self, index: usize) -> bool {
        index != 0
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (rows, position) = (task.inputs[1], task.inputs[2].i32()[0]);
        let count = rows.sizes()[0];
        let width = rows.elements() / count.max(1);
        let [cache] = task.outputs();
        if rows.dtype.size_bytes(Width::Native) == 2 {
            append::<u16>(rows.bits(), cache.bits(), width, i64::from(position));
        } else {
            append::<u32>(rows.bits(), cache.bits(), width, i64::from(position));
        }
    }
}

/// Copies the rows that lie inside the cache.
fn append<T: Bits>(rows: &[T], cache: &mut [T], width: usize, position: i64) {
    let capacity = (cache.len() / width) as i64;
    for (index, row) in rows.chunks_exact(width).enumerate() {
        let at = position + index as i64;
        if (0..capacity).contains(&at) {
            let start = at as usize * width;
            cache[start..start + width].copy_from_slice(row);
        }
    }
}
