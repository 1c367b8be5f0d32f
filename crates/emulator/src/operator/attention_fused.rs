//! The fused attention operators: layouts, saved statistics, sequences of varying length.

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid, not_implemented};
use crate::operator::attention::{Forward, Heads, Mask};
use crate::operator::run::Run;
use crate::operator::{Planned, kernel_with_workspace, operators};

operators! {
    FlashAttentionScore(
        query: T, key: T, value: T, pse: T, dropMask: T, paddingMask: T, attenMask: T, prefix: I,
        scale: f64, keepProb: f64, preTokens: i64, nextTokens: i64, headNum: i64, inputLayout: Str,
        innerPrecise: i64, sparseMode: i64, softmaxMax: To, softmaxSum: To, softmaxOut: To,
        attentionOut: To,
    ) = |a| forward(a, Sequences::Batch);
    FlashAttentionScoreV2(
        query: T, key: T, value: T, pse: T, dropMask: T, paddingMask: T, attenMask: T, prefix: I,
        qStartIdx: I, kvStartIdx: I, scale: f64, keepProb: f64, preTokens: i64, nextTokens: i64,
        headNum: i64, inputLayout: Str, innerPrecise: i64, sparseMode: i64, pseType: i64, softmaxMax: To,
        softmaxSum: To, softmaxOut: To, attentionOut: To,
    ) = |a| forward(a, Sequences::Batch);
    FlashAttentionVarLenScore(
        query: T, key: T, value: T, pse: T, dropMask: T, paddingMask: T, attenMask: T, prefix: I,
        actualSeqQLen: I, actualSeqKvLen: I, scale: f64, keepProb: f64, preTokens: i64, nextTokens: i64,
        headNum: i64, inputLayout: Str, innerPrecise: i64, sparseMode: i64, softmaxMax: To, softmaxSum: To,
        softmaxOut: To, attentionOut: To,
    ) = |a| forward(a, Sequences::ends(a)?);
    FlashAttentionScoreGrad(
        query: T, key: T, value: T, dy: T, pse: T, dropMask: T, paddingMask: T, attenMask: T, softmaxMax: T,
        softmaxSum: T, softmaxIn: T, attentionIn: T, prefix: I, scale: f64, keepProb: f64, preTokens: i64,
        nextTokens: i64, headNum: i64, inputLayout: Str, innerPrecise: i64, sparseMode: i64, dq: To, dk: To,
        dv: To, dpse: To,
    ) = |a| backward(a, Sequences::Batch);
    FlashAttentionScoreGradV2(
        query: T, key: T, value: T, dy: T, pse: T, dropMask: T, paddingMask: T, attenMask: T, softmaxMax: T,
        softmaxSum: T, softmaxIn: T, attentionIn: T, prefix: I, qStartIdx: I, kvStartIdx: I, scale: f64,
        keepProb: f64, preTokens: i64, nextTokens: i64, headNum: i64, inputLayout: Str, innerPrecise: i64,
        sparseMode: i64, pseType: i64, dq: To, dk: To, dv: To, dpse: To,
    ) = |a| backward(a, Sequences::Batch);
    FlashAttentionUnpaddingScoreGrad(
        query: T, key: T, value: T, dy: T, pse: T, dropMask: T, paddingMask: T, attenMask: T, softmaxMax: T,
        softmaxSum: T, softmaxIn: T, attentionIn: T, prefix: I, actualSeqQLen: I, actualSeqKvLen: I,
        scale: f64, keepProb: f64, preTokens: i64, nextTokens: i64, headNum: i64, inputLayout: Str,
        innerPrecise: i64, sparseMode: i64, dq: To, dk: To, dv: To, dpse: To,
    ) = |a| backward(a, Sequences::ends(a)?);
    FusedInferAttentionScoreV2(
        query: T, key: TL, value: TL, pseShift: T, attenMask: T, actualSeqLen: I, actualSeqLenKv: I,
        deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T, antiquantScale: T,
        antiquantOffset: T, blockTable: T, queryPaddingSize: T, kvPaddingSize: T, keyAntiquantScale: T,
        keyAntiquantOffset: T, valueAntiquantScale: T, valueAntiquantOffset: T, keySharedPrefix: T,
        valueSharedPrefix: T, actualSharedPrefixLen: I, numHeads: i64, scale: f64, preTokens: i64,
        nextTokens: i64, inputLayout: Str, numKeyValueHeads: i64, sparseMode: i64, innerPrecise: i64,
        blockSize: i64, antiquantMode: i64, softmaxLseFlag: Flag, keyAntiquantMode: i64,
        valueAntiquantMode: i64, out: To, softmaxLse: To,
    ) = inference;
}

