//! Finite differences in wide mode, for every operator that has a gradient.

use crate::numbers::{Numbers, floats, integers};
use crate::session::Session;
use std::collections::BTreeSet;
use toprope_program::autodiff::differentiate;
use toprope_program::operator::*;
use toprope_program::recompute::Recompute;
use toprope_program::shape::elements;
use toprope_program::{
    Builder, DType, Dim, Operand, Operator, Phase, Program, Range, Tensor, Type, View, Width,
};

const RELATIVE_ERROR_MAX: f64 = 1e-6;
const DIRECTIONS: usize = 3;

/// How an operator sees a dense value.
type Through = fn(View) -> View;

/// One operator on given values. Every float operand is differentiated.
struct Case {
    name: &'static str,
    operator: Operator,
    /// Values and the window that the operator reads.
    operands: Vec<(Tensor, Through)>,
    /// Outputs that the loss reads.
    outputs: Vec<usize>,
    /// An integer output that must not change while operands are moved.
    choice: Option<usize>,
    /// Operands that are read but not differentiated.
    held: Vec<usize>,
}

fn case(name: &'static str, operator: impl Into<Operator>, operands: Vec<Tensor>) -> Case {
    let operands = operands.into_iter().map(|tensor| (tensor, (|view| view) as Through)).collect();
    Case { name, operator: operator.into(), operands, outputs: vec![0], choice: None, held: Vec::new() }
}

impl Case {
    fn seen(mut self, operand: usize, through: Through) -> Case {
        self.operands[operand].1 = through;
        self
    }

    fn held(mut self, operands: &[usize]) -> Case {
        self.held = operands.to_vec();
        self
    }

    fn differentiated(&self) -> Vec<usize> {
        let float = |operand: &usize| self.operands[*operand].0.dtype.is_float();
        (0..self.operands.len()).filter(float).filter(|operand| !self.held.contains(operand)).collect()
    }

    /// The operator, the loss `Σ output·weight` and its gradients as carried values.
    fn program(&self, recompute: Recompute) -> Program {
        let mut b = Builder::new(self.name, Phase::Train);
        let mut ids = Vec::new();
        let mut operands: Vec<Operand> = Vec::new();
        for (index, (tensor, through)) in self.operands.iter().enumerate() {
            let id = b.input(&format!("operand.{index}"), tensor.dtype, tensor.sizes.clone());
            let view = through(b.view(id).unwrap());
            let dense = Some(view) == View::dense(&b.program().value(id).shape);
            operands.push(if dense { id.into() } else { b.seen(id, through).unwrap() });
            ids.push(id);
        }
        let outputs = b.apply_all("y", self.operator.clone(), operands).unwrap();
        let mut total = None;
        for &output in &self.outputs {
            let mut id = outputs[output];
            if b.program().value(id).dtype != DType::F32 {
                id = b.one("y.f32", Cast { output: DType::F32 }, [id.into()]).unwrap();
            }
            let count = b.program().value(id).shape.iter().map(|dim| dim.factor).product::<usize>();
            let weights = b.input(&format!("weights.{output}"), DType::F32, [count]);
            let flat = Operand {
                value: id,
                view: Some(View { offset: 0, shape: vec![count.into()], strides: vec![1] }),
            };
            let part = b.one("part", Dot {}, [flat, weights.into()]).unwrap();
            total = Some(match total {
                None => part,
                Some(sum) => {
                    b.one("sum", Add { output: DType::F32 }, [Operand::from(sum), part.into()]).unwrap()
                }
            });
        }
        let total = total.unwrap();
        if let Some(choice) = self.choice {
            b.accumulate("choice", outputs[choice]).unwrap();
        }
        let moved: Vec<_> = self.differentiated().into_iter().map(|operand| ids[operand]).collect();
        let gradients = differentiate(&mut b, total, &moved, recompute).unwrap();
        b.accumulate("loss", total).unwrap();
        for (operand, gradient) in self.differentiated().into_iter().zip(gradients) {
            let gradient =
                gradient.unwrap_or_else(|| panic!("{}: operand {operand} has no gradient", self.name));
            let name = format!("gradient.{operand}");
            // Accumulate takes f32; wide mode rounds nothing.
            if b.program().value(gradient).dtype == DType::F32 {
                b.accumulate(&name, gradient).unwrap();
            } else {
                let wide = b.one("wide", Cast { output: DType::F32 }, [gradient.into()]).unwrap();
                b.accumulate(&name, wide).unwrap();
            }
        }
        b.finish()
    }

