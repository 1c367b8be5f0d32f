//! A command of the user's, run on a fault: to page somebody.
//!
//! It runs beside the training and is never waited for: the supervisor starts it, looks after it in
//! [`Hook::poll`], and ends it when its time is over. What goes wrong with it is a warning and no more.

use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toprope_world::{ChildProcess, Exit, Launch, ProcessError, Stream, World};

/// The variable that holds the run's folder.
pub const RUN_VARIABLE: &str = "TOPROPE_RUN";
/// The variable that holds the fault: the journal's line, a JSON object.
pub const FAULT_VARIABLE: &str = "TOPROPE_FAULT";

/// A page that comes later than this is of no use.
const LIMIT: Duration = Duration::from_secs(30);
/// More at once are a storm that would keep the machine from its work.
const RUNNING_MAX: usize = 4;
/// Systems refuse variables that are longer than about 128 KiB.
const FAULT_BYTES_MAX: usize = 32 << 10;

/// A command of the user's that runs on faults.
pub struct Hook {
    command: OsString,
    run: PathBuf,
    limit: Duration,
    running: Vec<Running>,
    unpaged: u64,
}

struct Running {
    child: Box<dyn ChildProcess>,
    until: Duration,
}

/// What went wrong with a hook. The run goes on.
#[derive(Debug, thiserror::Error)]
pub enum HookWarning {
    /// It could not be started, watched or ended.
    #[error("the on_fault command: {0}")]
    Process(#[from] ProcessError),
    /// It ended otherwise than well.
    #[error("the on_fault command {exit}; run it by hand with {RUN_VARIABLE} and {FAULT_VARIABLE} set")]
    Failed {
        /// How.
        exit: Exit,
    },
    /// It took too long.
    #[error("the on_fault command was ended after {} s; make it faster, or let it go on in the background", limit.as_secs_f64())]
    TooLong {
        /// How long it may take.
        limit: Duration,
    },
    /// Too many run at once.
    #[error("{count} fault(s) without the on_fault command: {RUNNING_MAX} of them run already")]
    TooMany {
        /// Faults that it was not run for.
        count: u64,
    },
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("command", &self.command).field("running", &self.running.len()).finish()
    }
}

impl Hook {
    /// A command for the system's shell, and the run's folder.
    pub fn new(command: impl Into<OsString>, run: &Path) -> Hook {
        let (running, unpaged) = (Vec::new(), 0);
        Hook { command: command.into(), run: run.to_owned(), limit: LIMIT, running, unpaged }
    }

    /// With another limit of time than 30 s.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Hook {
        Hook { limit, ..self }
    }

    /// Starts the command for a fault, given as the journal's line, and returns at once.
    ///
    /// # Errors
    /// It could not be started: a warning.
    pub fn fault(&mut self, world: &dyn World, line: &Map<String, Value>) -> Result<(), HookWarning> {
        if self.running.len() >= RUNNING_MAX {
            self.unpaged += 1;
            return Ok(());
        }
        let launch = Launch {
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".into(), self.command.clone()],
            environment: vec![
                (RUN_VARIABLE.into(), self.run.clone().into()),
                (FAULT_VARIABLE.into(), variable(line).into()),
            ],
            input: Stream::Null,
            output: Stream::Null,
            error: Stream::Null,
            ..Launch::default()
        };
        let child = world.processes().spawn(&launch)?;
        self.running.push(Running { child, until: world.clock().monotonic() + self.limit });
        Ok(())
    }

    /// Looks after the commands that run; to be called now and then. Waits for nothing.
    pub fn poll(&mut self, world: &dyn World) -> Vec<HookWarning> {
        let mut warnings = Vec::new();
        if self.unpaged > 0 && self.running.len() < RUNNING_MAX {
            warnings.push(HookWarning::TooMany { count: std::mem::take(&mut self.unpaged) });
        }
        let now = world.clock().monotonic();
        let limit = self.limit;
        self.running.retain_mut(|running| match running.child.wait(Duration::ZERO) {
            Ok(None) if now < running.until => true,
            Ok(None) => {
                warnings.push(HookWarning::TooLong { limit });
                let ended = running.child.kill().and_then(|()| running.child.wait(Duration::from_secs(1)));
                warnings.extend(ended.err().map(HookWarning::from));
                false
            }
            Ok(Some(Exit::Code(0))) => false,
            Ok(Some(exit)) => {
                warnings.push(HookWarning::Failed { exit });
                false
            }
            Err(error) => {
                warnings.push(error.into());
                false
            }
        });
        warnings
    }

    /// Awaits the commands that still run, each until its time is over: to be called once, at the run's end.
    pub fn finish(&mut self, world: &dyn World) -> Vec<HookWarning> {
        for running in &mut self.running {
            let left = running.until.saturating_sub(world.clock().monotonic());
            // What it comes to is told by `poll`.
            let _ = running.child.wait(left);
        }
        let mut warnings = self.poll(world);
        if self.unpaged > 0 {
            warnings.push(HookWarning::TooMany { count: std::mem::take(&mut self.unpaged) });
        }
        warnings
    }
}

/// The line as a variable's value: without NUL characters, and without its words where they are too long.
fn variable(line: &Map<String, Value>) -> String {
    let whole = Value::Object(line.clone()).to_string();
    if whole.len() <= FAULT_BYTES_MAX {
        return whole;
    }
    let short: Map<String, Value> = line
        .iter()
        .filter(|(_, value)| !matches!(value, Value::String(text) if text.len() > 256) && !value.is_array())
        .filter(|(name, value)| value.is_number() || value.is_string() || *name == "injected")
        .map(|(name, value)| (name.clone(), value.clone()))
        .chain([("shortened".to_owned(), json!(true))])
        .take(64)
        .collect();
    Value::Object(short).to_string()
}
