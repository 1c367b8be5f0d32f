//! Makes a failing program small: the one instruction that fails, on as few and as plain numbers as still show it.

use crate::isolate;
use crate::lockstep::{Step, seen};
use crate::oracle::Oracle;
use crate::reproducer::Reproducer;
use toprope_program::shape::{elements, sizes};
use toprope_program::{Device, Dim, Program, Range, Role, Tensor, Value, ValueId, validate};

/// How many smaller programs are tried at most.
const ATTEMPTS_MAX: usize = 600;

/// Shrinks what fails; gives back at least what it was given. The subject must still be the one that failed.
pub fn shrink(subject: &mut dyn Device, oracle: &mut Oracle, failing: Reproducer) -> Reproducer {
    let Some((step, finding)) = failing.first_difference(subject, oracle) else { return failing };
    let mut shrinker =
        Shrinker { subject, oracle, best: Reproducer { found: finding, ..failing }, attempts: 0 };
    let isolated = shrinker.isolated(&step).is_some_and(|candidate| shrinker.accept(candidate));
    if !isolated {
        shrinker.drop_instructions();
        return shrinker.best;
    }
    shrinker.bind_symbols();
    shrinker.densify();
    shrinker.sizes();
    shrinker.simplify_values();
    shrinker.best
}

struct Shrinker<'a> {
    subject: &'a mut dyn Device,
    oracle: &'a mut Oracle,
    best: Reproducer,
    attempts: usize,
}

