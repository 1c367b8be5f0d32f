//! Records of single operators made by PyTorch (`tests/golden/operators.py`), each within the contract's tolerance in f32.

use crate::numbers::{floats, integers};
use safetensors::SafeTensors;
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};
use toprope_program::constant::{self, Stretch, Yarn};
use toprope_program::operator::*;
use toprope_program::shape::Concrete;
use toprope_program::{DType, Operator, Tensor, Width};
use toprope_reference::{evaluate, magnitudes};

struct Record {
    tensors: HashMap<String, Tensor>,
    attributes: BTreeMap<String, Json>,
}

/// One case of the record.
struct Case<'a> {
    record: &'a Record,
    name: &'a str,
}

impl Record {
    fn read() -> Record {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/golden/operators.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = metadata.metadata().clone().unwrap();
        assert_eq!(metadata["format"], "toprope-golden-operators-1");
        let attributes = metadata
            .iter()
            .filter(|(key, _)| key.contains('.'))
            .map(|(key, text)| (key.clone(), serde_json::from_str(text).unwrap()))
            .collect();
        let tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let dtype = match view.dtype() {
                    safetensors::Dtype::F32 => DType::F32,
                    safetensors::Dtype::I32 => DType::I32,
                    other => panic!("{name}: {other:?}"),
                };
                let sizes = if view.shape().is_empty() { &[1] } else { view.shape() };
                (name, Tensor::from_bytes(dtype, sizes, Width::Native, view.data()).unwrap())
            })
            .collect();
        Record { tensors, attributes }
    }
}

impl Case<'_> {
    fn tensor(&self, operand: &str) -> Tensor {
        let name = format!("{}.{operand}", self.name);
        self.record.tensors.get(&name).unwrap_or_else(|| panic!("{name} is not in the record")).clone()
    }

    fn attribute(&self, key: &str) -> &Json {
        &self.record.attributes[self.name][key]
    }

    fn number(&self, key: &str) -> f64 {
        self.attribute(key).as_f64().unwrap_or_else(|| panic!("{}: no number {key}", self.name))
    }

    fn count(&self, key: &str) -> usize {
        self.number(key) as usize
    }

    /// Runs an operator and judges those outputs that the record has.
    fn judge(
        &self,
        operator: impl Into<Operator>,
        operands: &[Tensor],
        wanted: &[Option<Tensor>],
    ) -> Vec<Tensor> {
        let operator = operator.into();
        let outputs = evaluate(&operator, operands, true, Width::Native);
        let sizes = magnitudes(&operator, operands, &outputs);
        let concrete = |tensors: &[Tensor]| -> Vec<Concrete> {
            tensors.iter().map(|t| Concrete { dtype: t.dtype, sizes: t.sizes.clone() }).collect()
        };
        let tolerances = operator.definition().tolerances(&concrete(operands), &concrete(&outputs));
        assert_eq!((outputs.len(), sizes.len()), (tolerances.len(), tolerances.len()));
        for (index, want) in wanted.iter().enumerate() {
            let Some(want) = want else { continue };
            let (got, sizes, tolerance) = (&outputs[index], &sizes[index], &tolerances[index]);
            assert_eq!((got.data.len(), sizes.len()), (want.data.len(), want.data.len()), "{}", self.name);
            for (i, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
                assert!(
                    tolerance.accepts(*got, *want, sizes[i]),
                    "{}, {} output {index}[{i}]: {got:e} where the record has {want:e}, bound {:e}",
                    self.name,
                    operator.name(),
                    tolerance.bound(*want, sizes[i]),
                );
            }
        }
        outputs
    }
}

fn transposed(x: &Tensor) -> Tensor {
    let [.., rows, columns] = x.sizes[..] else { panic!("{:?}", x.sizes) };
    let mut sizes = x.sizes.clone();
    let rank = sizes.len();
    sizes.swap(rank - 2, rank - 1);
    let mut data = Vec::new();
    for matrix in x.data.chunks_exact(rows * columns) {
        data.extend((0..columns).flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c])));
    }
    Tensor { dtype: x.dtype, sizes, data }
}

