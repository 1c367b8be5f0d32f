//! What a program's values are filled with: drawn from a seed, in the sense of whoever reads them.

use crate::random::Random;
use toprope_program::operator::{ActivationKind, Operator, Verify};
use toprope_program::shape::sizes;
use toprope_program::tensor::round;
use toprope_program::{DType, Program, Range, Role, Tensor, ValueId};

/// What kind of numbers float values get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Regime {
    /// Standard normal numbers.
    Normal,
    /// Normal numbers with a scale of its own for each row, from 2^-16 to 2^8.
    Wide,
    /// ±0, subnormals, infinities, NaN and the largest finite numbers among normal ones, as far as the operator bears it.
    Special,
    /// Subnormals and the smallest normal numbers among ordinary ones.
    Subnormal,
    /// Small integers: exact zeros, exact sums and exact ties.
    Integers,
}

impl Regime {
    /// All of them.
    pub const ALL: [Regime; 5] =
        [Regime::Normal, Regime::Wide, Regime::Special, Regime::Subnormal, Regime::Integers];

    /// The name in a saved program's head.
    pub fn name(self) -> &'static str {
        match self {
            Regime::Normal => "normal",
            Regime::Wide => "wide",
            Regime::Special => "special",
            Regime::Subnormal => "subnormal",
            Regime::Integers => "integers",
        }
    }

    /// The inverse of [`Regime::name`].
    pub fn from_name(name: &str) -> Option<Regime> {
        Regime::ALL.into_iter().find(|regime| regime.name() == name)
    }
}

/// A tensor for each value that the host writes, by id; sizes are those of the symbols' binding.
pub type Values = Vec<Option<Tensor>>;

/// How wild floats may be before the operator's f32 arithmetic leaves the range where its bound holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Latitude {
    /// No NaN, no infinity, nothing above 2^10.
    Tame,
    /// NaN too.
    Moderate,
    /// Anything that the dtype holds.
    Any,
}

/// What the reader of a value takes it for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Purpose {
    Float(Latitude),
    /// Strictly positive, away from 0.
    Positive,
    /// Not negative.
    SecondMoment,
    /// `[lr, c1, c2]` of the optimizer.
    Rates,
    /// A clipping factor.
    Factor,
    /// Rows of a table; some outside of it where the operator says what that means.
    Index {
        bound: usize,
        stray: bool,
    },
    /// Distinct numbers below `bound` in each row.
    Choices {
        bound: usize,
    },
    /// Distinct places among `rows`, and some outside.
    Slots {
        rows: usize,
    },
    /// Where each expert's rows begin.
    Offsets {
        rows: usize,
    },
    SegmentStart,
    Small {
        most: usize,
    },
    CacheLength {
        rows: usize,
    },
    Counts,
    Words,
}