impl Shrinker<'_> {
    /// Takes a candidate where it is valid and still fails at the same operator.
    fn accept(&mut self, mut candidate: Reproducer) -> bool {
        if self.attempts >= ATTEMPTS_MAX {
            return false;
        }
        self.attempts += 1;
        match candidate.first_difference(self.subject, self.oracle) {
            Some((_, finding)) => {
                candidate.found = finding;
                self.best = candidate;
                true
            }
            None => false,
        }
    }

    /// The failing instruction alone, fed what it was fed when it failed.
    fn isolated(&self, step: &Step) -> Option<Reproducer> {
        let program = &self.best.program;
        let instruction = program.range(step.range).get(step.index)?;
        let alone = isolate::alone(program, step.range, step.index)?;
        let fed = instruction.operands.iter().zip(&step.fed);
        let values =
            fed.map(|(operand, fed)| (program.value(operand.value).name.clone(), fed.data.clone())).collect();
        Some(Reproducer { program: alone, values, first: step.first, ..self.best.clone() })
    }

    /// Where the whole program is needed: fewer instructions, from the last to the first.
    fn drop_instructions(&mut self) {
        for range in [Range::Update, Range::Accumulate] {
            for index in (0..self.best.program.range(range).len()).rev() {
                let mut program = self.best.program.clone();
                let list = match range {
                    Range::Accumulate => &mut program.accumulate,
                    Range::Update => &mut program.update,
                };
                if index >= list.len() {
                    continue;
                }
                let dropped = list.remove(index);
                orphan(&mut program, &dropped.outputs);
                if validate(program.clone()).is_ok() {
                    self.accept(Reproducer { program, ..self.best.clone() });
                }
            }
        }
    }

    /// Symbols become the numbers that they were bound to.
    fn bind_symbols(&mut self) {
        let symbols = self.best.binding();
        if symbols.is_empty() {
            return;
        }
        let program = isolate::bound(&self.best.program, &symbols);
        self.accept(Reproducer { program, symbols: Vec::new(), ..self.best.clone() });
    }

    /// Views become dense operands.
    fn densify(&mut self) {
        let count = self.best.program.accumulate.first().map_or(0, |i| i.operands.len());
        for at in 0..count {
            let best = &self.best;
            let Ok(held) = best.values(best.seeds.first().copied().unwrap_or(0)) else { return };
            let operand = &best.program.accumulate[0].operands[at];
            if operand.view.is_none() {
                continue;
            }
            let Some(tensor) = seen(&best.program, operand, &held, &best.binding()) else { continue };
            let mut candidate = best.clone();
            let name = format!("operand{at}");
            let shape = tensor.sizes.iter().map(|size| Dim::from(*size)).collect();
            let value = Value { name: name.clone(), dtype: tensor.dtype, shape, role: Role::Input };
            candidate.program.values.push(value);
            let id = ValueId(candidate.program.values.len() as u32 - 1);
            candidate.program.accumulate[0].operands[at] = id.into();
            candidate.values.insert(name, tensor.data);
            drop_unread(&mut candidate);
            self.accept(candidate);
        }
    }

    /// Every size that occurs is halved as often as the failure stays, related sizes with it.
    fn sizes(&mut self) {
        let mut progress = true;
        while progress && self.attempts < ATTEMPTS_MAX / 2 {
            progress = false;
            let mut occurring: Vec<usize> =
                self.best.program.values.iter().flat_map(|v| v.shape.iter().map(|dim| dim.factor)).collect();
            occurring.sort_unstable();
            occurring.dedup();
            for size in occurring.into_iter().rev().filter(|size| *size > 1) {
                for smaller in [size / 2, size - 1] {
                    let exact = move |n: usize| if n == size { smaller } else { n };
                    let related = move |n: usize| match n {
                        n if n == size => smaller,
                        n if n == 2 * size => 2 * smaller,
                        n if n == size + 1 => smaller + 1,
                        n => n,
                    };
                    let mut candidates = vec![
                        self.resized(&|_, _, n| exact(n)),
                        self.resized(&|_, _, n| related(n)),
                        // Equal numbers may mean different things: rows alone, the rest alone, one axis alone.
                        self.resized(&|_, axis, n| if axis == 0 { exact(n) } else { n }),
                        self.resized(&|_, axis, n| if axis > 0 { exact(n) } else { n }),
                    ];
                    for (at, value) in self.best.program.values.iter().enumerate() {
                        for axis in 0..value.shape.len() {
                            let here = move |v, a, n| if (v, a) == (at, axis) { exact(n) } else { n };
                            candidates.push(self.resized(&here));
                        }
                    }
                    if candidates.into_iter().flatten().any(|candidate| self.accept(candidate)) {
                        progress = true;
                        break;
                    }
                }
            }
        }
    }

    /// The program with every size mapped, given the value and the axis; floats are cut to the new sizes and integers drawn again. None where the
    /// operator does not take the new sizes.
    fn resized(&self, map: &dyn Fn(usize, usize, usize) -> usize) -> Option<Reproducer> {
        let best = &self.best;
        let program = isolate::resized(&best.program, map)?;
        let mut candidate = Reproducer { program, ..best.clone() };
        let before: Vec<usize> =
            best.program.values.iter().map(|v| elements(&sizes(&v.shape, &[]))).collect();
        // Only what is smaller is worth a try.
        let after = candidate.program.values.iter().map(|v| elements(&sizes(&v.shape, &[])));
        if after.sum::<usize>() >= before.iter().sum() {
            return None;
        }
        for (before, after) in best.program.values.iter().zip(&candidate.program.values) {
            let Some(data) = candidate.values.get(&after.name) else { continue };
            if !after.dtype.is_float() {
                candidate.values.remove(&after.name);
                continue;
            }
            let (from, to) = (sizes(&before.shape, &[]), sizes(&after.shape, &[]));
            candidate.values.insert(after.name.clone(), cut(data, &from, &to)?);
        }
        Some(candidate)
    }

    /// Whole tensors, then single elements, become 0 or 1, or lose digits.
    fn simplify_values(&mut self) {
        let names: Vec<String> = self
            .best
            .program
            .values
            .iter()
            .filter(|value| value.dtype.is_float() && self.best.values.contains_key(&value.name))
            .map(|value| value.name.clone())
            .collect();
        let few_bits = |x: f64| f64::from(f32::from_bits((x as f32).to_bits() & 0xFFF0_0000));
        for name in &names {
            let whole: [&dyn Fn(f64) -> f64; 3] = [&|_| 0.0, &|_| 1.0, &few_bits];
            for simpler in whole {
                if self.mapped(name, |_, x| simpler(x)) {
                    break;
                }
            }
        }
        for name in &names {
            let count = self.best.values.get(name).map_or(0, Vec::len);
            // Runs of elements first, then one by one.
            for length in [count / 2, count / 4, count / 8] {
                for start in (0..count).step_by(length.max(1)).take(8) {
                    let run = start..start + length;
                    self.mapped(name, |i, x| if run.contains(&i) { 0.0 } else { x });
                }
            }
            for at in 0..count.min(64) {
                let now = self.best.values.get(name).map_or(0.0, |data| data[at]);
                for simpler in [0.0, 1.0] {
                    if now == simpler || self.mapped(name, |i, x| if i == at { simpler } else { x }) {
                        break;
                    }
                }
            }
        }
    }

    fn mapped(&mut self, name: &str, map: impl Fn(usize, f64) -> f64) -> bool {
        let mut candidate = self.best.clone();
        let Some(data) = candidate.values.get_mut(name) else { return false };
        data.iter_mut().enumerate().for_each(|(i, x)| *x = map(i, *x));
        self.accept(candidate)
    }
}