/// Rows of `left` and `right` side by side.
fn beside(left: &Tensor, right: &Tensor) -> Tensor {
    let columns = left.sizes[1];
    let rows = left.data.chunks_exact(columns).zip(right.data.chunks_exact(columns));
    let data: Vec<f64> = rows.flat_map(|(l, r)| [l, r].concat()).collect();
    floats(&[left.sizes[0], 2 * columns], &data)
}

fn rms_norm(c: &Case) {
    let (x, weight, rstd) = (c.tensor("x"), c.tensor("weight"), c.tensor("rstd"));
    let operator = RmsNorm { epsilon: c.number("epsilon") };
    c.judge(operator, &[x.clone(), weight.clone()], &[Some(c.tensor("out")), Some(rstd.clone())]);
    let wanted = [c.tensor("x_gradient"), c.tensor("weight_gradient")].map(Some);
    let operator = RmsNormGradient { weight_output: DType::F32 };
    c.judge(operator, &[x, weight, rstd, c.tensor("out_gradient")], &wanted);
}

fn swiglu(c: &Case) {
    let x = beside(&c.tensor("gate"), &c.tensor("up"));
    c.judge(Swiglu {}, std::slice::from_ref(&x), &[Some(c.tensor("out"))]);
    let want = beside(&c.tensor("gate_gradient"), &c.tensor("up_gradient"));
    c.judge(SwigluGradient {}, &[x, c.tensor("out_gradient")], &[Some(want)]);
}

fn activation(c: &Case) {
    let kind = match c.name {
        "activation.silu" => ActivationKind::Silu,
        "activation.gelu_tanh" => ActivationKind::Gelu,
        "activation.relu" => ActivationKind::Relu,
        "activation.sigmoid" => ActivationKind::Sigmoid,
        "activation.tanh" => ActivationKind::Tanh,
        other => panic!("{other} is not known"),
    };
    let x = c.tensor("x");
    c.judge(Activation { kind }, std::slice::from_ref(&x), &[Some(c.tensor("out"))]);
    let want = c.tensor("x_gradient");
    c.judge(ActivationGradient { kind }, &[x, c.tensor("out_gradient")], &[Some(want)]);
}

fn attention(c: &Case) {
    let [q, k, v, out, lse, start] = ["q", "k", "v", "out", "lse", "segment_start"].map(|x| c.tensor(x));
    let (offset, length) = (c.count("query_offset"), c.count("cache_length"));
    let scale = c.number("scale");
    let mut operands = vec![q.clone(), k.clone(), v.clone(), start.clone()];
    let whole = offset == 0 && length == k.sizes[0];
    if !whole {
        operands.extend([integers(&[1], &[offset as i32]), integers(&[1], &[length as i32])]);
    }
    c.judge(Attention { scale }, &operands, &[Some(out.clone()), Some(lse.clone())]);
    if whole {
        let wanted = ["q_gradient", "k_gradient", "v_gradient"].map(|x| c.tensor(x));
        let operands = [q, k, v, out, lse, c.tensor("out_gradient"), start];
        c.judge(AttentionGradient { scale, sums: false }, &operands, &wanted.map(Some));
    }
}

fn rope(c: &Case) {
    let interleaved = c.attribute("layout") == "interleaved";
    let inverse = c.attribute("inverse") == true;
    let (positions, table) = (c.tensor("positions"), c.tensor("table"));
    let operands = |x| [x, positions.clone(), table.clone()];
    let operator = |inverse| Rope { start: 0, interleaved, inverse };
    c.judge(operator(inverse), &operands(c.tensor("x")), &[Some(c.tensor("out"))]);
    let gradient = operands(c.tensor("out_gradient"));
    c.judge(operator(!inverse), &gradient, &[Some(c.tensor("x_gradient"))]);
}

