//! A part of an instruction that the oracle can compute in reasonable time: sampled rows, columns or heads, each exactly as in
//! the whole.

use crate::probe::{Exact, Outcome, Probe};
use toprope_conformance::Oracle;
use toprope_conformance::judge::Judgement;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::random::Random;
use toprope_program::{Operator, Tensor};

/// Some rows, columns or heads of a probe, as a probe of its own.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// The part.
    pub probe: Probe,
    /// For each output, which elements of the whole's the part's are; none for an output that needs the whole.
    pub elements: Vec<Option<Vec<usize>>>,
    /// What was sampled, in words.
    pub what: String,
}

/// How many rows, columns or heads are looked at.
const SAMPLES: usize = 24;

impl Sampled {
    /// A sample of a probe; none where no part of it can be computed by itself.
    pub fn of(probe: &Probe, seed: u64) -> Option<Sampled> {
        let dense = probe.dense().ok()?;
        let operands = dense.operands();
        let operator = dense.operator().clone();
        let mut random = Random::new(seed, "sample");
        match &operator {
            Operator::Matmul(_) => {
                let (m, n) = (operands[0].sizes[0], operands[1].sizes[1]);
                let (rows, columns) = (chosen(&mut random, m), chosen(&mut random, n));
                let mut part = vec![take(&operands[0], 0, &rows), take(&operands[1], 1, &columns)];
                part.extend(operands.get(2).map(|bias| take(bias, 0, &columns)));
                let places = rows.iter().flat_map(|r| columns.iter().map(move |c| r * n + c)).collect();
                let what = format!("{} rows and {} columns of {m} and {n}", rows.len(), columns.len());
                // Row sums need every column.
                part_of(&dense, &operator, part, vec![Some(places), None], what)
            }
            Operator::GroupedMatmul(_) => {
                let n = operands[1].sizes[2];
                let columns = chosen(&mut random, n);
                let part = vec![operands[0].clone(), take(&operands[1], 2, &columns), operands[2].clone()];
                let rows = operands[0].sizes[0];
                let places = (0..rows).flat_map(|r| columns.iter().map(move |c| r * n + c)).collect();
                let what = format!("{} columns of {n}", columns.len());
                part_of(&dense, &operator, part, vec![Some(places), None], what)
            }
            Operator::GroupedOuter(_) => {
                let (k, n) = (operands[0].sizes[1], operands[1].sizes[1]);
                let (rows, columns) = (chosen(&mut random, k), chosen(&mut random, n));
                let part =
                    vec![take(&operands[0], 1, &rows), take(&operands[1], 1, &columns), operands[2].clone()];
                let experts = operands[2].data.len().saturating_sub(1);
                let mut places = Vec::new();
                for expert in 0..experts {
                    places.extend(
                        rows.iter().flat_map(|r| columns.iter().map(move |c| (expert * k + r) * n + c)),
                    );
                }
                let what = format!("{} rows and {} columns of {k} and {n}", rows.len(), columns.len());
                part_of(&dense, &operator, part, vec![Some(places), None], what)
            }
            Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_) => {
                let (t, d) = (operands[0].sizes[0], operands[0].sizes[1]);
                let rows = chosen(&mut random, t);
                let mut part = vec![take(&operands[0], 0, &rows), operands[1].clone()];
                part.extend(operands[2..].iter().map(|operand| take(operand, 0, &rows)));
                let what = format!("{} rows of {t}", rows.len());
                let wide = |width: usize| {
                    Some(rows.iter().flat_map(|r| (0..width).map(move |i| r * width + i)).collect())
                };
                let elements = match operator {
                    Operator::LinearCrossEntropy(_) => vec![wide(1), wide(1)],
                    // The weight's gradient needs every row.
                    _ => vec![wide(1), wide(d), None, wide(5), None],
                };
                part_of(&dense, &operator, part, elements, what)
            }
            Operator::Attention(_) | Operator::AttentionGradient(_) => heads(&dense, &operator, &mut random),
            _ => None,
        }
    }

    /// The exact result of the part.
    ///
    /// # Errors
    /// The oracle fails.
    pub fn exact(&self, oracle: &mut Oracle) -> Result<Exact, Obstacle> {
        self.probe.exact(oracle)
    }

    /// Judges the part of what a device gave.
    pub fn judge(&self, exact: &Exact, outcome: &Outcome) -> Judgement {
        let part = |(at, want): (usize, &Tensor)| match self.elements.get(at).and_then(Option::as_ref) {
            Some(places) => {
                let given = outcome.outputs.get(at);
                let one = |place: &usize| given.and_then(|t| t.data.get(*place)).copied().unwrap_or(f64::NAN);
                Tensor { data: places.iter().map(one).collect(), ..want.clone() }
            }
            // Not judged: it is taken as right.
            None => Tensor::rounded(want.dtype, &want.sizes, want.data.iter().copied()),
        };
        let outputs = exact.want.iter().enumerate().map(part).collect();
        self.probe.judge(exact, &Outcome { outputs, stray: outcome.stray.clone() })
    }

    /// Where an element of the part lies in the whole.
    pub fn place(&self, output: usize, element: usize) -> usize {
        self.elements
            .get(output)
            .and_then(Option::as_ref)
            .and_then(|e| e.get(element))
            .copied()
            .unwrap_or(element)
    }
}