/// How statistics are repeated.
const REPEATED: usize = 8;

/// How sequences lie in the tensors.
enum Sequences {
    /// All of one length.
    Batch,
    /// One behind the other; where each ends, for queries and keys.
    Packed(Vec<usize>, Vec<usize>),
}

impl Sequences {
    fn ends(a: &Arguments) -> Result<Sequences, Fault> {
        let ends = |name| {
            let list = a.ints(name)?;
            if list.is_empty() || list.windows(2).any(|pair| pair[1] < pair[0]) || list[0] < 0 {
                return Err(invalid(format!("{name} is {list:?}: running sums are needed")));
            }
            Ok(list.into_iter().map(|end| end as usize).collect::<Vec<_>>())
        };
        let (queries, keys) = (ends("actualSeqQLen")?, ends("actualSeqKvLen")?);
        if queries.len() != keys.len() {
            return Err(invalid("actualSeqQLen and actualSeqKvLen are of different lengths"));
        }
        Ok(Sequences::Packed(queries, keys))
    }

    /// Windows [B, N, S, D] of a tensor [B, N, S, D], one for each sequence.
    fn cut(&self, operand: &Operand, of_queries: bool) -> Result<Vec<Operand>, Fault> {
        match self {
            Sequences::Batch => Ok(vec![operand.clone()]),
            Sequences::Packed(queries, keys) => {
                let mut start = 0;
                let mut windows = Vec::new();
                for &end in if of_queries { queries } else { keys } {
                    if end > operand.shape[2] {
                        return Err(operand.refuse(format!("a sequence ends at {end}, behind its last row")));
                    }
                    windows.push(operand.narrow(2, start, end - start));
                    start = end;
                }
                Ok(windows)
            }
        }
    }
}

/// A tensor in some layout as [B, N, S, D].
fn heads_of(operand: &Operand, layout: &str, heads: usize) -> Result<Operand, Fault> {
    let wrong = || operand.refuse(format!("does not have the layout {layout} with {heads} heads"));
    let rank = match layout {
        "BSH" | "SBH" | "TND" => 3,
        "BSND" | "BNSD" => 4,
        _ => return Err(not_implemented(format!("attention in the layout {layout}"))),
    };
    if operand.rank() != rank || heads == 0 {
        return Err(wrong());
    }
    Ok(match layout {
        "BNSD" => operand.clone(),
        "BSND" => operand.permute(&[0, 2, 1, 3]),
        "TND" => {
            let [t, n, d] = [operand.shape[0], operand.shape[1], operand.shape[2]];
            let [st, sn, sd] = [operand.strides[0], operand.strides[1], operand.strides[2]];
            operand.view(vec![1, n, t, d], vec![0, sn, st, sd], operand.offset)
        }
        _ => {
            let (batch, rows) = if layout == "BSH" { (0, 1) } else { (1, 0) };
            let width = operand.shape[2];
            if !width.is_multiple_of(heads) {
                return Err(wrong());
            }
            let (width, inner) = (width / heads, operand.strides[2]);
            operand.view(
                vec![operand.shape[batch], heads, operand.shape[rows], width],
                vec![operand.strides[batch], inner * width as i64, operand.strides[rows], inner],
                operand.offset,
            )
        }
    })
}

/// Heads of keys: from the layout, or, where it packs them, from the query's width.
fn key_heads(query: &Operand, key: &Operand, layout: &str, heads: usize) -> usize {
    match layout {
        "BSND" | "TND" => key.shape.get(key.rank().wrapping_sub(2)).copied().unwrap_or(0),
        "BNSD" => key.shape.get(1).copied().unwrap_or(0),
        _ => {
            let width = query.shape.last().copied().unwrap_or(0) / heads.max(1);
            key.shape.last().copied().unwrap_or(0) / width.max(1)
        }
    }
}

/// What all fused operators share.
struct Call {
    parts: Vec<Heads>,
    mask: Mask,
    layout: String,
    heads: usize,
    key_heads: usize,
    sequences: Sequences,
}

