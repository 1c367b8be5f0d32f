//! Memory that two processes see, and that outlives the one that dies.

use memmap2::MmapRaw;
use std::cell::UnsafeCell;
use std::fmt;
use std::fs::File;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Makes and opens shared regions.
pub trait SharedMemory: Send + Sync {
    /// A new region of `length` bytes, all zero. `name` shows in the system's tables only.
    fn create(&self, name: &str, length: usize) -> Result<Arc<SharedRegion>, SharedMemoryError>;
    /// The region that the process which started this one passed on ([`crate::Launch::regions`]). A region whose size
    /// is not the handle's is refused.
    fn open(&self, handle: RegionHandle) -> Result<Arc<SharedRegion>, SharedMemoryError>;
}

/// How a started process names a region that it was given; `Display` and `FromStr` are `<descriptor>:<length>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionHandle {
    /// The file descriptor, the same in both processes.
    pub descriptor: i32,
    /// Length in bytes.
    pub length: usize,
}

impl fmt::Display for RegionHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.descriptor, self.length)
    }
}

impl FromStr for RegionHandle {
    type Err = SharedMemoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once(':')
            .and_then(|(descriptor, length)| {
                let handle = Self { descriptor: descriptor.parse().ok()?, length: length.parse().ok()? };
                (handle.descriptor >= 0 && handle.length > 0).then_some(handle)
            })
            .ok_or_else(|| SharedMemoryError::Handle { text: text.to_owned() })
    }
}

/// A shared-memory operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum SharedMemoryError {
    /// The system refused.
    #[error("cannot {operation} the shared region {region}: {source}")]
    System {
        /// `create`, `open` or `map`.
        operation: &'static str,
        /// Its name and size, or its handle.
        region: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Not a handle.
    #[error("`{text}` is not a shared region's handle; it reads <descriptor>:<length in bytes>")]
    Handle {
        /// What was given.
        text: String,
    },
    /// The region behind a handle has another size.
    #[error("the shared region {handle} has {found} bytes, not the {} that its handle says", handle.length)]
    Length {
        /// The handle.
        handle: RegionHandle,
        /// The size found.
        found: u64,
    },
}

/// A region of memory at a page border, mapped for as long as this lives.
///
/// Others may write to it at any time, so there is no safe slice of it: use [`SharedRegion::as_ptr`], or
/// [`SharedRegion::word`] for words that both sides use at once.
pub struct SharedRegion {
    backing: Backing,
    length: usize,
}

enum Backing {
    Mapped { map: MmapRaw, file: File },
    Heap { pages: Box<[Page]> },
}

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

// SAFETY: a page is only handed out as a raw pointer or as atomic words; who dereferences the pointer answers for races.
unsafe impl Sync for Page {}

impl SharedRegion {
    /// Maps the first `length` bytes of a file that is at least that long.
    pub(crate) fn map(file: File, length: usize) -> io::Result<Self> {
        let map = memmap2::MmapOptions::new().len(length).map_raw(&file)?;
        Ok(Self { backing: Backing::Mapped { map, file }, length })
    }

    /// A region in this process's own memory, for worlds without other processes; no bytes are `None`.
    pub fn in_process(length: usize) -> Option<Self> {
        let count = length.div_ceil(4096);
        let mut pages = Vec::new();
        if length == 0 || pages.try_reserve_exact(count).is_err() {
            return None;
        }
        pages.resize_with(count, || Page(UnsafeCell::new([0; 4096])));
        Some(Self { backing: Backing::Heap { pages: pages.into_boxed_slice() }, length })
    }

    /// Its first byte, at a page border. Valid for reads and writes of [`SharedRegion::len`] bytes while `self` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.backing {
            Backing::Mapped { map, .. } => map.as_mut_ptr(),
            Backing::Heap { pages } => pages.as_ptr().cast_mut().cast(),
        }
    }

    /// Length in bytes; at least one.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never true; here because `len` is.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How a process that is given this region opens it; `None` for a region of this process alone.
    pub fn handle(&self) -> Option<RegionHandle> {
        match &self.backing {
            Backing::Mapped { file, .. } => {
                use std::os::fd::AsRawFd;
                Some(RegionHandle { descriptor: file.as_raw_fd(), length: self.length })
            }
            Backing::Heap { .. } => None,
        }
    }

    /// The word of 8 bytes at `offset` bytes, or `None` where it is not aligned to 8 or does not lie inside.
    pub fn word(&self, offset: usize) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) || offset.checked_add(8)? > self.length {
            return None;
        }
        // SAFETY: inside the region and aligned (the region starts at a page border); mapped while `self` lives; all
        // accesses through this reference are atomic.
        Some(unsafe { AtomicU64::from_ptr(self.as_ptr().add(offset).cast()) })
    }
}

impl fmt::Debug for SharedRegion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SharedRegion")
            .field("length", &self.length)
            .field("handle", &self.handle())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn words_outside_or_across_are_refused() {
        let region = SharedRegion::in_process(20).unwrap();
        region.word(8).unwrap().store(7, Ordering::Release);
        assert_eq!(region.word(8).unwrap().load(Ordering::Acquire), 7);
        for offset in [4, 16, 24, usize::MAX - 7] {
            assert!(region.word(offset).is_none(), "{offset}");
        }
        assert_eq!(region.as_ptr() as usize % 4096, 0);
        assert!(SharedRegion::in_process(0).is_none());
    }

    #[test]
    fn handles_parse_back_and_nonsense_is_refused() {
        let handle = RegionHandle { descriptor: 7, length: 4096 };
        assert_eq!(handle.to_string().parse::<RegionHandle>().unwrap(), handle);
        for text in ["", "7", "7:", ":4", "-1:4", "7:0", "7:-4", "7:4:4", "x:4"] {
            assert!(text.parse::<RegionHandle>().is_err(), "{text}");
        }
    }
}
