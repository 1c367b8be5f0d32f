//! Handles: numbers that no client can dereference and that are never given twice, so that a stale one is seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::code;
use crate::fault::Fault;

/// Locks, also where another thread panicked while it held the lock: the state behind is changed in one piece.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Objects<T> {
    next: usize,
    live: BTreeMap<usize, Arc<T>>,
}

/// All live objects of one kind.
pub struct Registry<T> {
    kind: usize,
    name: &'static str,
    objects: Mutex<Objects<T>>,
}

impl<T> Registry<T> {
    /// `kind` is told from others by a handle's upper 16 bits, which no address of a process has.
    pub const fn new(kind: usize, name: &'static str) -> Self {
        Registry {
            kind: 0xCA00 + kind,
            name,
            objects: Mutex::new(Objects { next: 1, live: BTreeMap::new() }),
        }
    }

    /// Takes an object in.
    pub fn insert(&self, object: T) -> usize {
        self.insert_with(|_| object)
    }

    /// Takes an object in that knows its own handle.
    pub fn insert_with(&self, make: impl FnOnce(usize) -> T) -> usize {
        let mut objects = lock(&self.objects);
        let handle = self.kind << 48 | objects.next << 4;
        objects.next += 1;
        objects.live.insert(handle, Arc::new(make(handle)));
        handle
    }

    /// The object behind a handle.
    pub fn get(&self, handle: usize) -> Result<Arc<T>, Fault> {
        let objects = lock(&self.objects);
        match objects.live.get(&handle) {
            Some(object) => Ok(object.clone()),
            None => Err(self.missing(handle, objects.next)),
        }
    }

    /// Takes an object out: its handle is stale from now on.
    pub fn remove(&self, handle: usize) -> Result<Arc<T>, Fault> {
        let mut objects = lock(&self.objects);
        let next = objects.next;
        objects.live.remove(&handle).ok_or_else(|| self.missing(handle, next))
    }

    /// All live objects.
    pub fn all(&self) -> Vec<Arc<T>> {
        lock(&self.objects).live.values().cloned().collect()
    }

    fn missing(&self, handle: usize, next: usize) -> Fault {
        let name = self.name;
        let number = (handle & 0xFFFF_FFFF_FFFF) >> 4;
        let text = if handle == 0 {
            format!("the {name} is null")
        } else if handle >> 48 == self.kind && number < next {
            format!("the {name} {handle:#x} was destroyed or used up before")
        } else {
            format!("{handle:#x} is no {name}")
        };
        Fault::new(code::INVALID_HANDLE, text)
    }
}
