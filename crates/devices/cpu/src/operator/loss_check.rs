//! `loss_check`: a few numbers for each row and word.

use super::{Execute, Task};
use toprope_program::operator::LossCheck;

/// 2^-24, 2^-19 and 2^-70 of the bounds.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;
const LOSS_UNIT: f64 = 32.0 * UNIT;
const FLOOR: f64 = f64::from_bits((1023 - 70) << 52);

impl Execute for LossCheck {
    fn run(&self, task: &mut Task<'_, '_>) {
        let [loss, rows, words] = [0, 1, 2].map(|index: usize| task.inputs[index].f32());
        let mut largest = 0.0f64;
        let mut meet = |got: f32, want: f32, bound: f64| {
            let distance = (f64::from(got) - f64::from(want)).abs() / bound;
            // Not below infinity: infinite or no number.
            largest = if distance < f64::INFINITY { largest.max(distance) } else { f64::INFINITY };
        };
        for (loss, row) in loss.iter().zip(rows.chunks_exact(5)) {
            meet(row[0], row[1], UNIT * f64::from(row[2]) + FLOOR);
            meet(*loss, row[3], LOSS_UNIT * f64::from(row[4]));
        }
        for word in words.chunks_exact(3) {
            meet(word[0], word[1], UNIT * f64::from(word[2]) + FLOOR);
        }
        task.outputs[0].f32()[0] = largest as f32;
    }
}
