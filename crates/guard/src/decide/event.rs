//! What the guard sees and what it has done, in the words of both the supervisor and the simulator.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use toprope_program::{FaultKind, Place, Range};

/// A device by its index in the run's list: 0 is the primary, the others are fallbacks in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceIndex(pub u16);

/// One shard of the run; a step commits when all of them voted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rank(pub u16);

/// A worker's number, never used twice in a run. What a worker of an older generation says is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// Bits of a state or of gradients, digested. Equal digests mean equal bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub u64);

/// One worker of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Worker {
    /// The rank that it computes.
    pub rank: Rank,
    /// Which worker.
    pub generation: Generation,
}

/// One execution of one step on all ranks. Retrying a step makes a new attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attempt {
    /// The step, counted from 0; committing it makes the state that of `step + 1` steps.
    pub step: u64,
    /// Counts executions of any step in this process, from 1.
    pub number: u64,
}

/// A check that did not hold, or a number that is not one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// `Mismatch` or `NonFinite`.
    pub kind: FaultKind,
    /// The operator that is suspected, where one is.
    pub place: Option<Place>,
    /// Which bits are wrong, as far as the check tells.
    pub suspect: Suspect,
}

/// What an alarm says is wrong. Decides what is a remedy: computing again mends compute, and only older bits mend bits at
/// rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suspect {
    /// An operator computed something else than it should.
    Compute,
    /// Gradients or counters changed between the two ranges.
    Carried,
    /// The committed state changed since it was committed.
    State,
}

/// What an accumulated step looks like on one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulated {
    /// The loss that was differentiated.
    pub loss: f64,
    /// The digest of the gradients, where this attempt was asked for one.
    pub gradients: Option<Digest>,
    /// Checks that did not hold.
    pub alarms: Vec<Alarm>,
}

/// What an updated, not yet committed step looks like on one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Updated {
    /// The norm of all gradients.
    pub gradient_norm: f64,
    /// The digest of the next state.
    pub state: Digest,
    /// Checks that did not hold.
    pub alarms: Vec<Alarm>,
}

/// What confirming an alarm found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The same bits, or on another device values within the contract's tolerance.
    Agrees,
    /// Other bits, or values outside of the tolerance.
    Differs,
    /// It could not be told.
    Unknown,
    /// The state that it was computed from is not the committed one any more: it changed at rest.
    StateDamaged,
}

/// What is seen.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The run begins, or goes on, with the state of this many committed steps.
    Begin {
        /// Committed steps.
        step: u64,
        /// The digest of the state, of each rank.
        states: Vec<Digest>,
    },
    /// A worker is up and has prepared the program. An active one has not taken its state in yet.
    Ready {
        /// Which.
        worker: Worker,
    },
    /// A worker holds this state: after `Restore` or `Promote`.
    Restored {
        /// Which.
        worker: Worker,
        /// Steps that the state is of.
        step: u64,
        /// Its digest as the worker's side computed it.
        state: Digest,
    },
    /// There is no such state to take in, or it is not whole. The worker lives.
    RestoreFailed {
        /// Which.
        worker: Worker,
        /// The step that was asked for.
        step: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// `accumulate` is done for all micro-batches.
    Accumulated {
        /// Who.
        worker: Worker,
        /// Which execution.
        attempt: Attempt,
        /// What it gave.
        result: Accumulated,
    },
    /// `update` is done; nothing is committed.
    Updated {
        /// Who.
        worker: Worker,
        /// Which execution.
        attempt: Attempt,
        /// What it gave.
        result: Updated,
    },
    /// A worker died, or its device said that it failed. Alarms come with results, hangs from the guard's own deadline.
    Failed {
        /// Who.
        worker: Worker,
        /// `Lost`, `Driver`, `OutOfMemory` or `Unsupported`.
        kind: FaultKind,
        /// The operator, where known.
        place: Option<Place>,
    },
    /// The suspected operator was run again from its kept inputs on the same device.
    Replayed {
        /// Who.
        worker: Worker,
        /// Which execution.
        attempt: Attempt,
        /// Whether it gave the same bits.
        finding: Finding,
    },
    /// The same on another device.
    Confirmed {
        /// Which execution.
        attempt: Attempt,
        /// The other device; none where there is no other.
        device: Option<DeviceIndex>,
        /// Whether that is another chip.
        other_chip: bool,
        /// Whether the other device agrees with the suspected result.
        finding: Finding,
    },
    /// A copy of the committed state is in the host's memory, verified against the digest chain.
    SnapshotTaken {
        /// Of which rank.
        worker: Worker,
        /// Committed steps.
        step: u64,
        /// Its digest, computed by the host.
        state: Digest,
        /// How long the device was kept from its work.
        seconds: f64,
    },
    /// A durable checkpoint was written from the state of this many steps.
    CheckpointWritten {
        /// Committed steps.
        step: u64,
    },
    /// A durable checkpoint could not be written; the older ones stay.
    CheckpointFailed {
        /// Committed steps.
        step: u64,
        /// Why.
        reason: String,
        /// Whether it was the state that was not the one to be written, and not the disk.
        damaged: bool,
    },
    /// A quarantined device was tested again.
    Retested {
        /// Which.
        device: DeviceIndex,
        /// Whether it passed.
        passed: bool,
        /// What was found, in words.
        detail: String,
    },
    /// Time passed; to be sent when [`super::Guard::deadline`] is reached.
    Tick {
        /// What the progress words say: the operator under way, for each active worker where known.
        progress: Vec<(Worker, Option<Place>)>,
    },
    /// Somebody asked to stop after the step under way.
    StopRequested,
}