/// What the operand at `position` of an operator is for; `shapes` are the sizes of its operands.
fn purpose(operator: &Operator, position: usize, shapes: &[Vec<usize>]) -> Purpose {
    use Latitude::{Any, Moderate, Tame};
    let size =
        |operand: usize, axis: usize| shapes.get(operand).and_then(|s| s.get(axis)).copied().unwrap_or(1);
    match operator {
        Operator::Cast(_)
        | Operator::Add(_)
        | Operator::Multiply(_)
        | Operator::Scale(_)
        | Operator::Assemble(_)
        | Operator::ColumnSum(_)
        | Operator::Dot(_)
        | Operator::Digest(_) => Purpose::Float(Any),
        Operator::Accumulate(_) => Purpose::Float(Any),
        Operator::Activation(activation) => Purpose::Float(match activation.kind {
            ActivationKind::Relu | ActivationKind::Sigmoid | ActivationKind::Tanh => Any,
            ActivationKind::Silu | ActivationKind::Gelu => Moderate,
        }),
        Operator::ActivationGradient(_) | Operator::Swiglu(_) | Operator::SwigluGradient(_) => {
            Purpose::Float(Moderate)
        }
        Operator::Gather(_) => match position {
            1 => Purpose::Index { bound: size(0, 0), stray: true },
            _ => Purpose::Float(Any),
        },
        Operator::ScatterAdd(scatter) => match position {
            1 => Purpose::Index { bound: scatter.rows.factor, stray: true },
            _ => Purpose::Float(Any),
        },
        Operator::Matmul(_) => Purpose::Float(Any),
        Operator::GroupedMatmul(_) | Operator::GroupedOuter(_) => match position {
            2 => Purpose::Offsets { rows: size(0, 0) },
            _ => Purpose::Float(Any),
        },
        Operator::Attention(_) => match position {
            3 => Purpose::SegmentStart,
            4 => Purpose::Small { most: size(1, 0).saturating_sub(size(0, 0)) },
            5 => Purpose::CacheLength { rows: size(1, 0) },
            _ => Purpose::Float(Tame),
        },
        Operator::AttentionGradient(_) => match position {
            6 => Purpose::SegmentStart,
            _ => Purpose::Float(Tame),
        },
        Operator::AttentionCheck(_) => match position {
            8 => Purpose::SegmentStart,
            _ => Purpose::Float(Tame),
        },
        Operator::RmsNorm(_) => Purpose::Float(Moderate),
        Operator::RmsNormGradient(_) => match position {
            2 => Purpose::Positive,
            _ => Purpose::Float(Moderate),
        },
        Operator::Rope(_) => match position {
            1 => Purpose::Index { bound: size(2, 0), stray: true },
            _ => Purpose::Float(Any),
        },
        Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_) => match position {
            2 => Purpose::Index { bound: size(1, 0), stray: true },
            _ => Purpose::Float(Tame),
        },
        Operator::Router(_) => Purpose::Float(Tame),
        Operator::RouterGradient(_) => match position {
            0 | 2 => Purpose::Positive,
            1 => Purpose::Choices { bound: size(0, 1) },
            _ => Purpose::Float(Tame),
        },
        Operator::BalanceLoss(_) | Operator::BalanceLossGradient(_) => match position {
            0 => Purpose::Positive,
            1 => Purpose::Choices { bound: size(0, 1) },
            _ => Purpose::Float(Tame),
        },
        Operator::ExpertSort(sort) => Purpose::Index { bound: sort.experts, stray: true },
        Operator::Combine(_) | Operator::CombineGradient(_) => match position {
            1 => Purpose::Slots { rows: size(0, 0) },
            _ => Purpose::Float(Any),
        },
        Operator::GlobalNorm(_) => Purpose::Float(Moderate),
        Operator::Adamw(_) | Operator::AdamwDigest(_) => match position {
            3 => Purpose::SecondMoment,
            4 => Purpose::Factor,
            5 => Purpose::Rates,
            _ => Purpose::Float(Moderate),
        },
        Operator::BiasUpdate(_) => match position {
            1 => Purpose::Counts,
            _ => Purpose::Float(Tame),
        },
        Operator::Increment(_) => Purpose::Counts,
        Operator::RandomBits(_) => Purpose::Words,
        Operator::Append(_) => match position {
            2 => Purpose::Small { most: size(0, 0) },
            _ => Purpose::Float(Any),
        },
        Operator::LossCheck(_) => Purpose::Float(Tame),
        Operator::ProductCheck(_) => match position {
            3 => Purpose::Offsets { rows: size(0, 0) },
            _ => Purpose::Float(Tame),
        },
        Operator::Compare(_) => Purpose::Float(Any),
        // Numbers only: one that is none is a mismatch by itself.
        Operator::Verify(verify) => {
            let inputs = verify.inputs(shapes.len());
            let own = if position < inputs {
                purpose(&verify.of, position, &shapes[..inputs])
            } else {
                made(verify, position - inputs, shapes)
            };
            match own {
                Purpose::Float(_) => Purpose::Float(Tame),
                own => own,
            }
        }
    }
}

/// What somebody else's result of a verified operator is drawn as: such that it might be one.
fn made(verify: &Verify, output: usize, shapes: &[Vec<usize>]) -> Purpose {
    match (&*verify.of, output) {
        (Operator::Router(_), 1) => Purpose::Choices { bound: shapes[0][1] },
        (Operator::Router(_), 3) | (Operator::ExpertSort(_), 2) => Purpose::Counts,
        (Operator::ExpertSort(_), _) => Purpose::Index { bound: shapes[0].iter().product(), stray: true },
        (Operator::Increment(_), _) => Purpose::Counts,
        _ => Purpose::Float(Latitude::Tame),
    }
}

/// The purpose of each value, from all that read it: the strictest.
fn purposes(program: &Program, symbols: &[usize]) -> Vec<Purpose> {
    let mut purposes: Vec<Option<Purpose>> = vec![None; program.values.len()];
    for range in Range::ALL {
        for instruction in program.range(range) {
            let shapes: Vec<Vec<usize>> =
                program.concrete_operands(instruction, symbols).into_iter().map(|c| c.sizes).collect();
            for (position, operand) in instruction.operands.iter().enumerate() {
                let new = purpose(&instruction.operator, position, &shapes);
                let held = &mut purposes[operand.value.0 as usize];
                *held = Some(match (*held, new) {
                    (None, new) => new,
                    (Some(Purpose::Float(a)), Purpose::Float(b)) => Purpose::Float(a.min(b)),
                    (Some(Purpose::Float(_)), special) => special,
                    (Some(special), _) => special,
                });
            }
        }
    }
    let default = |value: &toprope_program::Value| match value.dtype {
        DType::F32 | DType::Bf16 => Purpose::Float(Latitude::Tame),
        DType::I32 => Purpose::Counts,
        DType::U32 => Purpose::Words,
    };
    purposes
        .into_iter()
        .zip(&program.values)
        .map(|(held, value)| held.unwrap_or_else(|| default(value)))
        .collect()
}

