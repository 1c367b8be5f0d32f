//! Which elements of an operator's results hang on few of its operands' numbers, and on which.

use toprope_conformance::random::Random;
use toprope_program::operator::ScatterAdd;
use toprope_program::{DType, Operator, Tensor};

/// The same operator on fewer numbers.
pub(super) struct Part {
    pub operands: Vec<Tensor>,
    /// For each output, which elements of the whole's its elements are; none for an output that needs more.
    pub elements: Vec<Option<Vec<usize>>>,
    /// The operator with its attributes, where they are others than the whole's.
    pub operator: Option<Operator>,
    /// In words.
    pub what: String,
}

/// Rows and columns that are looked at.
const ROWS: usize = 12;
const COLUMNS: usize = 48;
/// Neighbouring rows where an operator needs neighbours.
const BLOCK: usize = 16;
/// Rows of a head, each of which takes the whole vocabulary.
const HEAD_ROWS: usize = 3;

/// Parts of an operator on dense operands. Empty where its elements hang on all of the others, so that it must be judged whole.
pub(super) fn parts(operator: &Operator, operands: &[&Tensor], random: &mut Random) -> Vec<Part> {
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
            let rows = choose(random, row_count(operands[0]), ROWS);
            // Operands that are not row by row the result's are not known here.
            if operands.iter().any(|operand| row_count(operand) != row_count(operands[0])) {
                return Vec::new();
            }
            let columns = match operator {
                Operator::Swiglu(_) => row_size(operands[0]) / 2,
                _ => row_size(operands[0]),
            };
            let part = operands.iter().map(|x| axis(x, 0, &rows)).collect();
            vec![by_rows(operands[0], &rows, part, vec![Some(elements(&rows, columns))])]
        }
        Operator::Adamw(adamw) if !adamw.digests => {
            let rows = choose(random, row_count(operands[0]), ROWS);
            let mut part: Vec<Tensor> = operands[..4].iter().map(|x| axis(x, 0, &rows)).collect();
            part.extend(operands[4..].iter().copied().cloned());
            let taken = elements(&rows, row_size(operands[0]));
            vec![by_rows(operands[0], &rows, part, vec![Some(taken); 3])]
        }
        Operator::RmsNorm(_) => {
            let x = as_rows(operands[0]);
            let rows = choose(random, x.sizes[0], ROWS);
            let part = vec![axis(&x, 0, &rows), operands[1].clone()];
            let taken = vec![Some(elements(&rows, row_size(&x))), Some(rows.clone())];
            vec![by_rows(&x, &rows, part, taken)]
        }
        Operator::RmsNormGradient(_) => norm_gradient(operands, random),
        Operator::Rope(_) => {
            let rows = choose(random, row_count(operands[0]), ROWS);
            let part = vec![axis(operands[0], 0, &rows), axis(operands[1], 0, &rows), operands[2].clone()];
            let taken = vec![Some(elements(&rows, row_size(operands[0])))];
            vec![by_rows(operands[0], &rows, part, taken)]
        }
        Operator::ColumnSum(_) => {
            let columns = choose(random, operands[0].sizes[1], COLUMNS);
            let what = format!("{} columns of {}", columns.len(), operands[0].sizes[1]);
            let operands = vec![axis(operands[0], 1, &columns)];
            vec![Part { operands, elements: vec![Some(columns)], operator: None, what }]
        }
        Operator::Gather(_) => gather(operands, random),
        Operator::ScatterAdd(scatter) => scattered(scatter, operands, random),
        Operator::Combine(_) => combined(operands, random),
        Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_) => {
            let rows = choose(random, row_count(operands[0]), HEAD_ROWS);
            let mut part = vec![axis(operands[0], 0, &rows), operands[1].clone()];
            part.extend(operands[2..].iter().map(|operand| axis(operand, 0, &rows)));
            let wide = |width: usize| Some(elements(&rows, width));
            let taken = match operator {
                Operator::LinearCrossEntropy(_) => vec![wide(1), wide(1)],
                // The weight's gradient needs every row.
                _ => vec![wide(1), wide(operands[0].sizes[1]), None, wide(5), None],
            };
            vec![by_rows(operands[0], &rows, part, taken)]
        }
        Operator::Matmul(matmul) => {
            let (m, n) = (operands[0].sizes[0], operands[1].sizes[1]);
            product(random, [m, n], matmul.row_sums, |rows, columns| {
                let mut part = vec![axis(operands[0], 0, rows), axis(operands[1], 1, columns)];
                part.extend(operands.get(2).map(|bias| axis(bias, 0, columns)));
                (part, grid(rows, columns, n), rows.to_vec())
            })
        }
        Operator::GroupedMatmul(grouped) => {
            let (m, n) = (operands[0].sizes[0], operands[1].sizes[2]);
            product(random, [m, n], grouped.row_sums, |rows, columns| {
                // How many of the chosen rows lie before each expert's first.
                let before = |offset: &f64| rows.iter().filter(|row| (**row as f64) < *offset).count() as f64;
                let data = operands[2].data.iter().map(before).collect();
                let offsets = Tensor { data, ..operands[2].clone() };
                let part = vec![axis(operands[0], 0, rows), axis(operands[1], 2, columns), offsets];
                (part, grid(rows, columns, n), rows.to_vec())
            })
        }
        Operator::GroupedOuter(outer) => {
            let (k, n) = (operands[0].sizes[1], operands[1].sizes[1]);
            let experts = operands[2].sizes[0].saturating_sub(1);
            product(random, [k, n], outer.row_sums, |rows, columns| {
                let of_expert = |expert: usize| rows.iter().map(move |row| expert * k + row);
                let all: Vec<usize> = (0..experts).flat_map(of_expert).collect();
                let part =
                    vec![axis(operands[0], 1, rows), axis(operands[1], 1, columns), operands[2].clone()];
                (part, grid(&all, columns, n), all)
            })
        }
        Operator::Attention(_) => attention(operands, random),
        Operator::AttentionGradient(_) => Attended::choose(operands, random)
            .map(|attended| heads(operands, &attended))
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

