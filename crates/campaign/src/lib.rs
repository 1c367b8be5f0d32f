//! The detection campaign: faults are injected into real training steps, one at a time, from recorded states. For each it
//! is measured whether it does harm, whether the guard's checks catch it before it would be committed, and whether the
//! field's other rules would have.
//!
//! A device with `deterministic: true` gives the same bits for the same state and batch, so one recorded clean step
//! stands for every undisturbed one ([`scene`] verifies that it repeats), and a step needs no run before it.

pub mod at_rest; // snapshots and checkpoints: bytes that no device holds
pub mod clean; // steps without faults: checks, alarms, false accusations
pub mod cost; // what checking costs when nothing fails
pub mod draw; // which faults are injected
pub mod harm; // what a fault does to a step
pub mod npu; // the guard on the emulated NPU
pub mod report; // tables and JSON
pub mod rules; // the field's other rules
pub mod scene; // a recipe's step with recorded states
pub mod statistics; // Wilson bounds, medians
pub mod supervised; // what the guard costs a run
pub mod trial; // one fault, everything that is measured

/// Why a campaign stopped.
#[derive(Debug, thiserror::Error)]
pub enum CampaignError {
    /// A recipe, its data or its program.
    #[error("{recipe}: {reason}")]
    Recipe {
        /// The recipe's name.
        recipe: String,
        /// Why.
        reason: String,
    },
    /// A device that fails without a fault being injected.
    #[error("the device failed without an injected fault: {0}")]
    Device(#[from] toprope_program::Fault),
    /// The device does not repeat itself, so that a recorded step stands for no other.
    #[error(
        "{scene}: step {step} gave other bits when it was run again without a fault; the campaign needs a device that repeats itself"
    )]
    NotRepeatable {
        /// The recipe and dtype.
        scene: String,
        /// The step.
        step: u64,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] toprope_world::FileError),
    /// A checkpoint that could not be written.
    #[error("the campaign's checkpoint: {0}")]
    Checkpoint(String),
}
