//! `cases.jsonl`: the operators of somebody's own training step, as the Python package wrote them down. Each line is an ATen
//! call without its data; those that are an operator of the contract become shapes, the others are told as not run.

use serde_json::Value as Json;
use toprope_program::constant::Content;
use toprope_program::operator::{
    Activation, ActivationKind, Add, Attention, Cast, Gather, GroupedMatmul, Matmul, Multiply, RmsNorm,
    Scale, Swiglu,
};
use toprope_program::{Builder, DType, Dim, Operand, Operator, Phase, Program, Role, Type, ValueId, View};
use toprope_qualify::shapes::Skipped;

/// What a file of cases holds.
#[derive(Debug, Default)]
pub struct Cases {
    /// One instruction each.
    pub programs: Vec<Program>,
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
            Ok(program) => cases.programs.push(program),
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
    if cases.programs.is_empty() && cases.skipped.is_empty() {
        return Err(format!("{file}: no cases in it"));
    }
    Ok(cases)
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
        Ok(Tensor { shape, stride, dtype })
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
fn call(name: &str, arguments: &[Json], named: &serde_json::Map<String, Json>) -> Result<Program, String> {
    let base = name.strip_prefix("aten.").and_then(|rest| rest.split('.').next()).unwrap_or_default();
    let tensor = |index: usize| Tensor::of(arguments.get(index).ok_or("an operand is missing")?);
    let number = |index: usize| arguments.get(index).and_then(Json::as_f64);
    let is_one = |key: &str| named.get(key).is_none_or(|value| value.as_f64() == Some(1.0));
    let mut builder = Builder::new("case", Phase::Evaluate);
    let mut operands: Vec<Operand> = Vec::new();
    let mut put = |builder: &mut Builder, tensor: &Tensor, name: &str| {
        let operand = tensor.declare(builder, name);
        operands.push(operand);
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
            let columns = x.shape.last().copied().unwrap_or(1);
            let rows = x.shape.iter().product::<usize>() / columns.max(1);
            let x = Tensor { shape: vec![rows, columns], stride: vec![columns, 1], dtype: x.dtype };
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
            let [groups, rows, inner] = a.shape[..] else { return Err("bmm takes three dimensions".into()) };
            let flat = Tensor { shape: vec![groups * rows, inner], stride: vec![inner, 1], dtype: a.dtype };
            put(&mut builder, &flat, "a");
            put(&mut builder, &b, "b");
            put(
                &mut builder,
                &Tensor { shape: vec![groups + 1], stride: vec![1], dtype: DType::I32 },
                "offsets",
            );
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
            let count = places.shape.iter().product();
            put(&mut builder, &table, "table");
            put(&mut builder, &Tensor { shape: vec![count], stride: vec![1], dtype: DType::I32 }, "indices");
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
            // [batch, heads, rows, columns]: the contract packs sequences, so one of them stands for all.
            let packed = |x: &Tensor| match (x.shape[..].len(), x.stride[..].len()) {
                (4, 4) => Ok(Tensor {
                    shape: vec![x.shape[2], x.shape[1], x.shape[3]],
                    stride: vec![x.stride[2], x.stride[1], x.stride[3]],
                    dtype: x.dtype,
                }),
                _ => Err("attention takes four dimensions".to_string()),
            };
            let scale = named.get("scale").and_then(Json::as_f64);
            let scale = scale.unwrap_or((q.shape.last().copied().unwrap_or(1) as f64).powf(-0.5));
            let rows = q.shape.get(2).copied().unwrap_or(1);
            for (x, name) in [(&q, "q"), (&k, "k"), (&v, "v")] {
                put(&mut builder, &packed(x)?, name);
            }
            let one_document = Type::new(DType::I32, [rows]);
            let start = builder.declare(
                "segment_start",
                one_document,
                Role::Constant { content: Content::Splat { value: 0.0 } },
            );
            operands.push(start.into());
            Attention { scale }.into()
        }
        _ => return Err("it is not in the contract".into()),
    };
    let outputs: Vec<ValueId> = builder.apply_all("out", operator, operands).map_err(|error| error.reason)?;
    debug_assert!(!outputs.is_empty());
    Ok(builder.program().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use toprope_qualify::shapes::{Need, distinct};

    const TEXT: &str = r#"{"version": 1, "operator": "aten.mm.default", "args": [{"tensor": {"shape": [64, 32], "stride": [32, 1], "dtype": "bfloat16"}}, {"tensor": {"shape": [32, 48], "stride": [1, 32], "dtype": "bfloat16"}}], "kwargs": {}, "count": 4}
{"version": 1, "operator": "aten.silu.default", "args": [{"tensor": {"shape": [8, 16], "stride": [16, 1], "dtype": "float32"}}], "kwargs": {}, "count": 1}

{"version": 1, "operator": "aten.native_layer_norm.default", "args": [{"tensor": {"shape": [8, 16], "stride": [16, 1], "dtype": "float32"}}], "kwargs": {}, "count": 1}
{"version": 1, "operator": "aten.mm.default", "args": [{"tensor": {"shape": [8, 16], "stride": [16, 1], "dtype": "float16"}}, {"tensor": {"shape": [16, 8], "stride": [8, 1], "dtype": "float16"}}], "kwargs": {}, "count": 1}
{"version": 1, "operator": "aten._scaled_dot_product_flash_attention.default", "args": [{"tensor": {"shape": [2, 4, 16, 8], "stride": [512, 8, 32, 1], "dtype": "float32"}}, {"tensor": {"shape": [2, 2, 16, 8], "stride": [256, 8, 16, 1], "dtype": "float32"}}, {"tensor": {"shape": [2, 2, 16, 8], "stride": [256, 8, 16, 1], "dtype": "float32"}}, 0.0, true], "kwargs": {}, "count": 1}
"#;

    #[test]
    fn calls_of_the_contract_become_shapes_and_others_are_told() {
        let cases = parse("cases.jsonl", TEXT).unwrap();
        let need = Need { training: true, inference: false };
        let listed: Vec<(&Program, Need)> = cases.programs.iter().map(|program| (program, need)).collect();
        let told: Vec<String> =
            distinct(&listed).iter().map(|shape| format!("{} {}", shape.operator, shape.told)).collect();
        assert!(told.contains(&"matmul [64, 32] [32, 48]".to_string()), "{told:?}");
        assert!(told.iter().any(|shape| shape.starts_with("attention [16, 4, 8] [16, 2, 8]")), "{told:?}");
        let skipped: Vec<&str> = cases.skipped.iter().map(|skipped| skipped.operator.as_str()).collect();
        assert_eq!(skipped, ["aten.native_layer_norm.default", "aten.mm.default"]);
        assert!(cases.skipped[1].reason.contains("float16"));
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
