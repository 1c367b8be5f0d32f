//! The fewest faults that still fail.

use crate::run::run;
use crate::schedule::Schedule;
use toprope_guard::decide::Mutant;

/// Leaves out one fault after the other, as long as the schedule still fails, until none can be left out.
pub fn shrink(schedule: &Schedule, mutant: Option<Mutant>) -> Schedule {
    let mut smallest = schedule.clone();
    let mut index = 0;
    while index < smallest.faults.len() {
        let mut smaller = smallest.clone();
        smaller.faults.remove(index);
        if run(&smaller, mutant, None).violation.is_some() {
            smallest = smaller;
            // What was needed before may not be any more.
            index = 0;
        } else {
            index += 1;
        }
    }
    smallest
}