/// Fills every value that the host writes: inputs, states, constants, and what stands in carried values and caches
/// before. The same program, binding, seed and regime give the same numbers.
pub fn draw(program: &Program, symbols: &[usize], seed: u64, regime: Regime) -> Values {
    let purposes = purposes(program, symbols);
    let mut values: Values = vec![None; program.values.len()];
    for (id, value) in program.values_with_ids() {
        let sizes = sizes(&value.shape, symbols);
        let tensor = match &value.role {
            Role::Scratch | Role::Output | Role::Next { .. } => continue,
            Role::Constant { content } => Tensor::rounded(value.dtype, &sizes, content.values(&sizes)),
            Role::State { .. } | Role::Input | Role::Carried | Role::Cache => {
                let mut random = Random::new(seed, &value.name);
                fill(&mut random, value.dtype, &sizes, purposes[id.0 as usize], regime)
            }
        };
        values[id.0 as usize] = Some(tensor);
    }
    values
}

/// As [`draw`] with standard normal numbers, all floats times `2^exponent`: a band of magnitudes. Operators with an
/// exponential or a choice in them get nothing above 2^8, where there is nothing left to compare.
pub fn draw_banded(program: &Program, symbols: &[usize], seed: u64, exponent: i32) -> Values {
    let purposes = purposes(program, symbols);
    let mut values = draw(program, symbols, seed, Regime::Normal);
    for (id, value) in program.values_with_ids() {
        let Purpose::Float(latitude) = purposes[id.0 as usize] else { continue };
        let most = if latitude == Latitude::Tame { 8 } else { i32::MAX };
        if let (Some(tensor), true) = (&mut values[id.0 as usize], value.dtype.is_float())
            && !matches!(value.role, Role::Constant { .. })
        {
            let scale = 2f64.powi(exponent.min(most));
            tensor.data.iter_mut().for_each(|x| *x = round(value.dtype, *x * scale));
        }
    }
    values
}

/// Draws one value again, at other sizes, as [`draw`] would.
pub fn redraw(
    program: &Program,
    symbols: &[usize],
    seed: u64,
    regime: Regime,
    id: ValueId,
) -> Option<Tensor> {
    draw(program, symbols, seed, regime).into_iter().nth(id.0 as usize).flatten()
}

fn fill(random: &mut Random, dtype: DType, sizes: &[usize], purpose: Purpose, regime: Regime) -> Tensor {
    let count: usize = sizes.iter().product();
    let last = sizes.last().copied().unwrap_or(1).max(1);
    let data: Vec<f64> = match (dtype, purpose) {
        (DType::U32, _) => (0..count).map(|_| f64::from(random.word())).collect(),
        (DType::F32 | DType::Bf16, purpose) => floats(random, dtype, count, last, purpose, regime),
        (DType::I32, purpose) => integers(random, count, last, purpose),
    };
    Tensor::rounded(dtype, sizes, data)
}

fn floats(
    random: &mut Random,
    dtype: DType,
    count: usize,
    last: usize,
    purpose: Purpose,
    regime: Regime,
) -> Vec<f64> {
    let latitude = match purpose {
        Purpose::Float(latitude) => latitude,
        Purpose::Positive => return (0..count).map(|_| 0.05 + random.unit()).collect(),
        Purpose::SecondMoment => {
            return (0..count)
                .map(|_| match regime {
                    Regime::Subnormal => special_small(random, DType::F32).abs(),
                    Regime::Wide => random.normal().powi(2) * 2f64.powi(random.between(-30, 4) as i32),
                    _ => random.normal().powi(2),
                })
                .collect();
        }
        Purpose::Rates => {
            let lr = random.pick(&[1e-3, 3e-4, 0.1]);
            let t = random.between(1, 40) as i32;
            return vec![lr, 1.0 - 0.9f64.powi(t), 1.0 - 0.95f64.powi(t)][..count.min(3)].to_vec();
        }
        Purpose::Factor => return (0..count).map(|_| random.pick(&[1.0, 0.37])).collect(),
        _ => Latitude::Tame,
    };
    let mut scale = 1.0;
    (0..count)
        .map(|at| {
            if at.is_multiple_of(last) {
                scale = 2f64.powi(random.between(-16, 8) as i32);
            }
            match regime {
                Regime::Normal => random.normal(),
                Regime::Wide => random.normal() * scale,
                Regime::Integers => random.between(-2, 2) as f64,
                Regime::Subnormal if random.chance(0.6) => special_small(random, dtype),
                Regime::Special if random.chance(0.3) => special(random, dtype, latitude),
                Regime::Subnormal | Regime::Special => random.normal(),
            }
        })
        .collect()
}