    fn check(&self, recompute: Recompute) {
        let mut numbers = Numbers::new(self.name.bytes().map(u32::from).sum());
        let mut session = Session::new(self.program(recompute), Width::Wide);
        for (index, (tensor, _)) in self.operands.iter().enumerate() {
            session.write(&format!("operand.{index}"), tensor);
        }
        for value in session.program.program().values.clone() {
            if value.name.starts_with("weights.") {
                session.write(&value.name, &numbers.tensor(DType::F32, &[value.shape[0].factor]));
            }
        }
        session.run(Range::Accumulate);
        let choice = self.choice.map(|_| session.read("choice"));
        let moved = self.differentiated();
        let gradients: Vec<Tensor> =
            moved.iter().map(|operand| session.read(&format!("gradient.{operand}"))).collect();
        for (operand, gradient) in moved.into_iter().zip(gradients) {
            for _ in 0..DIRECTIONS {
                let (tensor, name) = (&self.operands[operand].0, format!("operand.{operand}"));
                let direction = numbers.tensor(DType::F32, &tensor.sizes);
                let mut loss_at = |distance: f64| {
                    let mut moved = tensor.clone();
                    for (x, d) in moved.data.iter_mut().zip(&direction.data) {
                        *x += distance * d;
                    }
                    session.write(&name, &moved);
                    session.run(Range::Accumulate);
                    if let Some(choice) = &choice {
                        assert_eq!(&session.read("choice"), choice, "{}: a choice flipped", self.name);
                    }
                    session.read("loss").data[0]
                };
                // Central differences of fourth order: the error is of order h⁴ = 1e-12.
                let h = 1e-3;
                let near = loss_at(h) - loss_at(-h);
                let far = loss_at(2.0 * h) - loss_at(-2.0 * h);
                let numeric = (8.0 * near - far) / (12.0 * h);
                session.write(&name, tensor);
                let analytic: f64 = gradient.data.iter().zip(&direction.data).map(|(g, d)| g * d).sum();
                let error = (numeric - analytic).abs() / numeric.abs().max(analytic.abs());
                assert!(
                    error <= RELATIVE_ERROR_MAX,
                    "{} ({recompute:?}): operand {operand}: {analytic:e} by the rule, {numeric:e} by differences",
                    self.name
                );
            }
        }
    }
}

fn elementwise(n: &mut Numbers) -> Vec<Case> {
    let f32 = DType::F32;
    let mut x = |sizes: &[usize]| n.tensor(f32, sizes);
    let mut cases = vec![
        case("cast", Cast { output: DType::Bf16 }, vec![x(&[3, 5])]),
        case("add", Add { output: f32 }, vec![x(&[3, 5]), x(&[3, 5])]),
        case("add, windows", Add { output: f32 }, vec![x(&[5, 3]), x(&[3, 9])])
            .seen(0, |v| v.transpose(0, 1))
            .seen(1, |v| v.narrow(1, 2, 5)),
        case("multiply", Multiply { output: f32 }, vec![x(&[4, 3]), x(&[4, 3])]),
        case("multiply, repeated", Multiply { output: f32 }, vec![x(&[4, 3]), x(&[3])])
            .seen(1, |v| v.repeat(0, 4.into())),
        case("scale", Scale { factor: -0.3 }, vec![x(&[7])]),
        case("scale, a window", Scale { factor: 1.7 }, vec![x(&[4, 6])]).seen(0, |v| v.narrow(1, 3, 2)),
        case("swiglu", Swiglu {}, vec![x(&[3, 8])]),
        case("swiglu, a window", Swiglu {}, vec![x(&[3, 11])]).seen(0, |v| v.narrow(1, 4, 6)),
    ];
    for kind in ActivationKind::ALL {
        cases.push(case("activation", Activation { kind }, vec![x(&[4, 5])]));
    }
    cases
}

