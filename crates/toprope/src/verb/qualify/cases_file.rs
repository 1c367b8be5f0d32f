//! `cases.jsonl`: the operators of somebody's own training step, as the Python package wrote them down. Each line is an ATen
//! call without its data; those that are an operator of the contract become shapes, the others are told as not run.

use serde_json::Value as Json;
use toprope_program::operator::{
    Activation, ActivationKind, Add, Attention, Cast, Gather, GroupedMatmul, Matmul, Multiply, RmsNorm,
    Scale, Swiglu,
};
use toprope_program::{Builder, DType, Dim, Operand, Operator, Phase, Program, ValueId, View};
use toprope_qualify::shapes::{Band, Call, Need, Numbers, Skipped};

/// What a file of cases holds.
#[derive(Debug, Default)]
pub struct Cases {
    /// Those that are an operator of the contract.
    pub calls: Vec<Call>,
    /// What is not in the contract.
    pub skipped: Vec<Skipped>,
}

/// The version of the format that is read.
const VERSION: u64 = 1;

/// Reads the text of a file; a line that is none is an error with its place.
pub fn parse(file: &str, text: &str) -> Result<Cases, String> {
    let mut cases = Cases::default();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let place = format!("{file}:{}", index + 1);
        let json: Json = serde_json::from_str(line).map_err(|error| format!("{place}: no JSON: {error}"))?;
        let Some(operator) = json.get("operator").and_then(Json::as_str) else {
            return Err(format!("{place}: a case needs an `operator`, as in \"aten.mm.default\""));
        };
        if json.get("version").and_then(Json::as_u64) != Some(VERSION) {
            let have = json.get("version").cloned().unwrap_or(Json::Null);
            return Err(format!("{place}: version {have}; this toprope reads version {VERSION}"));
        }
        let Some(arguments) = json.get("args").and_then(Json::as_array) else {
            return Err(format!("{place}: `args` must be a list"));
        };
        let none = serde_json::Map::new();
        let named = json.get("kwargs").and_then(Json::as_object).unwrap_or(&none);
        match call(operator, arguments, named) {
            Ok((program, numbers)) => {
                // A training step was written down: all of it is needed to train, and inference takes the forward ones.
                let inference = program.accumulate.iter().all(|one| !is_backward(&one.operator));
                let need = Need { training: true, inference };
                let count = json.get("count").and_then(Json::as_u64).unwrap_or(1);
                cases.calls.push(Call { program, need, numbers, count });
            }
            Err(reason) => {
                let shape = shapes(arguments);
                cases.skipped.push(Skipped {
                    operator: operator.into(),
                    shape,
                    reason: format!("not run: {reason}"),
                });
            }
        }
    }
    if cases.calls.is_empty() && cases.skipped.is_empty() {
        return Err(format!("{file}: no cases in it"));
    }
    Ok(cases)
}

/// Whether only training takes an operator.
fn is_backward(operator: &Operator) -> bool {
    let name = operator.name();
    name.contains("gradient") || matches!(operator, Operator::Adamw(_) | Operator::GroupedOuter(_))
}