fn read(a: &Arguments, sequences: Sequences) -> Result<Call, Fault> {
    let (query, key, value) = (a.tensor("query")?, a.tensor("key")?, a.tensor("value")?);
    for absent in ["dropMask", "paddingMask"] {
        if a.optional(absent)?.is_some() {
            return Err(not_implemented(format!("attention with {absent}")));
        }
    }
    if a.float("keepProb")? != 1.0 {
        return Err(not_implemented("attention with dropout (keepProb below 1)"));
    }
    let bias = a.optional("pse")?;
    if bias.is_some() && a.integer("pseType").is_ok_and(|kind| kind != 1) {
        return Err(not_implemented("attention with pseType other than 1"));
    }
    let mut layout = a.text("inputLayout")?;
    if matches!(sequences, Sequences::Packed(..)) != (layout == "TND") {
        return Err(invalid(format!("the layout {layout} does not go with this operator")));
    }
    layout.make_ascii_uppercase();
    let heads = usize::try_from(a.integer("headNum")?).map_err(|_| invalid("headNum is below 0"))?;
    let key_heads = key_heads(&query, &key, &layout, heads);
    let (q, k, v) = (
        heads_of(&query, &layout, heads)?,
        heads_of(&key, &layout, key_heads)?,
        heads_of(&value, &layout, key_heads)?,
    );
    let scale = a.float("scale")? as f32;
    let cut = sequences
        .cut(&q, true)?
        .into_iter()
        .zip(sequences.cut(&k, false)?.into_iter().zip(sequences.cut(&v, false)?));
    let parts: Vec<Heads> = cut.map(|(q, (k, v))| Heads { q, k, v, scale, bias: bias.clone() }).collect();
    parts.iter().try_for_each(Heads::check)?;
    Ok(Call { parts, mask: Mask::of(a)?, layout, heads, key_heads, sequences })
}

/// [B, N, S] windows of saved statistics: [B, N, S, 8], or [T, N, 8] where sequences are packed.
fn statistics(operand: &Operand, call: &Call) -> Result<Vec<Operand>, Fault> {
    let all = match call.sequences {
        Sequences::Batch if operand.rank() == 4 => operand.clone(),
        Sequences::Packed(..) if operand.rank() == 3 => heads_of(operand, "TND", call.heads)?,
        _ => return Err(operand.refuse("must be [B, N, S, 8], or [T, N, 8] for packed sequences")),
    };
    if all.shape[3] != REPEATED {
        return Err(operand.refuse("its last dimension must be 8"));
    }
    call.sequences.cut(&all, true)
}

fn forward(a: &Arguments, sequences: Sequences) -> Planned {
    let call = read(a, sequences)?;
    let out = heads_of(&a.tensor("attentionOut")?, &call.layout, call.heads)?;
    let outs = call.sequences.cut(&out, true)?;
    let (max, sum) =
        (statistics(&a.tensor("softmaxMax")?, &call)?, statistics(&a.tensor("softmaxSum")?, &call)?);
    for (place, part) in call.parts.iter().enumerate() {
        let [q, v] = [&part.q.shape, &part.v.shape];
        outs[place].must_have(&[q[0], q[1], q[2], v[3]])?;
        max[place].must_have(&[q[0], q[1], q[2], REPEATED])?;
        sum[place].must_have(&[q[0], q[1], q[2], REPEATED])?;
    }
    kernel_with_workspace(out.len(), move |run| {
        for (place, part) in call.parts.iter().enumerate() {
            let made = part.forward(run, &call.mask)?;
            let repeated =
                |values: &[f32]| -> Vec<f32> { values.iter().flat_map(|&value| [value; REPEATED]).collect() };
            run.store(&max[place], &repeated(&made.max))?;
            run.store(&sum[place], &repeated(&made.sum))?;
            run.store(&outs[place], &made.out)?;
        }
        Ok(())
    })
}

