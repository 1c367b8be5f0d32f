//! Which faults a campaign injects: the field's mix of wrong numbers, spread evenly over classes of sites so that each
//! recall has enough faults behind it.

use crate::scene::Scene;
use serde::Serialize;
use toprope_guard::inject::{
    At, Change, Corruption, Home, Moment, Schedule, Scheduled, Target, What, check, results,
};
use toprope_program::shape::{elements, sizes};
use toprope_program::{Operator, Program, Range, Role, philox};

/// Classes of sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Site {
    /// Dense and grouped products.
    Product,
    /// Attention and its gradient.
    Attention,
    /// The router, its gradient, the order of the experts' rows.
    Router,
    /// Norms of rows and of all gradients.
    Norm,
    /// The optimizer and what else writes state.
    Optimizer,
    /// The head with its loss.
    Head,
    /// Everything else in compute.
    Elementwise,
    /// The committed state at rest.
    State,
    /// Gradients and counters at rest.
    Carried,
    /// Activations at rest.
    Activation,
    /// Snapshots at rest.
    Snapshot,
    /// Checkpoints at rest.
    Checkpoint,
}

impl Site {
    /// All of them.
    pub const ALL: [Site; 12] = [
        Site::Product,
        Site::Attention,
        Site::Router,
        Site::Norm,
        Site::Optimizer,
        Site::Head,
        Site::Elementwise,
        Site::State,
        Site::Carried,
        Site::Activation,
        Site::Snapshot,
        Site::Checkpoint,
    ];

    /// What the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Site::Product => "products",
            Site::Attention => "attention",
            Site::Router => "router",
            Site::Norm => "norms",
            Site::Optimizer => "optimizer",
            Site::Head => "head and loss",
            Site::Elementwise => "elementwise",
            Site::State => "state at rest",
            Site::Carried => "carried at rest",
            Site::Activation => "activations at rest",
            Site::Snapshot => "snapshots at rest",
            Site::Checkpoint => "checkpoints at rest",
        }
    }

    /// Whether the guard promises to catch it at `full`.
    pub fn is_promised(self) -> bool {
        !matches!(self, Site::Head | Site::Elementwise | Site::Activation)
    }

    /// How often it is drawn, relative to the others.
    fn weight(self) -> u64 {
        match self {
            Site::Product => 5,
            Site::Elementwise | Site::Attention => 3,
            Site::Router | Site::Norm | Site::Optimizer | Site::Head | Site::Activation => 2,
            Site::State | Site::Carried => 2,
            Site::Snapshot | Site::Checkpoint => 1,
        }
    }

    /// The class of an operator; none for those that checks are made of. No wildcard: a new operator is a decision.
    pub fn of(operator: &Operator) -> Option<Site> {
        Some(match operator {
            Operator::Matmul(_) | Operator::GroupedMatmul(_) | Operator::GroupedOuter(_) => Site::Product,
            Operator::Attention(_) | Operator::AttentionGradient(_) => Site::Attention,
            Operator::Router(_)
            | Operator::RouterGradient(_)
            | Operator::BalanceLoss(_)
            | Operator::BalanceLossGradient(_)
            | Operator::ExpertSort(_) => Site::Router,
            Operator::RmsNorm(_) | Operator::RmsNormGradient(_) | Operator::GlobalNorm(_) => Site::Norm,
            Operator::Adamw(_) | Operator::BiasUpdate(_) | Operator::Increment(_) => Site::Optimizer,
            Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_) => Site::Head,
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
            | Operator::ColumnSum(_)
            | Operator::Dot(_)
            | Operator::Rope(_)
            | Operator::Combine(_)
            | Operator::CombineGradient(_)
            | Operator::Accumulate(_)
            | Operator::RandomBits(_)
            | Operator::Append(_) => Site::Elementwise,
            // What checks are made of.
            Operator::Digest(_)
            | Operator::ProductCheck(_)
            | Operator::Compare(_)
            | Operator::AttentionCheck(_)
            | Operator::LossCheck(_)
            | Operator::AdamwDigest(_)
            | Operator::Verify(_) => return None,
        })
    }
}

/// How often a fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Persistence {
    /// Once.
    Transient,
    /// In every execution, with the same elements and bits.
    Repeating,
    /// In every execution, never the same.
    Varying,
}

