//! `libdcmi.so`: a device's health, temperature and memory errors, as the driver's management interface tells them. Prototypes
//! are facts from the header that Ascend/mind-cluster carries under Apache-2.0. Each device is a card of its own.

use std::ffi::{c_char, c_int, c_uint};

use crate::call::{call, write_out};
use crate::code;
use crate::fault::Fault;
use crate::runtime::device::{Device, device, devices};

/// Errors of a kind of memory.
#[repr(C)]
pub struct EccInfo {
    enabled: c_int,
    single_bit: c_uint,
    double_bit: c_uint,
    total_single_bit: c_uint,
    total_double_bit: c_uint,
    single_bit_isolated_pages: c_uint,
    double_bit_isolated_pages: c_uint,
    single_bit_next_isolated_pages: c_uint,
    double_bit_next_isolated_pages: c_uint,
}

/// High-bandwidth memory among the kinds: the only one here.
const HBM: c_int = 2;

/// Alarms: none, bad memory, gone.
const WELL: c_uint = 0;
const MAJOR: c_uint = 2;
const CRITICAL: c_uint = 3;

fn named(card: c_int, chip: c_int) -> Result<&'static Device, Fault> {
    match chip {
        0 => device(card),
        _ => Err(Fault::new(code::INVALID_DEVICEID, format!("card {card} has one device, number 0"))),
    }
}

pub extern "C" fn init() -> c_int {
    call("dcmi_init", || Ok(()))
}

pub unsafe extern "C" fn version(place: *mut c_char, bytes: c_int) -> c_int {
    call("dcmi_get_dcmi_version", || {
        let text = concat!("emulator-", env!("CARGO_PKG_VERSION"), "\0");
        if usize::try_from(bytes).unwrap_or(0) < text.len() {
            return Err(Fault::new(code::INVALID_PARAM, format!("{} bytes are needed", text.len())));
        }
        for (offset, byte) in text.bytes().enumerate() {
            // SAFETY: the caller gives a place of as many bytes as it says, or null, which is refused; the text fits.
            unsafe { write_out("dcmi_ver", place.wrapping_add(offset), byte as c_char)? };
        }
        Ok(())
    })
}

pub unsafe extern "C" fn cards(count: *mut c_int, list: *mut c_int, room: c_int) -> c_int {
    call("dcmi_get_card_list", || {
        let all = devices();
        for (offset, device) in all.iter().enumerate().take(usize::try_from(room).unwrap_or(0)) {
            // SAFETY: the caller gives a place of as many numbers as it says, or null, which is refused.
            unsafe { write_out("card_list", list.wrapping_add(offset), device.index)? };
        }
        // SAFETY: the caller gives a place for the number, or null, which is refused.
        unsafe { write_out("card_num", count, all.len() as c_int) }
    })
}

pub unsafe extern "C" fn chips(card: c_int, count: *mut c_int) -> c_int {
    call("dcmi_get_device_num_in_card", || {
        named(card, 0)?;
        // SAFETY: the caller gives a place for the number, or null, which is refused.
        unsafe { write_out("device_num", count, 1) }
    })
}

pub unsafe extern "C" fn place(card: *mut c_int, chip: *mut c_int, logical: c_uint) -> c_int {
    call("dcmi_get_card_id_device_id_from_logicid", || {
        let device = device(c_int::try_from(logical).unwrap_or(-1))?;
        // SAFETY: the caller gives places for the numbers, or null, which is refused.
        unsafe {
            write_out("card_id", card, device.index)?;
            write_out("device_id", chip, 0)
        }
    })
}

pub unsafe extern "C" fn health(card: c_int, chip: c_int, alarm: *mut c_uint) -> c_int {
    call("dcmi_get_device_health", || {
        let device = named(card, chip)?;
        let level = match (device.has_vanished(), device.bad_memory().is_empty()) {
            (true, _) => CRITICAL,
            (false, false) => MAJOR,
            (false, true) => WELL,
        };
        // SAFETY: the caller gives a place for the number, or null, which is refused.
        unsafe { write_out("health", alarm, level) }
    })
}

pub unsafe extern "C" fn temperature(card: c_int, chip: c_int, degrees: *mut c_int) -> c_int {
    call("dcmi_get_device_temperature", || {
        let device = named(card, chip)?;
        // SAFETY: the caller gives a place for the number, or null, which is refused.
        unsafe { write_out("temperature", degrees, device.temperature() as c_int) }
    })
}

pub unsafe extern "C" fn memory_errors(card: c_int, chip: c_int, kind: c_int, info: *mut EccInfo) -> c_int {
    call("dcmi_get_device_ecc_info", || {
        let device = named(card, chip)?;
        if kind != HBM {
            let text = format!("memory of kind {kind} is not there: 2, HBM, is");
            return Err(Fault::new(code::FEATURE_NOT_SUPPORT, text));
        }
        let bad = device.bad_memory().len() as c_uint;
        let answer = EccInfo {
            enabled: 1,
            single_bit: 0,
            double_bit: bad,
            total_single_bit: 0,
            total_double_bit: bad,
            single_bit_isolated_pages: 0,
            double_bit_isolated_pages: 0,
            single_bit_next_isolated_pages: 0,
            double_bit_next_isolated_pages: 0,
        };
        // SAFETY: the caller gives a place for the answer, or null, which is refused.
        unsafe { write_out("device_ecc_info", info, answer) }
    })
}