fn backward(a: &Arguments, sequences: Sequences) -> Planned {
    let call = read(a, sequences)?;
    if a.optional("dpse").is_ok_and(|dpse| dpse.is_some()) {
        return Err(not_implemented("the gradient of pse"));
    }
    let need = |name| a.optional(name)?.ok_or_else(|| invalid(format!("{name} is needed")));
    let queries = |operand: Operand| call.sequences.cut(&heads_of(&operand, &call.layout, call.heads)?, true);
    let keys =
        |operand: Operand| call.sequences.cut(&heads_of(&operand, &call.layout, call.key_heads)?, false);
    let (dout, out) = (queries(a.tensor("dy")?)?, queries(need("attentionIn")?)?);
    let (dq, dk, dv) = (queries(a.tensor("dq")?)?, keys(a.tensor("dk")?)?, keys(a.tensor("dv")?)?);
    let (max, sum) = (statistics(&need("softmaxMax")?, &call)?, statistics(&need("softmaxSum")?, &call)?);
    for (place, part) in call.parts.iter().enumerate() {
        let [q, k, v] = [&part.q.shape, &part.k.shape, &part.v.shape];
        for operand in [&dout[place], &out[place]] {
            operand.must_have(&[q[0], q[1], q[2], v[3]])?;
        }
        dq[place].must_have(q)?;
        dk[place].must_have(k)?;
        dv[place].must_have(v)?;
    }
    kernel_with_workspace(dq.iter().map(|dq| dq.len()).sum(), move |run| {
        for (place, part) in call.parts.iter().enumerate() {
            let first =
                |run: &Run, operand: &Operand| run.floats(&operand.narrow(3, 0, 1)).map(|v| v.into_vec());
            let saved = Forward {
                max: first(run, &max[place])?,
                sum: first(run, &sum[place])?,
                out: run.floats(&out[place])?.into_vec(),
            };
            let made = part.backward(run, &call.mask, &saved, &run.floats(&dout[place])?)?;
            run.store(&dq[place], &made.dq)?;
            run.store(&dk[place], &made.dk)?;
            run.store(&dv[place], &made.dv)?;
        }
        Ok(())
    })
}

/// Inference: no statistics; an additive mask as `pseShift`, or a boolean one.
fn inference(a: &Arguments) -> Planned {
    let tensors = [
        "deqScale1",
        "quantScale1",
        "deqScale2",
        "quantScale2",
        "quantOffset2",
        "antiquantScale",
        "antiquantOffset",
        "blockTable",
        "queryPaddingSize",
        "kvPaddingSize",
        "keyAntiquantScale",
        "keyAntiquantOffset",
        "valueAntiquantScale",
        "valueAntiquantOffset",
        "keySharedPrefix",
        "valueSharedPrefix",
    ];
    for absent in tensors {
        if a.optional(absent)?.is_some() {
            return Err(not_implemented(format!("FusedInferAttentionScoreV2 with {absent}")));
        }
    }
    let lengths = ["actualSeqLen", "actualSeqLenKv", "actualSharedPrefixLen"];
    for absent in lengths {
        if a.optional_ints(absent)?.is_some_and(|list| !list.is_empty()) {
            return Err(not_implemented(format!("FusedInferAttentionScoreV2 with {absent}")));
        }
    }
    if a.flag("softmaxLseFlag")? {
        return Err(not_implemented("FusedInferAttentionScoreV2 with softmaxLseFlag"));
    }
    let (keys, values, query) = (a.tensors("key")?, a.tensors("value")?, a.tensor("query")?);
    let ([key], [value]) = (&keys[..], &values[..]) else {
        return Err(not_implemented("FusedInferAttentionScoreV2 with several tensors of keys"));
    };
    let layout = a.text("inputLayout")?;
    let count = |name| a.integer(name).map(|count| count.max(0) as usize);
    let heads = count("numHeads")?;
    let key_heads = match count("numKeyValueHeads")? {
        0 => heads,
        given => given,
    };
    let parts = Heads {
        q: heads_of(&query, &layout, heads)?,
        k: heads_of(key, &layout, key_heads)?,
        v: heads_of(value, &layout, key_heads)?,
        scale: a.float("scale")? as f32,
        bias: a.optional("pseShift")?,
    };
    parts.check()?;
    let out = heads_of(&a.tensor("out")?, &layout, heads)?;
    let [q, v] = [&parts.q.shape, &parts.v.shape];
    out.must_have(&[q[0], q[1], q[2], v[3]])?;
    let mask = if a.optional("attenMask")?.is_some() { Mask::of(a)? } else { Mask::none() };
    kernel_with_workspace(out.len(), move |run| run.store(&out, &parts.forward(run, &mask)?.out))
}
