//! What is drawn from a seed: a run, and what goes wrong in it. This is the fault atlas: what is drawn here is inside what
//! the guard promises to survive.
//!
//! Inside: any number of deaths, hangs, errors and corruptions at any call of any rank, during recovery too; a device that
//! computes wrongly from some time on (one, for of two that contradict each other a third would have to say which is
//! right), devices that go away for good, but never the trusted one; damage to any single copy of a state; disks that fail, rot or
//! hang; the supervisor's own death. Outside: damage to the initial state, which can be made again from its seed, and
//! damage that no check catches (it is drawn, counted as missed, and the chain goes on from it).

use crate::random::Random;
use std::time::Duration;
use toprope_guard::decide::{FaultClass, Setup, StateHome};
use toprope_guard::policy::{BadData, Policy, Remedy, Rule, SnapshotEvery};

/// What a worker, the supervisor or the disk is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Start a process and prepare the program.
    Launch,
    /// Take a state in.
    Restore,
    /// The first range.
    Accumulate,
    /// The second range.
    Update,
    /// Run an operator again.
    Replay,
    /// Run it elsewhere.
    Confirm,
    /// Copy the state to the host.
    Snapshot,
    /// Write a file.
    Checkpoint,
    /// Test a device.
    Retest,
}

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The process dies at this per cent of the call.
    Dies(u8),
    /// It answers, and dies then.
    DiesAfter,
    /// It never answers.
    Hangs,
    /// The vendor's software gives an error.
    Driver,
    /// There is too little memory.
    OutOfMemory,
    /// A number is none.
    NotFinite,
    /// A result is wrong, and a check says so.
    Wrong,
    /// A result is wrong, and no check says so.
    WrongMissed,
    /// A result is wrong and large: no check says so, but the loss jumps.
    WrongLarge,
    /// A check says that a right result is wrong.
    FalseAlarm,
    /// The gradients change between the two ranges.
    CarriedChanges,
    /// The committed state changes where it lies.
    StateChanges,
    /// The call takes this many tenths of its time.
    Slow(u16),
    /// What is copied is copied wrong, once.
    CopyWrong,
    /// What was copied changes where it lies.
    CopyChanges,
    /// It is refused.
    Refused,
    /// It could not be told.
    Unknown,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// At the nth call of a kind of a rank, counted from 0 over the whole schedule.
    AtCall {
        /// The rank.
        rank: u16,
        /// The kind.
        call: Call,
        /// Which.
        nth: u32,
        /// What goes wrong.
        what: What,
    },
    /// The supervisor is killed, and the run resumed.
    SupervisorDies {
        /// When.
        at_ms: u64,
    },
    /// Somebody asks the run to stop, and resumes it.
    StopRequested {
        /// When.
        at_ms: u64,
    },
    /// A rank's worker is killed, whatever it does.
    WorkerDies {
        /// The rank.
        rank: u16,
        /// The one that stands by.
        standby: bool,
        /// When.
        at_ms: u64,
    },
    /// A device is gone for good; everything on it dies.
    DeviceGone {
        /// Which.
        device: u16,
        /// When.
        at_ms: u64,
    },
    /// A device computes wrongly from then on.
    DeviceBad {
        /// Which.
        device: u16,
        /// When.
        at_ms: u64,
        /// In how many of a hundred ranges.
        percent: u8,
    },
    /// A device is slow for some time.
    DeviceSlow {
        /// Which.
        device: u16,
        /// When.
        at_ms: u64,
        /// How long.
        for_ms: u64,
        /// In tenths.
        factor: u16,
    },
    /// A batch whose loss jumps wherever it is computed.
    DataSpike {
        /// Its step.
        step: u64,
    },
    /// A batch that gives NaN wherever it is computed.
    BadBatch {
        /// Its step.
        step: u64,
    },
}

/// A run and its faults.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// What it was drawn from.
    pub seed: u64,
    /// The run.
    pub setup: Setup,
    /// What is done about faults.
    pub policy: Policy,
    /// The device that stays sound.
    pub trusted: u16,
    /// The faults.
    pub faults: Vec<Fault>,
}

/// New faults come until then.
pub const FAULTS_UNTIL: Duration = Duration::from_secs(90);

impl Schedule {
    /// Draws one.
    pub fn draw(seed: u64) -> Schedule {
        let mut random = Random::new(seed);
        let ranks = if random.percent(45) { 1 } else { random.between(2, 5) as u16 };
        let devices = random.between(1, 4) as u16;
        let home = random.one_of(StateHome::SharedDouble, &[StateHome::SharedInPlace, StateHome::Device]);
        let setup = Setup {
            ranks,
            devices: (0..devices).map(|device| format!("device:{device}")).collect(),
            home,
            steps: random.between(25, 70),
            checkpoint_every: random.one_of(5, &[0, 3, 7, 10, 16]),
            step_estimate: Duration::from_millis(300),
            launch_limit: Duration::from_secs(5),
        };
        let trusted = random.between(0, u64::from(devices)) as u16;
        let policy = policy(&mut random);
        let count = 2 + random.between(0, 5) * random.between(0, 5);
        let faults = (0..count).map(|_| fault(&mut random, &setup, trusted)).collect();
        Schedule { seed, setup, policy, trusted, faults }
    }
}

