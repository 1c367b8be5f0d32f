//! Attention and its gradient: two products around a softmax in f32, over as many key heads at a time as fit. The mask is
//! made on the device from where documents start.

use super::attention_fused as fused;
use crate::call::View;
use crate::emit::{CHUNK_ELEMENTS, Emit, Lowered};
use crate::ffi::abi::Element;
use toprope_program::operator::{Attention, AttentionGradient};

/// Which row sees which key.
pub(super) struct Mask {
    /// `[T, S]`: the key is hidden from the row.
    pub(super) hidden: View,
    /// `[T]`: the row sees no key.
    pub(super) blind: View,
}

/// `segment_start[i] ≤ j ≤ i + query_offset` and `j < cache_length`.
pub(super) fn mask(
    e: &mut Emit<'_>,
    keys: usize,
    segment_start: &View,
    query_offset: Option<&View>,
    cache_length: Option<&View>,
) -> Lowered<Mask> {
    let rows = segment_start.sizes[0];
    let key = e.ramp(keys).unsqueeze(0);
    let begun = e.compare("GeTensor", &key, &segment_start.unsqueeze(1))?;
    let mut end = e.constant_i32((0..rows).map(|row| row as i32 + 1));
    if let Some(offset) = query_offset {
        end = e.binary("Add", &end, offset)?;
    }
    if let Some(length) = cache_length {
        end = e.binary("Minimum", &end, length)?;
    }
    let before_end = e.compare("LtTensor", &key, &end.unsqueeze(1))?;
    let seen = e.temporary(Element::Bool, &[rows, keys]);
    e.binary_into("LogicalAnd", &begun, &before_end, &seen)?;
    let hidden = e.unary("LogicalNot", &seen)?;
    let any = e.temporary(Element::Bool, &[rows]);
    let arguments = vec![
        crate::emit::tensor(&seen),
        crate::call::Argument::Ints(vec![1]),
        crate::call::Argument::Bool(false),
        crate::emit::tensor(&any),
    ];
    e.call("Any", arguments)?;
    let blind = e.unary("LogicalNot", &any)?;
    Ok(Mask { hidden, blind })
}

/// Heads of queries by their key head: `[T, Hk·G, D]` as `[Hk, G, T, D]`.
pub(super) fn by_head(x: &View, key_heads: usize) -> View {
    x.split(1, key_heads).permute(&[1, 2, 0, 3])
}

/// Key heads at a time.
struct Chunks {
    key_heads: usize,
    at_once: usize,
}

impl Chunks {
    fn new(q: &View, k: &View) -> Chunks {
        let key_heads = k.sizes[1];
        let scores = (q.sizes[1] / key_heads) * q.sizes[0] * k.sizes[0];
        Chunks { key_heads, at_once: (CHUNK_ELEMENTS / scores.max(1)).clamp(1, key_heads) }
    }

    fn each(&self) -> impl Iterator<Item = (usize, usize)> {
        let (count, step) = (self.key_heads, self.at_once);
        (0..count).step_by(step).map(move |from| (from, step.min(count - from)))
    }
}

/// Operands of some key heads, in f32.
struct Part {
    /// `[h, G, T, D]`, dense.
    q: View,
    /// `[h, S, D]`.
    k: View,
    /// `[h, S, Dv]`.
    v: View,
}

impl Part {
    fn new(e: &mut Emit<'_>, x: &[View], (from, count): (usize, usize)) -> Lowered<Part> {
        let key_heads = x[1].sizes[1];
        let q = e.wide(&by_head(&x[0], key_heads).narrow(0, from, count))?;
        let q = e.dense(&q)?;
        let [k, v] = [1, 2].map(|at: usize| x[at].permute(&[1, 0, 2]).narrow(0, from, count));
        Ok(Part { q, k: e.wide(&k)?, v: e.wide(&v)? })
    }

    fn sizes(&self) -> [usize; 4] {
        [self.q.sizes[0], self.q.sizes[1], self.q.sizes[2], self.k.sizes[1]]
    }

    /// `a·bᵀ` for `a` of `[h, G·T, X]` and `b` of `[h, S, X]`, as `[h, G, T, S]`.
    fn against(&self, e: &mut Emit<'_>, a: &View, b: &View) -> Lowered<View> {
        let [heads, group, rows, keys] = self.sizes();
        let a = a.reshape(&[heads, group * rows, a.last()]);
        let scores = e.product(&a, &b.permute(&[0, 2, 1]))?;
        Ok(scores.reshape(&[heads, group, rows, keys]))
    }

    /// `p·b` for `p` of `[h, G, T, S]` and `b` of `[h, S, X]`, as `[h, G, T, X]`.
    fn weigh(&self, e: &mut Emit<'_>, p: &View, b: &View) -> Lowered<View> {
        let [heads, group, rows, keys] = self.sizes();
        let y = e.product(&p.reshape(&[heads, group * rows, keys]), b)?;
        Ok(y.reshape(&[heads, group, rows, b.last()]))
    }

