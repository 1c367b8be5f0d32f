//! Programs of one operator in which single operands are NaN, infinite, zero or the largest number, where the operator's
//! formula says what must come of it and in which rows. [`super::cases`] draws such values for operators that take them
//! anywhere; here are those whose intermediate results would leave what tolerances cover.

use super::GenerateError;
use crate::random::Random;
use crate::reproducer::Reproducer;
use crate::values::Regime;
use toprope_program::operator::*;
use toprope_program::{BuildError, Builder, DType, Operand, Phase, Role, ValueId, validate};

const NAN: f64 = f64::NAN;
const INFINITY: f64 = f64::INFINITY;

/// The largest finite number of both float types.
fn largest(dtype: DType) -> f64 {
    f64::from(if dtype == DType::Bf16 { f32::from_bits(0x7F7F_0000) } else { f32::MAX })
}

/// A program with its values.
#[derive(Clone, Debug)]
pub struct Special {
    /// Both, as text.
    pub whole: Reproducer,
    /// Outputs of its instruction of which the formula does not say what they are.
    pub open: &'static [usize],
}

impl Special {
    /// Leaves outputs open.
    fn open(self, open: &'static [usize]) -> Special {
        Special { open, ..self }
    }
}

type Outcome = Result<Special, GenerateError>;

/// Operands under construction: their elements are to be changed one by one.
#[derive(Clone, Debug)]
struct Operands {
    random: Random,
    list: Vec<(&'static str, DType, Vec<usize>, Vec<f64>)>,
}

impl Operands {
    fn new(operator: &str) -> Operands {
        Operands { random: Random::new(1, &format!("special {operator}")), list: Vec::new() }
    }

    /// Adds an operand of numbers from 1/4 to 5/4.
    fn with(mut self, name: &'static str, dtype: DType, sizes: &[usize]) -> Operands {
        let data = (0..sizes.iter().product()).map(|_| 0.25 + self.random.unit()).collect();
        self.list.push((name, dtype, sizes.to_vec(), data));
        self
    }

    /// Adds an operand of given numbers.
    fn given(mut self, name: &'static str, dtype: DType, sizes: &[usize], data: Vec<f64>) -> Operands {
        self.list.push((name, dtype, sizes.to_vec(), data));
        self
    }

    /// Puts numbers into an operand, each at its row-major index.
    fn put(mut self, name: &str, numbers: &[(usize, f64)]) -> Operands {
        for (_, _, _, data) in self.list.iter_mut().filter(|operand| operand.0 == name) {
            for (index, number) in numbers {
                data[*index] = *number;
            }
        }
        self
    }

    /// One operator on all operands.
    fn finish(self, name: &str, operator: impl Into<Operator>) -> Outcome {
        self.build(name, |builder, operands| builder.apply_all("y", operator, operands.to_vec()).map(drop))
    }