/// A subnormal number, or one of the smallest normal ones.
fn special_small(random: &mut Random, dtype: DType) -> f64 {
    let sign = random.pick(&[-1.0, 1.0]);
    let bits = if dtype == DType::Bf16 { 7 } else { 23 };
    let unit = 2f64.powi(-126 - bits);
    let step = match random.below(4) {
        0 => 1.0,
        1 => (1u64 << bits) as f64,
        2 => (1u64 << bits) as f64 - 1.0,
        _ => 1.0 + random.below(1 << bits) as f64,
    };
    sign * unit * step
}

fn special(random: &mut Random, dtype: DType, latitude: Latitude) -> f64 {
    let sign = random.pick(&[-1.0, 1.0]);
    let largest = if dtype == DType::Bf16 { round_down_to_bf16(f32::MAX) } else { f64::from(f32::MAX) };
    match (random.below(8), latitude) {
        (0, _) => 0.0,
        (1, _) => -0.0,
        (2, _) => special_small(random, dtype),
        (3, _) => sign * 100.0,
        (4, Latitude::Moderate | Latitude::Any) if random.chance(0.3) => f64::NAN,
        (5, Latitude::Any) if random.chance(0.5) => sign * f64::INFINITY,
        (6, Latitude::Any) => sign * largest,
        (7, Latitude::Any) => sign * largest / 2.0,
        _ => sign * 2f64.powi(random.between(-10, 6) as i32),
    }
}

fn round_down_to_bf16(x: f32) -> f64 {
    f64::from(f32::from_bits(x.to_bits() & 0xFFFF_0000))
}

fn integers(random: &mut Random, count: usize, last: usize, purpose: Purpose) -> Vec<f64> {
    let mut data: Vec<i64> = Vec::with_capacity(count);
    match purpose {
        Purpose::Index { bound, stray } => {
            let stray = stray && random.chance(0.3);
            data.extend((0..count).map(|_| {
                if stray && random.chance(0.1) {
                    random.pick(&[-1, -100, bound as i64, i64::from(i32::MAX)])
                } else {
                    random.below(bound.max(1)) as i64
                }
            }));
        }
        Purpose::Choices { bound } => {
            let mut all: Vec<i64> = (0..bound.max(1) as i64).collect();
            for at in 0..count {
                if at.is_multiple_of(last) {
                    random.shuffle(&mut all);
                }
                data.push(all[at % last % all.len()]);
            }
        }
        Purpose::Slots { rows } => {
            let stray = if random.chance(0.3) { 3 } else { 0 };
            let mut all: Vec<i64> = (0..(rows.max(count) + stray) as i64).collect();
            random.shuffle(&mut all);
            data.extend(&all[..count]);
        }
        Purpose::Offsets { rows } => {
            // Cut points in order; equal ones are experts without rows, which half of the draws force.
            let experts = count.saturating_sub(1).max(1);
            let mut cuts: Vec<i64> = (1..experts).map(|_| random.below(rows + 1) as i64).collect();
            if random.chance(0.5) {
                let same = random.below(rows + 1) as i64;
                let kept = cuts.len() / 2;
                cuts.iter_mut().skip(kept).for_each(|cut| *cut = same);
            }
            cuts.sort_unstable();
            data.push(0);
            data.extend(cuts);
            data.push(rows as i64);
            data.truncate(count);
        }
        Purpose::SegmentStart => {
            // Documents of random lengths; now and then a row that sees nothing (its document starts behind it).
            let mut start = 0;
            for at in 0..count as i64 {
                if random.chance(0.2) {
                    start = at;
                }
                data.push(start);
            }
            if random.chance(0.1) && count > 1 {
                let row = random.below(count);
                data[row] = count as i64 + 1000;
            }
        }
        Purpose::Small { most } => data.extend((0..count).map(|_| random.below(most + 1) as i64)),
        Purpose::CacheLength { rows } => data.extend((0..count).map(|_| 1 + random.below(rows) as i64)),
        _ => data.extend((0..count).map(|_| random.below(50) as i64)),
    }
    data.into_iter().map(|x| round(DType::I32, x as f64)).collect()
}
