//! Adds any operator of the contract to a draft, with shapes, dtypes, attributes and operands of its own choice. The match
//! has no wildcard arm: a new operator does not compile until it is here.

use super::draft::Draft;
use toprope_program::constant::{Content, Rope as RopeTable, Stretch, Yarn};
use toprope_program::operator::*;
use toprope_program::{BuildError, DType, Dim, Operand, Role, Shape, Type, ValueId, View};

type Outcome = Result<Vec<ValueId>, BuildError>;

/// Adds one operator of this kind; its attributes are drawn anew. Gradients that need their forward's results come with it.
pub fn emit(d: &mut Draft, operator: &Operator) -> Outcome {
    match operator {
        Operator::Cast(_) => {
            let x = any_float(d, "x");
            let output = d.float_dtype();
            d.add("cast", Cast { output }, vec![x])
        }
        Operator::Add(_) => {
            let (a, b, output) = two_floats(d);
            d.add("add", Add { output }, vec![a, b])
        }
        Operator::Multiply(_) => {
            let (a, b, output) = two_floats(d);
            d.add("multiply", Multiply { output }, vec![a, b])
        }
        Operator::Scale(_) => {
            let x = any_float(d, "x");
            let factor = d.random.pick(&[0.5, -1.0, 0.1, 3.0, 1e-3, 0.0, 1.0 / 3.0]);
            d.add("scale", Scale { factor }, vec![x])
        }
        Operator::Activation(_) => {
            let x = any_float(d, "x");
            let kind = d.random.pick(&ActivationKind::ALL);
            d.add("activation", Activation { kind }, vec![x])
        }
        Operator::ActivationGradient(_) => {
            let kind = d.random.pick(&ActivationKind::ALL);
            let x = any_float(d, "x");
            let shape = d.builder.operand_type(&x).shape;
            let dtype = d.float_dtype();
            let dy = d.float("dy", dtype, &shape);
            d.add("dactivation", ActivationGradient { kind }, vec![x, dy])
        }
        Operator::Swiglu(_) => {
            let (rows, half, dtype) = (d.rows(), d.size(), d.float_dtype());
            let x = d.float("x", dtype, &[rows, (2 * half).into()]);
            d.add("swiglu", Swiglu {}, vec![x])
        }
        Operator::SwigluGradient(_) => {
            let (rows, half, dtype) = (d.rows(), d.size(), d.float_dtype());
            let x = d.float("x", dtype, &[rows, (2 * half).into()]);
            let dtype = d.float_dtype();
            let dy = d.float("dy", dtype, &[rows, half.into()]);
            d.add("dswiglu", SwigluGradient {}, vec![x, dy])
        }
        Operator::Assemble(_) => assemble(d),
        Operator::Gather(_) => {
            let (v, columns, rows, dtype, output) =
                (d.size(), d.size(), d.rows(), d.float_dtype(), d.float_dtype());
            let table = d.weight("table", dtype, &[v.into(), columns.into()]);
            let indices = d.integers("indices", &[rows]);
            d.add("gather", Gather { output }, vec![table, indices])
        }
        Operator::ScatterAdd(_) => {
            let (rows, columns, dtype, output) = (d.rows(), d.size(), d.float_dtype(), d.float_dtype());
            let x = d.float("x", dtype, &[rows, columns.into()]);
            let indices = d.integers("indices", &[rows]);
            // Few rows make many collisions.
            let table = if d.random.chance(0.5) { 1 + d.random.below(3) } else { d.size() };
            d.add("scatter", ScatterAdd { output, rows: table.into() }, vec![x, indices])
        }
        Operator::ColumnSum(_) => {
            let (rows, columns, dtype, output) = (d.rows(), d.size(), d.float_dtype(), d.float_dtype());
            let x = d.float("x", dtype, &[rows, columns.into()]);
            d.add("columns", ColumnSum { output }, vec![x])
        }
        Operator::Dot(_) => {
            let rows = d.rows();
            let a = d.float("a", DType::F32, &[rows]);
            let b = d.float("b", DType::F32, &[rows]);
            d.add("dot", Dot {}, vec![a, b])
        }
        Operator::Matmul(_) => matmul(d),
        Operator::GroupedMatmul(_) => {
            let (rows, experts, k, n) = (d.rows(), 1 + d.random.below(5), d.size(), d.size());
            let (left, right, output) = (d.float_dtype(), d.float_dtype(), d.float_dtype());
            let a = d.float("a", left, &[rows, k.into()]);
            let b = transposable(d, "b", right, &[experts.into(), k.into(), n.into()]);
            let offsets = d.integers("offsets", &[(experts + 1).into()]);
            let row_sums = d.random.chance(0.3);
            d.add("grouped", GroupedMatmul { output, row_sums }, vec![a, b, offsets])
        }
        Operator::GroupedOuter(_) => {
            let (rows, experts, k, n) = (d.rows(), 1 + d.random.below(5), d.size(), d.size());
            let (left, right, output) = (d.float_dtype(), d.float_dtype(), d.float_dtype());
            let a = d.float("a", left, &[rows, k.into()]);
            let b = d.float("b", right, &[rows, n.into()]);
            let offsets = d.integers("offsets", &[(experts + 1).into()]);
            let row_sums = d.random.chance(0.2);
            d.add("outer", GroupedOuter { output, row_sums }, vec![a, b, offsets])
        }
        Operator::Attention(_) => attention(d, true).map(|attention| attention.1),
        Operator::AttentionGradient(_) => attention_gradient(d),
        Operator::RmsNorm(_) => {
            let (x, weight) = norm_operands(d);
            let epsilon = d.random.pick(&[1e-6, 1e-5, 1e-3]);
            d.add("norm", RmsNorm { epsilon }, vec![x, weight])
        }
        Operator::RmsNormGradient(_) => {
            // A device may take the forward operator's results for what they are, and run it again.
            let (x, weight) = norm_operands(d);
            let shape = d.builder.operand_type(&x).shape;
            let epsilon = d.random.pick(&[1e-6, 1e-5, 1e-3]);
            let rstd = d.add("norm", RmsNorm { epsilon }, vec![x.clone(), weight.clone()])?[1].into();
            let (dtype, weight_output) = (d.float_dtype(), d.float_dtype());
            let dy = d.float("dy", dtype, &shape);
            d.add("dnorm", RmsNormGradient { weight_output }, vec![x, weight, rstd, dy])
        }
        Operator::Rope(_) => rope(d),
        Operator::LinearCrossEntropy(_) => {
            let operands = head(d);
            d.add("loss", LinearCrossEntropy {}, operands)
        }
        Operator::LinearCrossEntropyGradient(_) => {
            let mut operands = head(d);
            let rows = d.builder.operand_type(&operands[0]).shape[0];
            operands.push(d.float("dloss", DType::F32, &[rows]));
            let weight_output = d.float_dtype();
            d.add("dloss", LinearCrossEntropyGradient { weight_output, sums: false }, operands)
        }
        Operator::Router(_) => {
            let rows = d.rows();
            let (attributes, experts) = router_attributes(d);
            let logits = d.float("logits", DType::F32, &[rows, experts.into()]);
            let bias = d.dense("bias", DType::F32, &[experts.into()]);
            d.add("router", attributes, vec![logits, bias])
        }
        Operator::RouterGradient(_) => {
            let rows = d.rows();
            let (attributes, experts) = router_attributes(d);
            let Router { scoring, normalize, scale, top_k, .. } = attributes;
            let logits = d.float("logits", DType::F32, &[rows, experts.into()]);
            let bias = d.dense("bias", DType::F32, &[experts.into()]);
            let outputs = d.add("router", attributes, vec![logits, bias])?;
            let [scores, indices, weights] = [0, 1, 2].map(|at| Operand::from(outputs[at]));
            let dweights = d.float("dweights", DType::F32, &[rows, top_k.into()]);
            let mut operands = vec![scores, indices, weights, dweights];
            if d.random.chance(0.5) {
                operands.push(d.float("dscores", DType::F32, &[rows, experts.into()]));
            }
            d.add("drouter", RouterGradient { scoring, normalize, scale }, operands)
        }
        Operator::BalanceLoss(_) => {
            let (operands, sequence) = balance_operands(d);
            d.add("balance", BalanceLoss { sequence }, operands)
        }
        Operator::BalanceLossGradient(_) => {
            let (mut operands, sequence) = balance_operands(d);
            let rows = d.builder.operand_type(&operands[0]).shape[0];
            let count = rows.divided(sequence).unwrap_or(rows);
            operands.push(d.float("dloss", DType::F32, &[count]));
            d.add("dbalance", BalanceLossGradient { sequence }, operands)
        }
        Operator::ExpertSort(_) => {
            let (rows, experts, k) = (d.rows(), 1 + d.random.below(9), 1 + d.random.below(4));
            let indices = d.integers("indices", &[rows, k.into()]);
            d.add("sort", ExpertSort { experts }, vec![indices])
        }
        Operator::Combine(_) => {
            let operands = combine_operands(d);
            d.add("combine", Combine {}, operands)
        }
        Operator::CombineGradient(_) => {
            let mut operands = combine_operands(d);
            let columns = d.builder.operand_type(&operands[0]).shape[1];
            let rows = d.builder.operand_type(&operands[1]).shape[0];
            let dtype = d.float_dtype();
            operands.push(d.float("dout", dtype, &[rows, columns]));
            d.add("dcombine", CombineGradient {}, operands)
        }
        Operator::GlobalNorm(_) => {
            let count = 1 + d.random.below(3);
            let mut operands = Vec::new();
            for _ in 0..count {
                let shape = d.shape();
                operands.push(d.float("gradient", DType::F32, &shape));
            }
            let clip = d.random.pick(&[0.0, 1.0, 1e4, 1e-3]);
            d.add("global_norm", GlobalNorm { clip }, operands)
        }
        Operator::Adamw(_) | Operator::AdamwDigest(_) => {
            let shape = d.shape();
            let mut operands: Vec<Operand> = ["weight", "gradient", "m", "v"]
                .into_iter()
                .map(|name| d.dense(name, DType::F32, &shape))
                .collect();
            operands.push(d.dense("factor", DType::F32, &[1.into()]));
            operands.push(d.dense("rates", DType::F32, &[3.into()]));
            let attributes = adamw_attributes(d);
            match operator {
                Operator::AdamwDigest(_) => d.add("digest", AdamwDigest::from(&attributes), operands),
                _ => d.add("adamw", attributes, operands),
            }
        }
        Operator::BiasUpdate(_) => {
            let experts = Dim::from(1 + d.random.below(17));
            let bias = d.dense("bias", DType::F32, &[experts]);
            let counts = d.integers("counts", &[experts]);
            d.add("bias", BiasUpdate { rate: 0.001 }, vec![bias, counts])
        }
        Operator::Increment(_) => {
            let x = d.integers("counter", &[1.into()]);
            let by = d.random.pick(&[1, -1, i32::MAX]);
            d.add("increment", Increment { by }, vec![x])
        }
        Operator::Accumulate(_) => {
            // A carried value has no symbolic dimension.
            let shape: Shape = d.shape().iter().map(|dim| dim.factor.into()).collect();
            let float = d.random.chance(0.7);
            let x = if float { d.float("x", DType::F32, &shape) } else { d.integers("x", &shape) };
            d.builder.accumulate("sum", x).map(|id| vec![id])
        }
        Operator::RandomBits(_) => {
            let shape = d.shape();
            let key = d.builder.input("key", DType::U32, [2]).into();
            let counter = d.builder.input("counter", DType::U32, [1]).into();
            let stream = d.random.below(5) as u32;
            d.add("bits", RandomBits { stream, shape }, vec![key, counter])
        }
        Operator::Append(_) => append(d),
        Operator::Digest(_) => {
            let (shape, dtype) = (d.shape(), d.random.pick(&DType::ALL));
            let x = if dtype.is_float() {
                d.float("x", dtype, &shape)
            } else {
                d.builder.input("x", dtype, shape).into()
            };
            d.add("digest", Digest {}, vec![x])
        }
        Operator::ProductCheck(_) => product_check(d),
        Operator::Compare(_) => compare(d),
        Operator::AttentionCheck(_) => attention_check(d),
        Operator::LossCheck(_) => loss_check(d),
        Operator::Verify(_) => verify(d),
    }
}

