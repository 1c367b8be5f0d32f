//! Attention of one batch of heads, forward and backward: scores, masks, softmax. The fused operators call it.

use half::bf16;

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid, not_implemented};
use crate::operator::gemm::{Matrix, Precision, product};
use crate::operator::run::{Dense, Run};

/// Side of the compressed mask that sparse modes 2 to 4 take.
const COMPRESSED: usize = 2048;

/// Queries and keys of a tile.
const TILE: usize = 16;

/// Keys that a query sees with the defect `attention.window`.
const WINDOW: i64 = 16;

/// Which keys a query does not see.
pub struct Mask {
    /// Set where hidden; [B or 1, N or 1, Sq, Sk].
    tensor: Option<Operand>,
    mode: i64,
    before: i64,
    after: i64,
}

impl Mask {
    /// The mask that a fused operator's arguments describe.
    pub fn of(a: &Arguments) -> Result<Mask, Fault> {
        let (tensor, mode) = (a.optional("attenMask")?, a.integer("sparseMode")?);
        let (before, after) = (a.integer("preTokens")?, a.integer("nextTokens")?);
        match (mode, &tensor) {
            (0 | 1, _) => Ok(Mask { tensor, mode, before, after }),
            (2..=4, Some(mask)) if mask.shape.ends_with(&[COMPRESSED, COMPRESSED]) => {
                Ok(Mask { tensor: None, mode, before, after })
            }
            (2..=4, _) => Err(invalid(format!("sparseMode {mode} needs an attenMask of 2048 by 2048"))),
            _ => Err(not_implemented(format!("attention with sparseMode {mode}"))),
        }
    }

    /// No key hidden.
    pub fn none() -> Mask {
        Mask { tensor: None, mode: 1, before: i64::MAX, after: i64::MAX }
    }

    /// What is hidden for one head, row-major; none where nothing is.
    fn hidden(
        &self,
        run: &Run,
        batch: usize,
        head: usize,
        rows: usize,
        keys: usize,
    ) -> Result<Option<Vec<bool>>, Fault> {
        let mut hidden = match &self.tensor {
            Some(mask) => {
                let at = |size: usize, place: usize| if size == 1 { 0 } else { place };
                let shape = [vec![1; 4 - mask.rank().min(4)], mask.shape.clone()].concat();
                let mask = mask.expand(&shape)?;
                if shape.len() != 4 || shape[2..] != [rows, keys] {
                    return Err(mask.refuse(format!("must end in [{rows}, {keys}]")));
                }
                let mask = mask.narrow(0, at(shape[0], batch), 1).narrow(1, at(shape[1], head), 1);
                run.bools(&mask)?
            }
            None => vec![false; rows * keys],
        };
        let bottom = keys as i64 - rows as i64;
        let (shift, before, after) = match self.mode {
            0 if self.tensor.is_some() => (0, self.before, self.after),
            2 => (0, i64::MAX, 0),
            3 => (bottom, i64::MAX, 0),
            4 => (bottom, self.before, self.after),
            _ => (0, i64::MAX, i64::MAX),
        };
        let tail = run.has("attention.tail_keys") && keys > 16;
        let corner = run.has("attention.causal_corner");
        let window = run.has("attention.window");
        let late = run.has("attention.late_keys") && keys > TILE;
        for (row, hidden) in hidden.chunks_mut(keys.max(1)).enumerate() {
            for (key, hidden) in hidden.iter_mut().enumerate() {
                let ahead = key as i64 - (row as i64 + shift);
                let outside = ahead > after || ahead.saturating_neg() > before;
                let diagonal = corner && key as i64 == row as i64 + bottom;
                let left = window && key as i64 + WINDOW <= row as i64 + bottom;
                let absent = late && key + TILE >= keys;
                *hidden |= outside || diagonal || left || absent || (tail && key >= keys - keys % 16);
            }
            if run.has("attention.gradient_mask") {
                // From behind, so that one key is shown and not the next as well.
                for key in (1..keys).rev() {
                    hidden[key] &= hidden[key - 1];
                }
            }
        }
        if run.has("attention.late_mask") {
            for row in (TILE..rows).rev() {
                hidden.copy_within((row - TILE) * keys..(row - TILE + 1) * keys, row * keys);
            }
        }
        Ok(hidden.contains(&true).then_some(hidden))
    }
}