fn policy(random: &mut Random) -> Policy {
    let mut policy = Policy {
        standby: random.percent(50),
        confirm_limit_seconds: 10.0,
        checkpoint_limit_seconds: 20.0,
        bad_data: random.one_of(BadData::Stop, &[BadData::RollBack, BadData::SkipBatch]),
        ..Policy::default()
    };
    policy.retest.after_seconds = 5.0;
    policy.retest.after_max_seconds = 60.0;
    policy.retest.limit_seconds = 20.0;
    policy.spike.warm_up = 8;
    if random.percent(70) {
        policy.snapshot_every = SnapshotEvery::Steps(random.between(1, 9));
    }
    if random.percent(25) {
        let class =
            random.one_of(FaultClass::Lost, &[FaultClass::Mismatch, FaultClass::Hang, FaultClass::Slow]);
        let action = random.one_of(
            Remedy::Retry,
            &[Remedy::Restart, Remedy::RollBack, Remedy::Quarantine, Remedy::FailOver, Remedy::SkipBatch],
        );
        let window_seconds = random.percent(50).then_some(30.0);
        let first = Rule { class, count: 1, window_seconds: None, action: Remedy::Retry };
        let later = Rule { class, count: random.between(1, 4) as u32, window_seconds, action };
        policy.rule = vec![first, later];
    }
    policy
}

fn fault(random: &mut Random, setup: &Setup, trusted: u16) -> Fault {
    let rank = random.between(0, u64::from(setup.ranks)) as u16;
    let at_ms = random.between(0, 30_000);
    let device = random.between(0, setup.devices.len() as u64) as u16;
    let step = random.between(0, setup.steps);
    match random.between(0, 100) {
        0..=5 => Fault::SupervisorDies { at_ms },
        6..=7 => Fault::StopRequested { at_ms },
        8..=15 => Fault::WorkerDies { rank, standby: random.percent(30), at_ms },
        16..=19 if device != trusted => Fault::DeviceGone { device, at_ms },
        20..=27 if device != trusted && device == (trusted + 1) % setup.devices.len() as u16 => {
            Fault::DeviceBad { device, at_ms, percent: random.one_of(100, &[5, 30]) }
        }
        28..=30 => Fault::DeviceSlow {
            device,
            at_ms,
            for_ms: random.between(500, 20_000),
            factor: random.between(11, 60) as u16,
        },
        31..=34 => Fault::DataSpike { step },
        35..=36 => Fault::BadBatch { step },
        _ => at_call(random, rank, setup),
    }
}

fn at_call(random: &mut Random, rank: u16, setup: &Setup) -> Fault {
    let slow = What::Slow(random.between(11, 40) as u16);
    let dies = What::Dies(random.between(0, 100) as u8);
    let (call, what) = match random.between(0, 9) {
        0 => (Call::Launch, random.one_of(dies, &[What::Hangs, What::OutOfMemory, What::Driver])),
        1 => (
            Call::Restore,
            random.one_of(dies, &[What::Hangs, What::CopyWrong, What::Refused, What::DiesAfter]),
        ),
        2..=3 => (
            Call::Accumulate,
            random.one_of(
                dies,
                &[
                    What::DiesAfter,
                    What::Hangs,
                    What::Driver,
                    What::OutOfMemory,
                    What::NotFinite,
                    What::Wrong,
                    What::Wrong,
                    What::WrongMissed,
                    What::WrongLarge,
                    What::FalseAlarm,
                    What::StateChanges,
                    slow,
                ],
            ),
        ),
        4..=5 => (
            Call::Update,
            random.one_of(
                dies,
                &[
                    What::DiesAfter,
                    What::Hangs,
                    What::Driver,
                    What::NotFinite,
                    What::Wrong,
                    What::WrongMissed,
                    What::FalseAlarm,
                    What::CarriedChanges,
                    What::StateChanges,
                    slow,
                ],
            ),
        ),
        6 => {
            if random.percent(50) {
                (Call::Replay, random.one_of(dies, &[What::Hangs, What::Unknown]))
            } else {
                (Call::Confirm, random.one_of(What::Unknown, &[What::Hangs]))
            }
        }
        7 => (Call::Snapshot, random.one_of(dies, &[What::Hangs, What::CopyWrong, What::CopyChanges])),
        _ => (
            Call::Checkpoint,
            random
                .one_of(What::Refused, &[What::CopyChanges, What::Hangs, What::StateChanges, What::Slow(80)]),
        ),
    };
    // Rare calls are counted from the first on; frequent ones anywhere in the run.
    let nth = match call {
        Call::Accumulate | Call::Update => random.between(0, setup.steps) as u32,
        Call::Checkpoint | Call::Snapshot => random.between(0, 10) as u32,
        _ => random.between(0, 4) as u32,
    };
    Fault::AtCall { rank, call, nth, what }
}
