//! Large results judged by parts of them: the same operator on the rows and columns that decide some elements, small enough
//! for the f64 oracle. Each part has the same terms in each sum as the whole, so the same tolerance holds.

use toprope_conformance::random::Random;
use toprope_diagnose::Probe;
use toprope_program::{Operator, Tensor};

/// A smaller problem whose results are elements of the larger one's.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The smaller problem.
    pub probe: Probe,
    /// For each output the larger one's elements that the smaller one's are, in order; none where they are not.
    pub taken: Vec<Option<Vec<usize>>>,
}

/// Rows and columns that are looked at.
const ROWS: usize = 12;
const COLUMNS: usize = 48;
/// Neighbouring rows where an operator needs neighbours.
const BLOCK: usize = 16;

/// Samples of a probe. Empty where its elements hang on all of the others, so that it must be judged whole.
pub fn samples(probe: &Probe, seed: u64) -> Vec<Sample> {
    let mut random = Random::new(seed, "samples");
    let operands = probe.operands();
    parts(probe.operator(), &operands, &mut random)
        .into_iter()
        .filter_map(|(operator, operands, taken)| {
            Some(Sample { probe: probe.altered(&operator, operands).ok()?, taken })
        })
        .collect()
}

type Part = (Operator, Vec<Tensor>, Vec<Option<Vec<usize>>>);

