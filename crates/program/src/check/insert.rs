//! The pass that puts checks in.

use super::site::{CheckKind, CheckLevel, CheckPlan, CheckSite, Checked};
use crate::cost::{self, Cost};
use crate::dtype::DType;
use crate::operator::{
    Adamw, AdamwDigest, AttentionCheck, Compare, Digest, LOSS_LIMIT, LossCheck, Operator, PRODUCT_LIMIT,
    ProductCheck, ProductForm, VERIFY_LIMIT, Verify, attention_limit,
};
use crate::order;
use crate::program::{Instruction, Phase, Program, Range};
use crate::shape::Type;
use crate::value::{Operand, Role, Value, ValueId};
use std::collections::{HashMap, HashSet};

/// Puts checks into both ranges and says where. A program that has checks already is left as it is.
///
/// Values are numbered anew, as the printed form does, so that the sites stay right for the parsed text of the program.
pub fn insert(program: &mut Program, plan: &CheckPlan) -> Vec<CheckSite> {
    let has_checks = program.accumulate.iter().chain(&program.update).any(|i| i.check.is_some());
    if plan.level == CheckLevel::Off || has_checks {
        return Vec::new();
    }
    let mut pass = Pass::new(program);
    for range in Range::ALL {
        pass.range(range);
    }
    if pass.program.phase == Phase::Train {
        pass.carried();
        pass.state();
    }
    let drafts = pass.drafts;
    settle(program, drafts)
}

/// How an operator is checked. No wildcard: a new operator is a decision.
enum Way {
    /// Row sums against its operands.
    Product,
    /// A second run: what repeats on its device passes it.
    Replay,
    /// The result by other code, stored nowhere.
    Verify,
    /// The identities of attention, at its gradient.
    Attention,
    /// The sums of the loss's gradients.
    Loss,
    /// Not by itself; docs/checks.md says why.
    Nothing,
}

fn way(operator: &Operator) -> Way {
    match operator {
        Operator::Matmul(_) | Operator::GroupedMatmul(_) | Operator::GroupedOuter(_) => Way::Product,
        Operator::AttentionGradient(_) => Way::Attention,
        Operator::LinearCrossEntropyGradient(_) => Way::Loss,
        Operator::RmsNorm(_)
        | Operator::RmsNormGradient(_)
        | Operator::Router(_)
        | Operator::RouterGradient(_)
        | Operator::BalanceLoss(_)
        | Operator::BalanceLossGradient(_)
        | Operator::ExpertSort(_)
        | Operator::ColumnSum(_)
        | Operator::Dot(_)
        | Operator::GlobalNorm(_)
        | Operator::BiasUpdate(_)
        | Operator::Increment(_) => Way::Verify,
        // The optimizer's second run is a digest's, which is other code; a repeated change of random bits is random bits.
        Operator::Adamw(_) | Operator::RandomBits(_) => Way::Replay,
        Operator::Cast(_)
        | Operator::Add(_)
        | Operator::Multiply(_)
        | Operator::Scale(_)
        | Operator::Activation(_)
        | Operator::ActivationGradient(_)
        | Operator::Swiglu(_)
        | Operator::SwigluGradient(_)
        | Operator::Assemble(_)
        | Operator::Gather(_)
        | Operator::ScatterAdd(_)
        | Operator::Attention(_)
        | Operator::Rope(_)
        | Operator::LinearCrossEntropy(_)
        | Operator::Combine(_)
        | Operator::CombineGradient(_)
        | Operator::Accumulate(_)
        | Operator::Append(_)
        | Operator::Digest(_)
        | Operator::ProductCheck(_)
        | Operator::Compare(_)
        | Operator::AttentionCheck(_)
        | Operator::LossCheck(_)
        | Operator::AdamwDigest(_)
        | Operator::Verify(_) => Way::Nothing,
    }
}

/// A site before its values and instructions have their last numbers.
struct Draft {
    kind: CheckKind,
    range: Range,
    /// The name of the checked instruction's first output.
    output: String,
    results: Vec<String>,
    against: Vec<String>,
    every_step: bool,
    limit: f64,
}

