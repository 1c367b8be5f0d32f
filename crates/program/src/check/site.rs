//! What is checked, where, and what of it the host reads.

use crate::program::Range;
use crate::value::ValueId;

/// How much is checked in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CheckLevel {
    /// Nothing.
    Off,
    /// A share of the checks in each step, every one of them within [`super::STEPS_MAX`] steps.
    #[default]
    Sampled,
    /// Every check in every step.
    Full,
}

/// What a program's checks are to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckPlan {
    /// How much a step checks. `Sampled` and `Full` put the same checks in, so that the level may change within a run;
    /// `Off` puts none in.
    pub level: CheckLevel,
}

/// How a site is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CheckKind {
    /// A checksum identity of a product, from its accumulator.
    Product,
    /// The instruction is run a second time and the bits are compared.
    Replay,
    /// The result against the same result by other code, or a certificate of it.
    Verify,
    /// The identities of attention and its gradient.
    Attention,
    /// The identities of the head's loss and its gradients.
    Loss,
    /// Digests of gradients and counters between the two ranges.
    Carried,
    /// The digest of the state against that of the update which wrote it.
    State,
}

/// The instruction that a check watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The operator's name.
    pub operator: String,
    /// The range that it is in.
    pub range: Range,
    /// Its index in that range of the *checked* program.
    pub index: usize,
    /// Its part of the model.
    pub part: String,
    /// The name of its first output.
    pub output: String,
}

/// A check that was put in.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckSite {
    /// Its bit in the mask.
    pub bit: u16,
    /// How it checks.
    pub kind: CheckKind,
    /// The range that writes its results.
    pub range: Range,
    /// What it checks.
    pub checked: Checked,
    /// The values, of role output, that hold its results. Distances are `f32[1]` in units of their bound; digests are
    /// `u32[2]`.
    pub results: Vec<ValueId>,
    /// What the results' digests must add up to, where this is a check of bits at rest: digests that the `update` of the
    /// same step gives ([`CheckKind::Carried`]) or that of the step before ([`CheckKind::State`]). Empty otherwise.
    pub against: Vec<ValueId>,
    /// Whether it fires in every step at the level `Sampled` too: as it costs next to nothing, or as what it is judged
    /// against comes under its own bit, so that a step without it would break the chain.
    pub every_step: bool,
    /// The largest distance of a healthy device; 0 where bits are compared.
    pub limit: f64,
    /// Its cost as a share of the step's, by the cost model.
    pub cost_share: f64,
}
