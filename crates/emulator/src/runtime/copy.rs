//! Memory functions: allocation, copies, fills.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Mutex;
use std::time::Duration;

use crate::call::{call, write_out};
use crate::code;
use crate::fault::Fault;
use crate::memory::{capacity, space};
use crate::registry::lock;
use crate::runtime::context::{current, current_stream, streams_of};
use crate::settings::settings;

/// The chip pads; here what was asked for is the bound, so that reading the padding is seen.
unsafe fn allocate(name: &'static str, address: *mut usize, size: usize) -> i32 {
    call(name, || {
        let device = current()?.device;
        device.usable_for_resources()?;
        let made = space().allocate(device.index, size)?;
        // SAFETY: the caller gives a place for the address, or null, which is refused.
        unsafe { write_out("devPtr", address, made) }
    })
}

pub unsafe extern "C" fn malloc(address: *mut usize, size: usize, _policy: i32) -> i32 {
    // SAFETY: the caller's promise for the place of the address.
    unsafe { allocate("aclrtMalloc", address, size) }
}

pub unsafe extern "C" fn malloc_align32(address: *mut usize, size: usize, _policy: i32) -> i32 {
    // SAFETY: the caller's promise for the place of the address.
    unsafe { allocate("aclrtMallocAlign32", address, size) }
}

pub extern "C" fn free(address: usize) -> i32 {
    call("aclrtFree", || space().free(address))
}

static PINNED: Mutex<BTreeMap<usize, Layout>> = Mutex::new(BTreeMap::new());

pub unsafe extern "C" fn malloc_host(address: *mut usize, size: usize) -> i32 {
    call("aclrtMallocHost", || {
        current()?.device.usable_for_resources()?;
        let none =
            || Fault::new(code::MEMORY_ALLOCATION, format!("EL0004: Failed to allocate {size} host bytes"));
        let layout = Layout::from_size_align(size.max(1), 4096).map_err(|_| none())?;
        // SAFETY: the layout has a size above 0.
        let made = unsafe { std::alloc::alloc(layout) } as usize;
        if made == 0 {
            return Err(none());
        }
        lock(&PINNED).insert(made, layout);
        // SAFETY: the caller gives a place for the address, or null, which is refused.
        unsafe { write_out("hostPtr", address, made) }
    })
}

pub extern "C" fn free_host(address: usize) -> i32 {
    call("aclrtFreeHost", || {
        let Some(layout) = lock(&PINNED).remove(&address) else {
            let text = format!("{address:#x} is not from aclrtMallocHost, or was freed before");
            return Err(Fault::new(code::PARAM_INVALID, text));
        };
        // SAFETY: allocated with this layout, and taken out of the table, so freed once.
        unsafe { std::alloc::dealloc(address as *mut u8, layout) };
        Ok(())
    })
}

pub unsafe extern "C" fn memory_info(_kind: i32, free: *mut usize, total: *mut usize) -> i32 {
    call("aclrtGetMemInfo", || {
        let device = current()?.device;
        device.usable()?;
        // SAFETY: the caller gives places for the figures, or null, which is refused.
        unsafe {
            write_out("free", free, capacity().saturating_sub(space().used(device.index)))?;
            write_out("total", total, capacity())
        }
    })
}

/// One side of a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Host,
    Device,
}

fn side_of(address: usize) -> Side {
    if space().holds(address) { Side::Device } else { Side::Host }
}

/// Sides of a copy kind; what the client says must be what the addresses are.
fn sides(kind: i32, to: usize, from: usize) -> Result<(Side, Side), Fault> {
    let told = match kind {
        0 => (Side::Host, Side::Host),
        1 => (Side::Device, Side::Host),
        2 => (Side::Host, Side::Device),
        3 | 6 | 7 => (Side::Device, Side::Device),
        4 => (side_of(to), side_of(from)),
        _ => return Err(Fault::new(code::PARAM_INVALID, format!("{kind} is no kind of copy"))),
    };
    for (name, address, told) in [("dst", to, told.0), ("src", from, told.1)] {
        if address == 0 {
            return Err(Fault::new(code::PARAM_INVALID, format!("{name} is null")));
        }
        // A host address given as a device one is found by the copy itself, as on the chip.
        if told == Side::Host && side_of(address) == Side::Device {
            let text =
                format!("{name} {address:#x} is a device address, but the kind of copy {kind} says host");
            return Err(Fault::new(code::PARAM_INVALID, text));
        }
    }
    Ok(told)
}

/// The bytes behind one side, and what keeps them.
fn bytes(
    name: &str,
    side: Side,
    address: usize,
    count: usize,
) -> Result<(Option<std::sync::Arc<crate::memory::Allocation>>, *mut u8), Fault> {
    match side {
        Side::Host => Ok((None, address as *mut u8)),
        Side::Device => {
            let found = space().resolve(address, count);
            let (kept, bytes) =
                found.map_err(|why| Fault::new(code::VECTOR_CORE_EXCEPTION, format!("{name}: {why}")))?;
            Ok((Some(kept), bytes))
        }
    }
}

/// A rectangle of bytes to be copied.
#[derive(Clone, Copy)]
struct Transfer {
    to: usize,
    to_pitch: usize,
    from: usize,
    from_pitch: usize,
    width: usize,
    height: usize,
    sides: (Side, Side),
}

impl Transfer {
    fn checked(
        to: (usize, usize),
        from: (usize, usize),
        size: (usize, usize),
        kind: i32,
    ) -> Result<Transfer, Fault> {
        let ((to, to_pitch), (from, from_pitch), (width, height)) = (to, from, size);
        if width > to_pitch || (height > 1 && width > from_pitch) {
            let text = format!("{width} bytes do not fit into dst's {to_pitch} (src has {from_pitch})");
            return Err(Fault::new(code::PARAM_INVALID, text));
        }
        Ok(Transfer { to, to_pitch, from, from_pitch, width, height, sides: sides(kind, to, from)? })
    }

