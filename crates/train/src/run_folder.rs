//! A run's folder: made once, locked while a process works in it, and never overwritten.
//!
//! | name | what |
//! | --- | --- |
//! | `recipe.toml` | the recipe as resolved; written last, so that where it is, all is |
//! | `run.lock` | the lock, with the number of the process that took it last |
//! | `journal.jsonl` | what happened, a JSON object a line; its first line names the run |
//! | `metrics.jsonl` | figures of each step, a JSON object a line |
//! | `checkpoints/` | see [`crate::checkpoint`] |
//! | `report.html` | written by others at the end |
//!
//! Every process that works on a run is an *attempt*, numbered from 1; each line of the two logs bears its attempt's
//! number, so that steps which were done twice can be told apart (the later attempt counts).

mod error; // why a folder is not given

pub use error::RunFolderError;
pub use toprope_guard::journal::{BadLine, LineLog, LogLine, read_lines};

use crate::checkpoint::CHECKPOINTS_FOLDER;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use toprope_guard::journal::{JOURNAL_VERSION, JournalIdentity};
use toprope_world::{EntryKind, FileError, FileLock, Files, LockError, World, utc_timestamp, write_durably};

const RECIPE_FILE: &str = "recipe.toml";
const LOCK_FILE: &str = "run.lock";
const JOURNAL_FILE: &str = "journal.jsonl";
const METRICS_FILE: &str = "metrics.jsonl";
const REPORT_FILE: &str = "report.html";
const RECIPE_LIMIT_BYTES: u64 = 16 << 20;

/// A run's folder, held by its lock until this is dropped.
pub struct RunFolder {
    path: PathBuf,
    run_id: String,
    recipe: String,
    attempt: u64,
    bad_lines: Vec<BadLine>,
    journal: LineLog,
    metrics: LineLog,
    // Dropped last: what is flushed by the fields above happens under the lock.
    _lock: Box<dyn FileLock>,
}

impl RunFolder {
    /// Makes a folder for a new run, and those that are missing above it. An empty folder, or one in which a process died before it
    /// had finished making it, is taken.
    ///
    /// # Errors
    /// Another process holds it; it has a run already; it holds other things than a run; or it cannot be written.
    pub fn create(world: &dyn World, path: &Path, recipe: &str) -> Result<Self, RunFolderError> {
        let files = world.files();
        match files.inspect(path)? {
            None => make_folder(files, path)?,
            Some(EntryKind::Folder) => refuse_foreign(world, path)?,
            Some(EntryKind::File { .. } | EntryKind::Other) => {
                return Err(RunFolderError::NotAFolder { path: path.to_owned() });
            }
        }
        let lock = lock(world, path)?;
        // Looked at under the lock: whoever held it before may have finished the folder.
        if files.inspect(&path.join(RECIPE_FILE))?.is_some() {
            return Err(RunFolderError::Exists { path: path.to_owned() });
        }
        let checkpoints = path.join(CHECKPOINTS_FOLDER);
        if files.inspect(&checkpoints)?.is_none() {
            files.create_folder(&checkpoints)?;
        }
        let now = world.clock().wall();
        let seed = format!("{}\n{}\n{now:?}\n{recipe}", path.display(), world.processes().own_id());
        let run_id = blake3::hash(seed.as_bytes()).to_hex()[..16].to_owned();
        let journal = LineLog::open(files, &path.join(JOURNAL_FILE))?;
        let metrics = LineLog::open(files, &path.join(METRICS_FILE))?;
        let recipe = recipe.to_owned();
        let (path, attempt, bad_lines) = (path.to_owned(), 1, Vec::new());
        let mut folder = Self { path, run_id, recipe, attempt, bad_lines, journal, metrics, _lock: lock };
        folder.begin(world, "created")?;
        write_durably(files, &folder.path.join(RECIPE_FILE), folder.recipe.as_bytes())?;
        Ok(folder)
    }

    /// Opens a run's folder to go on with the run, as its next attempt.
    ///
    /// # Errors
    /// Another process holds it; it is not there, or not a run's; or it cannot be read or written.
    pub fn open_for_resume(world: &dyn World, path: &Path) -> Result<Self, RunFolderError> {
        let files = world.files();
        match files.inspect(path)? {
            None => return Err(RunFolderError::Missing { path: path.to_owned() }),
            Some(EntryKind::Folder) => {}
            Some(EntryKind::File { .. } | EntryKind::Other) => {
                return Err(RunFolderError::NotAFolder { path: path.to_owned() });
            }
        }
        let recipe_path = path.join(RECIPE_FILE);
        if files.inspect(&path.join(LOCK_FILE))?.is_none() && files.inspect(&recipe_path)?.is_none() {
            return Err(RunFolderError::NotARun { path: path.to_owned() });
        }
        let lock = lock(world, path)?;
        if files.inspect(&recipe_path)?.is_none() {
            return Err(RunFolderError::NeverBegan { path: path.to_owned() });
        }
        let recipe = String::from_utf8(files.read(&recipe_path, RECIPE_LIMIT_BYTES)?).map_err(|error| {
            RunFolderError::RecipeNotText { path: recipe_path, offset: error.utf8_error().valid_up_to() }
        })?;
        let checkpoints = path.join(CHECKPOINTS_FOLDER);
        if files.inspect(&checkpoints)?.is_none() {
            files.create_folder(&checkpoints)?;
        }
        let (mut attempt, mut identity) = (0, JournalIdentity::default());
        let journal_path = path.join(JOURNAL_FILE);
        let mut bad_lines = read_lines(files, &journal_path, |line| {
            attempt = attempt.max(line.attempt());
            identity.line(line);
        })?;
        let run_id = identity.run_id(&journal_path)?;
        // The attempt that counts is the last that wrote anything, also where the disk was too full for its journal.
        bad_lines.extend(read_lines(files, &path.join(METRICS_FILE), |line| {
            attempt = attempt.max(line.attempt());
        })?);
        let Some(run_id) = run_id else {
            return Err(RunFolderError::NoRunId { path: journal_path });
        };
        let journal = LineLog::open(files, &journal_path)?;
        let metrics = LineLog::open(files, &path.join(METRICS_FILE))?;
        let (path, attempt) = (path.to_owned(), attempt.saturating_add(1));
        let mut folder = Self { path, run_id, recipe, attempt, bad_lines, journal, metrics, _lock: lock };
        folder.begin(world, "resumed")?;
        Ok(folder)
    }

