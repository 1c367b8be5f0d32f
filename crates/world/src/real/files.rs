//! The system's file systems.

use crate::{Entry, EntryKind, FileError, FileLock, FileOperation, FileReader, FileWriter, Files, LockError};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct RealFiles;

fn at(operation: FileOperation, path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
    move |source| FileError::new(operation, path, source)
}

impl Files for RealFiles {
    fn create_folder(&self, path: &Path) -> Result<(), FileError> {
        fs::create_dir(path).map_err(at(FileOperation::CreateFolder, path))
    }

    fn create(&self, path: &Path) -> Result<Box<dyn FileWriter>, FileError> {
        let file = File::create_new(path).map_err(at(FileOperation::Create, path))?;
        Ok(Box::new(RealWriter { file, path: path.to_owned() }))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn FileWriter>, FileError> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(at(FileOperation::Append, path))?;
        Ok(Box::new(RealWriter { file, path: path.to_owned() }))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn FileReader>, FileError> {
        let opened = || {
            // Asked before opening: to open a pipe would wait for a writer.
            if !fs::metadata(path)?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
            }
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Ok(RealReader { file, path: path.to_owned(), length })
        };
        Ok(Box::new(opened().map_err(at(FileOperation::Open, path))?))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        fs::rename(from, to).map_err(at(FileOperation::Rename, to))
    }

    fn sync_folder(&self, path: &Path) -> Result<(), FileError> {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(at(FileOperation::SyncFolder, path))
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>, FileError> {
        let listed = || {
            let mut entries = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let kind = match fs::metadata(entry.path()) {
                    Ok(metadata) => kind_of(&metadata),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => EntryKind::Other,
                    Err(error) => return Err(error),
                };
                entries.push(Entry { name: entry.file_name().to_string_lossy().into_owned(), kind });
            }
            entries.sort_by(|left, right| left.name.cmp(&right.name));
            Ok(entries)
        };
        listed().map_err(at(FileOperation::List, path))
    }

    fn inspect(&self, path: &Path) -> Result<Option<EntryKind>, FileError> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(kind_of(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link that leads nowhere is something: to create a file there would follow it.
                Ok(fs::symlink_metadata(path).is_ok().then_some(EntryKind::Other))
            }
            Err(error) => Err(FileError::new(FileOperation::Inspect, path, error)),
        }
    }

    fn remove_file(&self, path: &Path) -> Result<(), FileError> {
        fs::remove_file(path).map_err(at(FileOperation::RemoveFile, path))
    }

    fn remove_folder(&self, path: &Path) -> Result<(), FileError> {
        fs::remove_dir_all(path).map_err(at(FileOperation::RemoveFolder, path))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn FileLock>, LockError> {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(at(FileOperation::Lock, path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // What cannot be read is only missing from the message.
                let _ = (&file).take(64).read_to_string(&mut text);
                let pid = text.trim().parse().ok();
                let alive = pid.map(super::processes::is_alive);
                return Err(LockError::Held { path: path.to_owned(), pid, alive });
            }
            Err(TryLockError::Error(error)) => return Err(at(FileOperation::Lock, path)(error).into()),
        }
        // The number serves the message of whoever finds the lock taken; the lock itself is held without it, also on
        // a full disk.
        let _ = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        Ok(Box::new(RealLock { _file: file }))
    }

    fn free_bytes(&self, path: &Path) -> Result<u64, FileError> {
        let status = rustix::fs::statvfs(path)
            .map_err(|error| FileError::new(FileOperation::FreeBytes, path, error.into()))?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }
}

fn kind_of(metadata: &fs::Metadata) -> EntryKind {
    if metadata.is_file() {
        EntryKind::File { length: metadata.len() }
    } else if metadata.is_dir() {
        EntryKind::Folder
    } else {
        EntryKind::Other
    }
}

#[derive(Debug)]
struct RealWriter {
    file: File,
    path: PathBuf,
}

impl FileWriter for RealWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(at(FileOperation::Write, &self.path))
    }

    fn sync(&mut self) -> Result<(), FileError> {
        self.file.sync_all().map_err(at(FileOperation::Sync, &self.path))
    }
}

#[derive(Debug)]
struct RealReader {
    file: File,
    path: PathBuf,
    length: u64,
}

impl FileReader for RealReader {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), FileError> {
        self.file.read_exact_at(bytes, offset).map_err(at(FileOperation::Read, &self.path))
    }
}

// Closing the file gives the lock back, and the system closes it whatever ends the process.
#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl FileLock for RealLock {}