    fn run(self) -> Result<(), Fault> {
        if self.width == 0 || self.height == 0 {
            return Ok(());
        }
        let span = |pitch: usize| pitch * (self.height - 1) + self.width;
        let (_kept_to, to) = bytes("dst", self.sides.0, self.to, span(self.to_pitch))?;
        let (_kept_from, from) = bytes("src", self.sides.1, self.from, span(self.from_pitch))?;
        for row in 0..self.height {
            // SAFETY: both spans were looked up, or are the caller's own host memory, which it promises.
            unsafe {
                std::ptr::copy(from.add(row * self.from_pitch), to.add(row * self.to_pitch), self.width)
            };
        }
        if let Some(bandwidth) = settings().bandwidth.filter(|_| self.sides.0 != self.sides.1) {
            let time = (self.width * self.height) as f64 / bandwidth;
            std::thread::sleep(Duration::try_from_secs_f64(time).unwrap_or_default());
        }
        Ok(())
    }
}

/// A blocking copy tells what failed before on any stream of the device, as it runs on it too.
fn blocking(copy: Transfer) -> Result<(), Fault> {
    let device = current()?.device;
    device.usable()?;
    let failed = streams_of(device).into_iter().find(|stream| stream.failure().is_some());
    if let Some(stream) = failed {
        stream.synchronize(None)?;
    }
    copy.run().inspect_err(|fault| device.suffer(fault))
}

fn later(name: &'static str, copy: Transfer, stream: usize) -> Result<(), Fault> {
    let stream = current_stream(stream)?;
    stream.device.usable()?;
    stream.push(name, move |_| {
        copy.run().map_err(|fault| Fault { text: format!("{name}: {}", fault.text), ..fault })
    })
}

pub extern "C" fn memcpy(to: usize, most: usize, from: usize, count: usize, kind: i32) -> i32 {
    call("aclrtMemcpy", || blocking(Transfer::checked((to, most), (from, count), (count, 1), kind)?))
}

pub extern "C" fn memcpy_async(
    to: usize,
    most: usize,
    from: usize,
    count: usize,
    kind: i32,
    stream: usize,
) -> i32 {
    call("aclrtMemcpyAsync", || {
        later("aclrtMemcpyAsync", Transfer::checked((to, most), (from, count), (count, 1), kind)?, stream)
    })
}

#[allow(clippy::too_many_arguments, reason = "CANN's function has that many")]
pub extern "C" fn memcpy_2d(
    to: usize,
    to_pitch: usize,
    from: usize,
    from_pitch: usize,
    width: usize,
    height: usize,
    kind: i32,
) -> i32 {
    call("aclrtMemcpy2d", || {
        blocking(Transfer::checked((to, to_pitch), (from, from_pitch), (width, height), kind)?)
    })
}

#[allow(clippy::too_many_arguments, reason = "CANN's function has that many")]
pub extern "C" fn memcpy_2d_async(
    to: usize,
    to_pitch: usize,
    from: usize,
    from_pitch: usize,
    width: usize,
    height: usize,
    kind: i32,
    stream: usize,
) -> i32 {
    call("aclrtMemcpy2dAsync", || {
        let copy = Transfer::checked((to, to_pitch), (from, from_pitch), (width, height), kind)?;
        later("aclrtMemcpy2dAsync", copy, stream)
    })
}

fn fill(name: &'static str, address: usize, most: usize, value: i32, count: usize) -> Result<(), Fault> {
    if count > most {
        let text = format!("{count} bytes do not fit into {most}");
        return Err(Fault::new(code::PARAM_INVALID, text));
    }
    if count == 0 {
        return Ok(());
    }
    // Fills are on device memory alone: a host address is looked up too, and refused.
    let (_kept, bytes) = bytes(name, Side::Device, address, count)?;
    // SAFETY: the bytes were looked up.
    unsafe { bytes.write_bytes(value as u8, count) };
    Ok(())
}

pub extern "C" fn memset(address: usize, most: usize, value: i32, count: usize) -> i32 {
    call("aclrtMemset", || {
        let device = current()?.device;
        device.usable()?;
        fill("devPtr", address, most, value, count).inspect_err(|fault| device.suffer(fault))
    })
}

pub extern "C" fn memset_async(address: usize, most: usize, value: i32, count: usize, stream: usize) -> i32 {
    call("aclrtMemsetAsync", || {
        let stream = current_stream(stream)?;
        stream.device.usable()?;
        if count > most {
            let text = format!("{count} bytes do not fit into {most}");
            return Err(Fault::new(code::PARAM_INVALID, text));
        }
        stream.push("aclrtMemsetAsync", move |_| fill("aclrtMemsetAsync", address, most, value, count))
    })
}

/// `PtrAttr` of later versions: {location{id, type}, pageSize, rsv[4]}.
#[repr(C)]
pub struct PointerAttributes {
    id: u32,
    kind: i32,
    page_size: u32,
    reserved: [u32; 4],
}

pub unsafe extern "C" fn pointer_attributes(
    pointer: *const c_void,
    attributes: *mut PointerAttributes,
) -> i32 {
    call("aclrtPointerGetAttributes", || {
        let on = space().resolve(pointer as usize, 0).ok();
        let answer = PointerAttributes {
            id: on.as_ref().map_or(0, |(allocation, _)| allocation.device as u32),
            kind: i32::from(on.is_some()),
            page_size: 4096,
            reserved: [0; 4],
        };
        // SAFETY: the caller gives a place for the answer, or null, which is refused.
        unsafe { write_out("attributes", attributes, answer) }
    })
}