fn by_rows(whole: &Tensor, rows: &[usize], operands: Vec<Tensor>, elements: Vec<Option<Vec<usize>>>) -> Part {
    Part { operands, elements, operator: None, what: format!("{} rows of {}", rows.len(), row_count(whole)) }
}

/// Some rows and columns of a product; its row sums, where it has them, need every column of a row.
fn product(
    random: &mut Random,
    [m, n]: [usize; 2],
    row_sums: bool,
    part: impl Fn(&[usize], &[usize]) -> (Vec<Tensor>, Vec<usize>, Vec<usize>),
) -> Vec<Part> {
    let (rows, columns) = (choose(random, m, ROWS), choose(random, n, COLUMNS));
    let what = format!("{} rows and {} columns of {m} and {n}", rows.len(), columns.len());
    let (operands, taken, _) = part(&rows, &columns);
    let mut parts = vec![Part { operands, elements: vec![Some(taken), None], operator: None, what }];
    if row_sums {
        let (rows, all) = (choose(random, m, 2), (0..n).collect::<Vec<_>>());
        let (operands, taken, sums) = part(&rows, &all);
        let what = format!("{} whole rows", rows.len());
        parts.push(Part { operands, elements: vec![Some(taken), Some(sums)], operator: None, what });
    }
    parts
}

/// Rows decide their own gradient, columns the weight's.
fn norm_gradient(operands: &[&Tensor], random: &mut Random) -> Vec<Part> {
    let (x, dy) = (as_rows(operands[0]), as_rows(operands[3]));
    let (count, width) = (x.sizes[0], row_size(&x));
    let rstd = Tensor { sizes: vec![count], ..operands[2].clone() };
    let (rows, columns) = (choose(random, count, ROWS), choose(random, width, COLUMNS));
    let of_rows = vec![axis(&x, 0, &rows), operands[1].clone(), axis(&rstd, 0, &rows), axis(&dy, 0, &rows)];
    let of_columns =
        vec![axis(&x, 1, &columns), axis(operands[1], 0, &columns), rstd, axis(&dy, 1, &columns)];
    let what = format!("{} columns of {width}", columns.len());
    vec![
        by_rows(&x, &rows, of_rows, vec![Some(elements(&rows, width)), None]),
        Part { operands: of_columns, elements: vec![None, Some(columns)], operator: None, what },
    ]
}

/// The table's rows that are read; an index outside of it stays outside.
fn gather(operands: &[&Tensor], random: &mut Random) -> Vec<Part> {
    let rows = choose(random, row_count(operands[1]), ROWS);
    let Some((table, indices)) = read(operands[0], axis(operands[1], 0, &rows)) else { return Vec::new() };
    let taken = vec![Some(elements(&rows, row_size(operands[0])))];
    vec![by_rows(operands[1], &rows, vec![table, indices], taken)]
}

/// The experts' rows that some tokens take.
fn combined(operands: &[&Tensor], random: &mut Random) -> Vec<Part> {
    let rows = choose(random, row_count(operands[1]), ROWS);
    let Some((y, slots)) = read(operands[0], axis(operands[1], 0, &rows)) else { return Vec::new() };
    let taken = vec![Some(elements(&rows, row_size(operands[0])))];
    vec![by_rows(operands[1], &rows, vec![y, slots, axis(operands[2], 0, &rows)], taken)]
}

