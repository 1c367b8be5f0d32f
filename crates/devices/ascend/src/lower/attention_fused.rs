//! Attention by the vendor's FlashAttentionScore, for bf16: it may round probabilities to bf16 as the contract allows. For
//! f32 the vendor does not say what it accumulates in, so that stays with plain products.

use super::attention::Mask;
use crate::call::{Argument, View};
use crate::emit::{Emit, Lowered, tensor};
use crate::ffi::abi::Element;
use toprope_program::operator::{Attention, AttentionGradient};

/// Columns of a head are padded to a multiple of this.
const COLUMNS: usize = 16;
/// The widest head.
const COLUMNS_MAX: usize = 512;
/// How often the vendor repeats a row's maximum and sum.
const REPEATS: usize = 8;

/// Whether the fused operator serves: it is there, wanted, and exact enough.
pub(super) fn serves(e: &Emit<'_>, x: &[View], names: [&str; 2]) -> bool {
    let bf16 = x.iter().all(|x| x.element == Element::Bf16);
    let width = x.iter().map(View::last).max().unwrap_or(0);
    e.settings.fused && bf16 && width <= COLUMNS_MAX && names.iter().any(|name| e.has(name))
}

/// `[T, H, D]` as `[1, T, H, W]`, padded with zeros.
fn padded(e: &mut Emit<'_>, x: &View, width: usize) -> Lowered<View> {
    if x.last() == width {
        return Ok(e.dense(x)?.unsqueeze(0));
    }
    let wide = e.temporary(x.element, &[x.sizes[0], x.sizes[1], width]);
    e.zero(&wide.narrow(2, x.last(), width - x.last()))?;
    e.copy(&wide.narrow(2, 0, x.last()), x)?;
    Ok(wide.unsqueeze(0))
}

/// Columns that q, k and v have together.
fn width(x: &[View]) -> usize {
    x.iter().map(View::last).max().unwrap_or(1).next_multiple_of(COLUMNS)
}

/// Scale, dropout off, no band, heads, layout, precision, mask as given.
fn options(scale: f64, heads: usize) -> Vec<Argument> {
    let all = Argument::I64(i64::from(i32::MAX));
    vec![
        Argument::F64(scale),
        Argument::F64(1.0),
        all.clone(),
        all,
        Argument::I64(heads as i64),
        Argument::Text(c"BSND"),
        Argument::I64(0),
        Argument::I64(0),
    ]
}

/// `[1, H, T, 8]` as `[T, H]`: one of the repeats.
fn once(x: &View) -> View {
    x.select(3, 0).select(0, 0).permute(&[1, 0])
}

pub(super) fn attention(e: &mut Emit<'_>, it: &Attention, mask: &Mask, x: &[View], y: &[View]) -> Lowered {
    let (rows, heads) = (x[0].sizes[0], x[0].sizes[1]);
    let width = width(&x[..3]);
    let mut arguments = Vec::new();
    for x in &x[..3] {
        arguments.push(tensor(&padded(e, x, width)?));
    }
    arguments.extend(vec![Argument::Absent; 3]);
    arguments.push(tensor(&mask.hidden));
    let newest = e.has("FlashAttentionScoreV2");
    arguments.extend(vec![Argument::Absent; if newest { 3 } else { 1 }]);
    arguments.extend(options(it.scale, heads));
    if newest {
        arguments.push(Argument::I64(1));
    }
    let [top, sum] = [0; 2].map(|_| e.temporary(Element::F32, &[1, heads, rows, REPEATS]));
    let out = e.temporary(Element::Bf16, &[1, rows, heads, width]);
    // Probabilities are not asked for: an empty tensor.
    let none = e.temporary(Element::Bf16, &[0]);
    arguments.extend([tensor(&top), tensor(&sum), tensor(&none), tensor(&out)]);
    e.call(if newest { "FlashAttentionScoreV2" } else { "FlashAttentionScore" }, arguments)?;
    let log = e.unary("Log", &once(&sum))?;
    let lse = e.binary("Add", &once(&top), &log)?;
    e.fill_where(&lse, &mask.blind.unsqueeze(1), f32::NEG_INFINITY)?;
    e.copy(&y[1], &lse)?;
    // A row that sees nothing is the vendor's to fill as it likes.
    let out = out.select(0, 0).narrow(2, 0, x[2].last());
    let nothing = e.temporary(Element::Bf16, &[1]);
    e.zero(&nothing)?;
    e.choose_into(&mask.blind.unsqueeze(1).unsqueeze(2), &nothing, &out, &y[0])
}

/// The gradient from the log-sum-exp: as maximum, with a sum of one.
pub(super) fn attention_gradient(
    e: &mut Emit<'_>,
    it: &AttentionGradient,
    mask: &Mask,
    x: &[View],
    y: &[View],
) -> Lowered {
    let (rows, heads) = (x[0].sizes[0], x[0].sizes[1]);
    let width = width(&x[..3]);
    let nothing = e.constant_f32(0.0);
    let lse = e.choose(&mask.blind.unsqueeze(1), &nothing, &x[4])?;
    let top = e.temporary(Element::F32, &[1, heads, rows, REPEATS]);
    e.copy(&top, &lse.permute(&[1, 0]).unsqueeze(0).unsqueeze(3))?;
    let sum = e.filled(&[1, heads, rows, REPEATS], 1.0)?;
    let mut arguments = Vec::new();
    for x in [&x[0], &x[1], &x[2], &x[5]] {
        arguments.push(tensor(&padded(e, x, width)?));
    }
    arguments.extend(vec![Argument::Absent; 3]);
    arguments.extend([tensor(&mask.hidden), tensor(&top), tensor(&sum), Argument::Absent]);
    arguments.push(tensor(&padded(e, &x[3], width)?));
    let newest = e.has("FlashAttentionScoreGradV2");
    arguments.extend(vec![Argument::Absent; if newest { 3 } else { 1 }]);
    arguments.extend(options(it.scale, heads));
    if newest {
        arguments.push(Argument::I64(1));
    }
    let mut gradients = Vec::new();
    for x in &x[..3] {
        let gradient = e.temporary(Element::Bf16, &[1, x.sizes[0], x.sizes[1], width]);
        arguments.push(tensor(&gradient));
        gradients.push(gradient.select(0, 0).narrow(2, 0, x.last()));
    }
    arguments.push(Argument::Absent);
    e.call(if newest { "FlashAttentionScoreGradV2" } else { "FlashAttentionScoreGrad" }, arguments)?;
    for (y, gradient) in y.iter().zip(&gradients) {
        e.copy(y, gradient)?;
    }
    Ok(())
}
