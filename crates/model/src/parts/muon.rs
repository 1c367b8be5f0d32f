//! Muon: the momentum of each matrix, orthogonalised by Newton–Schulz iterations, is what the matrix moves along (Jordan, "Muon: An
//! optimizer for hidden layers in neural networks", 2024; weight decay and the scale by the matrix' sides: Moonlight, arXiv
//! 2502.16982, section 2.2). Nothing but products, sums and a norm, so it is composed of the contract's operators.
//!
//! A *matrix* is what is published as one: gate and up, queries, keys and values, and each expert are moved apart, however they are
//! stacked. Matrices of one shape that lie one behind the other go through grouped products together.

use crate::checkpoint::Piece;
use crate::error::ModelError;
use crate::parameters::Parameter;
use crate::training_options::MuonOptions;
use toprope_program::constant::Content;
use toprope_program::operator::{Add, Assemble, Cast, GlobalNorm, GroupedMatmul, Matmul, Multiply, Scale};
use toprope_program::{Builder, DType, Dim, Initial, Operand, Type, ValueId, View};

/// Coefficients a, b and c of an iteration `X ← a·X + (b·A + c·A²)·X` with `A = X·Xᵀ` (Jordan).
const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];
/// `global_norm` adds 1e-6 to a norm before it divides by it. What is normalised is first made larger by this, so that 1e-12 is what
/// is added.
const LARGER: f64 = 1_048_576.0;
/// Below 1e-6, so that the factor of `global_norm` is this over the norm whatever the norm is.
const NUMERATOR: f64 = 1.0 / LARGER;
/// The root mean square of an update of AdamW, which an orthogonal one is scaled to (Moonlight, equation 4).
const RMS: f64 = 0.2;

/// What all of a step's updates read.
pub(crate) struct Step<'a> {
    /// The optimizer's constants.
    pub(crate) options: &'a MuonOptions,
    /// Decoupled weight decay.
    pub(crate) weight_decay: f64,
    /// What the products compute in.
    pub(crate) dtype: DType,
    /// The clipping factor `[1]`.
    pub(crate) factor: ValueId,
    /// `[3]`, of which the first is the learning rate.
    pub(crate) rates: ValueId,
}

/// Whether a parameter is moved by Muon: matrices of hidden layers are; the embedding, the head, norms and biases are not.
pub(crate) fn moves(parameter: &Parameter) -> bool {
    let outside = ["model.embed_tokens.weight", "lm_head.weight"];
    !parameter.kind.is_vector() && parameter.shape.len() >= 2 && !outside.contains(&parameter.name.as_str())
}

/// Matrices of one shape that follow one another in a parameter.
struct Batch {
    count: usize,
    rows: usize,
    columns: usize,
    offset: usize,
}

impl Batch {
    /// A parameter's matrices in as few batches as there are.
    fn of(pieces: &[&Piece]) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        for piece in pieces {
            let &[rows, columns] = piece.shape.as_slice() else { continue };
            match batches.last_mut() {
                Some(batch) if (batch.rows, batch.columns) == (rows, columns) => batch.count += 1,
                _ => batches.push(Batch { count: 1, rows, columns, offset: piece.offset_elements }),
            }
        }
        batches
    }

    /// Its elements within the parameter: `[rows, columns]`, or `[count, rows, columns]` where there are several.
    fn view(&self) -> View {
        let view = View {
            offset: self.offset,
            shape: [self.count, self.rows, self.columns].map(Dim::from).to_vec(),
            strides: vec![self.rows * self.columns, self.columns, 1],
        };
        if self.count == 1 { view.drop_axis(0) } else { view }
    }

    /// One of its matrices.
    fn matrix(&self, index: usize) -> View {
        View {
            offset: self.offset + index * self.rows * self.columns,
            shape: [self.rows, self.columns].map(Dim::from).to_vec(),
            strides: vec![self.columns, 1],
        }
    }
}

