//! Attention and mixture-of-experts blocks as models build them: operators that make sense only together.

use super::draft::Draft;
use super::emit::{router_attributes, scoring};
use toprope_program::constant::{Content, Rope as RopeTable};
use toprope_program::operator::*;
use toprope_program::{BuildError, DType, Dim, Initial, Operand, Type, ValueId, View};

/// What a mixture-of-experts block leaves for the update range.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// The selection bias, a state.
    pub bias: ValueId,
    /// How often each expert was chosen, carried.
    pub counts: ValueId,
}

fn plain(rows: Dim, columns: usize) -> [Dim; 2] {
    [rows, columns.into()]
}

/// A product with a weight that lies transposed, as checkpoints hold it.
fn linear(
    d: &mut Draft,
    name: &str,
    x: Operand,
    k: usize,
    n: usize,
    output: DType,
) -> Result<ValueId, BuildError> {
    let stored = d.weight(name, DType::F32, &[n.into(), k.into()]);
    let weight = d.builder.seen(stored, |view| view.transpose(0, 1))?;
    Ok(d.add(name, Matmul { output, row_sums: false }, vec![x, weight])?[0])
}

/// Projections, rotary embedding and attention over documents, back into the residual stream.
pub fn attention_block(d: &mut Draft) -> Result<ValueId, BuildError> {
    d.builder.set_part("attention");
    let (rows, columns, dtype) = (d.rows(), d.size() + 1, d.float_dtype());
    let x = d.float("x", dtype, &plain(rows, columns));
    let weight = d.weight("norm", DType::F32, &[columns.into()]);
    let n = d.add("normed", RmsNorm { epsilon: 1e-6 }, vec![x.clone(), weight])?;
    d.forget(n[1]);
    let n = n[0];
    let (key_heads, group, half, value) =
        (1 + d.random.below(2), 1 + d.random.below(3), 1 + d.random.below(4), 1 + d.random.below(6));
    let (heads, head) = (key_heads * group, 2 * half + d.random.below(3));
    let start = head - 2 * half;
    let content = Content::Rope(RopeTable { base: 10000.0, stretch: None });
    let table = d.builder.constant("rope", Type::new(DType::F32, [16, 2, half]), content);
    let positions = d.integers("positions", &[rows]);
    let interleaved = d.random.chance(0.5);
    let mut rotated = Vec::new();
    for (name, count) in [("q", heads), ("k", key_heads)] {
        let projected = linear(d, name, n.into(), columns, count * head, dtype)?;
        let split = d.builder.seen(projected, |view| view.split(1, count, head))?;
        let operator = Rope { start, interleaved, inverse: false };
        rotated.push(d.add(name, operator, vec![split, positions.clone(), table.into()])?[0]);
    }
    let v = linear(d, "v", n.into(), columns, key_heads * value, dtype)?;
    let v = d.builder.seen(v, |view| view.split(1, key_heads, value))?;
    let segment_start = d.integers("segment_start", &[rows]);
    let scale = 1.0 / (head as f64).sqrt();
    let operands = vec![rotated[0].into(), rotated[1].into(), v, segment_start];
    let out = d.add("attended", Attention { scale }, operands)?;
    d.forget(out[1]);
    let flat = View::dense(&plain(rows, heads * value));
    let flat = Operand { value: out[0], view: flat };
    let back = linear(d, "o", flat, heads * value, columns, dtype)?;
    let sum = d.add("residual", Add { output: dtype }, vec![x, back.into()])?[0];
    d.builder.set_part("");
    Ok(sum)
}

/// Routing, experts and their combination, with the balance term; gives the result and what the update needs.
pub fn experts_block(d: &mut Draft) -> Result<(ValueId, ValueId, Experts), BuildError> {
    d.builder.set_part("experts");
    let sequence = 1 + d.random.below(4);
    let (rows, columns, dtype) = (d.rows_of(sequence), d.size() + 1, d.float_dtype());
    let x = d.float("x", dtype, &plain(rows, columns));
    let (router, experts) = router_attributes(d);
    let router = Router { scoring: scoring(d), ..router };
    let logits = linear(d, "router", x.clone(), columns, experts, DType::F32)?;
    let bias = d.builder.state("bias", Type::new(DType::F32, [experts]), Initial::Zeros);
    let routed = d.add("routed", router, vec![logits.into(), bias.into()])?;
    d.forget(routed[0]);
    d.forget(routed[2]);
    let sorted = d.add("sorted", ExpertSort { experts }, vec![routed[1].into()])?;
    let token_rows = d.add("rows", Gather { output: dtype }, vec![x.clone(), sorted[0].into()])?[0];
    let hidden = 1 + d.random.below(8);
    let up = d.weight("up", DType::F32, &[experts.into(), columns.into(), (2 * hidden).into()]);
    let operator = GroupedMatmul { output: dtype, row_sums: false };
    let gated = d.add("gated", operator.clone(), vec![token_rows.into(), up, sorted[2].into()])?[0];
    let active = d.add("active", Swiglu {}, vec![gated.into()])?[0];
    let stored = d.weight("down", DType::F32, &[experts.into(), columns.into(), hidden.into()]);
    let down = d.builder.seen(stored, |view| view.transpose(1, 2))?;
    let y = d.add("y", operator, vec![active.into(), down, sorted[2].into()])?[0];
    let combined = d.add("combined", Combine {}, vec![y.into(), sorted[1].into(), routed[2].into()])?[0];
    let sum = d.add("residual", Add { output: dtype }, vec![x, combined.into()])?[0];
    let balance = d.add("balance", BalanceLoss { sequence }, vec![routed[0].into(), routed[1].into()])?[0];
    let counts = d.builder.accumulate("counts", routed[3])?;
    d.builder.set_part("");
    Ok((sum, balance, Experts { bias, counts }))
}
