//! Writing checkpoints behind the next steps.

use super::defect::CheckpointError;
use super::keep::{KeepPolicy, Kept};
use super::snapshot::{OwnedSnapshot, SnapshotHeader, TensorSpec};
use super::write::{ReadBytes, Written, write, write_from};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use toprope_world::World;

/// The outcome of one write: the checkpoint, and what the policy removed after it.
pub type Outcome = Result<(Written, Kept), CheckpointError>;

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
}

enum Flight {
    Running { step: u64, thread: JoinHandle<Outcome> },
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
        Self { world, folder, policy, inline, flight: None }
    }

    /// Starts to write a snapshot. A write that is still in flight is awaited first; its outcome is returned, and the
    /// new one starts whatever that outcome was.
    pub fn submit(&mut self, snapshot: OwnedSnapshot) -> Option<Outcome> {
        let before = self.finish();
        let step = snapshot.header.step;
        let (world, folder, policy) = (Arc::clone(&self.world), self.folder.clone(), self.policy);
        let work = move || {
            write(&*world, &folder, &snapshot.view()).map(|written| {
                let kept = policy.apply(world.files(), &folder, written.step);
                (written, kept)
            })
        };
        self.flight = Some(if self.inline {
            Flight::Done(work())
        } else {
            match std::thread::Builder::new().name("checkpoint".to_owned()).spawn(work) {
                Ok(thread) => Flight::Running { step, thread },
                Err(source) => Flight::Done(Err(CheckpointError::Thread { step, source })),
            }
        });
        before
    }

    /// Writes a state where it lies and returns once it is durable: nobody needs memory for a second copy of it. A write
    /// that is still in flight is awaited first; its outcome comes out of the next call, as ever.
    ///
    /// # Errors
    /// As [`write_from`].
    pub fn save<E: From<CheckpointError>>(
        &mut self,
        header: &SnapshotHeader,
        tensors: &[TensorSpec],
        read: &mut ReadBytes<'_, E>,
    ) -> Result<(Written, Kept), E> {
        self.flight = self.finish().map(Flight::Done);
        let written = write_from(&*self.world, &self.folder, header, tensors, read)?;
        let kept = self.policy.apply(self.world.files(), &self.folder, written.step);
        Ok((written, kept))
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
                Ok(outcome) => Some(outcome),
                Err(_) => Some(Err(CheckpointError::WriterDied { step })),
            },
        }
    }
}

impl Drop for BackgroundWriter {
    fn drop(&mut self) {
        // Whoever drops it without `finish` does not want to know.
        let _ = self.finish();
    }
}