struct Pass<'a> {
    program: &'a mut Program,
    names: HashSet<String>,
    drafts: Vec<Draft>,
}

impl<'a> Pass<'a> {
    fn new(program: &'a mut Program) -> Pass<'a> {
        let names = program.values.iter().map(|value| value.name.clone()).collect();
        Pass { program, names, drafts: Vec::new() }
    }

    fn range(&mut self, range: Range) {
        let instructions = match range {
            Range::Accumulate => std::mem::take(&mut self.program.accumulate),
            Range::Update => std::mem::take(&mut self.program.update),
        };
        let mut checked = Vec::with_capacity(instructions.len() * 2);
        for instruction in instructions {
            if self.drafts.len() >= usize::from(u16::MAX) {
                checked.push(instruction);
                continue;
            }
            match way(&instruction.operator) {
                Way::Product => self.product(range, instruction, &mut checked),
                Way::Attention => self.attention(range, instruction, &mut checked),
                Way::Loss => self.loss(range, instruction, &mut checked),
                Way::Replay => self.replay(range, instruction, &mut checked),
                Way::Verify => self.verify(range, instruction, &mut checked),
                Way::Nothing => checked.push(instruction),
            }
        }
        match range {
            Range::Accumulate => self.program.accumulate = checked,
            Range::Update => self.program.update = checked,
        }
    }

    fn name(&self, id: ValueId) -> String {
        self.program.value(id).name.clone()
    }

    fn declare(&mut self, name: &str, r#type: Type, role: Role) -> ValueId {
        let mut unique = name.to_string();
        let mut number = 1;
        while !self.names.insert(unique.clone()) {
            number += 1;
            unique = format!("{name}.{number}");
        }
        self.program.values.push(Value { name: unique, dtype: r#type.dtype, shape: r#type.shape, role });
        ValueId(self.program.values.len() as u32 - 1)
    }

    fn scratch(&mut self, name: &str, r#type: Type) -> ValueId {
        self.declare(name, r#type, Role::Scratch)
    }

    /// Ends a site whose check gives one distance: the instruction that computes it, and the next bit.
    fn distance(
        &mut self,
        (kind, range, limit): (CheckKind, Range, f64),
        checked: &Instruction,
        operator: impl Into<Operator>,
        operands: Vec<Operand>,
    ) -> Instruction {
        let output = checked.outputs.first().map(|id| self.name(*id)).unwrap_or_default();
        let result = self.declare(&format!("{output}.check"), Type::new(DType::F32, [1]), Role::Output);
        let bit = self.drafts.len() as u16;
        let results = vec![self.name(result)];
        self.drafts.push(Draft {
            kind,
            range,
            output,
            results,
            against: Vec::new(),
            every_step: false,
            limit,
        });
        Instruction {
            operator: operator.into(),
            operands,
            outputs: vec![result],
            part: checked.part.clone(),
            check: Some(bit),
        }
    }

    /// Asks the product for its row sums and puts their check behind it.
    fn product(&mut self, range: Range, mut instruction: Instruction, checked: &mut Vec<Instruction>) {
        let (sums, form) = match &mut instruction.operator {
            Operator::Matmul(matmul) => (&mut matmul.row_sums, ProductForm::Matmul),
            Operator::GroupedMatmul(grouped) => (&mut grouped.row_sums, ProductForm::GroupedMatmul),
            Operator::GroupedOuter(outer) => (&mut outer.row_sums, ProductForm::GroupedOuter),
            _ => return checked.push(instruction),
        };
        if !std::mem::replace(sums, true) {
            let product = self.program.value(instruction.outputs[0]).clone();
            let shape = product.shape[..product.shape.len() - 1].to_vec();
            let sums = self.scratch(&format!("{}.row_sums", product.name), Type { dtype: DType::F32, shape });
            instruction.outputs.push(sums);
        }
        let (a, b) = (instruction.operands[0].clone(), instruction.operands[1].clone());
        let mut operands = vec![a, b, instruction.outputs[1].into()];
        if form != ProductForm::Matmul {
            operands.push(instruction.operands[2].clone());
        }
        let site = (CheckKind::Product, range, PRODUCT_LIMIT);
        let check = self.distance(site, &instruction, ProductCheck { form }, operands);
        checked.push(instruction);
        checked.push(check);
    }

    /// Puts the identities of attention and its gradient behind the gradient.
    fn attention(&mut self, range: Range, mut instruction: Instruction, checked: &mut Vec<Instruction>) {
        let dtype = self.program.operand_type(&instruction.operands[0]).dtype;
        if self.program.operand_type(&instruction.operands[5]).dtype != dtype {
            return self.replay(range, instruction, checked);
        }
        let Operator::AttentionGradient(gradient) = &mut instruction.operator else {
            return checked.push(instruction);
        };
        let scale = gradient.scale;
        if !std::mem::replace(&mut gradient.sums, true) {
            let name = format!("{}.sums", self.name(instruction.outputs[0]));
            let shape = self.program.operand_type(&instruction.operands[4]);
            instruction.outputs.push(self.scratch(&name, shape));
        }
        let read = [0, 1, 2, 3, 5].map(|at| instruction.operands[at].clone());
        let made = [0, 1, 2].map(|at| Operand::from(instruction.outputs[at]));
        let mut operands: Vec<Operand> = read.into_iter().chain(made).collect();
        operands.push(instruction.operands[6].clone());
        operands.push(instruction.outputs[3].into());
        let site = (CheckKind::Attention, range, attention_limit(dtype));
        let check = self.distance(site, &instruction, AttentionCheck { scale }, operands);
        checked.push(instruction);
        checked.push(check);
    }

    /// Asks the loss's gradient for its sums and puts their check behind it.
    fn loss(&mut self, range: Range, mut instruction: Instruction, checked: &mut Vec<Instruction>) {
        let Operator::LinearCrossEntropyGradient(gradient) = &mut instruction.operator else {
            return checked.push(instruction);
        };
        if !std::mem::replace(&mut gradient.sums, true) {
            let name = self.name(instruction.outputs[0]);
            let (rows, words) = (
                self.program.operand_type(&instruction.operands[0]).shape[0],
                self.program.operand_type(&instruction.operands[1]).shape[0],
            );
            for (what, count, each) in [("row_sums", rows, 5), ("weight_sums", words, 3)] {
                let r#type = Type { dtype: DType::F32, shape: vec![count, each.into()] };
                let sums = self.scratch(&format!("{name}.{what}"), r#type);
                instruction.outputs.push(sums);
            }
        }
        let operands = [0, 3, 4].map(|at| Operand::from(instruction.outputs[at])).to_vec();
        let check = self.distance((CheckKind::Loss, range, LOSS_LIMIT), &instruction, LossCheck {}, operands);
        checked.push(instruction);
        checked.push(check);
    }

    /// As a replay: the digest of what the update wrote, from its own pass, must be what a second run gives, which stores
    /// nothing. Whether that reached the memory is for the next step's [`CheckKind::State`].
    fn adamw(&mut self, range: Range, mut instruction: Instruction, checked: &mut Vec<Instruction>) {
        let Operator::Adamw(adamw) = &mut instruction.operator else { return checked.push(instruction) };
        let operator: Operator = AdamwDigest::from(&*adamw).into();
        let has_digests = std::mem::replace(&mut adamw.digests, true);
        let name = self.name(instruction.outputs[0]);
        let words = || Type::new(DType::U32, [2]);
        if !has_digests {
            let digests = Adamw::DIGESTS.map(|what| format!("{name}.{what}"));
            instruction.outputs.extend(digests.map(|name| self.declare(&name, words(), Role::Output)));
        }
        let again = self.scratch(&format!("{name}.again"), words());
        let site = (CheckKind::Replay, range, 0.0);
        let operands = vec![again.into(), instruction.outputs[3].into()];
        let compare = self.distance(site, &instruction, Compare {}, operands);
        let (part, check) = (instruction.part.clone(), compare.check);
        let operands = instruction.operands.clone();
        checked.push(Instruction { operator, operands, outputs: vec![again], part, check });
        checked.push(instruction);
        checked.push(compare);
    }

    /// A digest of values for the host, under bit `bit`, named after the first.
    fn digest(&mut self, values: &[ValueId], what: &str, bit: u16) -> (Instruction, String) {
        let name = values.first().map(|id| self.name(*id)).unwrap_or_default();
        let name = format!("{name}.{what}");
        let y = self.declare(&name, Type::new(DType::U32, [2]), Role::Output);
        let (operands, outputs) = (values.iter().map(|id| Operand::from(*id)).collect(), vec![y]);
        let operator = Digest {}.into();
        (Instruction { operator, operands, outputs, part: "checks".into(), check: Some(bit) }, self.name(y))
    }

    /// The optimizer's digests that tell of these values: what it read of them, all of them being one gradient or one
    /// weight with its moments.
    fn reader(&self, gradient: ValueId) -> Option<String> {
        let reads = |i: &&Instruction| {
            matches!(&i.operator, Operator::Adamw(adamw) if adamw.digests)
                && i.operands
                    .get(1)
                    .is_some_and(|operand| operand.value == gradient && operand.view.is_none())
        };
        self.program.update.iter().find(reads).map(|i| self.name(i.outputs[5]))
    }

    /// Digests of what `accumulate` leaves for `update`: at its end, and as the optimizer reads it, or before anything does.
    fn carried(&mut self) {
        let carried: Vec<ValueId> = self
            .program
            .values_with_ids()
            .filter(|(_, v)| v.role == Role::Carried)
            .map(|(id, _)| id)
            .collect();
        let mut again = Vec::new();
        for id in carried {
            let Some(bit) = self.next_bit() else { return };
            let (left, result) = self.digest(&[id], "digest", bit);
            self.program.accumulate.push(left);
            let against = self.reader(id).unwrap_or_else(|| {
                let (found, against) = self.digest(&[id], "digest.found", bit);
                again.push(found);
                against
            });
            self.drafts.push(Draft {
                kind: CheckKind::Carried,
                range: Range::Accumulate,
                output: self.name(id),
                results: vec![result],
                against: vec![against],
                every_step: false,
                limit: 0.0,
            });
        }
        self.program.update.splice(0..0, again);
    }

    /// Digests of the state in a step, against those of the update that wrote it: as the optimizer reads it, or before
    /// anything does.
    fn state(&mut self) {
        let mut before = Vec::new();
        let mut update = Vec::with_capacity(self.program.update.len());
        for instruction in std::mem::take(&mut self.program.update) {
            let of = |id: &ValueId| match self.program.value(*id).role {
                Role::Next { of } => Some(of),
                _ => None,
            };
            let states: Vec<ValueId> = instruction.outputs.iter().filter_map(of).collect();
            let bit = if states.is_empty() { None } else { self.next_bit() };
            let Some(bit) = bit else {
                update.push(instruction);
                continue;
            };
            let output = self.name(instruction.outputs[0]);
            let (range, result, against) = if let Operator::Adamw(adamw) = &instruction.operator
                && adamw.digests
                && states.len() == 3
            {
                // Both from its own pass.
                let (written, read) = (self.name(instruction.outputs[3]), self.name(instruction.outputs[4]));
                update.push(instruction);
                (Range::Update, read, written)
            } else {
                let (digest, result) = self.digest(&states, "digest", bit);
                before.push(digest);
                let next: Vec<ValueId> =
                    instruction.outputs.iter().copied().filter(|id| of_next(self.program, *id)).collect();
                update.push(instruction);
                let (digest, against) = self.digest(&next, "digest", bit);
                update.push(digest);
                (Range::Accumulate, result, against)
            };
            self.drafts.push(Draft {
                kind: CheckKind::State,
                range,
                output,
                results: vec![result],
                against: vec![against],
                every_step: true,
                limit: 0.0,
            });
        }
        self.program.update = update;
        self.program.accumulate.splice(0..0, before);
    }

    /// The next site's bit, while there are any.
    fn next_bit(&self) -> Option<u16> {
        u16::try_from(self.drafts.len()).ok().filter(|bit| *bit < u16::MAX)
    }

    /// Judges what the instruction gave by other code, behind it. An update may overwrite the state that it read, so there a
    /// second run is judged before the first, and the first must give its bits: a fault that repeats is in both.
    fn verify(&mut self, range: Range, instruction: Instruction, checked: &mut Vec<Instruction>) {
        let Some(operator) = Verify::new(&instruction.operator) else {
            return self.replay(range, instruction, checked);
        };
        let overwrites = instruction.outputs.iter().any(|id| of_next(self.program, *id));
        let mut made = instruction.clone();
        if overwrites {
            made = self.again(instruction.clone(), "verified");
        }
        let outputs = made.outputs.iter().map(|id| Operand::from(*id));
        let operands = instruction.operands.iter().cloned().chain(outputs).collect();
        let site = (CheckKind::Verify, range, VERIFY_LIMIT);
        let check = self.distance(site, &instruction, operator, operands);
        if overwrites {
            made.check = check.check;
            checked.extend([made, check]);
            return self.replay(range, instruction, checked);
        }
        checked.push(made);
        checked.push(check);
    }

    /// The instruction once more, into values of its own.
    fn again(&mut self, mut instruction: Instruction, what: &str) -> Instruction {
        for output in &mut instruction.outputs {
            let value = self.program.value(*output).clone();
            *output = self.scratch(&format!("{}.{what}", value.name), value.r#type());
        }
        instruction
    }

    /// Runs the instruction twice and compares the bits. The second run stands before the first, where the state that an
    /// update reads has not been overwritten even if it is in place.
    fn replay(&mut self, range: Range, instruction: Instruction, checked: &mut Vec<Instruction>) {
        if matches!(instruction.operator, Operator::Adamw(_)) {
            return self.adamw(range, instruction, checked);
        }
        let mut again = self.again(instruction.clone(), "again");
        let count = again.outputs.len();
        let first = instruction.outputs.iter().take(count).map(|id| Operand::from(*id));
        let operands = first.chain(again.outputs.iter().map(|id| Operand::from(*id))).collect();
        let site = (CheckKind::Replay, range, 0.0);
        let compare = self.distance(site, &instruction, Compare {}, operands);
        again.check = compare.check;
        checked.extend([again, instruction, compare]);
    }
}

fn of_next(program: &Program, id: ValueId) -> bool {
    matches!(program.value(id).role, Role::Next { .. })
}

/// Numbers values as the printed form does, and finds everything again by its name.
fn settle(program: &mut Program, drafts: Vec<Draft>) -> Vec<CheckSite> {
    order::prune(program);
    let ids: HashMap<&str, ValueId> =
        program.values_with_ids().map(|(id, value)| (value.name.as_str(), id)).collect();
    let symbols = program.bounds();
    let mut spent = vec![0.0f64; drafts.len()];
    let mut plain = 0.0f64;
    let mut writer = HashMap::new();
    for range in Range::ALL {
        for (index, instruction) in program.range(range).iter().enumerate() {
            let seconds = seconds(cost::instruction_cost(program, instruction, &symbols));
            match instruction.check {
                Some(bit) => spent[usize::from(bit)] += seconds,
                None => {
                    plain += seconds;
                    for id in &instruction.outputs {
                        writer.insert(*id, (range, index));
                    }
                }
            }
        }
    }
    let find = |names: &[String]| names.iter().filter_map(|name| ids.get(name.as_str()).copied()).collect();
    let sites = drafts.into_iter().enumerate().filter_map(|(bit, draft)| {
        let (range, index) = *writer.get(ids.get(draft.output.as_str())?)?;
        let instruction = &program.range(range)[index];
        Some(CheckSite {
            bit: bit as u16,
            kind: draft.kind,
            range: draft.range,
            checked: Checked {
                operator: instruction.operator.name().into(),
                range,
                index,
                part: instruction.part.clone(),
                output: draft.output,
            },
            results: find(&draft.results),
            against: find(&draft.against),
            every_step: draft.every_step,
            limit: draft.limit,
            cost_share: spent[bit] / plain.max(f64::MIN_POSITIVE),
        })
    });
    sites.collect()
}

/// A rough time: only shares are made of it. A processor does about 20 FLOPs in the time of a byte from memory.
fn seconds(cost: Cost) -> f64 {
    (cost.flops as f64 / 20.0 + cost.bytes as f64) * 1e-10
}
