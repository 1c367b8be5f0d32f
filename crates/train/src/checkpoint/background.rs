//! Writing checkpoints behind the next steps.

use super::defect::CheckpointError;
use super::keep::{KeepPolicy, Kept};
use super::snapshot::OwnedSnapshot;
use super::write::{Written, write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use toprope_world::World;

/// The outcome of one write: the checkpoint, and what the policy removed after it.
type Outcome = Result<(Written, Kept), CheckpointError>;

/// Writes checkpoints on a thread of its own while the run goes on; at most one at a time.
///
/// The outcome of a write, good or bad, comes out of the next call: [`BackgroundWriter::submit`],
/// [`BackgroundWriter::poll`] or [`BackgroundWriter::finish`]. Each comes out once. Dropping the writer waits for a
/// write in flight.
pub struct BackgroundWriter {
    world: Arc<dyn World>,
    folder: PathBuf,
    policy: KeepPolicy,
    inline: bool,
    flight: Option<Flight>,
    spare: Option<OwnedSnapshot>,
}

enum Flight {
    Running { step: u64, thread: JoinHandle<(Outcome, OwnedSnapshot)> },
    Done(Outcome),
}

impl BackgroundWriter {
    /// A writer into the folder of checkpoints, which must exist.
    pub fn new(world: Arc<dyn World>, folder: PathBuf, policy: KeepPolicy) -> Self {
        Self::with(world, folder, policy, false)
    }

    /// The same without a thread: `submit` writes before it returns. For a simulated world, where every operation has
    /// its place in one order.
    pub fn inline(world: Arc<dyn World>, folder: PathBuf, policy: KeepPolicy) -> Self {
        Self::with(world, folder, policy, true)
    }

    fn with(world: Arc<dyn World>, folder: PathBuf, policy: KeepPolicy, inline: bool) -> Self {
        Self { world, folder, policy, inline, flight: None, spare: None }
    }

    /// Starts to write a snapshot. A write that is still in flight is awaited first; its outcome is returned, and the
    /// new one starts whatever that outcome was.
    pub fn submit(&mut self, snapshot: OwnedSnapshot) -> Option<Outcome> {
        let before = self.finish();
        let step = snapshot.header.step;
        let (world, folder, policy) = (Arc::clone(&self.world), self.folder.clone(), self.policy);
        let work = move || {
            let outcome = write(&*world, &folder, &snapshot.view()).map(|written| {
                let kept = policy.apply(world.files(), &folder, written.step);
                (written, kept)
            });
            (outcome, snapshot)
        };
        self.flight = Some(if self.inline {
            let (outcome, snapshot) = work();
            self.spare = Some(snapshot);
            Flight::Done(outcome)
        } else {
            match std::thread::Builder::new().name("checkpoint".to_owned()).spawn(work) {
                Ok(thread) => Flight::Running { step, thread },
                Err(source) => Flight::Done(Err(CheckpointError::Thread { step, source })),
            }
        });
        before
    }

    /// Whether a write is in flight, so that `submit` or `finish` would wait.
    pub fn is_busy(&self) -> bool {
        matches!(&self.flight, Some(Flight::Running { thread, .. }) if !thread.is_finished())
    }

    /// The outcome of the last write, if it has ended and has not been told yet. Never waits.
    pub fn poll(&mut self) -> Option<Outcome> {
        if self.is_busy() { None } else { self.finish() }
    }

    /// Waits for the write in flight and returns the outcome that has not been told yet, if any.
    pub fn finish(&mut self) -> Option<Outcome> {
        match self.flight.take()? {
            Flight::Done(outcome) => Some(outcome),
            Flight::Running { step, thread } => match thread.join() {
                Ok((outcome, snapshot)) => {
                    self.spare = Some(snapshot);
                    Some(outcome)
                }
                Err(_) => Some(Err(CheckpointError::WriterDied { step })),
            },
        }
    }

    /// The memory of the last snapshot whose write has ended, to be filled again.
    pub fn take_spare(&mut self) -> Option<OwnedSnapshot> {
        self.spare.take()
    }
}

impl Drop for BackgroundWriter {
    fn drop(&mut self) {
        // Whoever drops it without `finish` does not want to know.
        let _ = self.finish();
    }
}
