//! A disk that is full from a moment on, over any world.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use toprope_world::{
    Clock, Entry, EntryKind, FileError, FileLock, FileOperation, FileReader, FileWriter, Files, LockError,
    Processes, SharedMemory, World,
};

/// A world whose disk fills up when it is told to. Reading and removing go on as ever.
pub struct FillingDisk {
    inner: Arc<dyn World>,
    files: FillingFiles,
}

impl FillingDisk {
    /// A world over another one.
    pub fn new(inner: Arc<dyn World>) -> FillingDisk {
        let files = FillingFiles { inner: inner.clone(), full: Arc::default() };
        FillingDisk { inner, files }
    }

    /// Set it, and nothing more is written.
    pub fn full(&self) -> Arc<AtomicBool> {
        self.files.full.clone()
    }
}

impl World for FillingDisk {
    fn clock(&self) -> &dyn Clock {
        self.inner.clock()
    }

    fn files(&self) -> &dyn Files {
        &self.files
    }

    fn processes(&self) -> &dyn Processes {
        self.inner.processes()
    }

    fn shared_memory(&self) -> &dyn SharedMemory {
        self.inner.shared_memory()
    }
}

struct FillingFiles {
    inner: Arc<dyn World>,
    full: Arc<AtomicBool>,
}

fn room(full: &AtomicBool, operation: FileOperation, path: &Path) -> Result<(), FileError> {
    if full.load(Ordering::Acquire) {
        let error = io::Error::new(io::ErrorKind::StorageFull, "no space left on device (injected)");
        return Err(FileError::new(operation, path, error));
    }
    Ok(())
}

impl FillingFiles {
    fn writer(&self, path: &Path, inner: Box<dyn FileWriter>) -> Box<dyn FileWriter> {
        Box::new(FillingWriter { inner, full: self.full.clone(), path: path.to_owned() })
    }
}

impl Files for FillingFiles {
    fn create_folder(&self, path: &Path) -> Result<(), FileError> {
        room(&self.full, FileOperation::CreateFolder, path)?;
        self.inner.files().create_folder(path)
    }

    fn create(&self, path: &Path) -> Result<Box<dyn FileWriter>, FileError> {
        room(&self.full, FileOperation::Create, path)?;
        Ok(self.writer(path, self.inner.files().create(path)?))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn FileWriter>, FileError> {
        Ok(self.writer(path, self.inner.files().append(path)?))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn FileReader>, FileError> {
        self.inner.files().open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        self.inner.files().rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> Result<(), FileError> {
        self.inner.files().sync_folder(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>, FileError> {
        self.inner.files().list(path)
    }

    fn inspect(&self, path: &Path) -> Result<Option<EntryKind>, FileError> {
        self.inner.files().inspect(path)
    }

    fn remove_file(&self, path: &Path) -> Result<(), FileError> {
        self.inner.files().remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> Result<(), FileError> {
        self.inner.files().remove_folder(path)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn FileLock>, LockError> {
        self.inner.files().lock(path)
    }

    fn free_bytes(&self, path: &Path) -> Result<u64, FileError> {
        if self.full.load(Ordering::Acquire) { Ok(0) } else { self.inner.files().free_bytes(path) }
    }
}

struct FillingWriter {
    inner: Box<dyn FileWriter>,
    full: Arc<AtomicBool>,
    path: std::path::PathBuf,
}

impl FileWriter for FillingWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        room(&self.full, FileOperation::Write, &self.path)?;
        self.inner.write(bytes)
    }

    fn sync(&mut self) -> Result<(), FileError> {
        self.inner.sync()
    }
}