fn moved(n: &mut Numbers) -> Vec<Case> {
    let f32 = DType::F32;
    let mut x = |sizes: &[usize]| n.tensor(f32, sizes);
    let view = |offset, shape: &[usize], strides: &[usize]| View {
        offset,
        shape: shape.iter().map(|size| Dim::from(*size)).collect(),
        strides: strides.to_vec(),
    };
    let views = vec![view(1, &[2, 3], &[5, 1]), view(0, &[3, 2], &[1, 5]), view(9, &[4], &[0])];
    vec![
        case(
            "assemble",
            Assemble { output: f32, shape: vec![2.into(), 5.into()], views },
            vec![x(&[2, 3]), x(&[3, 2]), x(&[4])],
        ),
        case("gather", Gather { output: f32 }, vec![x(&[5, 3]), integers(&[6], &[4, -1, 0, 4, 5, 4])]),
        case("gather, columns", Gather { output: f32 }, vec![x(&[5, 6]), integers(&[3], &[2, 0, 2])])
            .seen(0, |v| v.narrow(1, 1, 3)),
        case(
            "scatter_add",
            ScatterAdd { output: f32, rows: 4.into() },
            vec![x(&[5, 3]), integers(&[5], &[3, 0, -1, 3, 4])],
        ),
        case("column_sum", ColumnSum { output: f32 }, vec![x(&[4, 3])]),
        case("column_sum, transposed", ColumnSum { output: f32 }, vec![x(&[4, 3])])
            .seen(0, |v| v.transpose(0, 1)),
        case("dot", Dot {}, vec![x(&[6]), x(&[6])]),
        case("dot, repeated", Dot {}, vec![x(&[6]), x(&[1])]).seen(1, |v| v.repeat(0, 6.into()).drop_axis(1)),
    ]
}

fn products(n: &mut Numbers) -> Vec<Case> {
    let f32 = DType::F32;
    let matmul = |row_sums| Matmul { output: f32, row_sums };
    let grouped = |row_sums| GroupedMatmul { output: f32, row_sums };
    let offsets = || integers(&[5], &[0, 3, 3, 4, 7]);
    let mut x = |sizes: &[usize]| n.tensor(f32, sizes);
    let mut cases = vec![
        case("matmul", matmul(false), vec![x(&[3, 4]), x(&[4, 5])]),
        case("matmul, bias", matmul(true), vec![x(&[3, 4]), x(&[4, 5]), x(&[5])]),
        case("matmul, both transposed", matmul(false), vec![x(&[4, 3]), x(&[5, 4])])
            .seen(0, |v| v.transpose(0, 1))
            .seen(1, |v| v.transpose(0, 1)),
        case("matmul, windows", matmul(false), vec![x(&[3, 9]), x(&[7, 6])])
            .seen(0, |v| v.narrow(1, 2, 4))
            .seen(1, |v| v.transpose(0, 1).narrow(0, 1, 4)),
        case("matmul, repeated row", matmul(false), vec![x(&[4]), x(&[4, 2])])
            .seen(0, |v| v.repeat(0, 3.into())),
        case("grouped_matmul", grouped(false), vec![x(&[7, 3]), x(&[4, 3, 2]), offsets()]),
        case("grouped_matmul, transposed", grouped(true), vec![x(&[7, 3]), x(&[4, 2, 3]), offsets()])
            .seen(1, |v| v.transpose(1, 2)),
        case("grouped_matmul, window", grouped(false), vec![x(&[7, 8]), x(&[4, 3, 5]), offsets()])
            .seen(0, |v| v.narrow(1, 5, 3))
            .seen(1, |v| v.narrow(2, 1, 2)),
    ];
    let mut y = |sizes: &[usize]| n.tensor(DType::Bf16, sizes);
    cases.push(case("matmul, bf16", matmul(false), vec![y(&[3, 4]), y(&[4, 5])]));
    cases
}

