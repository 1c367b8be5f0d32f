//! Files in memory that know what would survive.

use crate::{Entry, EntryKind, FileError, FileLock, FileOperation, FileReader, FileWriter, Files, LockError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What goes wrong, and when. Operations count from 1.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The machine stops at this operation: it and all later ones fail. A write in progress is half done.
    pub stop_at: Option<u64>,
    /// This one operation fails, and nothing of it is done.
    pub fail_at: Option<u64>,
    /// The disk holds so many bytes of file contents; a write that does not fit is done as far as it fits.
    pub capacity_bytes: Option<u64>,
    /// What [`Files::free_bytes`] claims, whatever there is.
    pub claimed_free_bytes: Option<u64>,
}

/// In which state the files are found after the machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// All that was written: the process was killed, the machine went on.
    Everything,
    /// Only what was made durable, contents and names: the power failed.
    DurableOnly,
    /// All names, but only durable contents: the power failed after the file system had written its folders.
    NamesBeforeContents,
    /// All names; of contents that were not durable, the first half and then as many zero bytes.
    TornContents,
}

impl Survival {
    /// Each of them.
    pub const ALL: [Self; 4] =
        [Self::Everything, Self::DurableOnly, Self::NamesBeforeContents, Self::TornContents];
}

/// A file system in memory; clones are the same file system.
#[derive(Clone, Debug)]
pub struct MemoryFiles {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    nodes: Vec<Node>,
    locked: BTreeSet<usize>,
    operations: u64,
    stopped: bool,
    faults: Faults,
}

#[derive(Debug)]
enum Node {
    File { contents: Vec<u8>, durable: Vec<u8> },
    Folder { names: Names, durable: Names },
}

type Names = BTreeMap<String, usize>;

const ROOT: usize = 0;

impl Default for MemoryFiles {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryFiles {
    /// An empty root folder on a disk without end or faults.
    pub fn new() -> Self {
        Self::from_nodes(vec![Node::Folder { names: Names::new(), durable: Names::new() }])
    }

    fn from_nodes(nodes: Vec<Node>) -> Self {
        let faults = Faults::default();
        let state = State { nodes, locked: BTreeSet::new(), operations: 0, stopped: false, faults };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Sets what goes wrong from here on, and counts operations from zero again.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        state.operations = 0;
        state.stopped = false;
    }

    /// Operations since [`MemoryFiles::set_faults`].
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Bytes of contents in files that have a name.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// The files as they are found when the machine starts again: a file system of its own, without faults or locks.
    pub fn after(&self, survival: Survival) -> Self {
        let state = self.state();
        let mut nodes = Vec::new();
        state.survive(ROOT, survival, &mut nodes);
        Self::from_nodes(nodes)
    }