fn any_float(d: &mut Draft, name: &str) -> Operand {
    let (shape, dtype) = match d.earlier_type() {
        Some(r#type) => (r#type.shape, r#type.dtype),
        None => (d.shape(), d.float_dtype()),
    };
    d.float(name, dtype, &shape)
}

fn two_floats(d: &mut Draft) -> (Operand, Operand, DType) {
    let a = any_float(d, "a");
    let (shape, dtype) = (d.builder.operand_type(&a).shape, d.float_dtype());
    let b = d.float("b", dtype, &shape);
    (a, b, d.float_dtype())
}

/// A weight that lies in memory as it is read, or the other way round in its last two axes.
fn transposable(d: &mut Draft, name: &str, dtype: DType, shape: &[Dim]) -> Operand {
    let last = shape.len() - 1;
    if d.random.chance(0.5) {
        let mut stored = shape.to_vec();
        stored.swap(last, last - 1);
        let operand = d.weight(name, dtype, &stored);
        if let Ok(view) = d.builder.view(operand.clone()) {
            return Operand { value: operand.value, view: Some(view.transpose(last, last - 1)) };
        }
    }
    d.weight(name, dtype, shape)
}

fn matmul(d: &mut Draft) -> Outcome {
    let (left, right, output) = (d.float_dtype(), d.float_dtype(), d.float_dtype());
    let (rows, k) = match d.earlier_type() {
        Some(Type { shape, .. }) if shape.len() == 2 => (shape[0], shape[1]),
        _ => (d.rows(), d.size().into()),
    };
    let n = d.size();
    let a = d.float("a", left, &[rows, k]);
    let b = transposable(d, "b", right, &[k, n.into()]);
    let mut operands = vec![a, b];
    if d.random.chance(0.3) {
        let dtype = d.float_dtype();
        operands.push(d.weight("bias", dtype, &[n.into()]));
    }
    let row_sums = d.random.chance(0.2);
    d.add("product", Matmul { output, row_sums }, operands)
}

fn product_check(d: &mut Draft) -> Outcome {
    let (left, right, output) = (d.float_dtype(), d.float_dtype(), d.float_dtype());
    let (rows, k, n) = (d.rows(), d.size(), d.size());
    let experts = 1 + d.random.below(4);
    let a = d.float("a", left, &[rows, k.into()]);
    let (form, b, product): (_, _, Operator) = match d.random.below(3) {
        0 => {
            let b = transposable(d, "b", right, &[k.into(), n.into()]);
            (ProductForm::Matmul, b, Matmul { output, row_sums: true }.into())
        }
        1 => {
            let b = transposable(d, "b", right, &[experts.into(), k.into(), n.into()]);
            (ProductForm::GroupedMatmul, b, GroupedMatmul { output, row_sums: true }.into())
        }
        _ => {
            let b = d.float("b", right, &[rows, n.into()]);
            (ProductForm::GroupedOuter, b, GroupedOuter { output, row_sums: true }.into())
        }
    };
    let mut operands = vec![a.clone(), b.clone()];
    let mut offsets = Vec::new();
    if form != ProductForm::Matmul {
        offsets.push(Operand::from(d.builder.input("offsets", DType::I32, [experts + 1])));
        operands.extend(offsets.iter().cloned());
    }
    let product = d.add("product", product, operands)?;
    // Now and then the row sums are somebody else's, and the check must say so.
    let row_sums = if d.random.chance(0.3) {
        let shape = d.builder.operand_type(&product[1].into()).shape;
        d.dense("row_sums", DType::F32, &shape)
    } else {
        product[1].into()
    };
    let mut operands = vec![a, b, row_sums];
    operands.extend(offsets);
    if d.random.chance(0.5) {
        return d.add("check", ProductCheck { form }, operands);
    }
    // As the pass over a program puts it in: fired by a bit of the mask.
    let worst = d.builder.declare("check.worst", Type::new(DType::F32, [1]), Role::Output);
    d.add_check(ProductCheck { form }, operands, worst)?;
    Ok(vec![worst])
}

fn compare(d: &mut Draft) -> Outcome {
    let (shape, dtype) = (d.shape(), d.float_dtype());
    let x = d.float("x", dtype, &shape);
    // A value against itself, or against another, which nearly always differs.
    let other = if d.random.chance(0.5) { x.clone() } else { d.float("other", dtype, &shape) };
    d.add("differing", Compare {}, vec![x, other])
}

fn assemble(d: &mut Draft) -> Outcome {
    let output = d.float_dtype();
    let (rows, columns) = (d.rows(), d.size() + 2);
    let shape: Shape = vec![rows, columns.into()];
    let Some(whole) = View::dense(&shape) else { return Ok(Vec::new()) };
    let mut views: Vec<View> = Vec::new();
    match d.random.below(4) {
        // Side by side, perhaps with a gap between.
        0 => {
            let cut = 1 + d.random.below(columns - 1);
            views.push(whole.clone().narrow(1, 0, cut));
            if cut + 1 < columns {
                views.push(whole.narrow(1, cut + 1, columns - cut - 1));
            }
        }
        // Overlapping windows.
        1 => {
            views.push(whole.clone());
            views.push(whole.clone().narrow(1, 1, columns - 1));
            views.push(whole.narrow(1, 0, columns - 1));
        }
        // Everything of a row into one place: the gradient of a repeated column.
        2 => {
            let count = d.size();
            views.push(whole.clone().narrow(1, 1, 1).drop_axis(1).repeat(1, count.into()));
            views.push(whole);
        }
        // Transposed.
        _ => views.push(match rows.constant() {
            Some(_) => whole.transpose(0, 1),
            None => whole,
        }),
    }
    let mut parts = Vec::new();
    for view in &views {
        let dtype = d.float_dtype();
        parts.push(d.float("part", dtype, &view.shape.clone()));
    }
    d.add("assemble", Assemble { output, shape, views }, parts)
}

/// Attention's operands and outputs: `[q, k, v, segment_start, …]`, `[out, lse]`.
fn attention(d: &mut Draft, extras: bool) -> Result<(Vec<Operand>, Vec<ValueId>, f64), BuildError> {
    let dtype = d.float_dtype();
    let extras = extras && d.random.chance(0.4);
    let queries = if extras { Dim::from(1 + d.random.below(9)) } else { d.rows() };
    let keys = if extras { Dim::from(queries.factor + d.random.below(20)) } else { queries };
    let (key_heads, group) = (1 + d.random.below(3), 1 + d.random.below(3));
    let (head, value) = (1 + d.random.below(20), 1 + d.random.below(20));
    let q = d.float("q", dtype, &[queries, (key_heads * group).into(), head.into()]);
    let k = d.float("k", dtype, &[keys, key_heads.into(), head.into()]);
    let v = d.float("v", dtype, &[keys, key_heads.into(), value.into()]);
    let segment_start = d.integers("segment_start", &[queries]);
    let mut operands = vec![q, k, v, segment_start];
    if extras {
        operands.push(d.integers("query_offset", &[1.into()]));
        if d.random.chance(0.6) {
            operands.push(d.integers("cache_length", &[1.into()]));
        }
    }
    let scale = 1.0 / (head as f64).sqrt();
    let outputs = d.add("attention", Attention { scale }, operands.clone())?;
    Ok((operands, outputs, scale))
}

fn attention_gradient(d: &mut Draft) -> Outcome {
    let (forward, outputs, scale) = attention(d, false)?;
    let shape = d.builder.program().value(outputs[0]).shape.clone();
    let dtype = d.float_dtype();
    let dout = d.float("dout", dtype, &shape);
    let [q, k, v, segment_start] = [0, 1, 2, 3].map(|at| forward[at].clone());
    let sums = d.random.chance(0.3);
    let mut lse: Operand = outputs[1].into();
    if sums && d.random.chance(0.5) {
        // With a larger log-sum-exp the sums are below 1.
        let shape = d.builder.program().value(outputs[1]).shape.clone();
        let more = d.dense("more", DType::F32, &shape);
        let more = d.add("more", Activation { kind: ActivationKind::Relu }, vec![more])?[0].into();
        lse = d.add("larger", Add { output: DType::F32 }, vec![lse, more])?[0].into();
    }
    let operands = vec![q, k, v, outputs[0].into(), lse, dout, segment_start];
    d.add("dattention", AttentionGradient { scale, sums }, operands)
}

fn attention_check(d: &mut Draft) -> Outcome {
    let (forward, outputs, scale) = attention(d, false)?;
    let (shape, dtype) = {
        let out = d.builder.program().value(outputs[0]);
        (out.shape.clone(), out.dtype)
    };
    let dout = d.float("dout", dtype, &shape);
    let [q, k, v, segment_start] = [0, 1, 2, 3].map(|at| forward[at].clone());
    let [out, lse] = [0, 1].map(|at| Operand::from(outputs[at]));
    let operands =
        vec![q.clone(), k.clone(), v.clone(), out.clone(), lse, dout.clone(), segment_start.clone()];
    let mut gradients = d.add("dattention", AttentionGradient { scale, sums: true }, operands)?;
    let sums = gradients.pop().map(Operand::from);
    let mut operands = vec![q, k, v, out, dout];
    operands.extend(gradients.iter().map(|id| Operand::from(*id)));
    // Now and then one of the gradients is somebody else's, and the check must say so.
    if d.random.chance(0.3) {
        let at = 5 + d.random.below(3);
        let r#type = d.builder.operand_type(&operands[at]);
        operands[at] = d.dense("other", r#type.dtype, &r#type.shape);
    }
    operands.push(segment_start);
    operands.extend(sums);
    d.add("check", AttentionCheck { scale }, operands)
}

fn loss_check(d: &mut Draft) -> Outcome {
    let (rows, columns, words) = (d.rows(), d.size(), 2 + d.size());
    let (left, right, weight_output) = (d.float_dtype(), d.float_dtype(), d.float_dtype());
    let x = d.float("x", left, &[rows, columns.into()]);
    let weight = d.weight("weight", right, &[words.into(), columns.into()]);
    let targets = d.integers("targets", &[rows]);
    let dloss = d.dense("dloss", DType::F32, &[rows]);
    let operator = LinearCrossEntropyGradient { weight_output, sums: true };
    let outputs = d.add("dloss", operator, vec![x, weight, targets, dloss])?;
    // Now and then the loss is somebody else's, and the check must say so.
    let loss = if d.random.chance(0.3) { d.dense("loss", DType::F32, &[rows]) } else { outputs[0].into() };
    d.add("check", LossCheck {}, vec![loss, outputs[3].into(), outputs[4].into()])
}

/// Operators that can be verified, each as its own emission draws it.
fn verify(d: &mut Draft) -> Outcome {
    let output = DType::F32;
    let of: Vec<Operator> = vec![
        RmsNorm { epsilon: 1e-6 }.into(),
        RmsNormGradient { weight_output: output }.into(),
        Router {
            scoring: Scoring::Sigmoid,
            top_k: 1,
            groups: 1,
            top_groups: 1,
            normalize: false,
            scale: 1.0,
        }
        .into(),
        RouterGradient { scoring: Scoring::Sigmoid, normalize: false, scale: 1.0 }.into(),
        BalanceLoss { sequence: 1 }.into(),
        BalanceLossGradient { sequence: 1 }.into(),
        ExpertSort { experts: 1 }.into(),
        ColumnSum { output }.into(),
        Dot {}.into(),
        GlobalNorm { clip: 1.0 }.into(),
        BiasUpdate { rate: 0.001 }.into(),
        Increment { by: 1 }.into(),
    ];
    let kind = of[d.random.below(of.len())].clone();
    let made = emit(d, &kind)?;
    let program = d.builder.program();
    let mut all = program.accumulate.iter().chain(&program.update);
    let Some(instruction) = all.find(|i| i.outputs == made).cloned() else { return Ok(Vec::new()) };
    let Some(operator) = Verify::new(&instruction.operator) else { return Ok(Vec::new()) };
    let mut operands = instruction.operands.clone();
    operands.extend(instruction.outputs.iter().map(|id| Operand::from(*id)));
    // Now and then a result is somebody else's, and the check must say so.
    if d.random.chance(0.4) {
        let at = instruction.operands.len() + d.random.below(instruction.outputs.len());
        let r#type = d.builder.operand_type(&operands[at]);
        operands[at] = match r#type.dtype.is_float() {
            true => d.dense("other", r#type.dtype, &r#type.shape),
            false => d.integers("other", &r#type.shape),
        };
    }
    d.add("check", operator, operands)
}

fn norm_operands(d: &mut Draft) -> (Operand, Operand) {
    let (mut shape, dtype) = match d.earlier_type() {
        Some(Type { shape, dtype }) if (2..=3).contains(&shape.len()) => (shape, dtype),
        _ => (vec![d.rows(), d.size().into()], d.float_dtype()),
    };
    if shape.len() == 2 && d.random.chance(0.2) {
        shape.insert(1, (1 + d.random.below(3)).into());
    }
    let x = d.float("x", dtype, &shape);
    let dtype = d.float_dtype();
    let weight = d.weight("weight", dtype, &shape[shape.len() - 1..]);
    (x, weight)
}

fn rope(d: &mut Draft) -> Outcome {
    let (rows, heads, half, start) =
        (d.rows(), 1 + d.random.below(3), 1 + d.random.below(17), d.random.below(4));
    let positions_max = 1 + d.random.below(40);
    let yarn = Yarn {
        factor: 4.0,
        original_positions: 16.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: 1.0,
        mscale_all_dim: 0.5,
        magnitude: None,
        truncate: true,
    };
    let stretch = d.random.chance(0.3).then_some(Stretch::Yarn(yarn));
    let content = Content::Rope(RopeTable { base: 10000.0, stretch });
    let table = d.builder.constant("table", Type::new(DType::F32, [positions_max, 2, half]), content);
    let dtype = d.float_dtype();
    let x = d.float("x", dtype, &[rows, heads.into(), (start + 2 * half).into()]);
    let positions = d.integers("positions", &[rows]);
    let interleaved = d.random.chance(0.5);
    let inverse = d.random.chance(0.3);
    d.add("rope", Rope { start, interleaved, inverse }, vec![x, positions, table.into()])
}

fn head(d: &mut Draft) -> Vec<Operand> {
    let (rows, columns, vocabulary) = (d.rows(), d.size(), d.size() + 1);
    let (left, right) = (d.float_dtype(), d.float_dtype());
    let x = d.float("x", left, &[rows, columns.into()]);
    let weight = d.weight("head", right, &[vocabulary.into(), columns.into()]);
    let targets = d.integers("targets", &[rows]);
    vec![x, weight, targets]
}

pub(super) fn scoring(d: &mut Draft) -> Scoring {
    d.random.pick(&[Scoring::Sigmoid, Scoring::Softmax])
}

/// Attributes of a router, and its number of experts.
pub(super) fn router_attributes(d: &mut Draft) -> (Router, usize) {
    let groups = d.random.pick(&[1, 1, 2, 4]);
    let size = 1 + d.random.below(6);
    let top_groups = 1 + d.random.below(groups);
    let top_k = 1 + d.random.below((size * top_groups).min(8));
    let (scoring, scale) = (scoring(d), d.random.pick(&[1.0, 2.5]));
    let normalize = d.random.chance(0.5);
    (Router { scoring, top_k, groups, top_groups, normalize, scale }, groups * size)
}

/// Attributes of an optimizer step.
pub(super) fn adamw_attributes(d: &mut Draft) -> Adamw {
    let digests = d.random.chance(0.3);
    let weight_decay = d.random.pick(&[0.0, 0.1]);
    Adamw { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay, digests }
}

fn balance_operands(d: &mut Draft) -> (Vec<Operand>, usize) {
    let sequence = 1 + d.random.below(9);
    let (rows, experts) = (d.rows_of(sequence), 1 + d.random.below(17));
    let k = 1 + d.random.below(experts.min(4));
    let scores = d.dense("scores", DType::F32, &[rows, experts.into()]);
    let indices = d.integers("choices", &[rows, k.into()]);
    (vec![scores, indices], sequence)
}

fn combine_operands(d: &mut Draft) -> Vec<Operand> {
    let (tokens, k, columns, dtype) = (d.rows(), 1 + d.random.below(4), d.size(), d.float_dtype());
    let rows = tokens.times(k).unwrap_or(tokens);
    let y = d.float("y", dtype, &[rows, columns.into()]);
    let slot = d.integers("slot", &[tokens, k.into()]);
    let weights = d.float("weights", DType::F32, &[tokens, k.into()]);
    vec![y, slot, weights]
}

fn append(d: &mut Draft) -> Outcome {
    let (capacity, rows, dtype) = (d.size() + 1, 1 + d.random.below(6), d.float_dtype());
    let mut inner: Shape = vec![d.size().into()];
    if d.random.chance(0.3) {
        inner.insert(0, 2.into());
    }
    let mut shape: Shape = vec![capacity.into()];
    shape.extend(&inner);
    let cache = d.builder.declare("cache", Type { dtype, shape }, Role::Cache);
    let mut shape: Shape = vec![rows.into()];
    shape.extend(inner);
    let new = d.float("rows", dtype, &shape);
    let position = d.integers("position", &[1.into()]);
    d.builder.apply_to(Append {}, vec![cache.into(), new, position], vec![cache])?;
    Ok(vec![cache])
}