fn rows(n: &mut Numbers) -> Vec<Case> {
    let mut x = |sizes: &[usize]| n.tensor(DType::F32, sizes);
    let norm = RmsNorm { epsilon: 1e-2 };
    let mut cases = vec![
        case("rms_norm", norm.clone(), vec![x(&[3, 6]), x(&[6])]),
        case("rms_norm, heads", norm.clone(), vec![x(&[3, 2, 5]), x(&[5])]),
        case("rms_norm, a window", norm, vec![x(&[3, 9]), x(&[4])]).seen(0, |v| v.narrow(1, 2, 4)),
        case(
            "linear_cross_entropy",
            LinearCrossEntropy {},
            vec![x(&[5, 4]), x(&[7, 4]), integers(&[5], &[6, -1, 0, 3, 3])],
        ),
        case(
            "linear_cross_entropy, transposed",
            LinearCrossEntropy {},
            vec![x(&[3, 4]), x(&[4, 6]), integers(&[3], &[5, 6, 0])],
        )
        .seen(1, |v| v.transpose(0, 1)),
    ];
    for (interleaved, inverse, start) in
        [(true, false, 0), (false, false, 0), (true, true, 3), (false, false, 2)]
    {
        let operands = vec![
            x(&[4, 2, 4 + start]),
            integers(&[4], &[0, 2, 7, 1]),
            // Twice the size of a rotation, so that a transposed rotation is told from an inverse one.
            floats(&[3, 2, 2], &x(&[12]).data.iter().map(|x| 2.0 * x).collect::<Vec<_>>()),
        ];
        cases.push(case("rope", Rope { start, interleaved, inverse }, operands).held(&[2]));
    }
    cases
}

fn attentions(n: &mut Numbers) -> Vec<Case> {
    let mut x = |sizes: &[usize]| n.tensor(DType::F32, sizes);
    let attention = || Attention { scale: 0.8 };
    vec![
        case(
            "attention",
            attention(),
            vec![x(&[4, 2, 3]), x(&[4, 2, 3]), x(&[4, 2, 3]), integers(&[4], &[0; 4])],
        ),
        case(
            "attention, groups and documents",
            attention(),
            vec![x(&[7, 4, 3]), x(&[7, 2, 3]), x(&[7, 2, 5]), integers(&[7], &[0, 0, 2, 2, 2, 5, 6])],
        ),
        case(
            "attention, rows that see nothing",
            attention(),
            vec![x(&[4, 1, 2]), x(&[4, 1, 2]), x(&[4, 1, 3]), integers(&[4], &[0, 3, 0, 9])],
        ),
        case(
            "attention, one key head repeated",
            attention(),
            vec![x(&[4, 3, 2]), x(&[4, 2]), x(&[4, 3, 4]), integers(&[4], &[0, 0, 1, 1])],
        )
        .seen(1, |v| v.repeat(1, 3.into()))
        .seen(2, |v| v.narrow(2, 1, 2)),
    ]
}

fn experts(n: &mut Numbers) -> Vec<Case> {
    let mut x = |sizes: &[usize]| n.tensor(DType::F32, sizes);
    let mut cases = vec![case(
        "combine",
        Combine {},
        vec![x(&[6, 3]), integers(&[3, 2], &[4, 0, 5, 1, -1, 2]), x(&[3, 2])],
    )];
    // Shares of positive scores, with an index outside of the experts.
    let positive = floats(&[6, 3], &x(&[18]).data.iter().map(|x| x.abs() + 0.1).collect::<Vec<_>>());
    let indices = integers(&[6, 2], &[0, 1, 2, 1, 0, 2, 1, 1, 2, -1, 0, 1]);
    cases.push(case("balance_loss", BalanceLoss { sequence: 3 }, vec![positive, indices]));
    for scoring in [Scoring::Sigmoid, Scoring::Softmax] {
        for normalize in [false, true] {
            for (groups, top_groups, outputs) in [(1, 1, vec![2]), (4, 2, vec![2]), (2, 1, vec![0, 2])] {
                let operator = Router { scoring, top_k: 3, groups, top_groups, normalize, scale: 1.6 };
                let logits: Vec<f64> = x(&[40]).data.iter().map(|x| 2.0 * x).collect();
                let bias: Vec<f64> = x(&[8]).data.iter().map(|x| 0.1 * x).collect();
                let operands = vec![floats(&[5, 8], &logits), floats(&[8], &bias)];
                let router = case("router", operator, operands).held(&[1]);
                cases.push(Case { outputs, choice: Some(1), ..router });
            }
        }
    }
    cases
}