fn rope_frequencies(c: &Case) {
    let rope = constant::Rope {
        base: c.number("rope_theta"),
        stretch: Some(Stretch::Yarn(Yarn {
            factor: c.number("factor"),
            original_positions: c.number("original_max_position_embeddings"),
            beta_fast: c.number("beta_fast"),
            beta_slow: c.number("beta_slow"),
            mscale: c.number("mscale"),
            mscale_all_dim: c.number("mscale_all_dim"),
            magnitude: None,
            truncate: true,
        })),
    };
    // transformers computes the frequencies in f32: a power and six operations, each within some units.
    let frequencies = rope.frequencies(c.count("rope_size"));
    let wanted = c.tensor("frequencies").data;
    assert_eq!(frequencies.len(), wanted.len());
    for (got, want) in frequencies.iter().zip(wanted) {
        assert!((got - want).abs() <= 2e-6 * want, "{}: {got:e} where the record has {want:e}", c.name);
    }
    assert!((rope.magnitude() - c.number("cos_sin_factor")).abs() < 1e-12);
}

fn linear_cross_entropy(c: &Case) {
    let operands = [c.tensor("x"), c.tensor("weight"), c.tensor("targets")];
    let (row_loss, lse) = (c.tensor("row_loss"), c.tensor("lse"));
    let outputs = c.judge(LinearCrossEntropy {}, &operands, &[Some(row_loss.clone()), Some(lse)]);
    let valid: Vec<f64> = operands[2].data.iter().map(|t| f64::from(u8::from(*t >= 0.0))).collect();
    let count: f64 = valid.iter().sum();
    let mean = outputs[0].data.iter().sum::<f64>() / count;
    assert!((mean - c.tensor("loss").data[0]).abs() <= 1e-6 * mean.abs(), "{}: mean {mean}", c.name);
    let share: Vec<f64> = valid.iter().map(|v| v * c.tensor("loss_gradient").data[0] / count).collect();
    let [x, weight, targets] = operands;
    let dloss = Tensor::rounded(DType::F32, &[share.len()], share);
    let wanted = [row_loss, c.tensor("x_gradient"), c.tensor("weight_gradient")].map(Some);
    let operator = LinearCrossEntropyGradient { weight_output: DType::F32, sums: false };
    c.judge(operator, &[x, weight, targets, dloss], &wanted);
}

/// Scores of the softmax router, and its gradient by way of the scores.
fn softmax(c: &Case) {
    let x = c.tensor("x");
    let (rows, experts) = (x.sizes[0], x.sizes[1]);
    let scoring = Scoring::Softmax;
    let router = Router { scoring, top_k: 1, groups: 1, top_groups: 1, normalize: false, scale: 1.0 };
    let none = floats(&[experts], &vec![0.0; experts]);
    let outputs = c.judge(router, &[x, none], &[Some(c.tensor("out"))]);
    let zeros = floats(&[rows, 1], &vec![0.0; rows]);
    let operands =
        [outputs[0].clone(), outputs[1].clone(), outputs[2].clone(), zeros, c.tensor("out_gradient")];
    let gradient = RouterGradient { scoring, normalize: false, scale: 1.0 };
    c.judge(gradient, &operands, &[Some(c.tensor("x_gradient"))]);
}

fn product(c: &Case) {
    let (a, b, dy) = (c.tensor("a"), c.tensor("b"), c.tensor("out_gradient"));
    let operator = |row_sums| Matmul { output: DType::F32, row_sums };
    let wanted = [c.tensor("out"), c.tensor("row_sums")].map(Some);
    c.judge(operator(true), &[a.clone(), b.clone()], &wanted);
    c.judge(operator(false), &[dy.clone(), transposed(&b)], &[Some(c.tensor("a_gradient"))]);
    c.judge(operator(false), &[transposed(&a), dy], &[Some(c.tensor("b_gradient"))]);
}

fn grouped_product(c: &Case) {
    let [a, weight, offsets, dy] = ["a", "weight", "offsets", "out_gradient"].map(|x| c.tensor(x));
    let operator = || GroupedMatmul { output: DType::F32, row_sums: false };
    c.judge(operator(), &[a.clone(), weight.clone(), offsets.clone()], &[Some(c.tensor("out"))]);
    let operands = [dy.clone(), transposed(&weight), offsets.clone()];
    c.judge(operator(), &operands, &[Some(c.tensor("a_gradient"))]);
    let outer = GroupedOuter { output: DType::F32, row_sums: false };
    c.judge(outer, &[a, dy, offsets], &[Some(c.tensor("weight_gradient"))]);
}

