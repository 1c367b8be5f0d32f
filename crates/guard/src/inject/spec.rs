//! The language of `--faults`, as data; its `Display` is the canonical text, which parses back to the same data.

use std::fmt;
use toprope_program::Range;

/// What is to fail in a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schedule {
    /// In the order in which they were written.
    pub entries: Vec<Entry>,
}

/// One clause of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A fault with its time.
    Fault(Scheduled),
    /// Faults that a seed chooses.
    Random(RandomFaults),
}

/// A fault with its time and device.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduled {
    /// The step that it happens in, counted from 0.
    pub step: u64,
    /// The device that it happens on; none means whichever runs the step.
    pub device: Option<String>,
    /// Whether it happens again in each later execution on that device; otherwise it happens once in a run.
    pub always: bool,
    /// What happens.
    pub what: What,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The worker's process dies.
    Die(Target),
    /// The worker dies while it writes the step's answer.
    DieWhileAnswering,
    /// The worker dies while a snapshot is taken.
    DieInSnapshot,
    /// The device does not answer any more.
    Hang(Target),
    /// The vendor's software reports an error.
    Driver {
        /// Its code.
        code: i64,
        /// Where.
        target: Target,
    },
    /// Memory does not suffice.
    OutOfMemory(Target),
    /// The device refuses an operator in the middle of a run.
    Unsupported(Target),
    /// Steps take longer.
    Slow {
        /// How many times as long; above 1.
        factor: f64,
        /// For how many steps.
        steps: u64,
    },
    /// Numbers come out wrong: the change enters accumulator and checksum alike, before rounding.
    Compute {
        /// Which numbers and how.
        corruption: Corruption,
        /// The operator.
        target: Target,
    },
    /// Stored bits change between producer and consumer; checksums of the producer are right.
    AtRest {
        /// Which numbers and how.
        corruption: Corruption,
        /// What kind of memory.
        home: Home,
        /// The value's name.
        value: String,
    },
    /// Half of the next state never arrives: its tail holds what was there before.
    TearState,
    /// Writes to disk fail from this step on, until the run is resumed.
    DiskFull,
    /// The supervisor's process dies.
    KillSupervisor,
}

/// Memory that bits rest in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Home {
    /// The committed state, changed before the step reads it.
    State,
    /// Gradients and counters, changed between the two ranges.
    Carried,
    /// A value inside a range, changed behind its producer.
    Activation,
    /// A snapshot in the host's memory.
    Snapshot,
    /// A durable checkpoint.
    Checkpoint,
}

impl Home {
    /// All of them.
    pub const ALL: [Home; 5] =
        [Home::State, Home::Carried, Home::Activation, Home::Snapshot, Home::Checkpoint];

    /// The word in a schedule.
    pub fn name(self) -> &'static str {
        match self {
            Home::State => "state",
            Home::Carried => "carried",
            Home::Activation => "activation",
            Home::Snapshot => "snapshot",
            Home::Checkpoint => "checkpoint",
        }
    }
}

/// Where in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Which instruction.
    pub at: At,
    /// When, seen from that instruction.
    pub moment: Moment,
}

/// Which instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum At {
    /// The first one of the step.
    Start,
    /// The middle of a range, or one of its instructions by index.
    Range(Range, Option<usize>),
    /// The first instruction of this operator, in a part of the model where one is given.
    Operator {
        /// The operator's name.
        name: String,
        /// The part or what it begins with, such as `layers.1`; none means any.
        part: Option<String>,
    },
    /// The instruction that writes this value.
    Value(String),
}

/// When, seen from an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moment {
    /// It does not start.
    Before,
    /// It has started.
    #[default]
    In,
    /// It has ended.
    After,
}

/// How numbers become wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Corruption {
    /// What becomes of a number.
    pub change: Change,
    /// How many numbers, 1 to 100,000.
    pub count: usize,
    /// Chooses the numbers, and what else is open; the same seed makes the same choice each time.
    pub seed: u64,
    /// Only numbers whose size lies in this band are hit: matrix units fail in bands of values.
    pub band: Option<(f64, f64)>,
    /// The operator's output, counted from 0; its checksums are not counted.
    pub output: usize,
    /// Whether each firing chooses other elements, and how many of them up to the count: a fault that is permanent and
    /// yet never the same.
    pub anew: bool,
}

impl Corruption {
    /// The change at one element.
    pub fn one(change: Change) -> Corruption {
        Corruption { change, count: 1, seed: 0, band: None, output: 0, anew: false }
    }
}

/// What becomes of a number. Bits are those of the f32 accumulator in compute, those of the stored type at rest; `None`
/// lets the seed choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// One bit is the other way round.
    Flip(Option<u32>),
    /// A carry comes into this bit that should not: the magnitude's bits plus 2^bit.
    WrongCarry(Option<u32>),
    /// A carry into this bit is lost: the magnitude's bits minus 2^bit.
    MissingCarry(Option<u32>),
    /// A flip and a wrong carry, at two bits that the seed chooses.
    Compound,
    /// Zero; neighbouring rows and columns where there is more than one number.
    ZeroTile,
    /// Four neighbours, again and again at one period, hold what the first of them held.
    StuckLane,
    /// Not a number.
    Nan,
    /// Infinity.
    Infinity,
}

