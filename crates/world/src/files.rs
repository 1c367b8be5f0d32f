//! Files and folders: the few operations from which durable writes are made, and their errors.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A file system.
///
/// What is written is durable only after [`FileWriter::sync`] on the file *and* [`Files::sync_folder`] on the folder
/// that holds its name. Nothing here overwrites: files are created anew or appended to.
pub trait Files: Send + Sync {
    /// Makes one folder; fails if something of that name is there. Its parent must exist.
    fn create_folder(&self, path: &Path) -> Result<(), FileError>;
    /// Creates a file that must not exist yet.
    fn create(&self, path: &Path) -> Result<Box<dyn FileWriter>, FileError>;
    /// Opens a file to write at its end, creating it where it is missing.
    fn append(&self, path: &Path) -> Result<Box<dyn FileWriter>, FileError>;
    /// Opens a regular file for reading.
    fn open(&self, path: &Path) -> Result<Box<dyn FileReader>, FileError>;
    /// Gives a file or folder another name; atomic within a file system. A *file* of the new name is replaced; a
    /// folder that holds anything is not.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError>;
    /// Makes the names in this folder durable.
    fn sync_folder(&self, path: &Path) -> Result<(), FileError>;
    /// What is in a folder, sorted by name. Names that are not Unicode are shown with replacement characters.
    fn list(&self, path: &Path) -> Result<Vec<Entry>, FileError>;
    /// What is at a path, or `None` where nothing is.
    fn inspect(&self, path: &Path) -> Result<Option<EntryKind>, FileError>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> Result<(), FileError>;
    /// Removes a folder and all in it.
    fn remove_folder(&self, path: &Path) -> Result<(), FileError>;
    /// Takes the exclusive lock that the file at `path` stands for (created where missing), without waiting. It is
    /// held until the value is dropped or the process ends, however it ends.
    fn lock(&self, path: &Path) -> Result<Box<dyn FileLock>, LockError>;
    /// Bytes that this user can still write to the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> Result<u64, FileError>;

    /// Whether a regular file stands at a path.
    fn is_file(&self, path: &Path) -> Result<bool, FileError> {
        Ok(matches!(self.inspect(path)?, Some(EntryKind::File { .. })))
    }

    /// A whole file; one longer than `limit_bytes` is refused before memory is asked for.
    fn read(&self, path: &Path, limit_bytes: u64) -> Result<Vec<u8>, FileError> {
        let file = self.open(path)?;
        let length = file.len();
        let fail = |kind: io::ErrorKind, text: String| {
            Err(FileError::new(FileOperation::Read, path, io::Error::new(kind, text)))
        };
        if length > limit_bytes {
            return fail(
                io::ErrorKind::FileTooLarge,
                format!("it has {length} bytes, and at most {limit_bytes} are taken here"),
            );
        }
        let Ok(length) = usize::try_from(length) else {
            return fail(
                io::ErrorKind::FileTooLarge,
                format!("its {length} bytes do not fit this machine's memory"),
            );
        };
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(length).is_err() {
            return fail(io::ErrorKind::OutOfMemory, format!("no memory for its {length} bytes"));
        }
        bytes.resize(length, 0);
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// An open file that is written from front to back.
pub trait FileWriter: Send {
    /// Writes all of `bytes` after what was written before. After an error part of them may have been written.
    fn write(&mut self, bytes: &[u8]) -> Result<(), FileError>;
    /// Returns once all that was written is durable.
    fn sync(&mut self) -> Result<(), FileError>;
}

/// An open file that is read at any place.
pub trait FileReader: Send + Sync + fmt::Debug {
    /// Its length in bytes when it was opened.
    fn len(&self) -> u64;
    /// Whether it held nothing when it was opened.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `bytes` from `offset`; an end before that is an error of kind `UnexpectedEof`.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), FileError>;
}

/// A lock, held while this lives.
pub trait FileLock: Send + Sync + fmt::Debug {}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name within the folder.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of so many bytes.
    File {
        /// Length in bytes.
        length: u64,
    },
    /// A folder.
    Folder,
    /// Anything else: a socket, a device, a link that leads nowhere.
    Other,
}

/// What was being done to a file when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // each is the operation of the same name
pub enum FileOperation {
    CreateFolder,
    Create,
    Append,
    Open,
    Write,
    Read,
    Sync,
    SyncFolder,
    Rename,
    List,
    Inspect,
    RemoveFile,
    RemoveFolder,
    Lock,
    FreeBytes,
}

impl fmt::Display for FileOperation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::CreateFolder => "create the folder",
            Self::Create => "create",
            Self::Append => "open for appending",
            Self::Open => "open",
            Self::Write => "write to",
            Self::Read => "read",
            Self::Sync => "make durable",
            Self::SyncFolder => "make durable the folder",
            Self::Rename => "rename to",
            Self::List => "list the folder",
            Self::Inspect => "look at",
            Self::RemoveFile => "remove",
            Self::RemoveFolder => "remove the folder",
            Self::Lock => "lock",
            Self::FreeBytes => "ask for the free space at",
        })
    }
}

