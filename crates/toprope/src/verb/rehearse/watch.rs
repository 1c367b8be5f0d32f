//! A run's journal while it is written.

use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use toprope_world::{ChildProcess, RealWorld, World};

/// Events of a journal, in order, as they come.
pub(super) struct Watch<'a> {
    world: &'a RealWorld,
    path: PathBuf,
    /// Bytes that were taken in.
    seen: usize,
    /// Events that nobody has looked at.
    pending: std::collections::VecDeque<Value>,
    /// Steps committed so far, as the last event that was looked at says.
    pub(super) committed: u64,
}

/// Why an event did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missed {
    /// The run ended before.
    #[error("the run ended before {0}")]
    Ended(String),
    /// It took too long.
    #[error("{0} did not come within {1} s")]
    Late(String, u64),
    /// Another event came first.
    #[error("{0} was expected, and this came: {1}")]
    Other(String, String),
}

/// A fault. Slowness is none here: it is recorded, nothing is done about it, and a busy machine is slow.
pub(super) fn is_fault(event: &Value) -> bool {
    event["event"] == "fault" && event["class"] != "slow"
}

/// A rehearsal's journal is shorter.
const BYTES_MAX: u64 = 64 << 20;

/// How often the journal is looked at.
const POLL: Duration = Duration::from_millis(30);

impl<'a> Watch<'a> {
    /// Watches a journal that may not be there yet.
    pub(super) fn new(world: &'a RealWorld, path: PathBuf) -> Watch<'a> {
        Watch { world, path, seen: 0, pending: std::collections::VecDeque::new(), committed: 0 }
    }

    /// Takes in the whole lines that were added.
    fn read(&mut self) {
        let text = self.world.files().read(&self.path, BYTES_MAX).unwrap_or_default();
        let new = text.get(self.seen..).unwrap_or_default();
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in new[..whole].split(|byte| *byte == b'\n') {
            self.pending.extend(serde_json::from_slice::<Value>(line).ok());
        }
        self.seen += whole;
    }

    /// The next event that `is` finds, with all before it passed over. One that `never` finds ends the wait.
    pub(super) fn next(
        &mut self,
        child: &mut dyn ChildProcess,
        wanted: &str,
        limit: Duration,
        is: impl Fn(&Value) -> bool,
        never: impl Fn(&Value) -> bool,
    ) -> Result<Value, Missed> {
        let until = self.world.clock().monotonic() + limit;
        loop {
            while let Some(event) = self.pending.pop_front() {
                if event["event"] == "committed" {
                    self.committed = event["step"].as_u64().unwrap_or_default() + 1;
                }
                if is(&event) {
                    return Ok(event);
                }
                if never(&event) {
                    return Err(Missed::Other(wanted.into(), event.to_string()));
                }
            }
            let ended = matches!(child.wait(Duration::ZERO), Ok(Some(_)));
            self.read();
            if self.pending.is_empty() {
                if ended {
                    return Err(Missed::Ended(wanted.into()));
                }
                if self.world.clock().monotonic() > until {
                    return Err(Missed::Late(wanted.into(), limit.as_secs()));
                }
                self.world.clock().sleep(POLL);
            }
        }
    }

    /// Waits until so many more steps are committed; a fault on the way ends the wait.
    pub(super) fn steps(
        &mut self,
        child: &mut dyn ChildProcess,
        count: u64,
        limit: Duration,
    ) -> Result<(), Missed> {
        let goal = self.committed + count;
        let wanted = format!("commit number {goal}");
        let step =
            move |event: &Value| event["event"] == "committed" && event["step"].as_u64() >= Some(goal - 1);
        self.next(child, &wanted, limit, step, is_fault).map(|_| ())
    }
}