    /// Paths of all files and folders below the root, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        fn walk(state: &State, node: usize, path: &Path, paths: &mut Vec<PathBuf>) {
            if let Node::Folder { names, .. } = &state.nodes[node] {
                for (name, &child) in names {
                    let path = path.join(name);
                    paths.push(path.clone());
                    walk(state, child, &path, paths);
                }
            }
        }
        let mut paths = Vec::new();
        walk(&self.state(), ROOT, Path::new("/"), &mut paths);
        paths
    }

    /// Changes a file's contents behind everyone's back, as a bad disk does.
    pub fn corrupt(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), FileError> {
        let mut state = self.state();
        let node = state.find(FileOperation::Write, path)?;
        match &mut state.nodes[node] {
            Node::File { contents, durable } => {
                change(contents);
                durable.clone_from(contents);
                Ok(())
            }
            Node::Folder { .. } => Err(error(FileOperation::Write, path, io::ErrorKind::IsADirectory)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn error(operation: FileOperation, path: &Path, kind: io::ErrorKind) -> FileError {
    FileError::new(operation, path, kind.into())
}

impl State {
    /// Counts an operation, and fails it where the test wants that.
    fn begin(&mut self, operation: FileOperation, path: &Path) -> Result<(), FileError> {
        self.operations += 1;
        if self.faults.stop_at == Some(self.operations) {
            self.stopped = true;
        }
        let reason = if self.stopped {
            "the machine has stopped (injected)"
        } else if self.faults.fail_at == Some(self.operations) {
            "input/output error (injected)"
        } else {
            return Ok(());
        };
        Err(FileError::new(operation, path, io::Error::other(reason)))
    }

    fn find(&self, operation: FileOperation, path: &Path) -> Result<usize, FileError> {
        let mut node = ROOT;
        for component in path.components() {
            let name = match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name.to_string_lossy(),
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(error(operation, path, io::ErrorKind::InvalidInput));
                }
            };
            let Node::Folder { names, .. } = &self.nodes[node] else {
                return Err(error(operation, path, io::ErrorKind::NotADirectory));
            };
            node = *names.get(&*name).ok_or_else(|| error(operation, path, io::ErrorKind::NotFound))?;
        }
        Ok(node)
    }

    /// The names of the folder that holds `path`, and the last name of it.
    fn parent(&mut self, operation: FileOperation, path: &Path) -> Result<(&mut Names, String), FileError> {
        let name = path.file_name().ok_or_else(|| error(operation, path, io::ErrorKind::InvalidInput))?;
        let folder = self.find(operation, path.parent().unwrap_or(Path::new("")))?;
        match &mut self.nodes[folder] {
            Node::Folder { names, .. } => Ok((names, name.to_string_lossy().into_owned())),
            Node::File { .. } => Err(error(operation, path, io::ErrorKind::NotADirectory)),
        }
    }

    fn add(&mut self, operation: FileOperation, path: &Path, node: Node) -> Result<usize, FileError> {
        let number = self.nodes.len();
        let (names, name) = self.parent(operation, path)?;
        if names.contains_key(&name) {
            return Err(error(operation, path, io::ErrorKind::AlreadyExists));
        }
        names.insert(name, number);
        self.nodes.push(node);
        Ok(number)
    }

    fn used_bytes(&self) -> u64 {
        fn walk(state: &State, node: usize) -> u64 {
            match &state.nodes[node] {
                Node::File { contents, .. } => contents.len() as u64,
                Node::Folder { names, .. } => names.values().map(|&child| walk(state, child)).sum(),
            }
        }
        walk(self, ROOT)
    }

    fn survive(&self, node: usize, survival: Survival, nodes: &mut Vec<Node>) -> usize {
        let number = nodes.len();
        match &self.nodes[node] {
            Node::File { contents, durable } => {
                let kept = match survival {
                    Survival::Everything => contents.clone(),
                    Survival::DurableOnly | Survival::NamesBeforeContents => durable.clone(),
                    Survival::TornContents => {
                        let whole = contents.len() - (contents.len() - durable.len()) / 2;
                        let mut kept = contents[..whole].to_vec();
                        kept.resize(contents.len(), 0);
                        kept
                    }
                };
                nodes.push(Node::File { contents: kept.clone(), durable: kept });
            }
            Node::Folder { names, durable } => {
                nodes.push(Node::Folder { names: Names::new(), durable: Names::new() });
                let kept = if survival == Survival::DurableOnly { durable } else { names };
                let kept: Names = kept
                    .iter()
                    .map(|(name, &child)| (name.clone(), self.survive(child, survival, nodes)))
                    .collect();
                nodes[number] = Node::Folder { names: kept.clone(), durable: kept };
            }
        }
        number
    }

    fn remove_folder(&mut self, path: &Path) -> Result<(), FileError> {
        let operation = FileOperation::RemoveFolder;
        let node = self.find(operation, path)?;
        let Node::Folder { names, .. } = &self.nodes[node] else {
            return Err(error(operation, path, io::ErrorKind::NotADirectory));
        };
        for (name, child) in names.clone() {
            let path = path.join(&name);
            if let Node::Folder { .. } = self.nodes[child] {
                self.remove_folder(&path)?;
            } else {
                self.remove_file(&path)?;
            }
        }
        self.begin(operation, path)?;
        let (names, name) = self.parent(operation, path)?;
        names.remove(&name);
        Ok(())
    }

    fn remove_file(&mut self, path: &Path) -> Result<(), FileError> {
        let operation = FileOperation::RemoveFile;
        self.begin(operation, path)?;
        let node = self.find(operation, path)?;
        if let Node::Folder { .. } = self.nodes[node] {
            return Err(error(operation, path, io::ErrorKind::IsADirectory));
        }
        let (names, name) = self.parent(operation, path)?;
        names.remove(&name);
        Ok(())
    }
}

fn empty_file() -> Node {
    Node::File { contents: Vec::new(), durable: Vec::new() }
}

impl Files for MemoryFiles {
    fn create_folder(&self, path: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.begin(FileOperation::CreateFolder, path)?;
        let folder = Node::Folder { names: Names::new(), durable: Names::new() };
        state.add(FileOperation::CreateFolder, path, folder).map(|_| ())
    }

    fn create(&self, path: &Path) -> Result<Box<dyn FileWriter>, FileError> {
        let mut state = self.state();
        state.begin(FileOperation::Create, path)?;
        let node = state.add(FileOperation::Create, path, empty_file())?;
        Ok(Box::new(MemoryWriter { files: self.clone(), node, path: path.to_owned() }))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn FileWriter>, FileError> {
        let mut state = self.state();
        state.begin(FileOperation::Append, path)?;
        let node = match state.find(FileOperation::Append, path) {
            Ok(node) => node,
            Err(error) if error.is_not_found() => state.add(FileOperation::Append, path, empty_file())?,
            Err(error) => return Err(error),
        };
        if let Node::Folder { .. } = state.nodes[node] {
            return Err(error(FileOperation::Append, path, io::ErrorKind::IsADirectory));
        }
        Ok(Box::new(MemoryWriter { files: self.clone(), node, path: path.to_owned() }))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn FileReader>, FileError> {
        let mut state = self.state();
        state.begin(FileOperation::Open, path)?;
        let node = state.find(FileOperation::Open, path)?;
        match &state.nodes[node] {
            Node::File { contents, .. } => Ok(Box::new(MemoryReader {
                files: self.clone(),
                node,
                path: path.to_owned(),
                length: contents.len() as u64,
            })),
            Node::Folder { .. } => Err(error(FileOperation::Open, path, io::ErrorKind::InvalidInput)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        let operation = FileOperation::Rename;
        let mut state = self.state();
        state.begin(operation, to)?;
        let node = state.find(operation, from)?;
        if let Ok(there) = state.find(operation, to) {
            match (&state.nodes[node], &state.nodes[there]) {
                (Node::File { .. }, Node::File { .. }) => {}
                (Node::Folder { .. }, Node::Folder { names, .. }) if names.is_empty() => {}
                (Node::Folder { .. }, Node::Folder { .. }) => {
                    return Err(error(operation, to, io::ErrorKind::DirectoryNotEmpty));
                }
                (_, Node::Folder { .. }) => return Err(error(operation, to, io::ErrorKind::IsADirectory)),
                (_, Node::File { .. }) => return Err(error(operation, to, io::ErrorKind::NotADirectory)),
            }
        }
        let (names, name) = state.parent(operation, to)?;
        names.insert(name, node);
        let (names, name) = state.parent(operation, from)?;
        names.remove(&name);
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.begin(FileOperation::SyncFolder, path)?;
        let node = state.find(FileOperation::SyncFolder, path)?;
        match &mut state.nodes[node] {
            Node::Folder { names, durable } => durable.clone_from(names),
            Node::File { .. } => {
                return Err(error(FileOperation::SyncFolder, path, io::ErrorKind::NotADirectory));
            }
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>, FileError> {
        let mut state = self.state();
        state.begin(FileOperation::List, path)?;
        let node = state.find(FileOperation::List, path)?;
        let Node::Folder { names, .. } = &state.nodes[node] else {
            return Err(error(FileOperation::List, path, io::ErrorKind::NotADirectory));
        };
        Ok(names.iter().map(|(name, &node)| Entry { name: name.clone(), kind: state.kind(node) }).collect())
    }

    fn inspect(&self, path: &Path) -> Result<Option<EntryKind>, FileError> {
        let mut state = self.state();
        state.begin(FileOperation::Inspect, path)?;
        match state.find(FileOperation::Inspect, path) {
            Ok(node) => Ok(Some(state.kind(node))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remove_file(&self, path: &Path) -> Result<(), FileError> {
        self.state().remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> Result<(), FileError> {
        self.state().remove_folder(path)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn FileLock>, LockError> {
        let mut state = self.state();
        state.begin(FileOperation::Lock, path)?;
        let node = match state.find(FileOperation::Lock, path) {
            Ok(node) => node,
            Err(error) if error.is_not_found() => state.add(FileOperation::Lock, path, empty_file())?,
            Err(error) => return Err(error.into()),
        };
        if !state.locked.insert(node) {
            let (pid, alive) = (Some(super::OWN_ID), Some(true));
            return Err(LockError::Held { path: path.to_owned(), pid, alive });
        }
        Ok(Box::new(MemoryLock { files: self.clone(), node }))
    }

    fn free_bytes(&self, path: &Path) -> Result<u64, FileError> {
        let mut state = self.state();
        state.begin(FileOperation::FreeBytes, path)?;
        state.find(FileOperation::FreeBytes, path)?;
        let capacity = state.faults.capacity_bytes.unwrap_or(u64::MAX);
        Ok(state.faults.claimed_free_bytes.unwrap_or(capacity.saturating_sub(state.used_bytes())))
    }
}

impl State {
    fn kind(&self, node: usize) -> EntryKind {
        match &self.nodes[node] {
            Node::File { contents, .. } => EntryKind::File { length: contents.len() as u64 },
            Node::Folder { .. } => EntryKind::Folder,
        }
    }
}

#[derive(Debug)]
struct MemoryWriter {
    files: MemoryFiles,
    node: usize,
    path: PathBuf,
}

impl FileWriter for MemoryWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let mut state = self.files.state();
        let was_stopped = state.stopped;
        let begun = state.begin(FileOperation::Write, &self.path);
        let room = match state.faults.capacity_bytes {
            Some(capacity) => capacity.saturating_sub(state.used_bytes()),
            None => u64::MAX,
        };
        let fitting = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let done = match &begun {
            Ok(()) => fitting,
            Err(_) if state.stopped && !was_stopped => fitting.min(bytes.len() / 2),
            Err(_) => 0,
        };
        if let Node::File { contents, .. } = &mut state.nodes[self.node] {
            contents.extend_from_slice(&bytes[..done]);
        }
        begun?;
        if done < bytes.len() {
            return Err(error(FileOperation::Write, &self.path, io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), FileError> {
        let mut state = self.files.state();
        state.begin(FileOperation::Sync, &self.path)?;
        if let Node::File { contents, durable } = &mut state.nodes[self.node] {
            durable.clone_from(contents);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryReader {
    files: MemoryFiles,
    node: usize,
    path: PathBuf,
    length: u64,
}

impl FileReader for MemoryReader {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), FileError> {
        let mut state = self.files.state();
        state.begin(FileOperation::Read, &self.path)?;
        let Node::File { contents, .. } = &state.nodes[self.node] else {
            return Err(error(FileOperation::Read, &self.path, io::ErrorKind::IsADirectory));
        };
        let range =
            usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(bytes.len())?));
        match range.and_then(|range| contents.get(range)) {
            Some(found) => {
                bytes.copy_from_slice(found);
                Ok(())
            }
            None => Err(error(FileOperation::Read, &self.path, io::ErrorKind::UnexpectedEof)),
        }
    }
}

#[derive(Debug)]
struct MemoryLock {
    files: MemoryFiles,
    node: usize,
}

impl FileLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.files.state().locked.remove(&self.node);
    }
}