fn parts(operator: &Operator, operands: &[Tensor], random: &mut Random) -> Vec<Part> {
    let rows_of = |tensor: &Tensor| tensor.sizes.first().copied().unwrap_or(1);
    match operator {
        Operator::Cast(_)
        | Operator::Add(_)
        | Operator::Multiply(_)
        | Operator::Scale(_)
        | Operator::Activation(_)
        | Operator::ActivationGradient(_)
        | Operator::Swiglu(_)
        | Operator::SwigluGradient(_)
        | Operator::Accumulate(_) => {
            let rows = choose(random, rows_of(&operands[0]), ROWS);
            let restricted: Vec<Tensor> = operands.iter().map(|x| axis(x, 0, &rows)).collect();
            let columns = match operator {
                Operator::Swiglu(_) => row_size(&operands[0]) / 2,
                _ => row_size(&operands[0]),
            };
            vec![(operator.clone(), restricted, vec![Some(elements(&rows, columns))])]
        }
        Operator::Adamw(adamw) if !adamw.digests => {
            let rows = choose(random, rows_of(&operands[0]), ROWS);
            let mut restricted: Vec<Tensor> = operands[..4].iter().map(|x| axis(x, 0, &rows)).collect();
            restricted.extend_from_slice(&operands[4..]);
            let taken = elements(&rows, row_size(&operands[0]));
            vec![(operator.clone(), restricted, vec![Some(taken); 3])]
        }
        Operator::RmsNorm(_) => {
            let (x, rows) = flat(&operands[0], random);
            let columns = row_size(&x);
            let restricted = vec![axis(&x, 0, &rows), operands[1].clone()];
            vec![(operator.clone(), restricted, vec![Some(elements(&rows, columns)), Some(rows)])]
        }
        Operator::RmsNormGradient(_) => {
            let (x, rows) = flat(&operands[0], random);
            let (dy, columns) = (as_rows(&operands[3]), row_size(&x));
            let count = rows_of(&x);
            let rstd = Tensor { sizes: vec![count], ..operands[2].clone() };
            let by_rows =
                vec![axis(&x, 0, &rows), operands[1].clone(), axis(&rstd, 0, &rows), axis(&dy, 0, &rows)];
            let some = choose(random, columns, COLUMNS);
            let by_columns =
                vec![axis(&x, 1, &some), axis(&operands[1], 0, &some), rstd, axis(&dy, 1, &some)];
            vec![
                (operator.clone(), by_rows, vec![Some(elements(&rows, columns)), None]),
                (operator.clone(), by_columns, vec![None, Some(some)]),
            ]
        }
        Operator::Rope(_) => {
            let rows = choose(random, rows_of(&operands[0]), ROWS);
            let restricted =
                vec![axis(&operands[0], 0, &rows), axis(&operands[1], 0, &rows), operands[2].clone()];
            vec![(operator.clone(), restricted, vec![Some(elements(&rows, row_size(&operands[0])))])]
        }
        Operator::ColumnSum(_) => {
            let columns = choose(random, operands[0].sizes[1], COLUMNS);
            vec![(operator.clone(), vec![axis(&operands[0], 1, &columns)], vec![Some(columns)])]
        }
        Operator::Gather(_) => {
            let rows = choose(random, rows_of(&operands[1]), ROWS);
            let places = axis(&operands[1], 0, &rows);
            let count = rows_of(&operands[0]);
            // The table's rows that are read, and others for what lies outside.
            let read: Vec<usize> = places
                .data
                .iter()
                .filter(|x| **x >= 0.0 && **x < count as f64)
                .map(|x| *x as usize)
                .collect();
            if read.is_empty() {
                return Vec::new();
            }
            let moved = |x: f64| match read.iter().position(|row| *row as f64 == x) {
                Some(place) => place as f64,
                None => -1.0,
            };
            let places = Tensor { data: places.data.iter().map(|x| moved(*x)).collect(), ..places };
            let restricted = vec![axis(&operands[0], 0, &read), places];
            vec![(operator.clone(), restricted, vec![Some(elements(&rows, row_size(&operands[0])))])]
        }
        Operator::Combine(_) => {
            let rows = choose(random, rows_of(&operands[1]), ROWS);
            let restricted =
                vec![operands[0].clone(), axis(&operands[1], 0, &rows), axis(&operands[2], 0, &rows)];
            vec![(operator.clone(), restricted, vec![Some(elements(&rows, row_size(&operands[0])))])]
        }
        Operator::LinearCrossEntropy(_) => {
            let rows = choose(random, rows_of(&operands[0]), 3);
            let restricted =
                vec![axis(&operands[0], 0, &rows), operands[1].clone(), axis(&operands[2], 0, &rows)];
            vec![(operator.clone(), restricted, vec![Some(rows.clone()), Some(rows)])]
        }
        Operator::LinearCrossEntropyGradient(gradient) if !gradient.sums => {
            let rows = choose(random, rows_of(&operands[0]), 3);
            let restricted = vec![
                axis(&operands[0], 0, &rows),
                operands[1].clone(),
                axis(&operands[2], 0, &rows),
                axis(&operands[3], 0, &rows),
            ];
            let dx = elements(&rows, operands[0].sizes[1]);
            vec![(operator.clone(), restricted, vec![Some(rows), Some(dx), None])]
        }
        Operator::Matmul(matmul) if !matmul.row_sums => {
            let (m, n) = (operands[0].sizes[0], operands[1].sizes[1]);
            let (rows, columns) = (choose(random, m, ROWS), choose(random, n, COLUMNS));
            let mut restricted = vec![axis(&operands[0], 0, &rows), axis(&operands[1], 1, &columns)];
            restricted.extend(operands.get(2).map(|bias| axis(bias, 0, &columns)));
            vec![(operator.clone(), restricted, vec![Some(grid(&rows, &columns, n))])]
        }
        Operator::GroupedMatmul(grouped) if !grouped.row_sums => {
            let (r, n) = (operands[0].sizes[0], operands[1].sizes[2]);
            let (rows, columns) = (choose(random, r, ROWS), choose(random, n, COLUMNS));
            // How many of the chosen rows lie before each expert's first.
            let before = |offset: &f64| rows.iter().filter(|row| (**row as f64) < *offset).count() as f64;
            let offsets =
                Tensor { data: operands[2].data.iter().map(before).collect(), ..operands[2].clone() };
            let restricted = vec![axis(&operands[0], 0, &rows), axis(&operands[1], 2, &columns), offsets];
            vec![(operator.clone(), restricted, vec![Some(grid(&rows, &columns, n))])]
        }
        Operator::GroupedOuter(outer) if !outer.row_sums => {
            let (k, n) = (operands[0].sizes[1], operands[1].sizes[1]);
            let experts = operands[2].sizes[0].saturating_sub(1);
            let (rows, columns) = (choose(random, k, ROWS), choose(random, n, ROWS));
            let mut taken = Vec::new();
            for expert in 0..experts {
                for row in &rows {
                    taken.extend(columns.iter().map(|column| (expert * k + row) * n + column));
                }
            }
            let restricted =
                vec![axis(&operands[0], 1, &rows), axis(&operands[1], 1, &columns), operands[2].clone()];
            vec![(operator.clone(), restricted, vec![Some(taken)])]
        }
        Operator::Attention(_) => {
            let (rows, keys) = (operands[0].sizes[0], operands[1].sizes[0]);
            let old = operands.get(4).and_then(|offset| offset.data.first()).copied().unwrap_or(0.0);
            let length =
                operands.get(5).and_then(|length| length.data.first()).copied().unwrap_or(keys as f64);
            let scalar =
                |x: f64| Tensor { dtype: toprope_program::DType::I32, sizes: vec![1], data: vec![x] };
            let block = BLOCK.min(rows);
            let part = |start: usize| {
                let some: Vec<usize> = (start..start + block).collect();
                let mut restricted =
                    vec![axis(&operands[0], 0, &some), operands[1].clone(), operands[2].clone()];
                restricted.push(axis(&operands[3], 0, &some));
                restricted.extend([scalar(old + start as f64), scalar(length)]);
                let heads = operands[0].sizes[1];
                let taken =
                    vec![Some(elements(&some, heads * operands[2].sizes[2])), Some(elements(&some, heads))];
                (operator.clone(), restricted, taken)
            };
            vec![part(rows - block), part(random.below(rows - block + 1))]
        }
        Operator::AttentionGradient(gradient) if !gradient.sums => attention_gradient(operator, operands),
        _ => Vec::new(),
    }
}

