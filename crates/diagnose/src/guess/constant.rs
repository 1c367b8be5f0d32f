//! Outputs that are the same whatever is read.

use super::lab::Lab;
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;

pub(super) fn constant(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let ran = format!("{} draws of the operands", lab.samples.len());
    for output in lab.base.wrong_outputs() {
        let name = lab.base.probe.operator().definition().record().outputs.get(output).map_or("", |s| s.name);
        let all = |holds: &dyn Fn(f64) -> bool| {
            lab.samples.iter().all(|sample| sample.outcome.outputs[output].data.iter().all(|x| holds(*x)))
        };
        let first = lab.base.outcome.outputs[output].data.first().copied().unwrap_or(0.0);
        let (zero, nan, same) = (all(&|x| x == 0.0), all(&f64::is_nan), all(&|x| x == first));
        let found = if zero {
            Some((Kind::AllZero, "zero".to_string()))
        } else if nan {
            Some((Kind::AllNan, "NaN".to_string()))
        } else if same && lab.samples.len() > 1 {
            Some((Kind::ConstantOutput, format!("{first:e}")))
        } else {
            None
        };
        if let Some((kind, number)) = found {
            let sentence = format!("Every element of `{name}` is {number}, whatever the operands are.");
            return Ok(lab.conclude(kind, sentence, ran, format!("every element of `{name}` is {number}")));
        }
    }
    Ok(None)
}