fn shapes(arguments: &[Json]) -> String {
    let tensors = arguments.iter().filter_map(|argument| argument.get("tensor")?.get("shape"));
    tensors.map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// A tensor of a call.
struct Tensor {
    shape: Vec<usize>,
    stride: Vec<usize>,
    dtype: DType,
    numbers: Option<Numbers>,
}

/// Why a call whose strides the contract's operator cannot have is not run.
fn strided(name: &str, tensor: &Tensor) -> String {
    format!(
        "strides: {name} with shape {:?} and strides {:?} is no matrix of rows",
        tensor.shape, tensor.stride
    )
}

impl Tensor {
    fn of(json: &Json) -> Result<Tensor, String> {
        let tensor = json.get("tensor").ok_or("an operand is no tensor")?;
        let numbers = |key: &str| -> Result<Vec<usize>, String> {
            let list = tensor.get(key).and_then(Json::as_array).ok_or(format!("a tensor has no `{key}`"))?;
            list.iter()
                .map(|n| n.as_u64().map(|n| n as usize).ok_or(format!("`{key}` must hold sizes")))
                .collect()
        };
        let word = tensor.get("dtype").and_then(Json::as_str).unwrap_or_default();
        let dtype = match word {
            "float32" => DType::F32,
            "bfloat16" => DType::Bf16,
            "int32" | "int64" => DType::I32,
            other => return Err(format!("the contract has no dtype {other}")),
        };
        let (shape, stride) = (numbers("shape")?, numbers("stride")?);
        if shape.len() != stride.len() || shape.contains(&0) {
            return Err("an empty tensor, or one whose strides do not fit".into());
        }
        let exponent = |key: &str| tensor.get(key).and_then(Json::as_i64).and_then(|x| i32::try_from(x).ok());
        let share = |key: &str| tensor.get(key).and_then(Json::as_f64).unwrap_or(0.0).clamp(0.0, 1.0);
        let numbers = exponent("low").zip(exponent("high")).map(|(low, high)| {
            let negative = tensor.get("negative").map_or(0.5, |_| share("negative"));
            // What no dtype of the contract holds is drawn at its ends.
            let (low, high) = (low.clamp(-149, 127), high.clamp(-149, 127));
            Numbers::Band(Band { low, high, zeros: share("zeros"), negative })
        });
        Ok(Tensor { shape, stride, dtype, numbers })
    }

    /// Neighbouring axes as one; none where their strides do not allow it.
    fn collapsed(&self, axes: std::ops::Range<usize>) -> Option<Tensor> {
        let (mut size, mut stride) = (1, 1);
        for axis in axes.clone().rev().filter(|axis| self.shape[*axis] != 1) {
            if size > 1 && self.stride[axis] != size * stride {
                return None;
            }
            stride = if size > 1 { stride } else { self.stride[axis] };
            size *= self.shape[axis];
        }
        let one = |all: &[usize], own: usize| [&all[..axes.start], &[own], &all[axes.end..]].concat();
        Some(Tensor { shape: one(&self.shape, size), stride: one(&self.stride, stride), ..*self })
    }

    /// All axes but the last as rows.
    fn as_rows(&self, name: &str) -> Result<Tensor, String> {
        let leading = self.shape.len().saturating_sub(1);
        self.collapsed(0..leading).filter(|_| !self.shape.is_empty()).ok_or_else(|| strided(name, self))
    }

    /// Declares it as an input with its own strides.
    fn declare(&self, builder: &mut Builder, name: &str) -> Operand {
        let view = View { offset: 0, shape: dims(&self.shape), strides: self.stride.clone() };
        if view.is_dense() {
            return builder.input(name, self.dtype, self.shape.iter().copied()).into();
        }
        let reach =
            self.shape.iter().zip(&self.stride).map(|(size, stride)| (size - 1) * stride).sum::<usize>() + 1;
        let value = builder.input(name, self.dtype, [reach]);
        Operand { value, view: Some(view) }
    }
}

fn dims(sizes: &[usize]) -> Vec<Dim> {
    sizes.iter().map(|size| Dim::from(*size)).collect()
}

/// The names of one operator's forms, without its overload.
fn call(
    name: &str,
    arguments: &[Json],
    named: &serde_json::Map<String, Json>,
) -> Result<(Program, Vec<Option<Numbers>>), String> {
    let base = name.strip_prefix("aten.").and_then(|rest| rest.split('.').next()).unwrap_or_default();
    let tensor = |index: usize| Tensor::of(arguments.get(index).ok_or("an operand is missing")?);
    let number = |index: usize| arguments.get(index).and_then(Json::as_f64);
    let is_one = |key: &str| named.get(key).is_none_or(|value| value.as_f64() == Some(1.0));
    let mut builder = Builder::new("case", Phase::Evaluate);
    let (mut operands, mut numbers): (Vec<Operand>, Vec<Option<Numbers>>) = (Vec::new(), Vec::new());
    let mut put = |builder: &mut Builder, tensor: &Tensor, name: &str| {
        let operand = tensor.declare(builder, name);
        operands.push(operand);
        numbers.push(tensor.numbers);
    };
    let whole = |shape: Vec<usize>, dtype: DType| {
        let stride = shape.iter().rev().scan(1, |held, size| Some(std::mem::replace(held, *held * size)));
        let mut stride: Vec<usize> = stride.collect();
        stride.reverse();
        Tensor { shape, stride, dtype, numbers: None }
    };
    let operator: Operator = match base {
        "mm" | "matmul" => {
            let (a, b) = (tensor(0)?, tensor(1)?);
            put(&mut builder, &a, "a");
            put(&mut builder, &b, "b");
            Matmul { output: a.dtype, row_sums: false }.into()
        }
        "addmm" => {
            if !is_one("alpha") || !is_one("beta") {
                return Err("a product with alpha or beta other than 1 is not in the contract".into());
            }
            let (bias, a, b) = (tensor(0)?, tensor(1)?, tensor(2)?);
            put(&mut builder, &a, "a");
            put(&mut builder, &b, "b");
            put(&mut builder, &bias, "bias");
            Matmul { output: a.dtype, row_sums: false }.into()
        }
        "linear" => {
            let (x, mut weight) = (tensor(0)?, tensor(1)?);
            weight.shape.reverse();
            weight.stride.reverse();
            let x = x.as_rows("x")?;
            put(&mut builder, &x, "a");
            put(&mut builder, &weight, "b");
            if arguments.get(2).is_some_and(|bias| !bias.is_null()) {
                put(&mut builder, &tensor(2)?, "bias");
            }
            Matmul { output: x.dtype, row_sums: false }.into()
        }
        "bmm" => {
            // A batch of products is a product with each group's own matrix.
            let (a, b) = (tensor(0)?, tensor(1)?);
            let [groups, ..] = a.shape[..] else { return Err("bmm takes three dimensions".into()) };
            put(&mut builder, &a.as_rows("a")?, "a");
            put(&mut builder, &b, "b");
            put(&mut builder, &whole(vec![groups + 1], DType::I32), "offsets");
            GroupedMatmul { output: a.dtype, row_sums: false }.into()
        }
        "add" | "mul" | "div" | "sub" => {
            let a = tensor(0)?;
            put(&mut builder, &a, "a");
            match (base, tensor(1)) {
                ("add", Ok(b)) if b.shape == a.shape && is_one("alpha") => {
                    put(&mut builder, &b, "b");
                    Add { output: a.dtype }.into()
                }
                ("mul", Ok(b)) if b.shape == a.shape => {
                    put(&mut builder, &b, "b");
                    Multiply { output: a.dtype }.into()
                }
                ("mul", Err(_)) => Scale { factor: number(1).ok_or("a factor is no number")? }.into(),
                _ => return Err(format!("{name} with these operands is not in the contract")),
            }
        }
        "silu" | "gelu" | "relu" | "sigmoid" | "tanh" => {
            let kind = match base {
                "silu" => ActivationKind::Silu,
                "gelu" if named.get("approximate").and_then(Json::as_str) == Some("tanh") => {
                    ActivationKind::Gelu
                }
                "gelu" => return Err("the contract's gelu is the one by tanh".into()),
                "relu" => ActivationKind::Relu,
                "sigmoid" => ActivationKind::Sigmoid,
                _ => ActivationKind::Tanh,
            };
            put(&mut builder, &tensor(0)?, "x");
            Activation { kind }.into()
        }
        "_to_copy" => {
            let word = named.get("dtype").and_then(|dtype| dtype.get("dtype")).and_then(Json::as_str);
            let output = match word {
                Some("float32") => DType::F32,
                Some("bfloat16") => DType::Bf16,
                _ => return Err("a copy to another dtype than f32 or bf16 is not in the contract".into()),
            };
            put(&mut builder, &tensor(0)?, "x");
            Cast { output }.into()
        }
        "embedding" => {
            let (table, places) = (tensor(0)?, tensor(1)?);
            let places =
                places.collapsed(0..places.shape.len()).ok_or_else(|| strided("indices", &places))?;
            put(&mut builder, &table, "table");
            put(&mut builder, &places, "indices");
            Gather { output: table.dtype }.into()
        }
        "rms_norm" | "_fused_rms_norm" => {
            put(&mut builder, &tensor(0)?, "x");
            put(&mut builder, &tensor(2)?, "weight");
            RmsNorm { epsilon: number(3).unwrap_or(1e-6) }.into()
        }
        "glu" | "swiglu" => {
            put(&mut builder, &tensor(0)?, "x");
            Swiglu {}.into()
        }
        "scaled_dot_product_attention"
        | "_scaled_dot_product_flash_attention"
        | "_scaled_dot_product_efficient_attention"
        | "_scaled_dot_product_flash_attention_for_cpu"
        | "_scaled_dot_product_cudnn_attention"
        | "_scaled_dot_product_attention_math" => {
            let causal = arguments.iter().skip(3).any(|x| x == &Json::Bool(true))
                || named.get("is_causal") == Some(&Json::Bool(true));
            if !causal {
                return Err("attention that is not causal is not in the contract".into());
            }
            let (q, k, v) = (tensor(0)?, tensor(1)?, tensor(2)?);
            let scale = named.get("scale").and_then(Json::as_f64);
            let scale = scale.unwrap_or((q.shape.last().copied().unwrap_or(1) as f64).powf(-0.5));
            let (packed, rows, sequence) = packed([&q, &k, &v])?;
            for (x, name) in packed.iter().zip(["q", "k", "v"]) {
                put(&mut builder, x, name);
            }
            let starts = whole(vec![rows], DType::I32);
            put(
                &mut builder,
                &Tensor { numbers: Some(Numbers::Documents(sequence)), ..starts },
                "segment_start",
            );
            Attention { scale }.into()
        }
        _ => return Err("it is not in the contract".into()),
    };
    let outputs: Vec<ValueId> = builder.apply_all("out", operator, operands).map_err(|error| error.reason)?;
    debug_assert!(!outputs.is_empty());
    Ok((builder.program().clone(), numbers))
}

/// Query, key and value of a batch `[batch, heads, rows, columns]` as `[rows, heads, columns]`, all sequences of it: one behind
/// the other as documents, or, where the strides do not allow that, beside each other as heads. With the number of rows, and
/// that of a document.
fn packed(tensors: [&Tensor; 3]) -> Result<([Tensor; 3], usize, usize), String> {
    let axes = |x: &Tensor, order: [usize; 4]| Tensor {
        shape: order.iter().map(|axis| x.shape[*axis]).collect(),
        stride: order.iter().map(|axis| x.stride[*axis]).collect(),
        ..*x
    };
    let [q, ..] = tensors;
    if tensors.iter().any(|x| x.shape.len() != 4 || x.shape[0] != q.shape[0]) {
        return Err("attention takes four dimensions, and one batch".into());
    }
    if tensors.iter().any(|x| x.shape[2] != q.shape[2]) {
        return Err(
            "causal attention with another number of keys than queries: its mask is not the contract's"
                .into(),
        );
    }
    let (batch, sequence) = (q.shape[0], q.shape[2]);
    let of = |order: [usize; 4], joined: std::ops::Range<usize>| -> Option<[Tensor; 3]> {
        let [q, k, v] = tensors.map(|x| axes(x, order).collapsed(joined.clone()));
        Some([q?, k?, v?])
    };
    // Batch and rows, heads, columns; or rows, batch and heads, columns.
    if let Some(packed) = of([0, 2, 1, 3], 0..2) {
        return Ok((packed, batch * sequence, sequence));
    }
    let packed = of([2, 0, 1, 3], 1..3).ok_or_else(|| strided("q, k or v", q))?;
    Ok((packed, sequence, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use toprope_qualify::shapes::of_calls;

    const TEXT: &str = r#"{"version": 1, "operator": "aten.mm.default", "args": [{"tensor": {"shape": [64, 32], "stride": [32, 1], "dtype": "bfloat16"}}, {"tensor": {"shape": [32, 48], "stride": [1, 32], "dtype": "bfloat16"}}], "kwargs": {}, "count": 4}
{"version": 1, "operator": "aten.silu.default", "args": [{"tensor": {"shape": [8, 16], "stride": [16, 1], "dtype": "float32"}}], "kwargs": {}, "count": 1}

{"version": 1, "operator": "aten.native_layer_norm.default", "args": [{"tensor": {"shape": [8, 16], "stride": [16, 1], "dtype": "float32"}}], "kwargs": {}, "count": 1}
{"version": 1, "operator": "aten.mm.default", "args": [{"tensor": {"shape": [8, 16], "stride": [16, 1], "dtype": "float16"}}, {"tensor": {"shape": [16, 8], "stride": [8, 1], "dtype": "float16"}}], "kwargs": {}, "count": 1}
{"version": 1, "operator": "aten._scaled_dot_product_flash_attention.default", "args": [{"tensor": {"shape": [2, 4, 16, 8], "stride": [512, 8, 32, 1], "dtype": "float32"}}, {"tensor": {"shape": [2, 2, 16, 8], "stride": [256, 8, 16, 1], "dtype": "float32"}}, {"tensor": {"shape": [2, 2, 16, 8], "stride": [256, 8, 16, 1], "dtype": "float32"}}, 0.0, true], "kwargs": {}, "count": 1}
"#;

    #[test]
    fn calls_of_the_contract_become_shapes_and_others_are_told() {
        let cases = parse("cases.jsonl", TEXT).unwrap();
        let shapes = of_calls(&cases.calls);
        let told: Vec<String> =
            shapes.iter().map(|shape| format!("{} {}", shape.operator, shape.told)).collect();
        assert!(shapes.iter().all(|shape| shape.need.training && shape.need.inference));
        assert!(told.contains(&"matmul [64, 32] [32, 48]".to_string()), "{told:?}");
        assert!(told.iter().any(|shape| shape.starts_with("attention [32, 4, 8] [32, 2, 8]")), "{told:?}");
        let skipped: Vec<&str> = cases.skipped.iter().map(|skipped| skipped.operator.as_str()).collect();
        assert_eq!(skipped, ["aten.native_layer_norm.default", "aten.mm.default"]);
        assert!(cases.skipped[1].reason.contains("float16"));
    }

    fn one(operator: &str, arguments: &str) -> Cases {
        let line = format!(
            r#"{{"version": 1, "operator": "aten.{operator}.default", "args": [{arguments}], "kwargs": {{}}, "count": 3}}"#
        );
        parse("cases.jsonl", &line).unwrap()
    }

    fn tensor(shape: &[usize], stride: &[usize]) -> String {
        format!(
            r#"{{"tensor": {{"shape": {shape:?}, "stride": {stride:?}, "dtype": "float32", "low": -9, "high": -3, "zeros": 0.5, "negative": 0.0}}}}"#
        )
    }

    #[test]
    fn strides_are_kept_or_the_call_is_told_as_not_run() {
        let weight = tensor(&[8, 16], &[16, 1]);
        // Rows of a wider tensor: they are two apart.
        let kept = one("linear", &format!("{}, {weight}, null", tensor(&[4, 6, 16], &[192, 32, 1])));
        let shape = &of_calls(&kept.calls)[0];
        assert_eq!(shape.told, "[24, 16] [16, 8]");
        let view = shape.program.accumulate[0].operands[0].view.as_ref().unwrap();
        assert_eq!(view.strides, [32, 1]);
        // A transposed batch is no matrix.
        let lost = one("linear", &format!("{}, {weight}, null", tensor(&[4, 6, 16], &[16, 64, 1])));
        assert!(lost.calls.is_empty() && lost.skipped[0].reason.starts_with("not run: strides"));
        let lost =
            one("bmm", &format!("{}, {}", tensor(&[2, 4, 8], &[8, 16, 1]), tensor(&[2, 8, 4], &[32, 4, 1])));
        assert!(lost.skipped[0].reason.starts_with("not run: strides"), "{lost:?}");
    }

    #[test]
    fn all_sequences_of_a_batch_are_run_as_documents_or_as_heads() {
        let three = |stride: [usize; 4]| vec![tensor(&[2, 4, 16, 8], &stride); 3].join(", ") + ", 0.0, true";
        let name = "_scaled_dot_product_flash_attention";
        let rows = one(name, &three([512, 8, 32, 1]));
        assert_eq!(of_calls(&rows.calls)[0].operands[0].sizes, [32, 4, 8]);
        assert_eq!(rows.calls[0].numbers[3], Some(Numbers::Documents(16)));
        let heads = one(name, &three([512, 128, 8, 1]));
        assert_eq!(of_calls(&heads.calls)[0].operands[0].sizes, [16, 8, 8]);
    }

    #[test]
    fn the_numbers_of_the_run_are_kept() {
        let cases = one("silu", &tensor(&[8, 16], &[16, 1]));
        let band = Band { low: -9, high: -3, zeros: 0.5, negative: 0.0 };
        assert_eq!(cases.calls[0].numbers, [Some(Numbers::Band(band))]);
        assert_eq!(of_calls(&cases.calls)[0].count, 3);
    }

    #[test]
    fn a_line_that_is_none_is_told_with_its_place() {
        for (text, words) in [
            ("{", "cases.jsonl:1: no JSON"),
            ("\n{\"version\": 1}", "cases.jsonl:2: a case needs an `operator`"),
            ("{\"version\": 7, \"operator\": \"x\", \"args\": []}", "version 7"),
            ("{\"version\": 1, \"operator\": \"x\"}", "`args` must be a list"),
            ("\n", "no cases in it"),
        ] {
            let error = parse("cases.jsonl", text).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