/// Faults that a seed chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomFaults {
    /// The seed.
    pub seed: u64,
    /// The chance of a fault in a step, 0 to 1.
    pub rate: f64,
    /// The classes to choose from, each as likely as the others.
    pub classes: Vec<RandomClass>,
}

/// Classes of random faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RandomClass {
    /// The worker dies anywhere.
    Lost,
    /// The device hangs.
    Hang,
    /// A vendor's error.
    Driver,
    /// Memory does not suffice.
    OutOfMemory,
    /// The device refuses an operator.
    Unsupported,
    /// NaN or infinity.
    NonFinite,
    /// Wrong numbers, in compute.
    Mismatch,
    /// Wrong bits, at rest.
    Rest,
    /// Slowness.
    Slow,
}

impl RandomClass {
    /// All of them.
    pub const ALL: [RandomClass; 9] = [
        RandomClass::Lost,
        RandomClass::Hang,
        RandomClass::Driver,
        RandomClass::OutOfMemory,
        RandomClass::Unsupported,
        RandomClass::NonFinite,
        RandomClass::Mismatch,
        RandomClass::Rest,
        RandomClass::Slow,
    ];

    /// The word in a schedule.
    pub fn name(self) -> &'static str {
        match self {
            RandomClass::Lost => "lost",
            RandomClass::Hang => "hang",
            RandomClass::Driver => "driver",
            RandomClass::OutOfMemory => "out_of_memory",
            RandomClass::Unsupported => "unsupported",
            RandomClass::NonFinite => "non_finite",
            RandomClass::Mismatch => "mismatch",
            RandomClass::Rest => "rest",
            RandomClass::Slow => "slow",
        }
    }
}

impl Scheduled {
    /// Whether the supervisor carries it out rather than a device or worker.
    pub fn is_of_the_supervisor(&self) -> bool {
        match &self.what {
            What::DiskFull | What::KillSupervisor => true,
            What::AtRest { home, .. } => matches!(home, Home::Snapshot | Home::Checkpoint),
            _ => false,
        }
    }
}

impl Schedule {
    /// A schedule of these faults.
    pub fn of(faults: Vec<Scheduled>) -> Schedule {
        Schedule { entries: faults.into_iter().map(Entry::Fault).collect() }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.entries.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            match entry {
                Entry::Fault(fault) => fault.fmt(f)?,
                Entry::Random(random) => random.fmt(f)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for RandomFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes: Vec<&str> = self.classes.iter().map(|class| class.name()).collect();
        write!(f, "random seed={} rate={} classes={}", self.seed, self.rate, classes.join(","))
    }
}

impl fmt::Display for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}", self.step)?;
        if let Some(device) = &self.device {
            write!(f, " device {device}")?;
        }
        if self.always {
            f.write_str(" always")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Die(target) => write!(f, "die{target}"),
            What::DieWhileAnswering => f.write_str("die while answering"),
            What::DieInSnapshot => f.write_str("die in snapshot"),
            What::Hang(target) => write!(f, "hang{target}"),
            What::Driver { code, target } => write!(f, "driver {code}{target}"),
            What::OutOfMemory(target) => write!(f, "out_of_memory{target}"),
            What::Unsupported(target) => write!(f, "unsupported{target}"),
            What::Slow { factor, steps } => write!(f, "slow x{factor} for {steps}"),
            What::Compute { corruption, target } => {
                write!(f, "{}{target}", corruption.change)?;
                corruption.options(f)
            }
            What::AtRest { corruption, home, value } => {
                write!(f, "{} at rest {} {value}", corruption.change, home.name())?;
                corruption.options(f)
            }
            What::TearState => f.write_str("tear state"),
            What::DiskFull => f.write_str("disk full"),
            What::KillSupervisor => f.write_str("kill supervisor"),
        }
    }
}

impl Corruption {
    fn options(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count != 1 {
            write!(f, " count {}", self.count)?;
        }
        if let Some((low, high)) = self.band {
            write!(f, " band {low}..{high}")?;
        }
        if self.output != 0 {
            write!(f, " output {}", self.output)?;
        }
        if self.anew {
            f.write_str(" anew")?;
        }
        if self.seed != 0 {
            write!(f, " seed {}", self.seed)?;
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, bit) = match self {
            Change::Flip(bit) => ("flip", *bit),
            Change::WrongCarry(bit) => ("wrong_carry", *bit),
            Change::MissingCarry(bit) => ("missing_carry", *bit),
            Change::Compound => ("compound", None),
            Change::ZeroTile => ("zero_tile", None),
            Change::StuckLane => ("stuck_lane", None),
            Change::Nan => ("nan", None),
            Change::Infinity => ("inf", None),
        };
        f.write_str(name)?;
        bit.map_or(Ok(()), |bit| write!(f, " bit {bit}"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Start => {}
            At::Range(range, None) => write!(f, " in {}", range.name())?,
            At::Range(range, Some(index)) => write!(f, " in {} at {index}", range.name())?,
            At::Operator { name, part: None } => write!(f, " in {name}")?,
            At::Operator { name, part: Some(part) } => write!(f, " in {name} in {part}")?,
            At::Value(name) => write!(f, " in %{name}")?,
        }
        match self.moment {
            Moment::Before => f.write_str(" (before)"),
            Moment::In => Ok(()),
            Moment::After => f.write_str(" (after)"),
        }
    }
}
