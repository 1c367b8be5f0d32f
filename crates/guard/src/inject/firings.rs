//! What has fired already. The words lie in memory that the caller gives: a worker that dies of a fault must not meet the
//! same fault again when it is started anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use toprope_world::SharedRegion;

/// Counts how often each fault of a schedule fired; a fault is counted before it is carried out.
pub trait Firings: Send + Sync {
    /// How often fault `id` fired.
    fn fired(&self, id: usize) -> u64;

    /// Counts one more.
    fn fire(&self, id: usize);
}

/// Words of this process.
#[derive(Debug, Default)]
pub struct OwnFirings(Vec<AtomicU64>);

impl OwnFirings {
    /// For this many faults.
    pub fn new(faults: usize) -> OwnFirings {
        OwnFirings((0..faults).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Firings for OwnFirings {
    fn fired(&self, id: usize) -> u64 {
        self.0.get(id).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn fire(&self, id: usize) {
        if let Some(word) = self.0.get(id) {
            word.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Words of a shared region, one of 8 bytes for each fault: the supervisor reads what a dead worker's faults were.
#[derive(Clone, Debug)]
pub struct SharedFirings {
    region: Arc<SharedRegion>,
    offset_bytes: usize,
}

impl SharedFirings {
    /// Bytes that a schedule of this many faults needs.
    pub fn bytes(faults: usize) -> usize {
        faults * 8
    }

    /// Words from `offset_bytes` on. `None` where the offset is not a multiple of 8, or the region too short.
    pub fn new(region: Arc<SharedRegion>, offset_bytes: usize, faults: usize) -> Option<SharedFirings> {
        let end = offset_bytes.checked_add(Self::bytes(faults))?;
        let fits = offset_bytes.is_multiple_of(8) && end <= region.len();
        fits.then_some(SharedFirings { region, offset_bytes })
    }

    fn word(&self, id: usize) -> Option<&AtomicU64> {
        self.region.word(self.offset_bytes.checked_add(id.checked_mul(8)?)?)
    }
}

impl Firings for SharedFirings {
    fn fired(&self, id: usize) -> u64 {
        self.word(id).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn fire(&self, id: usize) {
        if let Some(word) = self.word(id) {
            word.fetch_add(1, Ordering::AcqRel);
        }
    }
}
