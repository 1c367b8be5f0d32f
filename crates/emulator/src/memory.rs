//! Device memory: an address range of its own that the processor faults on, behind which every access is looked up.
//!
//! An address is never given again while the range lasts, and allocations lie apart, so that an overrun, a use after
//! `aclrtFree` and a host pointer are told from one another. Bytes are not cleared: they start as 0xFF, NaN in every
//! float format.

pub mod mapped; // reserved addresses, and what is mapped there

use std::alloc::Layout;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::code;
use crate::fault::Fault;
use crate::settings::settings;

const RANGE: usize = 1 << 44;
const PAGE: usize = 4096;
/// What fresh memory and workspaces hold.
pub const POISON: u8 = 0xFF;
/// How many freed allocations are remembered.
const REMEMBERED: usize = 4096;

/// A live or lately freed piece of device memory.
pub struct Allocation {
    /// The device's address.
    pub base: usize,
    /// Bytes that were asked for.
    pub size: usize,
    /// The device that it is on.
    pub device: i32,
    bytes: *mut u8,
    owner: Bytes,
}

/// Whose an allocation's bytes are.
enum Bytes {
    /// Its own.
    Own(Layout),
    /// Those of a reserved range, which live as long as somebody looks at them.
    Window(#[allow(dead_code, reason = "it is held, not read")] Arc<mapped::Window>),
}

// SAFETY: the bytes are device memory: who may touch them when is the client's order of streams, as on a chip.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Bytes::Own(layout) = self.owner {
            // SAFETY: allocated with this layout, and nobody holds the allocation any more.
            unsafe { std::alloc::dealloc(self.bytes, layout) }
        }
    }
}

#[derive(Default)]
struct State {
    live: BTreeMap<usize, Arc<Allocation>>,
    freed: VecDeque<(usize, usize)>,
    cursor: usize,
    used: BTreeMap<i32, usize>,
    reserved: BTreeMap<usize, mapped::Reservation>,
}

/// The range of device addresses.
pub struct Space {
    base: usize,
    length: usize,
    state: RwLock<State>,
}

/// The one range of this process.
pub fn space() -> &'static Space {
    static SPACE: OnceLock<Space> = OnceLock::new();
    SPACE.get_or_init(|| {
        let mut length = RANGE;
        loop {
            // SAFETY: a fresh anonymous mapping that nothing may access; it is kept to the process's end.
            let mapped = unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    length,
                    rustix::mm::ProtFlags::empty(),
                    rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::NORESERVE,
                )
            };
            match mapped {
                Ok(base) => return Space { base: base as usize, length, state: RwLock::default() },
                Err(_) if length > 1 << 32 => length /= 4,
                // No range can be had: every allocation will say so.
                Err(_) => return Space { base: 0, length: 0, state: RwLock::default() },
            }
        }
    })
}

/// Bytes of a device's memory.
pub fn capacity() -> usize {
    static CAPACITY: OnceLock<usize> = OnceLock::new();
    *CAPACITY.get_or_init(|| settings().memory)
}

impl Space {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in use on a device.
    pub fn used(&self, device: i32) -> usize {
        self.read().used.get(&device).copied().unwrap_or(0)
    }

    /// Whether an address lies in the range.
    pub fn holds(&self, address: usize) -> bool {
        (self.base..self.base + self.length).contains(&address)
    }

    /// New memory of `size` bytes.
    pub fn allocate(&self, device: i32, size: usize) -> Result<usize, Fault> {
        let full = |why: String| Fault::new(code::MEMORY_ALLOCATION, why);
        if size == 0 {
            return Err(Fault::new(code::PARAM_INVALID, "0 bytes of device memory were asked for"));
        }
        let mut state = self.write();
        let used = state.used.get(&device).copied().unwrap_or(0);
        if size > capacity().saturating_sub(used) {
            return Err(full(format!(
                "EL0004: Failed to allocate {size} bytes: {used} of {} are in use on device {device}",
                capacity()
            )));
        }
        // At least a page lies between two allocations.
        let length = size.next_multiple_of(PAGE) + PAGE;
        let offset = self.place(&mut state, length).ok_or_else(|| {
            full(format!("EL0004: Failed to allocate {size} bytes: no free range of addresses"))
        })?;
        let none = || full(format!("EL0004: Failed to allocate {size} bytes: the host has no memory left"));
        let layout = Layout::from_size_align(size.next_multiple_of(64), 512).map_err(|_| none())?;
        // SAFETY: the layout has a size above 0.
        let bytes = unsafe { std::alloc::alloc(layout) };
        if bytes.is_null() {
            return Err(none());
        }
        // SAFETY: the allocation has that many bytes.
        unsafe { bytes.write_bytes(POISON, layout.size()) };
        let base = self.base + offset;
        state
            .live
            .insert(base, Arc::new(Allocation { base, size, device, bytes, owner: Bytes::Own(layout) }));
        *state.used.entry(device).or_default() += size;
        Ok(base)
    }