fn gather(c: &Case) {
    let (table, indices) = (c.tensor("table"), c.tensor("indices"));
    let rows = table.sizes[0].into();
    c.judge(Gather { output: DType::F32 }, &[table, indices.clone()], &[Some(c.tensor("out"))]);
    let operator = ScatterAdd { output: DType::F32, rows };
    c.judge(operator, &[c.tensor("out_gradient"), indices], &[Some(c.tensor("table_gradient"))]);
}

fn router(c: &Case) {
    let (logits, bias, weights) = (c.tensor("logits"), c.tensor("bias"), c.tensor("weights"));
    let (rows, experts, top_k) = (logits.sizes[0], logits.sizes[1], c.count("top_k"));
    let (normalize, scale) = (c.attribute("normalise") == true, c.number("scaling"));
    let scoring = Scoring::Sigmoid;
    let (groups, top_groups) = (c.count("groups"), c.count("groups_kept"));
    let product = Matmul { output: DType::F32, row_sums: false };
    c.judge(product, &[c.tensor("x"), transposed(&c.tensor("weight"))], &[Some(logits.clone())]);
    let operator = Router { scoring, top_k, groups, top_groups, normalize, scale };
    let wanted = [Some(c.tensor("scores")), None, None, Some(c.tensor("load"))];
    let outputs = c.judge(operator.clone(), &[logits.clone(), bias.clone()], &wanted);
    // The record's weights lie at their experts; ours at their choice.
    let at_choice = |dense: &Tensor| {
        let place = |(pair, e): (usize, &f64)| dense.data[pair / top_k * experts + *e as usize];
        let data: Vec<f64> = outputs[1].data.iter().enumerate().map(place).collect();
        floats(&[rows, top_k], &data)
    };
    let chosen = at_choice(&c.tensor("chosen"));
    assert!(chosen.data.iter().all(|hit| *hit == 1.0), "{}: another choice", c.name);
    c.judge(operator, &[logits, bias], &[None, None, Some(at_choice(&weights))]);
    let gradient = RouterGradient { scoring, normalize, scale };
    let [scores, indices, ours, _] = &outputs[..] else { panic!("{} outputs", outputs.len()) };
    let operands = [scores.clone(), indices.clone(), ours.clone(), at_choice(&c.tensor("weights_gradient"))];
    c.judge(gradient, &operands, &[Some(c.tensor("logits_gradient"))]);
}

/// The record goes from logits to `alpha · mean over sequences`; what lies around the operator is done in f64 here.
fn balance(c: &Case) {
    let (logits, chosen) = (c.tensor("logits"), c.tensor("chosen"));
    let (tokens, experts, top_k) = (logits.sizes[0], logits.sizes[1], c.count("top_k"));
    let (sequences, alpha) = (c.count("rows"), c.number("alpha"));
    let by_affinity = c.attribute("counts") == "affinity";
    let ranked = if by_affinity { &logits } else { &chosen };
    let mut indices = Vec::new();
    for row in ranked.data.chunks_exact(experts) {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        indices.extend(order[..top_k].iter().map(|e| *e as i32));
    }
    let indices = integers(&[tokens, top_k], &indices);
    let kind = ActivationKind::Sigmoid;
    let sigmoid = Operator::from(Activation { kind });
    let scores = evaluate(&sigmoid, std::slice::from_ref(&logits), true, Width::Wide).remove(0);
    let operator = BalanceLoss { sequence: tokens / sequences };
    let loss = evaluate(&operator.into(), &[scores.clone(), indices.clone()], true, Width::Wide);
    let total = loss[0].data.iter().sum::<f64>() * alpha / sequences as f64;
    let want = c.tensor("loss").data[0];
    assert!((total - want).abs() <= 1e-7 * want, "{}: {total:e} where the record has {want:e}", c.name);
    let share = c.tensor("loss_gradient").data[0] * alpha / sequences as f64;
    let dloss = floats(&[sequences], &vec![share; sequences]);
    let operator = BalanceLossGradient { sequence: tokens / sequences };
    let dscores = evaluate(&operator.into(), &[scores, indices, dloss], true, Width::Wide).remove(0);
    c.judge(ActivationGradient { kind }, &[logits, dscores], &[Some(c.tensor("logits_gradient"))]);
}