impl Persistence {
    /// All of them.
    pub const ALL: [Persistence; 3] = [Persistence::Transient, Persistence::Repeating, Persistence::Varying];

    /// What the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Persistence::Transient => "transient",
            Persistence::Repeating => "repeating",
            Persistence::Varying => "varying",
        }
    }
}

/// A fault that is to be injected.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Index of the recorded state.
    pub frozen: usize,
    /// The class of its site.
    pub site: Site,
    /// The operator that it strikes, or the kind of value at rest.
    pub operator: String,
    /// Whether that is in the backward pass or the update.
    pub backward: bool,
    /// How often it happens.
    pub persistence: Persistence,
    /// The value that becomes wrong.
    pub value: String,
    /// For a fault in compute: the instruction.
    pub instruction: Option<(Range, usize)>,
    /// The fault.
    pub fault: Scheduled,
}

impl Planned {
    /// What becomes of the numbers.
    pub fn corruption(&self) -> Option<&Corruption> {
        match &self.fault.what {
            What::Compute { corruption, .. } | What::AtRest { corruption, .. } => Some(corruption),
            _ => None,
        }
    }
}

/// Random numbers of one fault, by what they are for.
struct Dice {
    seed: u64,
    index: u64,
}

impl Dice {
    fn bits(&self, purpose: u32) -> u64 {
        let counter = [self.index as u32, (self.index >> 32) as u32, purpose, 0];
        let block = philox::block(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        u64::from(block[0]) | (u64::from(block[1]) << 32)
    }

    fn below(&self, purpose: u32, bound: usize) -> usize {
        (self.bits(purpose) % bound.max(1) as u64) as usize
    }

    fn unit(&self, purpose: u32) -> f64 {
        (self.bits(purpose) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A place in compute: range, index, output.
struct Spot {
    range: Range,
    index: usize,
    output: usize,
    operator: &'static str,
    backward: bool,
    value: String,
}

fn spots(program: &Program, site: Site) -> Vec<Spot> {
    let mut spots = Vec::new();
    for range in Range::ALL {
        // The loss stands at the border of forward and backward.
        let border = program
            .range(range)
            .iter()
            .position(|i| matches!(i.operator, Operator::LinearCrossEntropyGradient(_)));
        for (index, instruction) in program.range(range).iter().enumerate() {
            if instruction.check.is_some() || Site::of(&instruction.operator) != Some(site) {
                continue;
            }
            let results = results(instruction);
            for (output, id) in instruction.outputs[..results].iter().enumerate() {
                let backward = range == Range::Update || border.is_some_and(|border| index > border);
                let value = program.value(*id).name.clone();
                let operator = instruction.operator.name();
                spots.push(Spot { range, index, output, operator, backward, value });
            }
        }
    }
    spots
}

/// Bits of a number: 47 % single bits, 25 % wrong carries, 24 % missing carries, 4 % compound (the mix of NPU logs), in
/// four of five; the rest zeroed tiles and stuck lanes.
fn change(dice: &Dice, bits: u32, float: bool) -> Change {
    match dice.unit(10) {
        u if u < 0.1 => return Change::ZeroTile,
        u if u < 0.2 => return Change::StuckLane,
        _ => {}
    }
    let carries = bits as usize - usize::from(float);
    match dice.unit(11) {
        u if u < 0.47 => Change::Flip(Some(dice.below(12, bits as usize) as u32)),
        u if u < 0.72 => Change::WrongCarry(Some(dice.below(12, carries) as u32)),
        u if u < 0.96 => Change::MissingCarry(Some(dice.below(12, carries) as u32)),
        _ => Change::Compound,
    }
}

/// Draws fault `index` of a campaign for a scene. None where the scene has no such site.
pub fn planned(scene: &Scene, seed: u64, index: u64) -> Option<Planned> {
    let dice = Dice { seed, index };
    let program = scene.program.program();
    let mut ticket = dice.bits(0) % Site::ALL.iter().map(|site| site.weight()).sum::<u64>();
    let site = *Site::ALL.iter().find(|site| match ticket.checked_sub(site.weight()) {
        Some(rest) => {
            ticket = rest;
            false
        }
        None => true,
    })?;
    let frozen = dice.below(1, scene.frozen.len());
    let persistence = match dice.unit(2) {
        u if u < 0.7 => Persistence::Transient,
        u if u < 0.85 => Persistence::Repeating,
        _ => Persistence::Varying,
    };
    let (what, operator, backward, value, instruction) = match site {
        Site::State | Site::Carried | Site::Activation | Site::Snapshot | Site::Checkpoint => {
            let home = match site {
                Site::State => Home::State,
                Site::Carried => Home::Carried,
                Site::Activation => Home::Activation,
                Site::Snapshot => Home::Snapshot,
                _ => Home::Checkpoint,
            };
            let values: Vec<_> = program
                .values_with_ids()
                .filter(|(id, value)| match home {
                    Home::Carried => value.role == Role::Carried,
                    Home::Activation => value.role == Role::Scratch && is_read(program, *id),
                    _ => matches!(value.role, Role::State { .. }),
                })
                .map(|(_, value)| value)
                .collect();
            let value = *values.get(dice.below(3, values.len()))?;
            let bits = 8 * value.dtype.size_bytes(toprope_program::Width::Native) as u32;
            let there = elements(&sizes(&value.shape, &program.bounds()));
            let corruption = corruption(&dice, change(&dice, bits, value.dtype.is_float()), there, 0, false);
            let what = What::AtRest { corruption, home, value: value.name.clone() };
            (what, home.name().to_string(), false, value.name.clone(), None)
        }
        _ => {
            let spots = spots(program, site);
            let spot = spots.get(dice.below(3, spots.len()))?;
            let id = program.find(&spot.value)?;
            let value = program.value(id);
            let there = elements(&sizes(&value.shape, &program.bounds()));
            let change = change(&dice, 32, value.dtype.is_float());
            let mut corruption = corruption(&dice, change, there, spot.output, value.dtype.is_float());
            corruption.anew = persistence == Persistence::Varying;
            let target = Target { at: At::Value(spot.value.clone()), moment: Moment::In };
            let what = What::Compute { corruption, target };
            let instruction = Some((spot.range, spot.index));
            (what, spot.operator.to_string(), spot.backward, spot.value.clone(), instruction)
        }
    };
    let at_rest = instruction.is_none();
    // Bits at rest flip once: a cell that is stuck is caught as soon as one that is not.
    let persistence = if at_rest { Persistence::Transient } else { persistence };
    let always = persistence != Persistence::Transient;
    let step = scene.frozen[frozen].step;
    let fault = Scheduled { step, device: None, always, what };
    // What is drawn here can happen, or the campaign counts what never was.
    check(&Schedule::of(vec![fault.clone()]), program, u64::MAX).ok()?;
    Some(Planned { frozen, site, operator, backward, persistence, value, instruction, fault })
}

/// Whether anything but a check reads a value.
fn is_read(program: &Program, id: toprope_program::ValueId) -> bool {
    let mut readers = program.accumulate.iter().chain(&program.update).filter(|i| i.check.is_none());
    readers.any(|instruction| instruction.operands.iter().any(|operand| operand.value == id))
}

fn corruption(dice: &Dice, change: Change, there: usize, output: usize, float: bool) -> Corruption {
    let count = match dice.below(20, 10) {
        0..=3 => 1,
        4 | 5 => 10,
        6 | 7 => 100,
        8 => 1_000 + 9_000 * dice.below(22, 2),
        _ => 100_000,
    };
    // One in eight fires in a band of values only.
    let band = (float && dice.below(21, 8) == 0).then(|| {
        let low = 10f64.powi(-(dice.below(23, 5) as i32));
        (low, low * 10.0)
    });
    Corruption { change, count: count.clamp(1, there.max(1)), seed: dice.bits(24), band, output, anew: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The operators that a training step of the recipes is made of all have a class.
    #[test]
    fn only_what_checks_are_made_of_has_no_class() {
        use crate::scene::{checked, recipe};
        use toprope_program::DType;
        use toprope_program::check::CheckLevel;
        for name in ["tiny-dense", "tiny-moe"] {
            let recipe = recipe(name, DType::Bf16, &[]).unwrap();
            let (program, _) = checked(&recipe, CheckLevel::Full).unwrap();
            for instruction in program.program().accumulate.iter().chain(&program.program().update) {
                let has = Site::of(&instruction.operator).is_some();
                assert!(has || instruction.check.is_some(), "`{}`", instruction.operator.name());
            }
        }
    }
}