fn part_of(
    probe: &Probe,
    operator: &Operator,
    operands: Vec<Tensor>,
    elements: Vec<Option<Vec<usize>>>,
    what: String,
) -> Option<Sampled> {
    let part = probe.altered(operator, operands).ok()?;
    let outputs = part.instruction().outputs.len();
    let mut elements = elements;
    elements.truncate(outputs);
    Some(Sampled { probe: part, elements, what })
}

/// Heads of one or two groups: those that share a key head.
fn heads(dense: &Probe, operator: &Operator, random: &mut Random) -> Option<Sampled> {
    let operands = dense.operands();
    let (heads, groups) = (operands[0].sizes[1], operands[1].sizes[1]);
    let group = heads / groups.max(1);
    if groups < 2 || group == 0 {
        return None;
    }
    let key = random.below(groups);
    let queries: Vec<usize> = (key * group..(key + 1) * group).collect();
    let is_gradient = matches!(operator, Operator::AttentionGradient(_));
    let part = operands
        .iter()
        .enumerate()
        .map(|(at, operand)| match at {
            0 => take(operand, 1, &queries),
            1 | 2 => take(operand, 1, &[key]),
            3..=5 if is_gradient => take(operand, 1, &queries),
            _ => operand.clone(),
        })
        .collect();
    let (t, s) = (operands[0].sizes[0], operands[1].sizes[0]);
    let (size, width) = (operands[0].sizes[2], operands[2].sizes[2]);
    let of = |rows: usize, all: usize, which: &[usize], width: usize| -> Option<Vec<usize>> {
        let mut places = Vec::with_capacity(rows * which.len() * width);
        for row in 0..rows {
            for head in which {
                places.extend((0..width).map(|i| (row * all + head) * width + i));
            }
        }
        Some(places)
    };
    let elements = if is_gradient {
        vec![
            of(t, heads, &queries, size),
            of(s, groups, &[key], size),
            of(s, groups, &[key], width),
            of(t, heads, &queries, 1),
        ]
    } else {
        vec![of(t, heads, &queries, width), of(t, heads, &queries, 1)]
    };
    part_of(dense, operator, part, elements, format!("{group} of {heads} heads"))
}

/// The first and the last, which are the ones that go wrong at borders, and random ones.
fn chosen(random: &mut Random, count: usize) -> Vec<usize> {
    if count <= SAMPLES {
        return (0..count).collect();
    }
    let mut list = vec![0, 1, count - 2, count - 1];
    list.extend((list.len()..SAMPLES).map(|_| random.below(count)));
    list.sort_unstable();
    list.dedup();
    list
}

/// Some indices of an axis.
fn take(tensor: &Tensor, axis: usize, indices: &[usize]) -> Tensor {
    let inner: usize = tensor.sizes[axis + 1..].iter().product();
    let outer: usize = tensor.sizes[..axis].iter().product();
    let size = tensor.sizes[axis];
    let mut data = Vec::with_capacity(outer * indices.len() * inner);
    for block in 0..outer {
        for index in indices {
            let at = (block * size + index) * inner;
            data.extend_from_slice(&tensor.data[at..at + inner]);
        }
    }
    let mut sizes = tensor.sizes.clone();
    sizes[axis] = indices.len();
    Tensor { dtype: tensor.dtype, sizes, data }
}