/// Step by step from the record's own state.
fn adamw(c: &Case) {
    let operator = Adamw {
        beta1: c.number("beta1"),
        beta2: c.number("beta2"),
        epsilon: c.number("epsilon"),
        weight_decay: c.number("weight_decay"),
        digests: false,
    };
    let initial = c.tensor("initial");
    let size = initial.data.len();
    let [gradients, weights, m, v] =
        ["gradients", "parameters", "first_moments", "second_moments"].map(|x| c.tensor(x));
    let rates = c.attribute("learning_rates").as_array().unwrap();
    let row = |x: &Tensor, step: usize| floats(&initial.sizes, &x.data[step * size..][..size]);
    for (step, rate) in rates.iter().enumerate() {
        let before = match step {
            0 => [
                initial.clone(),
                floats(&initial.sizes, &vec![0.0; size]),
                floats(&initial.sizes, &vec![0.0; size]),
            ],
            _ => [row(&weights, step - 1), row(&m, step - 1), row(&v, step - 1)],
        };
        let correction = |beta: f64| 1.0 - beta.powi(step as i32 + 1);
        let rates = [rate.as_f64().unwrap(), correction(operator.beta1), correction(operator.beta2)];
        let [weight, before_m, before_v] = before;
        let one = floats(&[1], &[1.0]);
        let rates = Tensor::rounded(DType::F32, &[3], rates);
        let operands = [weight, row(&gradients, step), before_m, before_v, one, rates];
        let wanted = [row(&weights, step), row(&m, step), row(&v, step)].map(Some);
        c.judge(operator.clone(), &operands, &wanted);
    }
}

fn clip(c: &Case) {
    let gradients = [0, 1, 2].map(|i| c.tensor(&format!("gradient.{i}")));
    let operator = GlobalNorm { clip: c.number("clip_norm") };
    let factor = c.judge(operator, &gradients, &[Some(c.tensor("norm"))]).remove(1);
    for (i, gradient) in gradients.into_iter().enumerate() {
        let want = c.tensor(&format!("clipped.{i}"));
        let operator = Multiply { output: DType::F32 };
        let repeated = floats(&gradient.sizes, &vec![factor.data[0]; gradient.data.len()]);
        let got = evaluate(&operator.into(), &[gradient, repeated], true, Width::Native).remove(0);
        // Both factors are f32 results of a sum of 20 squares, a root, a sum and a quotient.
        for (got, want) in got.data.iter().zip(&want.data) {
            assert!(
                (got - want).abs() <= 26.0 * 2f64.powi(-24) * want.abs(),
                "{}: {got:e}, {want:e}",
                c.name
            );
        }
    }
}

#[test]
fn every_record_is_met() {
    let record = Record::read();
    assert!(record.attributes.len() >= 45, "{} cases", record.attributes.len());
    for name in record.attributes.keys() {
        let case = Case { record: &record, name };
        match name.split('.').next().unwrap() {
            "rms_norm" => rms_norm(&case),
            "swiglu" => swiglu(&case),
            "activation" => activation(&case),
            "attention" => attention(&case),
            "rope" => rope(&case),
            "rope_frequencies" => rope_frequencies(&case),
            "linear_cross_entropy" => linear_cross_entropy(&case),
            "softmax" => softmax(&case),
            "product" => product(&case),
            "grouped_product" => grouped_product(&case),
            "gather" => gather(&case),
            "router" => router(&case),
            "balance" => balance(&case),
            "adamw" => adamw(&case),
            "clip" => clip(&case),
            other => panic!("the record has `{other}`, which nothing here reads"),
        }
    }
}
