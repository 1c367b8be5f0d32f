//! A program under construction: what operators may read, fresh or from earlier results, dense or through views.

use super::GenerateError;
use crate::random::Random;
use std::sync::Arc;
use toprope_program::operator::Operator;
use toprope_program::shape::dense_strides;
use toprope_program::{
    BuildError, Builder, DType, Dim, Initial, Operand, Phase, Program, Role, Shape, SymbolId, Type,
    Validated, ValueId, View, validate,
};

/// How operands come about.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Chance that an operand is an earlier result where one fits.
    pub reuse: f64,
    /// Chance that a fresh operand is a view of something larger.
    pub views: f64,
    /// Chance that a result is an output that the host reads, rather than scratch.
    pub outputs: f64,
    /// Chance that rows are counted by a symbol.
    pub symbols: f64,
    /// Whether fresh weights are state rather than inputs.
    pub states: bool,
}

/// A result that later operators may read.
#[derive(Clone, Copy, Debug)]
struct Earlier {
    id: ValueId,
    /// Rough size of its elements, as a power of two.
    level: f64,
}

/// A program under construction.
#[derive(Debug)]
pub struct Draft {
    /// The program so far.
    pub builder: Builder,
    /// Where choices come from.
    pub random: Random,
    /// How operands come about.
    pub habits: Habits,
    /// The sizes that dimensions are drawn from.
    pub sizes: Vec<usize>,
    /// The float states that fresh weights became.
    pub weights: Vec<ValueId>,
    results: Vec<Earlier>,
    symbol: Option<(SymbolId, usize)>,
    checks: Vec<ValueId>,
    level: f64,
}

/// Results above this are no longer read: their products would leave the range where bounds are tight.
const LEVEL_MAX: f64 = 5.0;

impl Draft {
    /// An empty program.
    pub fn new(name: &str, phase: Phase, random: Random, habits: Habits, sizes: Vec<usize>) -> Draft {
        Draft {
            builder: Builder::new(name, phase),
            random,
            habits,
            sizes,
            weights: Vec::new(),
            results: Vec::new(),
            symbol: None,
            checks: Vec::new(),
            level: 0.0,
        }
    }

    /// One of the sizes.
    pub fn size(&mut self) -> usize {
        let sizes = std::mem::take(&mut self.sizes);
        let size = self.random.pick(&sizes);
        self.sizes = sizes;
        size
    }

    /// A number of rows that is a multiple of `of`, counted by a symbol now and then.
    pub fn rows_of(&mut self, of: usize) -> Dim {
        if self.random.chance(self.habits.symbols) {
            let symbol = match self.symbol {
                Some((symbol, _)) => symbol,
                None => {
                    let bound = 1 + self.random.below(4);
                    let symbol = self.builder.symbol("n", bound);
                    self.symbol = Some((symbol, bound));
                    symbol
                }
            };
            let factor = 1 + self.random.below(6);
            return Dim::symbolic(symbol, factor * of);
        }
        Dim::from(self.size() * of)
    }

    /// A number of rows.
    pub fn rows(&mut self) -> Dim {
        self.rows_of(1)
    }

    /// f32 or bf16.
    pub fn float_dtype(&mut self) -> DType {
        self.random.pick(&[DType::F32, DType::Bf16])
    }

    /// A shape of 1 to 3 dimensions.
    pub fn shape(&mut self) -> Shape {
        let rank = self.random.pick(&[1, 2, 2, 3]);
        let mut shape = vec![self.rows()];
        for _ in 1..rank {
            let size = if rank == 3 { 1 + self.random.below(5) } else { self.size() };
            shape.push(size.into());
        }
        shape
    }