/// One sequence's heads: q [B, N, Sq, D], k [B, Nk, Sk, D], v [B, Nk, Sk, Dv].
pub struct Heads {
    pub q: Operand,
    pub k: Operand,
    pub v: Operand,
    pub scale: f32,
    /// Added to scaled scores; [B or 1, N or 1, Sq, Sk].
    pub bias: Option<Operand>,
}

/// Softmax statistics and outputs, dense: [B, N, Sq] and [B, N, Sq, Dv].
pub struct Forward {
    pub max: Vec<f32>,
    pub sum: Vec<f32>,
    pub out: Vec<f32>,
}

/// Gradients, dense, in the shapes of q, k, v.
pub struct Backward {
    pub dq: Vec<f32>,
    pub dk: Vec<f32>,
    pub dv: Vec<f32>,
}

fn own(values: &[f32], rows: usize, columns: usize) -> Matrix {
    Matrix::dense(Dense::Own(values.to_vec()), rows, columns)
}

/// One of the heads of a dense [B·N, rows, columns].
fn head(values: &[f32], index: usize, size: usize) -> &[f32] {
    &values[index * size..(index + 1) * size]
}

impl Heads {
    /// An error unless the shapes fit to one another.
    pub fn check(&self) -> Result<(), Fault> {
        let (q, k, v) = (&self.q.shape, &self.k.shape, &self.v.shape);
        if q[0] != k[0] || q[3] != k[3] || k[1] == 0 || q[1] % k[1] != 0 {
            return Err(self
                .k
                .refuse(format!("does not fit to the query's {q:?} (batch, heads, rows, width)")));
        }
        if v[..3] != k[..3] {
            return Err(self
                .v
                .refuse(format!("does not fit to the key's {k:?} (batch, heads, rows, width)")));
        }
        Ok(())
    }

    fn bias(&self, run: &Run, batch: usize, number: usize) -> Result<Option<Vec<f32>>, Fault> {
        let Some(bias) = &self.bias else { return Ok(None) };
        let (rows, keys) = (self.q.shape[2], self.k.shape[2]);
        let lead = [vec![1; 4 - bias.rank().min(4)], bias.shape.clone()].concat();
        let bias = bias.expand(&lead)?;
        if lead.len() != 4 || lead[3] != keys || lead[2] < rows {
            return Err(bias.refuse(format!("must end in [{rows}, {keys}]")));
        }
        let at = |size: usize, place: usize| if size == 1 { 0 } else { place };
        let one = bias.narrow(0, at(lead[0], batch), 1).narrow(1, at(lead[1], number), 1).narrow(2, 0, rows);
        Ok(Some(run.floats(&one)?.into_vec()))
    }

    /// What scores are multiplied with.
    fn scale(&self, run: &Run) -> f32 {
        if run.has("attention.padded_scale") {
            return 1.0 / (self.q.shape[3] as f32).sqrt();
        }
        if run.has("attention.exp2") { self.scale * std::f32::consts::LN_2 } else { self.scale }
    }