    /// `pᵀ·a` summed over the group, as `[h, S, X]`.
    fn gather(&self, e: &mut Emit<'_>, p: &View, a: &View) -> Lowered<View> {
        let [heads, group, rows, keys] = self.sizes();
        let p = p.reshape(&[heads, group * rows, keys]).permute(&[0, 2, 1]);
        e.product(&p, &a.reshape(&[heads, group * rows, a.last()]))
    }
}

pub(super) fn attention(e: &mut Emit<'_>, it: &Attention, x: &[View], y: &[View]) -> Lowered {
    let (q, k) = (&x[0], &x[1]);
    let mask = mask(e, k.sizes[0], &x[3], x.get(4), x.get(5))?;
    if fused::serves(e, &x[..3], ["FlashAttentionScoreV2", "FlashAttentionScore"]) {
        return fused::attention(e, it, &mask, x, y);
    }
    let blind = mask.blind.unsqueeze(1);
    let chunks = Chunks::new(q, k);
    for chunk in chunks.each() {
        let mark = e.mark();
        let part = Part::new(e, x, chunk)?;
        let scores = part.against(e, &part.q, &part.k)?;
        e.scale_into(&scores, it.scale as f32, &scores)?;
        e.fill_where(&scores, &mask.hidden, f32::NEG_INFINITY)?;
        let top = e.largest(&scores, &[3])?.unsqueeze(3);
        // A row that sees nothing: exponentials of -∞ less 0, a sum of 0, its logarithm -∞, probabilities 0/1.
        e.fill_where(&top, &blind, 0.0)?;
        e.binary_into("Sub", &scores, &top, &scores)?;
        e.unary_into("Exp", &scores, &scores)?;
        let sum = e.sum(&scores, &[3])?.unsqueeze(3);
        let log = e.unary("Log", &sum)?;
        let lse = e.binary("Add", &top, &log)?;
        e.fill_where(&sum, &blind, 1.0)?;
        let out = part.weigh(e, &scores, &part.v)?;
        e.binary_into("Div", &out, &sum, &out)?;
        let (from, count) = chunk;
        let place = |view: &View| by_head(&view.clone(), chunks.key_heads).narrow(0, from, count);
        e.copy(&place(&y[0]), &out)?;
        e.copy(&place(&y[1].unsqueeze(2)), &lse)?;
        e.forget(mark);
    }
    Ok(())
}

pub(super) fn attention_gradient(
    e: &mut Emit<'_>,
    it: &AttentionGradient,
    x: &[View],
    y: &[View],
) -> Lowered {
    let (q, k) = (&x[0], &x[1]);
    let mask = mask(e, k.sizes[0], &x[6], None, None)?;
    let chunks = Chunks::new(q, k);
    let scale = it.scale as f32;
    let alike = [&x[0], &x[1], &x[2], &x[3], &x[5]].map(View::clone);
    let fused = fused::serves(e, &alike, ["FlashAttentionScoreGradV2", "FlashAttentionScoreGrad"]);
    if fused {
        fused::attention_gradient(e, it, &mask, x, &y[..3])?;
        if !it.sums {
            return Ok(());
        }
    }
    for chunk in chunks.each() {
        let mark = e.mark();
        let (from, count) = chunk;
        let place = |view: &View| by_head(view, chunks.key_heads).narrow(0, from, count);
        let part = Part::new(e, x, chunk)?;
        let p = part.against(e, &part.q, &part.k)?;
        e.scale_into(&p, scale, &p)?;
        e.binary_into("Sub", &p, &place(&x[4].unsqueeze(2)), &p)?;
        e.unary_into("Exp", &p, &p)?;
        e.fill_where(&p, &mask.hidden, 0.0)?;
        if it.sums {
            let sums = e.sum(&p, &[3])?.unsqueeze(3);
            e.copy(&place(&y[3].unsqueeze(2)), &sums)?;
        }
        if fused {
            e.forget(mark);
            continue;
        }
        let dout = e.wide(&place(&x[5]))?;
        let dout = e.dense(&dout)?;
        let out = e.wide(&place(&x[3]))?;
        let along = e.binary("Mul", &dout, &out)?;
        let along = e.sum(&along, &[3])?.unsqueeze(3);
        let dv = part.gather(e, &p, &dout)?;
        e.copy(&y[2].permute(&[1, 0, 2]).narrow(0, from, count), &dv)?;
        let ds = part.against(e, &dout, &part.v)?;
        e.binary_into("Sub", &ds, &along, &ds)?;
        e.binary_into("Mul", &ds, &p, &ds)?;
        let dq = part.weigh(e, &ds, &part.k)?;
        e.scale_into(&dq, scale, &dq)?;
        e.copy(&place(&y[0]), &dq)?;
        let dk = part.gather(e, &ds, &part.q)?;
        e.scale_into(&dk, scale, &dk)?;
        e.copy(&y[1].permute(&[1, 0, 2]).narrow(0, from, count), &dk)?;
        e.forget(mark);
    }
    Ok(())
}