/// Moves one parameter.
pub(crate) fn update(
    builder: &mut Builder,
    parameter: &Parameter,
    pieces: &[&Piece],
    (weight, gradient): (ValueId, ValueId),
    step: &Step<'_>,
) -> Result<(), ModelError> {
    let name = parameter.name.as_str();
    let r#type = builder.program().value(weight).r#type();
    let shape = r#type.shape.clone();
    let momentum = builder.state(&format!("{name}.momentum"), r#type, Initial::Zeros);
    let next = [builder.next(weight), builder.next(momentum)];
    let called = |what: &str| format!("{name}.muon.{what}");

    // m' = μ·m + (1 - μ)·g, and what the step goes along: (1 - μ)·g + μ·m' with Nesterov's look ahead, m' without.
    let mu = step.options.momentum;
    let factor = everywhere(step.factor, &shape);
    let clipped =
        builder.one(&called("clipped"), Multiply { output: DType::F32 }, [gradient.into(), factor])?;
    let fresh = builder.one(&called("fresh"), Scale { factor: 1.0 - mu }, [clipped.into()])?;
    let kept = builder.one(&called("kept"), Scale { factor: mu }, [momentum.into()])?;
    builder.apply_to(Add { output: DType::F32 }, vec![kept.into(), fresh.into()], vec![next[1]])?;
    let along = if step.options.nesterov {
        let ahead = builder.one(&called("ahead"), Scale { factor: mu }, [next[1].into()])?;
        builder.one(&called("along"), Add { output: DType::F32 }, [ahead.into(), fresh.into()])?
    } else {
        next[1]
    };
    let along = builder.one(&called("larger"), Scale { factor: LARGER }, [along.into()])?;

    let (mut parts, mut views) = (Vec::new(), Vec::new());
    for batch in Batch::of(pieces) {
        let (part, view) = orthogonal(builder, name, along, &batch, step)?;
        parts.push(part);
        views.push(view);
    }
    let assemble = Assemble { shape: shape.clone(), views, output: DType::F32 };
    let direction = builder.apply_all(&called("direction"), assemble, parts)?[0];

    // w' = w + lr·(-direction - λ·w): the sign is in what is scaled anyway.
    let decayed = builder.one(&called("decay"), Scale { factor: -step.weight_decay }, [weight.into()])?;
    let whole =
        builder.one(&called("whole"), Add { output: DType::F32 }, [direction.into(), decayed.into()])?;
    let rate = everywhere(step.rates, &shape);
    let moved = builder.one(&called("move"), Multiply { output: DType::F32 }, [whole.into(), rate])?;
    builder.apply_to(Add { output: DType::F32 }, vec![weight.into(), moved.into()], vec![next[0]])?;
    Ok(())
}

/// The first number of a value, as if it stood everywhere in a value of this shape.
fn everywhere(value: ValueId, shape: &[Dim]) -> Operand {
    let view = View { offset: 0, shape: shape.to_vec(), strides: vec![0; shape.len()] };
    Operand { value, view: Some(view) }
}

/// What a batch's matrices move along, the orthogonalised ones scaled to go down, and where they belong in the parameter.
fn orthogonal(
    builder: &mut Builder,
    name: &str,
    along: ValueId,
    batch: &Batch,
    step: &Step<'_>,
) -> Result<(Operand, View), ModelError> {
    let called = |what: &str| format!("{name}.muon.{what}");
    // Products are of the shorter side, so a matrix of more rows than columns is turned.
    let turned = batch.rows > batch.columns;
    let turn = |view: View| {
        let last = view.shape.len() - 1;
        if turned { view.transpose(last - 1, last) } else { view }
    };
    let mut factors = Vec::new();
    for index in 0..batch.count {
        let matrix = Operand { value: along, view: Some(batch.matrix(index)) };
        factors.push(builder.apply(&called("norm"), GlobalNorm { clip: NUMERATOR }, [matrix])?[1]);
    }
    let factor = match factors.as_slice() {
        [one] => *one,
        several => {
            let view = |at| View { offset: at, shape: vec![1.into()], strides: vec![1] };
            let views = (0..several.len()).map(view).collect();
            let assemble = Assemble { shape: vec![several.len().into()], views, output: DType::F32 };
            let operands = several.iter().map(|factor| (*factor).into()).collect();
            builder.apply_all(&called("norms"), assemble, operands)?[0]
        }
    };
    let factor = builder.one(&called("inverse"), Scale { factor: LARGER }, [factor.into()])?;
    let window = turn(batch.view());
    let mut strides = vec![0; window.shape.len()];
    if batch.count > 1 {
        strides[0] = 1;
    }
    let factor =
        Operand { value: factor, view: Some(View { offset: 0, shape: window.shape.clone(), strides }) };
    let along = Operand { value: along, view: Some(window) };
    let begin = builder.one(&called("x"), Multiply { output: DType::F32 }, [along, factor])?;

    let stack = Stack {
        count: batch.count,
        rows: batch.rows.min(batch.columns),
        columns: batch.rows.max(batch.columns),
        dtype: step.dtype,
    };
    let offsets = stack.offsets(builder);
    let mut x = Operand { value: begin, view: Some(stack.flat(stack.columns)) };
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..step.options.steps {
        let narrow = stack.rounded(builder, &called("x.rounded"), x.clone())?;
        let across = stack.each(stack.columns, &narrow, true);
        let gram = stack.product(builder, &called("gram"), narrow.clone(), across, offsets)?;
        let gram_narrow = stack.rounded(builder, &called("gram.rounded"), gram.into())?;
        let itself = stack.each(stack.rows, &gram_narrow, false);
        let square = stack.product(builder, &called("square"), gram_narrow, itself, offsets)?;
        let linear = builder.one(&called("linear"), Scale { factor: b }, [gram.into()])?;
        let quadratic = builder.one(&called("quadratic"), Scale { factor: c }, [square.into()])?;
        let add = Add { output: step.dtype };
        let polynomial = builder.one(&called("polynomial"), add, [linear.into(), quadratic.into()])?;
        let right = stack.each(stack.columns, &narrow, false);
        let bent = stack.product(builder, &called("bent"), polynomial.into(), right, offsets)?;
        let straight = builder.one(&called("straight"), Scale { factor: a }, [x])?;
        x = builder.one(&called("x"), Add { output: DType::F32 }, [straight.into(), bent.into()])?.into();
    }
    let factor = -RMS * (stack.columns as f64).sqrt();
    let scaled = builder.one(&called("scaled"), Scale { factor }, [x])?;
    let matrices = stack.each(stack.columns, &scaled.into(), turned);
    Ok((matrices, batch.view()))
}

/// Matrices of one shape, the rows of one behind those of the other: `[count · rows, …]`.
struct Stack {
    count: usize,
    rows: usize,
    columns: usize,
    dtype: DType,
}

impl Stack {
    /// All rows, of so many elements.
    fn flat(&self, columns: usize) -> View {
        View {
            offset: 0,
            shape: vec![(self.count * self.rows).into(), columns.into()],
            strides: vec![columns, 1],
        }
    }

    /// Each matrix by itself, transposed where asked: of two dimensions where there is one, of three where there are several.
    fn each(&self, columns: usize, of: &Operand, transposed: bool) -> Operand {
        let mut view = self.flat(columns).split(0, self.count, self.rows);
        if transposed {
            view = view.transpose(1, 2);
        }
        let view = if self.count == 1 { view.drop_axis(0) } else { view };
        Operand { value: of.value, view: Some(view) }
    }

    /// Where each matrix' rows begin, for grouped products.
    fn offsets(&self, builder: &mut Builder) -> Option<ValueId> {
        let r#type = Type::new(DType::I32, [self.count + 1]);
        let content = Content::Ramp { step: self.rows as f64 };
        (self.count > 1).then(|| builder.constant("muon.offsets", r#type, content))
    }

    /// What products read: as it is in f32, rounded where they compute in bf16.
    fn rounded(&self, builder: &mut Builder, name: &str, x: Operand) -> Result<Operand, ModelError> {
        match self.dtype {
            DType::F32 => Ok(x),
            output => Ok(builder.one(name, Cast { output }, [x])?.into()),
        }
    }

    /// Each left matrix, given as rows, times its right one, in f32.
    fn product(
        &self,
        builder: &mut Builder,
        name: &str,
        left: Operand,
        right: Operand,
        offsets: Option<ValueId>,
    ) -> Result<ValueId, ModelError> {
        let output = DType::F32;
        Ok(match offsets {
            None => builder.one(name, Matmul { output, row_sums: false }, [left, right])?,
            Some(offsets) => {
                let grouped = GroupedMatmul { output, row_sums: false };
                builder.one(name, grouped, [left, right, offsets.into()])?
            }
        })
    }
}
