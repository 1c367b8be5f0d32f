//! Large logits: a softmax that does not take its largest logit off overflows where `e` to it does.

use super::lab::{Lab, Sample};
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::verdict::Verdict;
use toprope_program::{Operator, Tensor};

/// Whether a result is no number, or infinite, that must be one.
fn no_numbers(sample: &Sample) -> bool {
    sample.judgement.wrong.iter().any(|(output, element)| {
        sample.exact.want[*output].data[*element].is_finite()
            && !sample.outcome.outputs[*output].data[*element].is_finite()
    })
}

/// Attention whose results are no numbers: they may be rows that see nothing, and are more often such that overflow.
fn is_attention_without_numbers(lab: &Lab<'_>) -> bool {
    let operator = lab.base.probe.operator();
    matches!(operator, Operator::Attention(_) | Operator::AttentionGradient(_)) && no_numbers(&lab.base)
}

/// Where it is that, before masks are tried.
pub(super) fn before_masks(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if is_attention_without_numbers(lab) { logits(lab) } else { Ok(None) }
}

/// Everywhere else.
pub(super) fn softmax(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if is_attention_without_numbers(lab) { Ok(None) } else { logits(lab) }
}

fn logits(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let operator = lab.base.probe.operator().clone();
    // The operand that logits are linear in.
    let linear = match &operator {
        Operator::Attention(_)
        | Operator::AttentionGradient(_)
        | Operator::LinearCrossEntropy(_)
        | Operator::LinearCrossEntropyGradient(_)
        | Operator::Router(_)
        // A sigmoid is a softmax of two.
        | Operator::Swiglu(_)
        | Operator::SwigluGradient(_) => 0,
        _ => return Ok(None),
    };
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    let operands = lab.base.probe.operands();
    let largest = operands[linear].data.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    if largest == 0.0 {
        return Ok(None);
    }
    let (mut tried, mut overflows_at) = (Vec::new(), Vec::new());
    for power in -8..=8 {
        let scale = 2f64.powi(power);
        let mut scaled = operands.clone();
        let data = scaled[linear].data.iter().map(|x| x * scale);
        scaled[linear] = Tensor::rounded(scaled[linear].dtype, &scaled[linear].sizes.clone(), data);
        let Ok(probe) = lab.base.probe.altered(&operator, scaled) else { continue };
        let Ok(probe) = probe.made_consistent(lab.oracle) else { continue };
        let Some(sample) = lab.sample(probe)? else { continue };
        let not_finite = sample.judgement.wrong.iter().any(|(output, element)| {
            let want = sample.exact.want[*output].data[*element];
            let got = sample.outcome.outputs[*output].data[*element];
            want.is_finite() && (!got.is_finite() || got == 0.0)
        });
        let infinite = sample.judgement.wrong.iter().any(|(output, element)| {
            let want = sample.exact.want[*output].data[*element];
            want.is_finite() && !sample.outcome.outputs[*output].data[*element].is_finite()
        });
        let agrees = sample.judgement.verdict == Verdict::Agree;
        overflows_at.push((power, infinite || !agrees && !sample.fails()));
        tried.push((power, sample.fails(), not_finite));
    }
    // Small ones may be off by a rounding: what is not finite from some size on overflows all the same.
    let from = overflows_at.iter().rposition(|(_, overflows)| !overflows).map_or(0, |last| last + 1);
    let below = overflows_at[..from].iter().filter(|(_, overflows)| !overflows).count();
    if from < overflows_at.len()
        && below == from
        && from > 0
        && tried[from..].iter().any(|(_, fails, ..)| *fails)
    {
        let power = overflows_at[from].0;
        return Ok(lab.conclude(
            Kind::SoftmaxOverflow,
            "Its results are not finite where logits are large: the largest logit is not taken off before the exponential.",
            "the same operands with logits 2^-8 to 2^8 times as large",
            format!("results are finite below 2^{power} times, and not finite from there on"),
        ));
    }
    let threshold = tried.iter().position(|(_, fails, ..)| *fails);
    let Some(threshold) = threshold.filter(|at| *at > 0) else {
        lab.note("logits of other sizes", "small ones fail as large ones do");
        return Ok(None);
    };
    // Very large logits leave nothing to compare: that speaks for neither.
    let failing = tried[threshold..].iter().filter(|(_, fails, ..)| *fails);
    let overflows = failing.into_iter().all(|(.., not_finite)| *not_finite);
    let ran = "the same operands with logits 2^-8 to 2^8 times as large";
    let showed = format!(
        "agrees up to 2^{} times, fails from 2^{} times on",
        tried[threshold - 1].0,
        tried[threshold].0
    );
    if overflows {
        let sentence = "It fails only with large logits, and then with results that are not finite or zero: the largest logit is not taken off before the exponential.";
        return Ok(lab.conclude(
            Kind::SoftmaxOverflow,
            sentence,
            ran,
            format!("{showed}, with results that are not finite or zero"),
        ));
    }
    lab.note(ran, showed);
    Ok(None)
}