    fn begin(&mut self, world: &dyn World, event: &str) -> Result<(), RunFolderError> {
        let record = json!({
            "event": event,
            "run_id": self.run_id,
            "process": world.processes().own_id(),
            "toprope_version": env!("CARGO_PKG_VERSION"),
            "journal_version": JOURNAL_VERSION,
        });
        self.event(world, &record)?;
        self.sync(world)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of checkpoints; it exists.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS_FOLDER)
    }

    /// Where the report belongs.
    pub fn report(&self) -> PathBuf {
        self.path.join(REPORT_FILE)
    }

    /// The run's name: 16 hexadecimal digits, made when the folder was.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// The recipe as it was resolved when the run began.
    pub fn recipe(&self) -> &str {
        &self.recipe
    }

    /// The number of this attempt, from 1.
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// Lines of the logs that earlier attempts left torn, to be told; they are passed over.
    pub fn bad_lines(&self) -> &[BadLine] {
        &self.bad_lines
    }

    /// Adds a line to the journal: `attempt`, `time` and the record's fields, by custom an `event` first.
    ///
    /// # Errors
    /// The record is not a JSON object; or the line could not be written whole: the next one begins on a line of its
    /// own nevertheless.
    pub fn event(&mut self, world: &dyn World, record: &impl Serialize) -> Result<(), RunFolderError> {
        let line = self.line(world, record)?;
        Ok(self.journal.append(&line)?)
    }

    /// Adds a line to the metrics: `attempt`, `time` and the record's fields, among them the step's number.
    ///
    /// # Errors
    /// As [`RunFolder::event`].
    pub fn metric(&mut self, world: &dyn World, record: &impl Serialize) -> Result<(), RunFolderError> {
        let line = self.line(world, record)?;
        Ok(self.metrics.append(&line)?)
    }

    /// Makes journal and metrics durable; to be called with every checkpoint.
    ///
    /// # Errors
    /// The system could not.
    pub fn sync(&mut self, world: &dyn World) -> Result<(), RunFolderError> {
        self.journal.sync()?;
        self.metrics.sync()?;
        // Their names, too: they may be new in this attempt.
        Ok(world.files().sync_folder(&self.path)?)
    }

    fn line(&self, world: &dyn World, record: &impl Serialize) -> Result<Map<String, Value>, RunFolderError> {
        let fields = match serde_json::to_value(record) {
            Ok(Value::Object(fields)) => fields,
            Ok(other) => {
                return Err(RunFolderError::Record { reason: format!("{other} is not a JSON object") });
            }
            Err(error) => return Err(RunFolderError::Record { reason: error.to_string() }),
        };
        let mut line = Map::new();
        line.insert("attempt".to_owned(), self.attempt.into());
        line.insert("time".to_owned(), utc_timestamp(world.clock().wall()).into());
        for (name, value) in fields {
            // What the folder itself says of a line is not for the caller to change.
            line.entry(name).or_insert(value);
        }
        Ok(line)
    }
}

/// Makes a folder and those that are missing above it, durably.
fn make_folder(files: &dyn Files, path: &Path) -> Result<(), FileError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if files.inspect(parent)?.is_none() {
        make_folder(files, parent)?;
    }
    files.create_folder(path)?;
    files.sync_folder(parent)
}

fn lock(world: &dyn World, path: &Path) -> Result<Box<dyn FileLock>, RunFolderError> {
    world.files().lock(&path.join(LOCK_FILE)).map_err(|error| match error {
        held @ LockError::Held { .. } => RunFolderError::InUse { path: path.to_owned(), held },
        LockError::File(error) => RunFolderError::Files(error),
    })
}

/// A folder without a lock file that holds anything is somebody else's, and nothing may be left in it.
fn refuse_foreign(world: &dyn World, path: &Path) -> Result<(), RunFolderError> {
    let entries = world.files().list(path)?;
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    if has(LOCK_FILE) {
        return Ok(());
    }
    if has(RECIPE_FILE) && has(JOURNAL_FILE) {
        return Err(RunFolderError::Exists { path: path.to_owned() });
    }
    match entries.first() {
        None => Ok(()),
        Some(entry) => Err(RunFolderError::Foreign { path: path.to_owned(), name: entry.name.clone() }),
    }
}

impl From<FileError> for RunFolderError {
    fn from(error: FileError) -> Self {
        Self::Files(error)
    }
}