/// What a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// Takes the state in and runs steps.
    Active,
    /// Process up, program prepared, no memory touched.
    Standby,
}

/// Which bits a worker takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The committed half in memory that outlives workers.
    Committed,
    /// The half of one step earlier, still whole while no `update` of a later step has begun.
    Previous,
    /// A verified copy in the host's memory; the two newest steps are kept. The state that the run began with is the
    /// first.
    Snapshot,
    /// The newest intact durable checkpoint; the recipe's initial state counts as the one of step 0.
    Checkpoint,
}

/// Why the guard gives up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// All steps are committed.
    Done,
    /// Somebody asked.
    Requested,
    /// No device is left that works.
    NoDevice,
    /// The policy says so for this class.
    Policy {
        /// The class's name.
        class: String,
    },
    /// No whole state is left anywhere.
    NoState,
}

/// What is to be done. Actions are carried out in order; each that names a worker is answered by an event of that worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start a worker.
    Launch {
        /// Which it will be.
        worker: Worker,
        /// On what.
        device: DeviceIndex,
        /// For what.
        duty: Duty,
    },
    /// End a worker's process at once and await its end.
    Kill {
        /// Which.
        worker: Worker,
    },
    /// Give a worker its state; a standby becomes active by it. Answered by `Restored` or `RestoreFailed`.
    /// States and snapshots of later steps are forgotten: they are of a future that did not come.
    Restore {
        /// Which.
        worker: Worker,
        /// From where.
        source: Source,
        /// Committed steps that the state is to be of: exactly for halves and snapshots (asking again gives the same
        /// bits), at most for checkpoints, whose newest intact one is taken.
        step: u64,
    },
    /// Run `accumulate` over the step's micro-batches. Answered by `Accumulated`.
    Accumulate {
        /// Who.
        worker: Worker,
        /// Which execution.
        attempt: Attempt,
        /// Whether every check fires and digests are taken, whatever the level: the execution is evidence.
        evidence: bool,
    },
    /// Run `update` into the next state. Answered by `Updated`.
    Update {
        /// Who.
        worker: Worker,
        /// Which execution.
        attempt: Attempt,
    },
    /// Make the next state the current one, on all ranks. Cannot fail: it is a flip.
    Commit {
        /// The step that is committed.
        attempt: Attempt,
    },
    /// Copy the committed state of a worker to the host, behind the next steps. Answered by `SnapshotTaken`.
    Snapshot {
        /// Whose.
        worker: Worker,
    },
    /// Write a durable checkpoint of the committed state. Answered by `CheckpointWritten` or `CheckpointFailed`; no
    /// `Update` is asked for before.
    Checkpoint {
        /// Committed steps.
        step: u64,
        /// What the bits written must digest to, by rank; where they do not, no file gets its name.
        states: Vec<Digest>,
    },
    /// Leave a batch out: the state of `step` steps counts as that of `step + 1` from now on, with no flip. Cannot fail.
    Skip {
        /// The step whose batch is left out.
        step: u64,
    },
    /// Run the suspected operator again from its kept inputs on the same device. Answered by `Replayed`.
    Replay {
        /// Who.
        worker: Worker,
        /// The execution in question.
        attempt: Attempt,
        /// The range whose result is in question: its loss, or its gradients' norm.
        range: Range,
        /// The operator in question; none asks for the range's number.
        place: Option<Place>,
    },
    /// Run it on another device. Answered by `Confirmed`.
    Confirm {
        /// Whose result is in question.
        worker: Worker,
        /// The execution in question.
        attempt: Attempt,
        /// The range whose result is in question: its loss, or its gradients' norm.
        range: Range,
        /// The operator in question; none asks for the range's number.
        place: Option<Place>,
        /// The device to ask; none means whatever there is beside the suspected one.
        device: Option<DeviceIndex>,
    },
    /// Run an operator of a device elsewhere from now on: its workers are started anew for it.
    Move {
        /// The device that computes it wrong.
        device: DeviceIndex,
        /// The operator's name.
        operator: String,
        /// The device that computes it instead.
        to: DeviceIndex,
    },
    /// Test a quarantined device in the background. Answered by `Retested`.
    Retest {
        /// Which.
        device: DeviceIndex,
    },
    /// Write to the journal and tell the user.
    Record(Entry),
    /// Nothing more will be done.
    Stop(StopReason),
}

