//! Elements that are stuck, and where the wrong ones lie.

use super::lab::Lab;
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;

pub(super) fn stuck(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let (Some(first), true) = (lab.samples.first(), lab.samples.len() > 1) else { return Ok(None) };
    for output in first.wrong_outputs() {
        let wrong = first.wrong_in(output);
        let number = first.outcome.outputs[output].data[wrong[0]];
        let held = |element: &usize| {
            lab.samples.iter().all(|sample| {
                let x = sample.outcome.outputs[output].data[*element];
                x == number || x.is_nan() && number.is_nan()
            })
        };
        if wrong.iter().all(held) {
            let count = wrong.len();
            let sentence = format!("{count} elements, from {} on, are stuck at {number:e}.", wrong[0]);
            let ran = format!("{} draws of the operands", lab.samples.len());
            return Ok(lab.conclude(
                Kind::StuckElements,
                sentence,
                ran,
                format!("the same {count} elements are {number:e} each time"),
            ));
        }
    }
    Ok(None)
}
