//! Exit codes, one a kind of ending. `docs/exit-codes.md` is made from this table.

use std::fmt;
use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything that was asked for is done.
    Done,
    /// Something that should not happen.
    Internal,
    /// The command line was not understood (clap's code).
    Usage,
    /// A recipe or a published model is wrong.
    Recipe,
    /// Data or a tokenizer is wrong.
    Data,
    /// A run folder or a checkpoint is wrong, in use or in the way.
    Run,
    /// A device is unknown, cannot run the program, or failed.
    Device,
    /// The plan does not fit in memory.
    Memory,
    /// Every device is gone; what was committed is durable.
    NoDevice,
    /// A rehearsal broke a promise.
    Promise,
    /// A device is fit to train with something changed.
    TrainWith,
    /// A device is fit to infer only.
    Infer,
    /// A device is unfit.
    Unfit,
    /// Too little was judged to say.
    Inconclusive,
    /// A device computes wrong.
    Wrong,
    /// Somebody's own script did not come to the step.
    Script,
    /// A device computes right, and not the same bits each time.
    NotDeterministic,
    /// Somebody asked to stop; everything up to there is durable.
    Interrupted,
}

impl Exit {
    /// All of them, in the order of their codes.
    pub const ALL: [Exit; 18] = [
        Exit::Done,
        Exit::Internal,
        Exit::Usage,
        Exit::Recipe,
        Exit::Data,
        Exit::Run,
        Exit::Device,
        Exit::Memory,
        Exit::NoDevice,
        Exit::Promise,
        Exit::TrainWith,
        Exit::Infer,
        Exit::Unfit,
        Exit::Inconclusive,
        Exit::Wrong,
        Exit::Script,
        Exit::NotDeterministic,
        Exit::Interrupted,
    ];

    /// The code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Internal => 1,
            Exit::Usage => 2,
            Exit::Recipe => 3,
            Exit::Data => 4,
            Exit::Run => 5,
            Exit::Device => 6,
            Exit::Memory => 7,
            Exit::NoDevice => 8,
            Exit::Promise => 9,
            Exit::TrainWith => 10,
            Exit::Infer => 11,
            Exit::Unfit => 12,
            Exit::Inconclusive => 13,
            Exit::Wrong => 14,
            Exit::Script => 15,
            Exit::NotDeterministic => 16,
            Exit::Interrupted => 130,
        }
    }

    /// What it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Internal => "something that should not happen; please report it",
            Exit::Usage => "the command line was not understood",
            Exit::Recipe => "a recipe or a published model is wrong",
            Exit::Data => "data or a tokenizer is wrong",
            Exit::Run => "a run folder or a checkpoint is wrong, in use, in the way, or cannot be written",
            Exit::Device => "a device is unknown, cannot run the program, or failed",
            Exit::Memory => "the plan does not fit in memory",
            Exit::NoDevice => {
                "every device is gone; what was committed is durable, and --resume goes on from it"
            }
            Exit::Promise => "a rehearsal broke a promise",
            Exit::TrainWith => "qualify: the device is fit to train with what is told changed",
            Exit::Infer => "qualify: the device is fit to infer on, not to train on",
            Exit::Unfit => "qualify: the device is unfit",
            Exit::Inconclusive => "qualify, diagnose --script: too little was judged to say",
            Exit::Wrong => "diagnose: a device computes an operator wrong; it is named",
            Exit::Script => "diagnose --script: the script raised, left, or never reached that step",
            Exit::NotDeterministic => {
                "diagnose --repeat: every operator is right, and bits differ from run to run; the first such operator is named"
            }
            Exit::Interrupted => "stopped by Ctrl-C after a durable checkpoint",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error on its way to the terminal, with its exit code.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// An error with its code.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure { exit, message: message.to_string() }
    }

    /// The code.
    pub fn code(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Gives any error an exit code.
pub trait OrExit<T> {
    /// Turns the error into a [`Failure`].
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(exit, error))
    }
}