    /// A free place, onwards from the last one; from the start again when the range is used up.
    fn place(&self, state: &mut State, length: usize) -> Option<usize> {
        if state.cursor + length <= self.length {
            let offset = state.cursor;
            state.cursor += length;
            return Some(offset);
        }
        let live = state.live.values().map(|allocation| (allocation.base, allocation.size));
        let reserved = state.reserved.iter().map(|(&base, range)| (base, range.size()));
        let mut taken: Vec<(usize, usize)> = live.chain(reserved).collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (base, size) in taken {
            let start = base - self.base;
            if start >= offset + length {
                break;
            }
            offset = offset.max(start + size.next_multiple_of(PAGE) + PAGE);
        }
        (offset + length <= self.length).then_some(offset)
    }

    /// Ends an allocation. Tasks that run on it keep the bytes, later ones find it gone.
    pub fn free(&self, address: usize) -> Result<(), Fault> {
        let mut state = self.write();
        if state.live.get(&address).is_some_and(|found| matches!(found.owner, Bytes::Window(_))) {
            let text = format!("aclrtFree: {address:#x} was mapped there: aclrtUnmapMem ends that");
            return Err(Fault::new(code::PARAM_INVALID, text));
        }
        let Some(allocation) = state.live.remove(&address) else {
            drop(state);
            return Err(Fault::new(code::PARAM_INVALID, format!("aclrtFree: {}", self.describe(address, 0))));
        };
        if let Some(used) = state.used.get_mut(&allocation.device) {
            *used -= allocation.size;
        }
        state.freed.push_front((allocation.base, allocation.size));
        state.freed.truncate(REMEMBERED);
        Ok(())
    }

    /// The address of the largest allocation of a device; 0 where it has none.
    pub fn some_address(&self, device: i32) -> usize {
        let state = self.read();
        let mine = state.live.values().filter(|allocation| allocation.device == device);
        mine.max_by_key(|allocation| allocation.size).map_or(0, |allocation| allocation.base)
    }

    /// Ends all allocations of a device.
    pub fn free_all(&self, device: i32) {
        self.unmap_all(device);
        let all: Vec<usize> =
            self.read().live.values().filter(|a| a.device == device).map(|a| a.base).collect();
        for base in all {
            // Another thread may have freed it meanwhile.
            let _ = self.free(base);
        }
    }

    /// The allocation that holds `length` bytes from `address` on, and where they lie on the host; or what is wrong
    /// with them, as a sentence's end.
    pub fn resolve(&self, address: usize, length: usize) -> Result<(Arc<Allocation>, *mut u8), String> {
        let state = self.read();
        if let Some((_, allocation)) = state.live.range(..=address).next_back() {
            let offset = address - allocation.base;
            if offset < allocation.size && length <= allocation.size - offset {
                // SAFETY: the offset lies within the allocation.
                return Ok((allocation.clone(), unsafe { allocation.bytes.add(offset) }));
            }
        }
        drop(state);
        Err(self.describe(address, length))
    }

    fn describe(&self, address: usize, length: usize) -> String {
        let state = self.read();
        let what = |base: usize, size: usize| format!("the {size} bytes at {base:#x}");
        if let Some((_, allocation)) = state.live.range(..=address).next_back() {
            let offset = address - allocation.base;
            let inside = what(allocation.base, allocation.size);
            if offset < allocation.size && length > allocation.size - offset {
                let past = offset + length - allocation.size;
                return format!("{length} bytes at {address:#x} reach {past} bytes past {inside}");
            }
            let known = state.freed.iter().any(|&(base, size)| address >= base && address < base + size);
            if !known && offset < allocation.size + PAGE {
                return if offset < allocation.size {
                    format!("{address:#x} lies within {inside}, not at their start")
                } else {
                    format!("{address:#x} lies {} bytes past {inside}", offset - allocation.size)
                };
            }
        }
        match state.freed.iter().find(|&&(base, size)| address >= base && address < base + size) {
            Some(&(base, size)) => format!("{address:#x} lies in {}, which were freed", what(base, size)),
            None if address == 0 => "the address is null".into(),
            None if self.holds(address) => {
                format!("{address:#x} is a device address that was never allocated")
            }
            None => format!("{address:#x} is a host address: no memory of a device"),
        }
    }
}