/// What goes into the journal. The supervisor adds time and attempt of the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Entry {
    /// A worker began to serve.
    WorkerActive {
        /// Which.
        #[serde(flatten)]
        worker: Worker,
        /// On what.
        device: DeviceIndex,
        /// Whether it had been standing by.
        standby: bool,
    },
    /// A step was committed: an entry of the ledger.
    Committed {
        /// Which execution.
        #[serde(flatten)]
        attempt: Attempt,
        /// The digests of the new state, by rank.
        states: Vec<Digest>,
    },
    /// Something went wrong.
    Fault {
        /// The class and its particulars.
        #[serde(flatten)]
        kind: FaultKind,
        /// The device.
        device: DeviceIndex,
        /// The rank.
        rank: Rank,
        /// The step under way.
        step: u64,
        /// The operator, where known.
        place: Option<Place>,
        /// What is done about it, in the policy's words.
        action: String,
    },
    /// An alarm was looked into.
    Judged {
        /// Which execution.
        #[serde(flatten)]
        attempt: Attempt,
        /// `transient`, `persistent`, `false_alarm`, `data` or `unknown`.
        verdict: String,
        /// What that is founded on.
        detail: String,
    },
    /// A step was given up and will be run again.
    Retried {
        /// The execution that was given up.
        #[serde(flatten)]
        attempt: Attempt,
    },
    /// A step that was run again after an alarm gave other bits: evidence.
    Evidence {
        /// The later execution.
        #[serde(flatten)]
        attempt: Attempt,
        /// The digests of the gradients, before and now.
        before: Option<Digest>,
        /// See `before`.
        now: Option<Digest>,
    },
    /// Committed steps were taken back; they will be run again.
    RolledBack {
        /// Committed steps before.
        from: u64,
        /// Committed steps now.
        to: u64,
        /// Where the state came from.
        source: Source,
    },
    /// A state was not taken in: it was not the committed one, or not whole.
    StateRefused {
        /// The rank.
        rank: Rank,
        /// Where it came from.
        source: Source,
        /// Committed steps.
        step: u64,
        /// Why.
        reason: String,
    },
    /// A device is not to be used until it is tested again.
    Quarantined {
        /// Which.
        device: DeviceIndex,
        /// Why.
        reason: String,
    },
    /// The run goes on elsewhere.
    FailedOver {
        /// The rank.
        rank: Rank,
        /// From where.
        from: DeviceIndex,
        /// Where to.
        to: DeviceIndex,
    },
    /// The run went back to a device that passed its test.
    FailedBack {
        /// The rank.
        rank: Rank,
        /// From where.
        from: DeviceIndex,
        /// Where to.
        to: DeviceIndex,
    },
    /// An operator of a device runs elsewhere from now on; the rest of the step stays where it is.
    OperatorMoved {
        /// The device that computes it wrong.
        device: DeviceIndex,
        /// The operator's name.
        operator: String,
        /// The device that computes it instead.
        to: DeviceIndex,
    },
    /// A quarantined device was tested.
    Retested {
        /// Which.
        device: DeviceIndex,
        /// Whether it passed.
        passed: bool,
        /// What was found.
        detail: String,
    },
    /// A batch was left out, because the policy says so.
    BatchSkipped {
        /// The step whose batch it was.
        step: u64,
        /// Why.
        reason: String,
    },
    /// A durable checkpoint was written.
    Checkpoint {
        /// Committed steps.
        step: u64,
        /// The digests of the state, by rank.
        states: Vec<Digest>,
    },
    /// A durable checkpoint could not be written.
    CheckpointFailed {
        /// Committed steps.
        step: u64,
        /// Why.
        reason: String,
    },
    /// The guard gave up or ended.
    Stopped {
        /// Why.
        reason: StopReason,
        /// Committed steps.
        step: u64,
    },
}

/// Where a rank's state lies, which decides what a death costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateHome {
    /// Both halves in memory that outlives workers: a death loses nothing.
    SharedDouble,
    /// One half in memory that outlives workers: a death under `update` loses it.
    SharedInPlace,
    /// On the device: a death loses it, and the newest snapshot is replayed from.
    Device,
}

/// What is known before the first event.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// Ranks of the run.
    pub ranks: u16,
    /// Devices in order of preference, by name; index 0 is the primary.
    pub devices: Vec<String>,
    /// Where the state lies.
    pub home: StateHome,
    /// Steps of the whole run.
    pub steps: u64,
    /// A durable checkpoint every so many steps; 0 writes one at the end only.
    pub checkpoint_every: u64,
    /// How long a step is expected to take, from the program's cost, before any was measured.
    pub step_estimate: Duration,
    /// How long a worker may take to come up and prepare the program.
    pub launch_limit: Duration,
}
