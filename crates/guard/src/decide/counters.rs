//! What the summary says.

use std::collections::BTreeMap;
use toprope_program::FaultClass;

/// Counts since this process began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// Faults by class. An alarm that was found to be false, or the data's, is none.
    pub faults: BTreeMap<FaultClass, u64>,
    /// Alarms that were looked into.
    pub alarms: u64,
    /// Alarms that another device cleared.
    pub false_alarms: u64,
    /// Spikes and bad numbers that the data gave.
    pub data_alarms: u64,
    /// Executions of a step that were given up.
    pub retries: u64,
    /// Committed steps that were taken back and run again.
    pub steps_redone: u64,
    /// Times that the run went back to an older state.
    pub roll_backs: u64,
    /// States that were not taken in because they were not whole or not the committed ones.
    pub states_refused: u64,
    /// Workers that took over from standing by.
    pub promotions: u64,
    /// Active workers started after the first of their ranks.
    pub restarts: u64,
    /// Moves to a fallback.
    pub fail_overs: u64,
    /// Moves back.
    pub fail_backs: u64,
    /// Operators that run elsewhere than the rest of their device's.
    pub operators_moved: u64,
    /// Batches left out.
    pub batches_skipped: u64,
    /// Snapshots that were whole on all ranks.
    pub snapshots: u64,
    /// Durable checkpoints written.
    pub checkpoints: u64,
    /// Net steps committed since `Begin`.
    pub steps_committed: u64,
    /// Time that gave no new step: beyond the median of a step where something went wrong, and all of what was redone, in
    /// seconds.
    pub seconds_lost: f64,
}