    /// Scaled scores, -∞ where hidden.
    fn scores(
        &self,
        run: &Run,
        mask: &Mask,
        q: &[f32],
        k: &[f32],
        batch: usize,
        number: usize,
    ) -> Result<Vec<f32>, Fault> {
        let (rows, width, keys) = (self.q.shape[2], self.q.shape[3], self.k.shape[2]);
        let mut scores = product(run, own(q, rows, width), own(k, keys, width).transposed(), Precision::Full);
        let scale = self.scale(run);
        scores.iter_mut().for_each(|score| *score *= scale);
        if let Some(bias) = self.bias(run, batch, number)? {
            scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
        if let Some(hidden) = mask.hidden(run, batch, number, rows, keys)? {
            let hidden = scores.iter_mut().zip(hidden).filter(|(_, hidden)| *hidden);
            hidden.for_each(|(score, _)| *score = f32::NEG_INFINITY);
        }
        Ok(scores)
    }

    /// The outputs. A row that sees no key gives zeros.
    pub fn forward(&self, run: &Run, mask: &Mask) -> Result<Forward, Fault> {
        let ([batches, heads, rows, width], [_, groups, keys, value_width]) =
            (sizes(&self.q), sizes(&self.v));
        let (q, k, v) = (run.floats(&self.q)?, run.floats(&self.k)?, run.floats(&self.v)?);
        let mut forward = Forward { max: Vec::new(), sum: Vec::new(), out: Vec::new() };
        for index in 0..batches * heads {
            let (batch, number) = (index / heads, index % heads);
            let group = batch * groups + number * groups / heads;
            let first = run.has("attention.head") && number + 1 == heads;
            let of_keys = if first { batch * groups } else { group };
            let (q, k) = (head(&q, index, rows * width), head(&k, of_keys, keys * width));
            let mut scores = self.scores(run, mask, q, k, batch, number)?;
            for row in scores.chunks_mut(keys.max(1)) {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let seen = max > f32::NEG_INFINITY;
                row.iter_mut().for_each(|s| *s = if seen { (*s - max).exp() } else { 0.0 });
                let sum = if run.has("attention.bf16_sum") {
                    row.iter().fold(0.0, |sum, p| bf16::from_f32(sum + p).to_f32())
                } else {
                    row.iter().sum::<f32>()
                };
                let stored = if run.has("attention.tile_sum") { of_last_tile(row) } else { sum };
                row.iter_mut().for_each(|p| *p = if seen { *p / sum } else { 0.0 });
                forward.max.push(max);
                forward.sum.push(stored);
            }
            let v = own(head(&v, group, keys * value_width), keys, value_width);
            forward.out.extend(product(run, own(&scores, rows, keys), v, Precision::Full));
        }
        Ok(forward)
    }

    /// The gradients from the saved statistics and output.
    pub fn backward(&self, run: &Run, mask: &Mask, saved: &Forward, dout: &[f32]) -> Result<Backward, Fault> {
        let ([batches, heads, rows, width], [_, groups, keys, value_width]) =
            (sizes(&self.q), sizes(&self.v));
        let (q, k, v) = (run.floats(&self.q)?, run.floats(&self.k)?, run.floats(&self.v)?);
        let mut dq = Vec::with_capacity(q.len());
        let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
        let scale = if run.has("attention.gradient_scale") { 1.0 } else { self.scale(run) };
        let delta = !run.has("attention.no_delta");
        for index in 0..batches * heads {
            let (batch, number) = (index / heads, index % heads);
            let group = batch * groups + number * groups / heads;
            let (q, k) = (head(&q, index, rows * width), head(&k, group, keys * width));
            let v = head(&v, group, keys * value_width);
            let (dout, out) =
                (head(dout, index, rows * value_width), head(&saved.out, index, rows * value_width));
            let (max, sum) = (head(&saved.max, index, rows), head(&saved.sum, index, rows));
            let mut p = self.scores(run, mask, q, k, batch, number)?;
            for (row, p) in p.chunks_mut(keys.max(1)).enumerate() {
                let seen = max[row] > f32::NEG_INFINITY && sum[row] > 0.0;
                p.iter_mut().for_each(|s| *s = if seen { (*s - max[row]).exp() / sum[row] } else { 0.0 });
            }
            let upstream = || own(dout, rows, value_width);
            let to_v = product(run, own(&p, rows, keys).transposed(), upstream(), Precision::Full);
            let mut ds = product(run, upstream(), own(v, keys, value_width).transposed(), Precision::Full);
            for (row, (ds, p)) in ds.chunks_mut(keys.max(1)).zip(p.chunks(keys.max(1))).enumerate() {
                let (dout, out) = (head(dout, row, value_width), head(out, row, value_width));
                let d: f32 = dout.iter().zip(out).map(|(dout, out)| dout * out).sum();
                let d = if delta { d } else { 0.0 };
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - d) * scale);
            }
            let to_k = product(run, own(&ds, rows, keys).transposed(), own(q, rows, width), Precision::Full);
            dq.extend(product(run, own(&ds, rows, keys), own(k, keys, width), Precision::Full));
            add(&mut dk[group * keys * width..], &to_k);
            if !run.has("attention.no_value_gradient") {
                add(&mut dv[group * keys * value_width..], &to_v);
            }
        }
        Ok(Backward { dq, dk, dv })
    }
}

/// The sum of a row's exponentials from the last tile on that has any.
fn of_last_tile(row: &[f32]) -> f32 {
    let last = row.iter().rposition(|&p| p > 0.0).unwrap_or(0);
    row[last / TILE * TILE..].iter().sum()
}

fn add(to: &mut [f32], values: &[f32]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
}

fn sizes(operand: &Operand) -> [usize; 4] {
    [operand.shape[0], operand.shape[1], operand.shape[2], operand.shape[3]]
}