/// A file operation that failed: what, where and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}{}", path.display(), self.mend())]
pub struct FileError {
    /// What was being done.
    pub operation: FileOperation,
    /// To which path.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl FileError {
    /// An error of `operation` on `path`.
    pub fn new(operation: FileOperation, path: &Path, source: io::Error) -> Self {
        Self { operation, path: path.to_owned(), source }
    }

    /// Whether nothing was there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether something of that name was there already.
    pub fn is_already_there(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty)
    }

    /// Whether the disk, or the user's share of it, is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    fn mend(&self) -> &'static str {
        if self.is_disk_full() {
            return "; free some space there";
        }
        match self.source.kind() {
            io::ErrorKind::PermissionDenied => "; give this user access to it",
            io::ErrorKind::ReadOnlyFilesystem => "; choose a folder that can be written",
            _ => "",
        }
    }
}

/// Why a lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody holds it.
    #[error("{} is locked by {}", path.display(), holder(*pid, *alive))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The process that wrote its number there, where one can be read.
        pid: Option<u32>,
        /// Whether a process of that number lives on this machine.
        alive: Option<bool>,
    },
    /// The lock file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
}

fn holder(pid: Option<u32>, alive: Option<bool>) -> String {
    match (pid, alive) {
        (Some(pid), Some(true)) => format!("process {pid}, which is alive"),
        (Some(pid), Some(false)) => format!(
            "process {pid}, which is not alive on this machine: a child of it, or another machine that shares this \
             folder, still holds the lock"
        ),
        (Some(pid), None) => format!("process {pid}"),
        (None, _) => "another process, which has not left its number".to_owned(),
    }
}

/// Puts a small file at `path` so that it is there whole or not at all, durably: written aside under `.tmp-<name>` in
/// the same folder, made durable, renamed. A file that is at `path` already is replaced.
pub fn write_durably(files: &dyn Files, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let invalid = || FileError::new(FileOperation::Create, path, io::ErrorKind::InvalidFilename.into());
    let name = path.file_name().ok_or_else(invalid)?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut aside_name = std::ffi::OsString::from(".tmp-");
    aside_name.push(name);
    let aside = folder.join(aside_name);
    if files.inspect(&aside)?.is_some() {
        files.remove_file(&aside)?;
    }
    let written = (|| {
        let mut file = files.create(&aside)?;
        file.write(bytes)?;
        file.sync()?;
        drop(file);
        files.rename(&aside, path)
    })();
    if let Err(error) = written {
        // The first error is the one to tell; what is left aside is removed by the next call at the latest.
        let _ = files.remove_file(&aside);
        return Err(error);
    }
    files.sync_folder(folder)
}
