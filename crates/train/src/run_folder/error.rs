//! Why a run's folder is not given, with the mend.

use std::path::PathBuf;
use toprope_guard::journal::JournalError;
use toprope_world::{FileError, LockError};

/// A run's folder could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    /// There is a run in it.
    #[error("{} has a run already; go on with it with --resume, or choose another --run folder", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A process works in it.
    #[error("{} is in use: {held}; wait for that run to end, or choose another --run folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Who holds the lock.
        held: LockError,
    },
    /// Nothing is there to resume.
    #[error("{} does not exist; begin the run without --resume, or name the folder of the run with --run", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// A file, or something stranger.
    #[error("{} is not a folder; choose another --run folder", path.display())]
    NotAFolder {
        /// What was named.
        path: PathBuf,
    },
    /// It holds something, but no run.
    #[error("{} is not empty and not a run's folder (it holds `{name}`); choose another --run folder", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Something that it holds.
        name: String,
    },
    /// It holds no run to resume.
    #[error("{} is not a run's folder (no recipe.toml); name the folder of the run with --run", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The process that was to begin the run in it ended before it had.
    #[error("{}: the run in it never began (no recipe.toml); begin it without --resume", path.display())]
    NeverBegan {
        /// The folder.
        path: PathBuf,
    },
    /// The journal does not say which run this is.
    #[error(
        "{}: no line names the run (`run_id`): the journal was removed or damaged; put it back, or choose another \
         --run folder",
        path.display()
    )]
    NoRunId {
        /// The journal.
        path: PathBuf,
    },
    /// The journal is another run's, or of a newer version.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The recipe is not text.
    #[error("{}: not UTF-8 at byte {offset}: it was damaged; put the resolved recipe back", path.display())]
    RecipeNotText {
        /// The recipe.
        path: PathBuf,
        /// The first byte that is not.
        offset: usize,
    },
    /// A line for a log is not one; a defect of the program that made it.
    #[error("a line for the journal or the metrics: {reason}")]
    Record {
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    Files(FileError),
}
