//! AdamW.

use super::Outputs;
use crate::guess::steps::Steps;
use toprope_program::Tensor;
use toprope_program::operator::Adamw;

pub(super) fn adamw(adamw: &Adamw, o: &[&Tensor], steps: &Steps) -> Outputs {
    let (rate, c1, c2) = (o[5].data[0], o[5].data[1], o[5].data[2]);
    let (mut weights, mut first, mut second) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..o[0].data.len() {
        let w = o[0].data[i];
        let g = o[1].data[i] * steps.factor("the clipping factor", o[4].data[0]);
        let m = steps.term("the old first moment", adamw.beta1 * o[2].data[i])
            + steps.term("the gradient's part of the first moment", (1.0 - adamw.beta1) * g);
        let v = steps.term("the old second moment", adamw.beta2 * o[3].data[i])
            + steps.term("the gradient's part of the second moment", (1.0 - adamw.beta2) * g * g);
        let root = steps.value(
            "the root of the second moment",
            steps.over("the reciprocal of the second correction", v, c2).sqrt(),
        );
        let quotient = steps.value(
            "the step",
            steps.over(
                "the reciprocal of the root",
                steps.over("the reciprocal of the first correction", m, c1),
                root + adamw.epsilon,
            ),
        );
        let decay = steps.term("the weight's decay", rate * adamw.weight_decay * w);
        weights.push(w - decay - steps.term("the rate's step", rate * quotient));
        first.push(m);
        second.push(v);
    }
    vec![Some(weights), Some(first), Some(second)]
}
