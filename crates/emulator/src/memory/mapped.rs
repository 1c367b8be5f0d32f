//! Addresses that a client reserves, and physical memory that it maps there: an anonymous file per piece, so that memory
//! keeps its content when it is mapped elsewhere. Pieces that lie side by side are one allocation to every access.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::{Allocation, Bytes, PAGE, POISON, Space, State, capacity, space};
use crate::code;
use crate::fault::Fault;

/// Sizes and places are multiples of it.
pub const GRANULARITY: usize = 1 << 21;

/// A piece of physical memory.
pub struct Physical {
    /// The device that it is on.
    pub device: i32,
    /// Bytes.
    pub size: usize,
    file: OwnedFd,
}

impl Drop for Physical {
    fn drop(&mut self) {
        if let Some(used) = space().write().used.get_mut(&self.device) {
            *used -= self.size;
        }
    }
}

/// Where a reserved range lies on the host.
pub struct Window {
    host: *mut u8,
    length: usize,
}

// SAFETY: an address and a length; who touches the bytes is the client's order of streams, as for other device memory.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and no allocation points into it any more.
        let _ = unsafe { munmap(self.host.cast(), self.length) };
    }
}

/// A reserved range of addresses.
pub struct Reservation {
    window: Arc<Window>,
    /// What is mapped, by its distance from the start.
    pieces: BTreeMap<usize, Arc<Physical>>,
}

impl Reservation {
    /// Bytes.
    pub fn size(&self) -> usize {
        self.window.length
    }
}

fn refuse(text: String) -> Fault {
    Fault::new(code::PARAM_INVALID, text)
}

fn full(size: usize, why: impl std::fmt::Display) -> Fault {
    Fault::new(code::MEMORY_ALLOCATION, format!("EL0004: Failed to allocate {size} bytes: {why}"))
}

/// An error unless the size is above 0 and a multiple of the granularity.
fn whole(what: &str, size: usize) -> Result<(), Fault> {
    if size > 0 && size.is_multiple_of(GRANULARITY) {
        Ok(())
    } else {
        Err(refuse(format!("{what} of {size} bytes: it must be a multiple of {GRANULARITY}")))
    }
}

impl Physical {
    /// New memory, filled as all fresh memory is.
    pub fn new(device: i32, size: usize) -> Result<Physical, Fault> {
        whole("a piece of physical memory", size)?;
        let mut state = space().write();
        let used = state.used.entry(device).or_default();
        if size > capacity().saturating_sub(*used) {
            return Err(full(size, format!("{used} of {} are in use on device {device}", capacity())));
        }
        let file = memfd_create("cann-emulator", MemfdFlags::CLOEXEC).map_err(|error| full(size, error))?;
        ftruncate(&file, size as u64).map_err(|error| full(size, error))?;
        // SAFETY: a fresh mapping of a file that nobody else has, unmapped below.
        unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let mapped = mmap(std::ptr::null_mut(), size, protection, MapFlags::SHARED, &file, 0)
                .map_err(|error| full(size, error))?;
            mapped.cast::<u8>().write_bytes(POISON, size);
            let _ = munmap(mapped, size);
        }
        *used += size;
        Ok(Physical { device, size, file })
    }
}