/// The rows of a table that indices name, and the indices among them; none where all lie outside.
fn read(table: &Tensor, mut indices: Tensor) -> Option<(Tensor, Tensor)> {
    let count = row_count(table) as f64;
    let mut read: Vec<usize> =
        indices.data.iter().filter(|x| **x >= 0.0 && **x < count).map(|x| *x as usize).collect();
    read.sort_unstable();
    read.dedup();
    let moved = |x: f64| read.iter().position(|row| *row as f64 == x).map_or(-1.0, |place| place as f64);
    indices.data.iter_mut().for_each(|x| *x = moved(*x));
    (!read.is_empty()).then(|| (axis(table, 0, &read), indices))
}

/// Rows of the sum that something is added to, and its first and last; each with all that is added to it, in order.
fn scattered(scatter: &ScatterAdd, operands: &[&Tensor], random: &mut Random) -> Vec<Part> {
    let (count, width) = (scatter.rows.factor, row_size(operands[0]));
    if count == 0 || operands[1].data.is_empty() {
        return Vec::new();
    }
    let drawn = choose(random, operands[1].data.len(), ROWS).into_iter().map(|at| operands[1].data[at]);
    let hit = drawn.filter(|x| *x >= 0.0 && *x < count as f64).map(|x| x as usize);
    let mut rows: Vec<usize> = hit.chain([0, count - 1]).collect();
    rows.sort_unstable();
    rows.dedup();
    let place = |x: f64| rows.iter().position(|row| *row as f64 == x);
    let added: Vec<usize> =
        (0..operands[1].data.len()).filter(|at| place(operands[1].data[*at]).is_some()).collect();
    let mut indices = axis(operands[1], 0, &added);
    indices.data.iter_mut().for_each(|x| *x = place(*x).map_or(-1.0, |place| place as f64));
    vec![Part {
        operands: vec![axis(operands[0], 0, &added), indices],
        elements: vec![Some(elements(&rows, width))],
        operator: Some(ScatterAdd { rows: rows.len().into(), ..scatter.clone() }.into()),
        what: format!("{} rows of {count}", rows.len()),
    }]
}

/// The last rows, where a causal mask is widest, and others.
fn attention(operands: &[&Tensor], random: &mut Random) -> Vec<Part> {
    let (rows, heads) = (operands[0].sizes[0], operands[0].sizes[1]);
    let first =
        |at: usize, other: f64| operands.get(at).and_then(|x| x.data.first()).copied().unwrap_or(other);
    let (offset, length) = (first(4, 0.0), first(5, operands[1].sizes[0] as f64));
    let scalar = |x: f64| Tensor { dtype: DType::I32, sizes: vec![1], data: vec![x] };
    let block = BLOCK.min(rows);
    let part = |start: usize| {
        let some: Vec<usize> = (start..start + block).collect();
        let part = vec![
            axis(operands[0], 0, &some),
            operands[1].clone(),
            operands[2].clone(),
            axis(operands[3], 0, &some),
            scalar(offset + start as f64),
            scalar(length),
        ];
        let width = heads * operands[2].sizes[2];
        by_rows(operands[0], &some, part, vec![Some(elements(&some, width)), Some(elements(&some, heads))])
    };
    vec![part(rows - block), part(random.below(rows - block + 1))]
}

/// Rows of a document up to which all of its rows are looked at.
const DOCUMENT_MAX: usize = 512;

/// Which rows and key head of a gradient of attention are looked at. Rows of a document that nobody behind it sees, and the
/// heads that share a key head, have gradients of their own.
pub(super) struct Attended {
    pub rows: std::ops::Range<usize>,
    pub key: usize,
}

impl Attended {
    /// A key head, and of long operands the rows of one document; none where there is nothing to leave out.
    pub(super) fn choose(operands: &[&Tensor], random: &mut Random) -> Option<Attended> {
        let [t, heads, groups] = [operands[0].sizes[0], operands[0].sizes[1], operands[1].sizes[1]];
        if groups == 0 || !heads.is_multiple_of(groups) {
            return None;
        }
        let key = random.below(groups);
        let documents = match operands[1].sizes[0] == t {
            true => documents(&operands[6].data),
            false => Vec::new(),
        };
        let short: Vec<_> = documents.into_iter().filter(|rows| rows.len() <= DOCUMENT_MAX).collect();
        // The longest tell most.
        let most = short.iter().map(|rows| rows.len()).max();
        let longest: Vec<_> = short.into_iter().filter(|rows| Some(rows.len()) == most).collect();
        match longest.is_empty() {
            false if t > DOCUMENT_MAX => {
                Some(Attended { rows: longest[random.below(longest.len())].clone(), key })
            }
            _ if groups > 1 => Some(Attended { rows: 0..t, key }),
            _ => None,
        }
    }