/// Values that lost their writer become inputs where somebody reads them, and nothing otherwise.
fn orphan(program: &mut Program, outputs: &[ValueId]) {
    let mut read = vec![false; program.values.len()];
    for instruction in program.accumulate.iter().chain(&program.update) {
        instruction.operands.iter().for_each(|operand| read[operand.value.0 as usize] = true);
    }
    for id in outputs {
        let value = &mut program.values[id.0 as usize];
        match value.role {
            Role::Scratch | Role::Output => {
                value.role = if read[id.0 as usize] { Role::Input } else { Role::Scratch };
            }
            Role::State { .. } | Role::Next { .. } | Role::Constant { .. } => {}
            Role::Input | Role::Carried | Role::Cache => {}
        }
    }
    toprope_program::order::prune(program);
}

fn drop_unread(candidate: &mut Reproducer) {
    let mut used = vec![false; candidate.program.values.len()];
    for instruction in &candidate.program.accumulate {
        let reads = instruction.operands.iter().map(|operand| operand.value);
        reads.chain(instruction.outputs.iter().copied()).for_each(|id| used[id.0 as usize] = true);
    }
    // A scratch value that nobody names falls away in pruning; an input stays, so it is made scratch first.
    for (value, used) in candidate.program.values.iter_mut().zip(&used) {
        if !used {
            value.role = Role::Scratch;
        }
    }
    toprope_program::order::prune(&mut candidate.program);
    let there: Vec<String> = candidate.program.values.iter().map(|value| value.name.clone()).collect();
    candidate.values.retain(|name, _| there.contains(name));
}

/// The leading window of a dense tensor.
fn cut(data: &[f64], from: &[usize], to: &[usize]) -> Option<Vec<f64>> {
    let whole = Tensor { dtype: toprope_program::DType::F32, sizes: from.to_vec(), data: data.to_vec() };
    let mut out = Vec::with_capacity(to.iter().product());
    let mut place = vec![0usize; to.len()];
    for _ in 0..to.iter().product::<usize>() {
        let at = place.iter().zip(from).fold(0, |at, (i, size)| at * size + i);
        if place.iter().zip(from).any(|(i, size)| i >= size) {
            return None;
        }
        out.push(*whole.data.get(at)?);
        for axis in (0..to.len()).rev() {
            place[axis] += 1;
            if place[axis] < to[axis] {
                break;
            }
            place[axis] = 0;
        }
    }
    Some(out)
}