    /// A float operand: an earlier result or a fresh input.
    pub fn float(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> Operand {
        if self.random.chance(self.habits.reuse)
            && let Some(operand) = self.earlier(dtype, shape)
        {
            return operand;
        }
        self.fresh(name, dtype, shape, Role::Input)
    }

    /// A float operand as a weight: state where the program has any, and an input otherwise.
    pub fn weight(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> Operand {
        let constant = shape.iter().all(|dim| dim.symbol.is_none());
        if self.habits.states && constant && dtype == DType::F32 {
            if !self.weights.is_empty() && self.random.chance(0.3) {
                let same = |id: &&ValueId| self.builder.program().value(**id).shape == shape;
                if let Some(id) = self.weights.iter().find(same) {
                    return (*id).into();
                }
            }
            let role = Role::State { initial: Initial::Normal { std: 0.5 } };
            let operand = self.fresh(name, dtype, shape, role);
            self.weights.push(operand.value);
            return operand;
        }
        self.fresh(name, dtype, shape, Role::Input)
    }

    /// An integer operand, always fresh: its reader says what it means.
    pub fn integers(&mut self, name: &str, shape: &[Dim]) -> Operand {
        self.builder.input(name, DType::I32, shape.to_vec()).into()
    }

    /// A fresh dense float input, where its reader wants numbers of a certain kind.
    pub fn dense(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> Operand {
        self.builder.input(name, dtype, shape.to_vec()).into()
    }

    /// A fresh operand, dense or through a view of something larger.
    fn fresh(&mut self, name: &str, dtype: DType, shape: &[Dim], role: Role) -> Operand {
        if !self.random.chance(self.habits.views) {
            let id = self.builder.declare(name, Type { dtype, shape: shape.to_vec() }, role);
            return id.into();
        }
        let last = shape.len() - 1;
        let mut stored = shape.to_vec();
        let kind = self.random.below(5);
        let constant = shape.iter().all(|dim| dim.symbol.is_none());
        let view = match kind {
            // The last two axes the other way round in memory.
            0 if last >= 1 && constant => {
                stored.swap(last, last - 1);
                View::dense(&stored).map(|view| view.transpose(last, last - 1))
            }
            // The first two axes the other way round: heads before tokens.
            1 if last >= 2 && constant => {
                stored.swap(0, 1);
                View::dense(&stored).map(|view| view.transpose(0, 1))
            }
            // Columns out of wider rows.
            2 if last >= 1 => {
                let width = shape[last].factor;
                let (before, behind) = (self.random.below(4), self.random.below(4));
                stored[last] = (before + width + behind).into();
                View::dense(&stored).map(|view| view.narrow(last, before, width))
            }
            // One row, repeated.
            3 if last >= 1 => {
                stored.remove(0);
                let stored_constant = stored.iter().all(|dim| dim.symbol.is_none());
                stored_constant.then(|| View::dense(&stored)).flatten().map(|view| view.repeat(0, shape[0]))
            }
            // Every second row.
            _ if constant => {
                stored[0] = (shape[0].factor * 2).into();
                View::dense(&stored).map(|mut view| {
                    view.shape[0] = shape[0];
                    view.strides[0] *= 2;
                    view
                })
            }
            _ => None,
        };
        match view {
            Some(view) => {
                let id = self.builder.declare(name, Type { dtype, shape: stored }, role);
                Operand { value: id, view: Some(view) }
            }
            None => {
                let id = self.builder.declare(name, Type { dtype, shape: shape.to_vec() }, role);
                id.into()
            }
        }
    }

    /// An earlier result of this dtype that can be seen in this shape: as it is, transposed, reshaped or a window.
    fn earlier(&mut self, dtype: DType, shape: &[Dim]) -> Option<Operand> {
        let mut fitting: Vec<Operand> = Vec::new();
        let mut levels: Vec<f64> = Vec::new();
        for result in self.results.iter().rev().take(24) {
            let value = self.builder.program().value(result.id);
            if value.dtype != dtype || result.level > LEVEL_MAX {
                continue;
            }
            let Some(view) = seen_as(&value.shape, shape) else { continue };
            fitting.push(Operand { value: result.id, view });
            levels.push(result.level);
        }
        if fitting.is_empty() {
            return None;
        }
        let at = self.random.below(fitting.len());
        self.level = self.level.max(levels[at]);
        fitting.into_iter().nth(at)
    }

    /// The type of an earlier float result to work on, where there is one and reuse is a habit.
    pub fn earlier_type(&mut self) -> Option<Type> {
        if self.results.is_empty() || !self.random.chance(self.habits.reuse) {
            return None;
        }
        let recent = self.results.len().min(8);
        let result = self.results[self.results.len() - 1 - self.random.below(recent)];
        let value = self.builder.program().value(result.id);
        (result.level <= LEVEL_MAX).then(|| value.r#type())
    }

    /// Adds an operator; its results are outputs or scratch and can be read by later operators.
    pub fn add(
        &mut self,
        name: &str,
        operator: impl Into<Operator>,
        operands: Vec<Operand>,
    ) -> Result<Vec<ValueId>, BuildError> {
        let operator = operator.into();
        let types: Vec<Type> = operands.iter().map(|operand| self.builder.operand_type(operand)).collect();
        let inferred = validate::infer(&operator, &types).map_err(|reason| BuildError {
            operator: operator.name().into(),
            part: self.builder.part().into(),
            reason,
        })?;
        let growth = growth(&operator, &types);
        let level = if matches!(operator, Operator::Multiply(_)) { 2.0 * self.level } else { self.level };
        self.level = 0.0;
        let mut outputs = Vec::new();
        for (index, r#type) in inferred.into_iter().enumerate() {
            let role = if self.random.chance(self.habits.outputs) { Role::Output } else { Role::Scratch };
            let float = r#type.dtype.is_float();
            let slot = operator.definition().record().outputs.get(index).map_or("output", |slot| slot.name);
            let plain: String = slot.chars().filter(char::is_ascii_alphanumeric).collect();
            let id = self.builder.declare(&format!("{name}.{plain}"), r#type, role);
            outputs.push(id);
            if float {
                self.results.push(Earlier { id, level: level.max(0.0) + growth });
            }
        }
        self.builder.apply_to(operator, operands, outputs.clone())?;
        Ok(outputs)
    }

    /// Forgets a result, so that nothing else reads it.
    pub fn forget(&mut self, id: ValueId) {
        self.results.retain(|result| result.id != id);
    }

    /// Forgets all results: they cannot be read in another range.
    pub fn forget_all(&mut self) {
        self.results.clear();
    }

    /// Results that can be read, newest last.
    pub fn results(&self) -> Vec<ValueId> {
        self.results.iter().map(|result| result.id).collect()
    }

    /// Adds a check that writes `result`, as a pass over a program would: it fires by its own bit of the mask.
    pub fn add_check(
        &mut self,
        operator: impl Into<Operator>,
        operands: Vec<Operand>,
        result: ValueId,
    ) -> Result<(), BuildError> {
        self.checks.push(result);
        self.builder.apply_to(operator, operands, vec![result])
    }

    /// The finished program: what nobody reads is an output, so that nothing is dead.
    pub fn program(&self) -> Program {
        let mut program = self.builder.program().clone();
        for instruction in program.accumulate.iter_mut().chain(&mut program.update) {
            let bit = self.checks.iter().position(|id| instruction.outputs.contains(id));
            instruction.check = bit.map(|bit| bit as u16);
        }
        let mut read = vec![false; program.values.len()];
        for instruction in program.accumulate.iter().chain(&program.update) {
            for operand in &instruction.operands {
                read[operand.value.0 as usize] = true;
            }
        }
        for (value, read) in program.values.iter_mut().zip(read) {
            if !read && value.role == Role::Scratch {
                value.role = Role::Output;
            }
        }
        // A value that autodiff declared and nobody writes is no output.
        let mut written = vec![false; program.values.len()];
        for instruction in program.accumulate.iter().chain(&program.update) {
            for id in &instruction.outputs {
                written[id.0 as usize] = true;
            }
        }
        for (value, written) in program.values.iter_mut().zip(written) {
            if !written && value.role == Role::Output {
                value.role = Role::Scratch;
            }
        }
        toprope_program::order::prune(&mut program);
        program
    }

    /// A binding of the program's symbols, from 1 up to the bounds.
    pub fn binding(&mut self) -> Vec<usize> {
        let bounds = self.builder.program().bounds();
        bounds.into_iter().map(|bound| 1 + self.random.below(bound)).collect()
    }

    /// Validates the finished program.
    pub fn validated(&self, seed: u64) -> Result<Arc<Validated>, GenerateError> {
        validate(self.program()).map(Arc::new).map_err(|defects| GenerateError::Invalid { seed, defects })
    }
}

/// How much larger than their operands results are, as a power of two.
fn growth(operator: &Operator, operands: &[Type]) -> f64 {
    let size = |operand: usize, axis: usize| {
        operands.get(operand).and_then(|t| t.shape.get(axis)).map_or(1.0, |dim| dim.factor as f64)
    };
    match operator {
        Operator::Matmul(_) | Operator::GroupedMatmul(_) => 0.5 * size(0, 1).log2(),
        Operator::ColumnSum(_)
        | Operator::GroupedOuter(_)
        | Operator::ScatterAdd(_)
        | Operator::Assemble(_) => 0.5 * size(0, 0).log2() + 1.0,
        Operator::LinearCrossEntropyGradient(_) | Operator::AttentionGradient(_) => 3.0,
        Operator::Dot(_) => 4.0,
        Operator::RmsNorm(_) => 1.0,
        _ => 0.5,
    }
}

/// How a dense value of shape `have` is seen in shape `want`: none where it cannot be, `Some(None)` as it is.
fn seen_as(have: &[Dim], want: &[Dim]) -> Option<Option<View>> {
    if have == want {
        return Some(None);
    }
    let view = View::dense(have)?;
    let last = have.len() - 1;
    if have.len() == want.len() && last >= 1 {
        let mut swapped = have.to_vec();
        swapped.swap(last, last - 1);
        if swapped == want && have.iter().all(|dim| dim.symbol.is_none()) {
            return Some(Some(view.transpose(last, last - 1)));
        }
        if have[..last] == want[..last]
            && have[last].factor > want[last].factor
            && want[last].symbol.is_none()
        {
            let spare = have[last].factor - want[last].factor;
            return Some(Some(view.narrow(last, spare, want[last].factor)));
        }
    }
    // The same elements in another shape.
    let count = |shape: &[Dim]| {
        shape.iter().fold((1usize, None), |(count, symbol), dim| (count * dim.factor, symbol.or(dim.symbol)))
    };
    let reshaped = count(have) == count(want) && want.iter().skip(1).all(|dim| dim.symbol.is_none());
    if reshaped {
        return Some(Some(View { offset: 0, shape: want.to_vec(), strides: dense_strides(want)? }));
    }
    None
}