fn cases() -> Vec<Case> {
    let mut n = Numbers::new(1);
    [elementwise, moved, products, rows, attentions, experts].iter().flat_map(|group| group(&mut n)).collect()
}

#[test]
fn gradients_agree_with_finite_differences() {
    for recompute in [Recompute::Nothing, Recompute::Products] {
        cases().iter().for_each(|case| case.check(recompute));
    }
}

/// The list of cases cannot fall behind the contract.
#[test]
fn every_operator_with_a_gradient_has_a_case() {
    let tried: BTreeSet<&str> = cases().iter().map(|case| case.operator.name()).collect();
    let with_gradient: BTreeSet<&str> = OPERATORS
        .iter()
        .filter(|record| !record.gradient.starts_with("none"))
        .map(|record| record.name)
        .collect();
    assert_eq!(tried, with_gradient);
}

/// A value that several windows of several instructions read: contributions overlap and add up.
#[test]
fn contributions_of_overlapping_windows_add_up() {
    let mut b = Builder::new("overlap", Phase::Train);
    let x = b.input("x", DType::F32, [5, 4]);
    let upper = b.seen(x, |v| v.narrow(0, 0, 4)).unwrap();
    let lower = b.seen(x, |v| v.narrow(0, 1, 4)).unwrap();
    let product = b.one("product", Multiply { output: DType::F32 }, [upper.clone(), lower]).unwrap();
    let turned = b.seen(x, |v| v.narrow(0, 1, 4).transpose(0, 1)).unwrap();
    let y = b.one("y", Matmul { output: DType::F32, row_sums: false }, [product.into(), turned]).unwrap();
    let square = b.one("square", Multiply { output: DType::F32 }, [y.into(), y.into()]).unwrap();
    let flat =
        |value| Operand { value, view: Some(View { offset: 0, shape: vec![16.into()], strides: vec![1] }) };
    let columns = b.one("columns", Scale { factor: 0.7 }, [upper]).unwrap();
    let loss = b.one("total", Dot {}, [flat(square), flat(columns)]).unwrap();
    let gradient = differentiate(&mut b, loss, &[x], Recompute::Elementwise).unwrap()[0].unwrap();
    b.accumulate("loss", loss).unwrap();
    b.accumulate("gradient", gradient).unwrap();
    let mut session = Session::new(b.finish(), Width::Wide);
    let mut numbers = Numbers::new(5);
    let start = numbers.tensor(DType::F32, &[5, 4]);
    session.write("x", &start);
    session.run(Range::Accumulate);
    let gradient = session.read("gradient");
    for element in 0..20 {
        let mut loss_at = |distance: f64| {
            let mut moved = start.clone();
            moved.data[element] += distance;
            session.write("x", &moved);
            session.run(Range::Accumulate);
            session.read("loss").data[0]
        };
        let h = 1e-3;
        let numeric =
            (8.0 * (loss_at(h) - loss_at(-h)) - (loss_at(2.0 * h) - loss_at(-2.0 * h))) / (12.0 * h);
        let analytic = gradient.data[element];
        assert!(
            (numeric - analytic).abs() <= RELATIVE_ERROR_MAX * analytic.abs().max(1e-3),
            "element {element}: {analytic:e} by the rule, {numeric:e} by differences"
        );
    }
    assert_eq!(elements(&gradient.sizes), 20);
    assert_eq!(Type::new(gradient.dtype, gradient.sizes.clone()), Type::new(DType::F32, [5, 4]));
}