    /// Query heads that share the key head.
    fn queries(&self, operands: &[&Tensor]) -> Vec<usize> {
        let group = operands[0].sizes[1] / operands[1].sizes[1].max(1);
        (self.key * group..(self.key + 1) * group).collect()
    }

    /// An operand's part, by its position among those of the gradient.
    pub(super) fn of(&self, at: usize, operands: &[&Tensor]) -> Tensor {
        let heads = if matches!(at, 1 | 2) { vec![self.key] } else { self.queries(operands) };
        // Keys of another number than the queries are all looked at.
        let rows = match at {
            1 | 2 => (0..operands[at].sizes[0]).filter(|row| self.covers(*row, operands)).collect(),
            _ => self.rows.clone().collect::<Vec<_>>(),
        };
        let part = axis(operands[at], 0, &rows);
        match at {
            6 => {
                let first = self.first(operands);
                Tensor { data: part.data.iter().map(|start| start - first).collect(), ..part }
            }
            _ => axis(&part, 1, &heads),
        }
    }

    fn covers(&self, key_row: usize, operands: &[&Tensor]) -> bool {
        self.rows.len() == operands[0].sizes[0] || self.rows.contains(&key_row)
    }

    fn first(&self, operands: &[&Tensor]) -> f64 {
        if self.rows.len() == operands[0].sizes[0] { 0.0 } else { self.rows.start as f64 }
    }

    /// Where the part's elements lie in a tensor like an operand, `[rows, heads, width]` or `[rows, heads]`.
    pub(super) fn places(&self, at: usize, operands: &[&Tensor]) -> Vec<usize> {
        let (all, width) =
            (operands[at].sizes[1], operands[at].sizes.get(2..).map_or(1, |rest| rest.iter().product()));
        let heads = if matches!(at, 1 | 2) { vec![self.key] } else { self.queries(operands) };
        let rows: Vec<usize> = match at {
            1 | 2 => (0..operands[at].sizes[0]).filter(|row| self.covers(*row, operands)).collect(),
            _ => self.rows.clone().collect(),
        };
        let places = rows.iter().flat_map(|row| heads.iter().map(move |head| row * all + head));
        places.flat_map(|place: usize| place * width..(place + 1) * width).collect()
    }
}

/// Documents that no row behind them sees, from where each row's document starts.
fn documents(starts: &[f64]) -> Vec<std::ops::Range<usize>> {
    let mut documents: Vec<std::ops::Range<usize>> = Vec::new();
    for (row, start) in starts.iter().enumerate() {
        match documents.last_mut() {
            Some(last) if last.start as f64 == *start => last.end = row + 1,
            _ if *start == row as f64 => documents.push(row..row + 1),
            // A row that sees nothing.
            Some(last) if *start > row as f64 => last.end = row + 1,
            // One that sees into others': nothing before it stands alone.
            _ => documents.clear(),
        }
    }
    documents
}

/// Heads of one group of the gradient of attention: those that share a key head; of long operands, one document of theirs.
pub(super) fn heads(operands: &[&Tensor], attended: &Attended) -> Part {
    let [t, heads] = [operands[0].sizes[0], operands[0].sizes[1]];
    let places = |at: usize| Some(attended.places(at, operands));
    let group = attended.queries(operands).len();
    let what = match attended.rows.len() {
        rows if rows == t => format!("{group} of {heads} heads"),
        rows => format!("a document of {rows} of {t} rows in {group} of {heads} heads"),
    };
    Part {
        operands: (0..operands.len()).map(|at| attended.of(at, operands)).collect(),
        elements: vec![places(0), places(1), places(2), places(4)],
        operator: None,
        what,
    }
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

fn row_count(tensor: &Tensor) -> usize {
    tensor.sizes.first().copied().unwrap_or(1)
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

/// The elements of whole rows.
fn elements(rows: &[usize], columns: usize) -> Vec<usize> {
    rows.iter().flat_map(|row| row * columns..(row + 1) * columns).collect()
}

/// The elements of rows and columns.
fn grid(rows: &[usize], columns: &[usize], width: usize) -> Vec<usize> {
    rows.iter().flat_map(|row| columns.iter().map(move |column| row * width + column)).collect()
}
