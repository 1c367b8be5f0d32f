//! Other processes: start, watch, kill.

use crate::SharedRegion;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Starts processes and knows which live.
pub trait Processes: Send + Sync {
    /// The number of this process.
    fn own_id(&self) -> u32;
    /// Whether a process of this number exists on this machine (a zombie counts).
    fn is_alive(&self, id: u32) -> bool;
    /// Starts a process.
    fn spawn(&self, launch: &Launch) -> Result<Box<dyn ChildProcess>, ProcessError>;
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    pub arguments: Vec<OsString>,
    /// Variables set beside those that are inherited.
    pub environment: Vec<(OsString, OsString)>,
    /// Regions that it may open under the handles that they have here ([`SharedRegion::handle`]). All others are
    /// closed to it.
    pub regions: Vec<Arc<SharedRegion>>,
    /// Its standard input.
    pub input: Stream,
    /// Its standard output.
    pub output: Stream,
    /// Its standard error.
    pub error: Stream,
    /// Whether the system ends it (SIGKILL) when the thread that started it ends, with its process or alone; where the
    /// system knows how (Linux).
    pub dies_with_parent: bool,
}

/// Where a standard stream of a started process leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// Where this process's own leads.
    #[default]
    Inherit,
    /// Nowhere.
    Null,
    /// To this process, which takes the other end with `take_input`, `take_output` or `take_error`.
    Pipe,
}

/// A started process. Dropping it neither kills nor awaits it.
pub trait ChildProcess: Send {
    /// Its number.
    fn id(&self) -> u32;
    /// The end to write its standard input with; once, and only if that is a pipe.
    fn take_input(&mut self) -> Option<Box<dyn Write + Send>>;
    /// The end to read its standard output with; once, and only if that is a pipe.
    fn take_output(&mut self) -> Option<Box<dyn Read + Send>>;
    /// The end to read its standard error with; once, and only if that is a pipe.
    fn take_error(&mut self) -> Option<Box<dyn Read + Send>>;
    /// Ends it at once (SIGKILL). One that has ended already is left as it is.
    fn kill(&mut self) -> Result<(), ProcessError>;
    /// How it ended, or `None` where it still runs after `limit`. A limit of zero asks without waiting.
    fn wait(&mut self, limit: Duration) -> Result<Option<Exit>, ProcessError>;
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It left with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(formatter, "left with exit code {code}"),
            Self::Signal(signal) => write!(formatter, "was ended by signal {signal}"),
        }
    }
}

/// A process operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {process}: {source}")]
pub struct ProcessError {
    /// `start`, `kill` or `wait for`.
    pub operation: &'static str,
    /// The executable or the process's number.
    pub process: String,
    /// The system's reason.
    pub source: io::Error,
}