    /// What `make` adds on these operands. A gradient comes behind its forward operator, which it may repeat.
    fn build(
        self,
        name: &str,
        make: impl FnOnce(&mut Builder, &[Operand]) -> Result<(), BuildError>,
    ) -> Outcome {
        let mut builder = Builder::new(name, Phase::Evaluate);
        let operands: Vec<Operand> = self
            .list
            .iter()
            .map(|(name, dtype, sizes, _)| builder.input(name, *dtype, sizes.iter().copied()).into())
            .collect();
        make(&mut builder, &operands)?;
        let mut program = builder.program().clone();
        let outputs: Vec<ValueId> = program.accumulate.iter().flat_map(|i| i.outputs.clone()).collect();
        for id in outputs {
            program.values[id.0 as usize].role = Role::Output;
        }
        if let Err(defects) = validate(program.clone()) {
            return Err(GenerateError::Invalid { seed: 0, defects });
        }
        let mut whole = Reproducer::new(program, Vec::new(), 0, Regime::Normal);
        whole.values = self.list.into_iter().map(|(name, _, _, data)| (name.to_string(), data)).collect();
        Ok(Special { whole, open: &[] })
    }
}

/// The cases of an operator; none where any value may stand anywhere in [`super::cases`], or where it takes no floats that
/// may be anything but numbers. A new operator is a decision: there is no wildcard.
pub fn special(operator: &Operator) -> Result<Vec<Special>, GenerateError> {
    let both = [DType::F32, DType::Bf16];
    let mut cases = Vec::new();
    match operator {
        Operator::Activation(_) => {
            for (kind, dtype) in
                ActivationKind::ALL.into_iter().flat_map(|kind| both.map(|dtype| (kind, dtype)))
            {
                cases.push(activation(kind, dtype)?);
            }
        }
        Operator::ActivationGradient(_) => {
            for (kind, dtype) in
                ActivationKind::ALL.into_iter().flat_map(|kind| both.map(|dtype| (kind, dtype)))
            {
                cases.push(activation_gradient(kind, dtype)?);
            }
        }
        Operator::Swiglu(_) => {
            for dtype in both {
                cases.push(swiglu(dtype)?);
            }
        }
        Operator::SwigluGradient(_) => {
            for dtype in both {
                cases.push(swiglu_gradient(dtype)?);
            }
        }
        Operator::RmsNorm(_) => {
            for dtype in both {
                cases.extend(rms_norm(dtype)?);
            }
        }
        Operator::RmsNormGradient(_) => {
            for dtype in both {
                cases.push(rms_norm_gradient(dtype)?);
            }
        }
        Operator::Attention(_) => {
            for dtype in both {
                cases.extend(attention(dtype)?);
            }
        }
        Operator::AttentionGradient(_) => {
            for dtype in both {
                cases.extend(attention_gradient(dtype)?);
            }
        }
        Operator::LinearCrossEntropy(_) => {
            for dtype in both {
                cases.extend(linear_cross_entropy(dtype)?);
            }
        }
        Operator::LinearCrossEntropyGradient(_) => {
            for dtype in both {
                cases.extend(linear_cross_entropy_gradient(dtype)?);
            }
        }
        Operator::Router(_) => cases.extend(router()?),
        Operator::RouterGradient(_) => cases.extend(router_gradient()?),
        Operator::BalanceLoss(_) => cases.extend(balance_loss()?),
        Operator::BalanceLossGradient(_) => cases.push(balance_loss_gradient()?),
        Operator::GlobalNorm(_) => cases.extend(global_norm()?),
        Operator::Adamw(_) => cases.push(adamw()?),
        // Drawn with any value anywhere.
        Operator::Cast(_)
        | Operator::Add(_)
        | Operator::Multiply(_)
        | Operator::Scale(_)
        | Operator::Assemble(_)
        | Operator::Gather(_)
        | Operator::ScatterAdd(_)
        | Operator::ColumnSum(_)
        | Operator::Dot(_)
        | Operator::Matmul(_)
        | Operator::GroupedMatmul(_)
        | Operator::GroupedOuter(_)
        | Operator::Rope(_)
        | Operator::Combine(_)
        | Operator::CombineGradient(_)
        | Operator::Accumulate(_)
        | Operator::Append(_)
        | Operator::Digest(_)
        | Operator::Compare(_) => {}
        // Integers, or a bias that a sign moves.
        Operator::ExpertSort(_)
        | Operator::BiasUpdate(_)
        | Operator::Increment(_)
        | Operator::RandomBits(_) => {}
        // A check of what is no number is infinite by its own definition; of the digest's operands, NaN has many patterns.
        Operator::ProductCheck(_)
        | Operator::AttentionCheck(_)
        | Operator::LossCheck(_)
        | Operator::AdamwDigest(_)
        | Operator::Verify(_) => {}
    }
    Ok(cases)
}

fn activation(kind: ActivationKind, dtype: DType) -> Outcome {
    let most = largest(dtype);
    let mut x =
        vec![(0, 0.0), (1, -0.0), (2, NAN), (3, INFINITY), (4, most), (5, -most), (17, NAN), (39, NAN)];
    // x·sigmoid(x) at -∞ is a limit, not a value of the formula.
    if !matches!(kind, ActivationKind::Silu | ActivationKind::Gelu) {
        x.extend([(20, -INFINITY), (37, -INFINITY)]);
    }
    Operands::new("activation")
        .with("x", dtype, &[40])
        .put("x", &x)
        .finish(&format!("activation: {kind:?} of what is no ordinary number"), Activation { kind })
}

fn activation_gradient(kind: ActivationKind, dtype: DType) -> Outcome {
    // Beyond them, where relu's slope is 0: no number comes of what is none.
    let mut x = vec![(5, NAN), (6, 0.0), (8, -1.0), (9, -1.0), (10, -1.0), (11, 1.0), (33, NAN)];
    // The slope of gelu's inner function leaves f32 there.
    if kind != ActivationKind::Gelu {
        x.push((7, largest(dtype)));
    }
    Operands::new("activation_gradient")
        .with("x", dtype, &[34])
        .with("dy", dtype, &[34])
        .put("x", &x)
        .put("dy", &[(0, NAN), (1, INFINITY), (2, -INFINITY), (3, 0.0), (32, INFINITY)])
        .put("dy", &[(8, NAN), (9, INFINITY), (10, -INFINITY), (11, INFINITY)])
        .finish(&format!("activation_gradient: {kind:?}, NaN and infinities"), ActivationGradient { kind })
}

fn swiglu(dtype: DType) -> Outcome {
    let half = 35;
    let (gate, up) = (|at: usize| at, |at: usize| half + at);
    let most = largest(dtype);
    let x = [
        (gate(0), NAN),
        (up(1), NAN),
        (gate(2), INFINITY),
        (up(3), -INFINITY),
        (gate(4), 0.0),
        (up(4), INFINITY),
        (gate(5), -most),
        (gate(6), most),
        (up(6), 0.5),
        (gate(34), NAN),
        (4 * half + up(34), INFINITY),
    ];
    Operands::new("swiglu")
        .with("x", dtype, &[3, 2 * half])
        .put("x", &x)
        .finish("swiglu: NaN, infinities and the largest numbers in gates and values", Swiglu {})
}

fn swiglu_gradient(dtype: DType) -> Outcome {
    let half = 35;
    Operands::new("swiglu_gradient")
        .with("x", dtype, &[3, 2 * half])
        .with("dy", dtype, &[3, half])
        .put("x", &[(0, NAN), (half + 1, INFINITY), (half + 2, NAN), (4 * half + 34, NAN)])
        .put("dy", &[(3, NAN), (4, -INFINITY), (5, 0.0), (2 * half + 33, INFINITY)])
        .finish("swiglu_gradient: NaN and infinities", SwigluGradient {})
}

fn rms_norm(dtype: DType) -> Result<[Special; 3], GenerateError> {
    let columns = 37;
    let operands =
        || Operands::new("rms_norm").with("x", dtype, &[3, columns]).with("weight", dtype, &[columns]);
    let norm = RmsNorm { epsilon: 1e-6 };
    let zeros: Vec<(usize, f64)> = (2 * columns..3 * columns).map(|at| (at, 0.0)).collect();
    Ok([
        operands()
            .put("x", &[(5, NAN), (3 * columns - 1, NAN)])
            .finish("rms_norm: a NaN makes its own row NaN", norm.clone())?,
        operands()
            .put("x", &[(5, INFINITY), (3 * columns - 1, -INFINITY)])
            .finish("rms_norm: beside an infinity the others are 0", norm.clone())?,
        operands()
            .put("x", &zeros)
            .put("x", &[(columns + 3, 0.0), (columns + 4, -1.0)])
            .put("weight", &[(3, INFINITY), (4, -INFINITY), (36, NAN)])
            .finish("rms_norm: zeros, and weights that are no numbers", norm)?,
    ])
}

fn rms_norm_gradient(dtype: DType) -> Outcome {
    let columns = 37;
    Operands::new("rms_norm_gradient")
        .with("x", dtype, &[3, columns])
        .with("weight", dtype, &[columns])
        .with("dy", dtype, &[3, columns])
        .put("dy", &[(5, NAN)])
        .put("x", &[(2 * columns + 7, INFINITY)])
        .build("rms_norm_gradient: a NaN and an infinity, each in its row", |builder, operands| {
            let [x, weight, dy] = [0, 1, 2].map(|at: usize| operands[at].clone());
            let made = builder.apply("y", RmsNorm { epsilon: 1e-6 }, [x.clone(), weight.clone()])?;
            let gradient = RmsNormGradient { weight_output: DType::F32 };
            builder.apply("dx", gradient, [x, weight, made[1].into(), dy]).map(drop)
        })
}

/// Rows of both attentions: more than a block, in two documents.
const ROWS: usize = 67;
/// Where the second document begins.
const BORDER: usize = 40;
/// Columns of keys, and of values.
const COLUMNS: (usize, usize) = (5, 3);

fn borders() -> Vec<f64> {
    (0..ROWS).map(|row| if row < BORDER { 0.0 } else { BORDER as f64 }).collect()
}

fn attention(dtype: DType) -> Result<Vec<Special>, GenerateError> {
    let (d, dv) = COLUMNS;
    let operands = || {
        Operands::new("attention")
            .with("q", dtype, &[ROWS, 2, d])
            .with("k", dtype, &[ROWS, 1, d])
            .with("v", dtype, &[ROWS, 1, dv])
            .given("segment_start", DType::I32, &[ROWS], borders())
    };
    let it = || Attention { scale: 0.5 };
    // The logarithm of an infinite sum is infinite by the formula, and NaN where the largest score was taken out before.
    let cases = [
        operands()
            .put("k", &[(10 * d + 2, NAN)])
            .finish("attention: a NaN key reaches the rows that see it", it()),
        operands()
            .put("q", &[((12 * 2 + 1) * d, NAN)])
            .finish("attention: a NaN query is its own row's", it()),
        operands()
            .put("v", &[(20 * dv + 1, INFINITY)])
            .finish("attention: an infinite value, in its column", it()),
        operands()
            .put("v", &[(5 * dv, INFINITY), (8 * dv, -INFINITY), (60 * dv + 2, NAN)])
            .finish("attention: infinities that meet are NaN", it()),
        operands()
            .put("k", &[(15 * d, -INFINITY), (BORDER * d, -INFINITY)])
            .finish("attention: a score of -inf has no weight, and alone no meaning", it())
            .map(|case| case.open(&[1])),
        operands()
            .put("k", &[(30 * d + 1, INFINITY)])
            .finish("attention: a score of +inf is NaN", it())
            .map(|case| case.open(&[1])),
        operands()
            .put("k", &[(50 * d, -INFINITY)])
            .put("v", &[(50 * dv, INFINITY)])
            .finish("attention: no weight times an infinite value is NaN", it()),
    ];
    cases.into_iter().collect()
}

fn attention_gradient(dtype: DType) -> Result<Vec<Special>, GenerateError> {
    let (d, dv) = COLUMNS;
    let operands = || {
        Operands::new("attention_gradient")
            .with("q", dtype, &[ROWS, 2, d])
            .with("k", dtype, &[ROWS, 1, d])
            .with("v", dtype, &[ROWS, 1, dv])
            .given("segment_start", DType::I32, &[ROWS], borders())
            .with("dout", dtype, &[ROWS, 2, dv])
    };
    let cases = [
        ("a NaN in dout", operands().put("dout", &[(12 * 2 * dv, NAN)])),
        ("an infinity in dout", operands().put("dout", &[(44 * 2 * dv, INFINITY)])),
        ("a NaN key", operands().put("k", &[(10 * d + 2, NAN)])),
        ("a NaN query", operands().put("q", &[((12 * 2 + 1) * d, NAN)])),
        ("an infinite value", operands().put("v", &[(20 * dv + 1, INFINITY)])),
        ("a NaN value", operands().put("v", &[(20 * dv + 1, NAN)])),
        ("a score of -inf", operands().put("k", &[(15 * d, -INFINITY)])),
    ];
    let build = |(what, operands): (&str, Operands)| {
        operands.build(&format!("attention_gradient: {what}"), |builder, operands| {
            let [q, k, v, starts, dout] = [0, 1, 2, 3, 4].map(|at: usize| operands[at].clone());
            let forward = [q.clone(), k.clone(), v.clone(), starts.clone()];
            let made = builder.apply("out", Attention { scale: 0.5 }, forward)?;
            let gradient = AttentionGradient { scale: 0.5, sums: false };
            builder.apply("dq", gradient, [q, k, v, made[0].into(), made[1].into(), dout, starts]).map(drop)
        })
    };
    cases.into_iter().map(build).collect()
}

/// Rows, words and columns of the head.
const HEAD: (usize, usize, usize) = (5, 70, 9);

/// The last word among the targets, and for one row `other`.
fn targets(other: f64) -> Vec<f64> {
    vec![1.0, 2.0, other, 3.0, 69.0]
}

fn linear_cross_entropy(dtype: DType) -> Result<Vec<Special>, GenerateError> {
    let (rows, words, columns) = HEAD;
    let operands = || {
        Operands::new("linear_cross_entropy")
            .with("x", dtype, &[rows, columns])
            .with("weight", dtype, &[words, columns])
            .given("targets", DType::I32, &[rows], targets(-100.0))
    };
    let it = || LinearCrossEntropy {};
    let cases = [
        operands()
            .put("x", &[(4, NAN), (2 * columns + 3, NAN)])
            .finish("linear_cross_entropy: NaN rows, one of them without a target", it()),
        operands().put("weight", &[(7 * columns, NAN)]).finish("linear_cross_entropy: a NaN word", it()),
        operands()
            .put("weight", &[(69 * columns + 3, -INFINITY)])
            .finish("linear_cross_entropy: a word that cannot be, and is a target", it()),
    ];
    cases.into_iter().collect()
}

fn linear_cross_entropy_gradient(dtype: DType) -> Result<Vec<Special>, GenerateError> {
    let (rows, words, columns) = HEAD;
    let operands = || {
        Operands::new("linear_cross_entropy_gradient")
            .with("x", dtype, &[rows, columns])
            .with("weight", dtype, &[words, columns])
            // No row without a target: whether 0 times what is no number is 0 there is left open.
            .given("targets", DType::I32, &[rows], targets(5.0))
            .with("dloss", DType::F32, &[rows])
    };
    let it = || LinearCrossEntropyGradient { weight_output: DType::F32, sums: false };
    let cases = [
        operands().put("x", &[(4, NAN)]).finish("linear_cross_entropy_gradient: a NaN row", it()),
        operands()
            .put("weight", &[(7 * columns, NAN)])
            .finish("linear_cross_entropy_gradient: a NaN word", it()),
        operands()
            .put("weight", &[(69 * columns + 3, -INFINITY)])
            .finish("linear_cross_entropy_gradient: a word that cannot be, and is a target", it()),
        operands().put("dloss", &[(3, NAN)]).finish("linear_cross_entropy_gradient: a NaN dloss", it()),
    ];
    cases.into_iter().collect()
}

/// Logits that lie far apart, in another order in each row.
fn logits(rows: usize, experts: usize) -> Vec<f64> {
    (0..rows * experts).map(|at| ((at % experts * 3 + at / experts) % experts) as f64 * 0.5 - 1.5).collect()
}

fn router() -> Result<[Special; 2], GenerateError> {
    let (rows, experts) = (4, 8);
    let operands =
        || {
            Operands::new("router")
                .given("logits", DType::F32, &[rows, experts], logits(rows, experts))
                .given("bias", DType::F32, &[experts], vec![0.0; experts])
        };
    let it = |scoring| Router { scoring, top_k: 2, groups: 1, top_groups: 1, normalize: true, scale: 1.5 };
    Ok([
        operands()
            .put("logits", &[(3, NAN), (experts + 5, INFINITY), (2 * experts + 1, -INFINITY)])
            .finish("router: a NaN is never chosen, +inf always, -inf last", it(Scoring::Sigmoid))?,
        operands()
            .put("logits", &[(experts + 5, -INFINITY)])
            .finish("router: a softmax without one expert", it(Scoring::Softmax))?,
    ])
}

fn router_gradient() -> Result<[Special; 2], GenerateError> {
    let (rows, experts) = (4, 8);
    let build = |name: &str, normalize: bool| {
        Operands::new("router_gradient")
            .given("logits", DType::F32, &[rows, experts], logits(rows, experts))
            .given("bias", DType::F32, &[experts], vec![0.0; experts])
            .with("dweights", DType::F32, &[rows, 2])
            .put("dweights", &[(1, NAN), (2, INFINITY)])
            .build(name, |builder, operands| {
                let scoring = Scoring::Sigmoid;
                let router = Router { scoring, top_k: 2, groups: 1, top_groups: 1, normalize, scale: 1.5 };
                let made = builder.apply("scores", router, [operands[0].clone(), operands[1].clone()])?;
                let gradient = RouterGradient { scoring, normalize, scale: 1.5 };
                let operands = [made[0].into(), made[1].into(), made[2].into(), operands[2].clone()];
                builder.apply("dlogits", gradient, operands).map(drop)
            })
    };
    Ok([
        build("router_gradient: NaN and infinity in the chosen of their rows", true)?,
        build("router_gradient: NaN and infinity in their own places", false)?,
    ])
}

fn balance_loss() -> Result<[Special; 2], GenerateError> {
    let operands = || {
        Operands::new("balance_loss").with("scores", DType::F32, &[8, 6]).given(
            "indices",
            DType::I32,
            &[8, 2],
            (0..16).map(|at| f64::from(at * 5 % 6)).collect(),
        )
    };
    let it = || BalanceLoss { sequence: 4 };
    Ok([
        operands().put("scores", &[(8, NAN)]).finish("balance_loss: a NaN is its own sequence's", it())?,
        operands().put("scores", &[(40, INFINITY)]).finish("balance_loss: an infinite score is NaN", it())?,
    ])
}

fn balance_loss_gradient() -> Outcome {
    Operands::new("balance_loss_gradient")
        .with("scores", DType::F32, &[8, 6])
        .given("indices", DType::I32, &[8, 2], (0..16).map(|at| f64::from(at * 5 % 6)).collect())
        .with("dloss", DType::F32, &[2])
        .put("scores", &[(8, NAN)])
        .put("dloss", &[(1, NAN)])
        .finish(
            "balance_loss_gradient: a NaN score is its own token's, a NaN dloss its sequence's",
            BalanceLossGradient { sequence: 4 },
        )
}

fn global_norm() -> Result<[Special; 3], GenerateError> {
    let operands =
        || Operands::new("global_norm").with("a", DType::F32, &[37]).with("b", DType::F32, &[3, 5]);
    let it = || GlobalNorm { clip: 1.0 };
    let zeros =
        |count: usize| (0..count).map(|at| (at, if at % 2 == 0 { 0.0 } else { -0.0 })).collect::<Vec<_>>();
    Ok([
        operands().put("b", &[(14, -INFINITY)]).finish("global_norm: an infinity gives factor 0", it())?,
        operands().put("a", &[(20, NAN)]).finish("global_norm: a NaN gives factor 0", it())?,
        operands()
            .put("a", &zeros(37))
            .put("b", &zeros(15))
            .finish("global_norm: zeros give factor 1", it())?,
    ])
}

fn adamw() -> Outcome {
    let operands = ["weight", "gradient", "m", "v"]
        .into_iter()
        .fold(Operands::new("adamw"), |operands, name| operands.with(name, DType::F32, &[40]));
    operands
        .given("factor", DType::F32, &[1], vec![0.37])
        .given("rates", DType::F32, &[3], vec![1e-3, 0.19, 0.0975])
        .put("gradient", &[(0, NAN), (1, INFINITY), (2, -INFINITY), (6, 0.0), (7, -0.0), (39, NAN)])
        .put("m", &[(3, INFINITY), (6, 0.0), (8, NAN)])
        .put("v", &[(4, INFINITY), (6, 0.0), (9, NAN)])
        .put("weight", &[(5, NAN), (10, INFINITY), (11, -0.0)])
        .finish(
            "adamw: what is no number stays in its own element",
            Adamw { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, digests: false },
        )
}

#[cfg(test)]
mod tests {
    use crate::generate::exemplars::exemplars;

    #[test]
    fn each_case_has_a_value_that_is_no_ordinary_number() {
        let mut count = 0;
        for operator in exemplars() {
            for case in super::special(&operator).expect("a valid program") {
                let special = |x: &f64| !x.is_finite() || *x == 0.0;
                let program = &case.whole.program;
                assert!(case.whole.values.values().flatten().any(special), "{}", program.name);
                assert!(program.name.starts_with(operator.name()), "{}", program.name);
                let last = program.accumulate.last().map(|instruction| instruction.operator.name());
                assert_eq!(last, Some(operator.name()), "{}", program.name);
                count += 1;
            }
        }
        assert!(count >= 70, "{count} cases");
    }
}