impl Space {
    /// A range of addresses, nothing behind it yet.
    pub fn reserve(&self, size: usize) -> Result<usize, Fault> {
        let length = size.max(1).checked_next_multiple_of(GRANULARITY);
        let length = length.filter(|&length| length < self.length);
        let length = length.ok_or_else(|| full(size, "no free range of addresses"))?;
        let mut state = self.write();
        // The start is a multiple of the granularity.
        let place = self.place(&mut state, length + GRANULARITY + PAGE);
        let offset = place.ok_or_else(|| full(size, "no free range of addresses"))?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping that nothing may access until memory is mapped over it.
        let host = unsafe { mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::empty(), flags) }
            .map_err(|error| full(size, error))?;
        let base = (self.base + offset).next_multiple_of(GRANULARITY);
        let window = Arc::new(Window { host: host.cast(), length });
        state.reserved.insert(base, Reservation { window, pieces: BTreeMap::new() });
        Ok(base)
    }

    /// Gives a range back that nothing is mapped into.
    pub fn release(&self, base: usize) -> Result<(), Fault> {
        let mut state = self.write();
        match state.reserved.get(&base) {
            None => Err(refuse(format!("{base:#x} is not the start of a reserved range"))),
            Some(range) if !range.pieces.is_empty() => Err(refuse(format!(
                "the range at {base:#x} has memory mapped into it: aclrtUnmapMem comes first"
            ))),
            Some(_) => {
                state.reserved.remove(&base);
                Ok(())
            }
        }
    }

    /// Maps the whole of a piece of memory to an address of a reserved range.
    pub fn map(&self, address: usize, size: usize, physical: Arc<Physical>) -> Result<(), Fault> {
        whole("a mapping", size)?;
        if size != physical.size {
            return Err(refuse(format!("{size} bytes are to be mapped of a piece of {}", physical.size)));
        }
        let mut state = self.write();
        let none = || refuse(format!("{size} bytes at {address:#x} lie in no reserved range"));
        let (&base, range) = state.reserved.range_mut(..=address).next_back().ok_or_else(none)?;
        let offset = address - base;
        if offset + size > range.window.length {
            return Err(none());
        }
        whole("a place in the reserved range", offset + GRANULARITY)?;
        let before = range.pieces.range(..offset + size).next_back();
        if before.is_some_and(|(&start, piece)| start + piece.size > offset) {
            return Err(refuse(format!("memory is mapped at {address:#x} already")));
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the place lies within the window, which is ours and has no memory mapped there.
        unsafe {
            let host = range.window.host.add(offset).cast();
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            mmap(host, size, protection, flags, &physical.file, 0).map_err(|error| full(size, error))?;
        }
        range.pieces.insert(offset, physical);
        join(&mut state, base);
        Ok(())
    }

    /// Ends a mapping. The bytes stay readable for tasks that run on them; later ones find them gone.
    pub fn unmap(&self, address: usize) -> Result<(), Fault> {
        let mut state = self.write();
        let none = || refuse(format!("nothing was mapped at {address:#x}"));
        let (&base, range) = state.reserved.range_mut(..=address).next_back().ok_or_else(none)?;
        let piece = range.pieces.remove(&(address - base)).ok_or_else(none)?;
        join(&mut state, base);
        state.freed.push_front((address, piece.size));
        state.freed.truncate(super::REMEMBERED);
        drop(state);
        // Dropping the last handle of a piece takes the lock.
        drop(piece);
        Ok(())
    }

    /// Ends all mappings of a device.
    pub fn unmap_all(&self, device: i32) {
        let mut state = self.write();
        let mut gone = Vec::new();
        let bases: Vec<usize> = state.reserved.keys().copied().collect();
        for base in bases {
            if let Some(range) = state.reserved.get_mut(&base) {
                let mine = |piece: &Arc<Physical>| piece.device == device;
                gone.extend(range.pieces.values().filter(|piece| mine(piece)).cloned());
                range.pieces.retain(|_, piece| !mine(piece));
            }
            join(&mut state, base);
        }
        drop(state);
        drop(gone);
    }
}

/// Makes the allocations of a range anew: one for each run of pieces side by side on one device.
fn join(state: &mut State, base: usize) {
    let Some(range) = state.reserved.get(&base) else { return };
    let mut runs: Vec<(usize, usize, i32)> = Vec::new();
    for (&start, piece) in &range.pieces {
        match runs.last_mut() {
            Some((from, size, device)) if *from + *size == start && *device == piece.device => {
                *size += piece.size;
            }
            _ => runs.push((start, piece.size, piece.device)),
        }
    }
    let (window, end) = (range.window.clone(), base + range.window.length);
    let old: Vec<usize> = state.live.range(base..end).map(|(&address, _)| address).collect();
    for address in old {
        state.live.remove(&address);
    }
    for (start, size, device) in runs {
        // SAFETY: the run lies within the window.
        let bytes = unsafe { window.host.add(start) };
        let allocation =
            Allocation { base: base + start, size, device, bytes, owner: Bytes::Window(window.clone()) };
        state.live.insert(base + start, Arc::new(allocation));
    }
}