/// What a query gives back hangs on the keys before it, what a key gets on the queries behind it, given the log-sum-exp: the
/// first rows decide their own dq, the last ones their own dk and dv.
fn attention_gradient(operator: &Operator, operands: &[Tensor]) -> Vec<Part> {
    let (rows, keys) = (operands[0].sizes[0], operands[1].sizes[0]);
    if rows != keys {
        return Vec::new();
    }
    let block = BLOCK.min(rows);
    let part = |start: usize| {
        let some: Vec<usize> = (start..start + block).collect();
        let mut restricted: Vec<Tensor> = operands.iter().map(|operand| axis(operand, 0, &some)).collect();
        for first in &mut restricted[6].data {
            *first = (*first - start as f64).max(0.0);
        }
        (some, restricted)
    };
    let taken = |some: &[usize], operand: usize| Some(elements(some, row_size(&operands[operand])));
    let (head, first) = part(0);
    let (tail, last) = part(rows - block);
    vec![
        (operator.clone(), first, vec![taken(&head, 0), None, None]),
        (operator.clone(), last, vec![None, taken(&tail, 1), taken(&tail, 2)]),
    ]
}

/// Distinct numbers below `count` in order: the first, the last, and others between.
fn choose(random: &mut Random, count: usize, most: usize) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    let mut chosen = vec![0, count - 1];
    while chosen.len() < most {
        let next = random.below(count);
        if !chosen.contains(&next) {
            chosen.push(next);
        }
    }
    chosen.sort_unstable();
    chosen
}

/// The tensor with only these indices of an axis.
fn axis(tensor: &Tensor, axis: usize, kept: &[usize]) -> Tensor {
    let inner: usize = tensor.sizes[axis + 1..].iter().product();
    let outer: usize = tensor.sizes[..axis].iter().product();
    let size = tensor.sizes[axis];
    let mut data = Vec::with_capacity(outer * kept.len() * inner);
    for block in 0..outer {
        for index in kept {
            let start = (block * size + index) * inner;
            data.extend_from_slice(&tensor.data[start..start + inner]);
        }
    }
    let mut sizes = tensor.sizes.clone();
    sizes[axis] = kept.len();
    Tensor { dtype: tensor.dtype, sizes, data }
}

/// Elements of one index of the outermost axis.
fn row_size(tensor: &Tensor) -> usize {
    tensor.sizes.get(1..).map_or(1, |sizes| sizes.iter().product())
}

/// All axes but the last as one.
fn as_rows(tensor: &Tensor) -> Tensor {
    let columns = tensor.sizes.last().copied().unwrap_or(1);
    let rows = tensor.data.len() / columns.max(1);
    Tensor { sizes: vec![rows, columns], ..tensor.clone() }
}

fn flat(tensor: &Tensor, random: &mut Random) -> (Tensor, Vec<usize>) {
    let tensor = as_rows(tensor);
    let rows = choose(random, tensor.sizes[0], ROWS);
    (tensor, rows)
}

/// The elements of whole rows.
fn elements(rows: &[usize], columns: usize) -> Vec<usize> {
    rows.iter().flat_map(|row| row * columns..(row + 1) * columns).collect()
}

/// The elements of rows and columns.
fn grid(rows: &[usize], columns: &[usize], width: usize) -> Vec<usize> {
    rows.iter().flat_map(|row| columns.iter().map(move |column| row * width + column)).collect()
}
