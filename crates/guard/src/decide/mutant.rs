//! Guards that are wrong on purpose: the simulator must catch each.

/// One thing done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A restored state's digest is not compared with the chain.
    SkipDigestCheck,
    /// A snapshot's digest is not compared, neither when it is taken nor when it is taken in.
    AcceptPoisonedSnapshot,
    /// A step is committed whatever the checks of `update` say.
    CommitBeforeVerify,
    /// Gradients are taken whatever the checks of `accumulate` say.
    UpdateBeforeVerdict,
    /// No step has a deadline.
    ForgetDeadline,
    /// After a roll-back, one batch less counts as applied than are.
    DoubleReplay,
    /// After a roll-back, one batch more counts as applied than are.
    BatchOffByOne,
    /// What workers of older generations say is believed.
    IgnoreGeneration,
    /// What was said of older attempts is believed.
    IgnoreAttempt,
    /// A step is committed with one vote missing.
    MissingVote,
    /// A device that was found to be bad is used on.
    ForgetQuarantine,
    /// A quarantined device is used again when its wait is over, without a test.
    FailBackWithoutTest,
    /// The answers of a step that was given up count for the next try.
    RetryWithoutDiscard,
    /// A durable checkpoint is asked for before its state is committed.
    CheckpointUnverified,
    /// A replay that gives the same bits is taken for a transient fault.
    AgreesIsTransient,
    /// Another device that gives other values is taken for agreement.
    DiffersIsAgreement,
    /// After a death under an update in place, the torn state is taken in.
    RestoreTorn,
    /// Ranks go back to their newest snapshots, of whatever steps.
    MixedSnapshots,
    /// The half of one step earlier is used although an update has begun to overwrite it.
    PreviousAfterUpdate,
    /// The run ends without a durable checkpoint.
    EndWithoutCheckpoint,
    /// Committed steps are taken back without a word in the journal.
    SilentRollBack,
    /// A batch is left out without a word in the journal.
    SilentSkip,
    /// A dead worker is started again at once, however often it dies.
    RestartStorm,
    /// NaN is taken for a number.
    AcceptNonFinite,
    /// A fault on one rank makes that rank alone compute again.
    RetryOneRank,
    /// An update is asked for while a checkpoint is read from the half that it overwrites.
    UpdateUnderCheckpoint,
    /// What a state that changed at rest gives is taken for a thing that cannot be told.
    BlindToDamage,
}

impl Mutant {
    /// All of them, with their names on the command line.
    pub const ALL: [(Mutant, &'static str); 27] = [
        (Mutant::SkipDigestCheck, "skip-digest-check"),
        (Mutant::AcceptPoisonedSnapshot, "accept-poisoned-snapshot"),
        (Mutant::CommitBeforeVerify, "commit-before-verify"),
        (Mutant::UpdateBeforeVerdict, "update-before-verdict"),
        (Mutant::ForgetDeadline, "forget-deadline"),
        (Mutant::DoubleReplay, "double-replay"),
        (Mutant::BatchOffByOne, "batch-off-by-one"),
        (Mutant::IgnoreGeneration, "ignore-generation"),
        (Mutant::IgnoreAttempt, "ignore-attempt"),
        (Mutant::MissingVote, "missing-vote"),
        (Mutant::ForgetQuarantine, "forget-quarantine"),
        (Mutant::FailBackWithoutTest, "fail-back-without-test"),
        (Mutant::RetryWithoutDiscard, "retry-without-discard"),
        (Mutant::CheckpointUnverified, "checkpoint-unverified"),
        (Mutant::AgreesIsTransient, "agrees-is-transient"),
        (Mutant::DiffersIsAgreement, "differs-is-agreement"),
        (Mutant::RestoreTorn, "restore-torn"),
        (Mutant::MixedSnapshots, "mixed-snapshots"),
        (Mutant::PreviousAfterUpdate, "previous-after-update"),
        (Mutant::EndWithoutCheckpoint, "end-without-checkpoint"),
        (Mutant::SilentRollBack, "silent-roll-back"),
        (Mutant::SilentSkip, "silent-skip"),
        (Mutant::RestartStorm, "restart-storm"),
        (Mutant::AcceptNonFinite, "accept-non-finite"),
        (Mutant::RetryOneRank, "retry-one-rank"),
        (Mutant::UpdateUnderCheckpoint, "update-under-checkpoint"),
        (Mutant::BlindToDamage, "blind-to-damage"),
    ];
}
