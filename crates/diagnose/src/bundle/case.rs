//! case.json: the operator with its attributes, how its operands come about, the exact result, how far each element may lie
//! from it, and what each device gave.

use super::evidence::{Evidence, Juror};
use serde_json::{Value, json};
use toprope_program::{Concrete, DType, Tensor};

/// The case as JSON. Numbers that JSON does not have are text.
pub fn case(evidence: &Evidence) -> Value {
    let (probe, exact) = (&evidence.probe, &evidence.exact);
    let record = probe.operator().definition().record();
    let operands: Vec<Value> = probe
        .operands()
        .iter()
        .enumerate()
        .map(|(at, tensor)| {
            let name = record.operands[at.min(record.operands.len() - 1)].name;
            let mut operand = json!({ "name": name, "dtype": tensor.dtype, "sizes": tensor.sizes });
            match &evidence.drawn[at] {
                Some(positive) => {
                    operand["draw"] = json!({ "seed": evidence.seed, "operand": at, "positive": positive });
                }
                None => operand["data"] = numbers(&tensor.data),
            }
            operand
        })
        .collect();
    let bounds = bounds(evidence);
    let outputs: Vec<Value> = exact
        .want
        .iter()
        .enumerate()
        .map(|(at, want)| {
            let name = record.outputs[at.min(record.outputs.len() - 1)].name;
            let mut output = json!({
                "name": name,
                "dtype": want.dtype,
                "sizes": want.sizes,
                "want": numbers(&want.data),
            });
            // Results that must be exact have no bound.
            if let Some(bound) = &bounds[at] {
                output["bound"] = numbers(bound);
            }
            let given = |juror: &Juror| {
                juror.outcome.as_ref().and_then(|o| o.outputs.get(at)).map(|t| numbers(&t.data))
            };
            let by = |juror: &Juror| Some(json!({ "device": juror.standing.device, "data": given(juror)? }));
            output["got"] = evidence.jury.iter().filter_map(by).collect();
            output
        })
        .collect();
    json!({
        "operator": probe.operator(),
        "first": probe.is_first(),
        "operands": operands,
        "outputs": outputs,
        "guess": evidence.guess,
    })
}

/// The largest accepted distance of each element; none for outputs that must be exact.
pub fn bounds(evidence: &Evidence) -> Vec<Option<Vec<f64>>> {
    let (probe, exact) = (&evidence.probe, &evidence.exact);
    let concrete = |tensors: &[Tensor]| -> Vec<Concrete> {
        tensors.iter().map(|t| Concrete { dtype: t.dtype, sizes: t.sizes.clone() }).collect()
    };
    let tolerances =
        probe.operator().definition().tolerances(&concrete(&probe.operands()), &concrete(&exact.want));
    exact
        .want
        .iter()
        .enumerate()
        .map(|(at, want)| {
            let tolerance = tolerances.get(at)?;
            if *tolerance == toprope_program::Tolerance::EXACT {
                return None;
            }
            let magnitude =
                |i: usize| exact.measured.whole.get(at).and_then(|m| m.get(i)).copied().unwrap_or(0.0);
            Some(want.data.iter().enumerate().map(|(i, x)| tolerance.bound(*x, magnitude(i))).collect())
        })
        .collect()
}

fn numbers(data: &[f64]) -> Value {
    let one = |x: &f64| match x {
        x if x.is_nan() => json!("nan"),
        x if x.is_infinite() => json!(if *x > 0.0 { "inf" } else { "-inf" }),
        x => json!(x),
    };
    data.iter().map(one).collect()
}

/// Whether an operand can be drawn: floats that are more than a few scalars.
pub fn can_be_drawn(tensor: &Tensor) -> bool {
    matches!(tensor.dtype, DType::F32 | DType::Bf16) && tensor.data.len() > 4
}
