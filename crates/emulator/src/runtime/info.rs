//! Start and end, versions, what a device says of itself, settings.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::call::{call, write_out};
use crate::code;
use crate::defect;
use crate::fault::Fault;
use crate::memory::{capacity, space};
use crate::runtime::context::{CONTEXTS, current};
use crate::runtime::device::{device, devices, has_bf16, only_saturates, soc};

static INITIALISED: AtomicBool = AtomicBool::new(false);

pub extern "C" fn init(_config: *const c_char) -> i32 {
    call("aclInit", || {
        defect::settings()?;
        if INITIALISED.swap(true, Ordering::SeqCst) {
            return Err(Fault::new(
                code::REPEAT_INITIALIZE,
                "aclInit was called before; the runtime is usable",
            ));
        }
        Ok(())
    })
}

pub extern "C" fn finalize() -> i32 {
    call("aclFinalize", || {
        if !INITIALISED.swap(false, Ordering::SeqCst) {
            return Err(Fault::new(100001, "aclInit was not called"));
        }
        Ok(())
    })
}

pub extern "C" fn soc_name() -> *const c_char {
    static NAME: OnceLock<CString> = OnceLock::new();
    NAME.get_or_init(|| CString::new(soc()).unwrap_or_default()).as_ptr()
}

/// Not CANN's: says that this is no chip. `dlsym` finds it in the emulator alone.
pub extern "C" fn emulator_version() -> *const c_char {
    const { concat!("cann-emulator ", env!("CARGO_PKG_VERSION"), "\0") }.as_ptr().cast()
}

pub unsafe extern "C" fn version(major: *mut i32, minor: *mut i32, patch: *mut i32) -> i32 {
    call("aclrtGetVersion", || {
        // SAFETY: the caller gives places for the numbers, or null, which is refused.
        unsafe {
            write_out("majorVersion", major, 1)?;
            write_out("minorVersion", minor, 12)?;
            write_out("patchVersion", patch, 0)
        }
    })
}

/// `PkgVersion`.
#[repr(C)]
pub struct PackageVersion {
    version: [u8; 128],
    parts: [[u8; 64]; 4],
    reserved: [u8; 128],
}

pub unsafe extern "C" fn cann_version(_package: i32, place: *mut PackageVersion) -> i32 {
    fn padded<const N: usize>(text: &str) -> [u8; N] {
        let mut bytes = [0; N];
        for (place, byte) in bytes.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        bytes
    }
    call("aclsysGetCANNVersion", || {
        let answer = PackageVersion {
            version: padded(concat!("8.1.RC1.emulator-", env!("CARGO_PKG_VERSION"))),
            parts: [padded("8"), padded("1"), padded("RC1"), padded("emulator")],
            reserved: [0; 128],
        };
        // SAFETY: the caller gives a place for the answer, or null, which is refused.
        unsafe { write_out("version", place, answer) }
    })
}

pub unsafe extern "C" fn run_mode(mode: *mut i32) -> i32 {
    // SAFETY: the caller gives a place for the mode, or null, which is refused. 1: the program runs on a host.
    call("aclrtGetRunMode", || unsafe { write_out("runMode", mode, 1) })
}

pub unsafe extern "C" fn attribute(which: i32, value: *mut i32) -> i32 {
    call("aclGetCannAttribute", || {
        let has = match which {
            0 => !only_saturates(),
            1 => has_bf16(),
            2 => false,
            _ => return Err(Fault::new(code::INVALID_PARAM, format!("{which} is no attribute of CANN"))),
        };
        // SAFETY: the caller gives a place for the value, or null, which is refused.
        unsafe { write_out("value", value, i32::from(has)) }
    })
}

/// Cores and cache of a 910B-class chip, which clients plan by; nothing here depends on them.
const CUBE_CORES: i64 = 24;
const VECTOR_CORES: i64 = 48;
const L2_BYTES: i64 = 192 << 20;

pub unsafe extern "C" fn capability(index: u32, which: i32, value: *mut i64) -> i32 {
    call("aclGetDeviceCapability", || {
        device(index as i32)?;
        let answer = match which {
            0 => CUBE_CORES,
            1 => VECTOR_CORES,
            2 => L2_BYTES,
            _ => return Err(Fault::new(code::INVALID_PARAM, format!("{which} is no capability"))),
        };
        // SAFETY: the caller gives a place for the value, or null, which is refused.
        unsafe { write_out("value", value, answer) }
    })
}

pub unsafe extern "C" fn device_info(index: u32, which: i32, value: *mut i64) -> i32 {
    call("aclrtGetDeviceInfo", || {
        device(index as i32)?;
        let answer = match which {
            1 => 1,
            101 | 102 => CUBE_CORES,
            201 => VECTOR_CORES,
            301 => capacity() as i64,
            302 => L2_BYTES,
            _ => return Err(Fault::new(code::PARAM_INVALID, format!("{which} is no attribute of a device"))),
        };
        // SAFETY: the caller gives a place for the value, or null, which is refused.
        unsafe { write_out("value", value, answer) }
    })
}

pub unsafe extern "C" fn device_count(count: *mut u32) -> i32 {
    // SAFETY: the caller gives a place for the count, or null, which is refused.
    call("aclrtGetDeviceCount", || unsafe { write_out("count", count, devices().len() as u32) })
}

pub extern "C" fn set_saturation_mode(mode: i32) -> i32 {
    call("aclrtSetDeviceSatMode", || match mode {
        0 | 1 => current()?.device.set_saturation(mode == 0),
        _ => Err(Fault::new(
            code::PARAM_INVALID,
            format!("{mode} is no mode: 0 saturates, 1 gives INF and NAN"),
        )),
    })
}

pub unsafe extern "C" fn can_access_peer(can: *mut i32, one: i32, other: i32) -> i32 {
    call("aclrtDeviceCanAccessPeer", || {
        device(one)?;
        device(other)?;
        // SAFETY: the caller gives a place for the answer, or null, which is refused.
        unsafe { write_out("canAccessPeer", can, i32::from(one != other)) }
    })
}

pub extern "C" fn enable_peer(other: i32, flags: u32) -> i32 {
    call("aclrtDeviceEnablePeerAccess", || {
        if flags != 0 {
            return Err(Fault::new(code::PARAM_INVALID, format!("flags are {flags}, they must be 0")));
        }
        device(other).map(|_| ())
    })
}

pub extern "C" fn disable_peer(other: i32) -> i32 {
    call("aclrtDeviceDisablePeerAccess", || device(other).map(|_| ()))
}

pub extern "C" fn set_execute_timeout(seconds: u32) -> i32 {
    call("aclrtSetOpExecuteTimeOut", || {
        defect::set_execute_timeout(std::time::Duration::from_secs(u64::from(seconds)));
        Ok(())
    })
}

pub unsafe extern "C" fn set_execute_timeout_v2(us: u64, actual: *mut u64) -> i32 {
    call("aclrtSetOpExecuteTimeOutV2", || {
        defect::set_execute_timeout(std::time::Duration::from_micros(us));
        // SAFETY: the caller gives a place for the time, or null, which is refused.
        unsafe { write_out("actualTimeout", actual, us) }
    })
}

pub extern "C" fn set_wait_timeout(_seconds: u32) -> i32 {
    // Waits for events end with their stream, so that no limit is reached.
    call("aclrtSetOpWaitTimeout", || Ok(()))
}

fn option(option: i32, value: i64) -> Result<(), Fault> {
    match option {
        0 => {
            for device in devices() {
                device.deterministic.store(value != 0, Ordering::Relaxed);
            }
            Ok(())
        }
        1 | 2 => Ok(()),
        _ => Err(Fault::new(code::PARAM_INVALID, format!("{option} is no system parameter"))),
    }
}

pub extern "C" fn set_system_option(which: i32, value: i64) -> i32 {
    call("aclrtSetSysParamOpt", || option(which, value))
}

pub extern "C" fn set_context_option(which: i32, value: i64) -> i32 {
    call("aclrtCtxSetSysParamOpt", || option(which, value))
}

/// `Util`, in per cent.
#[repr(C)]
pub struct Utilization {
    cube: i32,
    vector: i32,
    aicpu: i32,
    memory: i32,
    extended: usize,
}

pub unsafe extern "C" fn utilization(index: i32, place: *mut Utilization) -> i32 {
    call("aclrtGetDeviceUtilizationRate", || {
        device(index)?;
        let busy = crate::runtime::stream::STREAMS.all().iter().any(|s| s.device.index == index && !s.idle());
        let rate = if busy { 100 } else { 0 };
        let memory = (space().used(index) * 100 / capacity().max(1)) as i32;
        let answer = Utilization { cube: rate, vector: rate, aicpu: 0, memory, extended: 0 };
        // SAFETY: the caller gives a place for the answer, or null, which is refused.
        unsafe { write_out("utilizationInfo", place, answer) }
    })
}

pub unsafe extern "C" fn uuid(index: i32, place: *mut [u8; 16]) -> i32 {
    call("aclrtDeviceGetUuid", || {
        device(index)?;
        let mut answer = *b"cann-emulator\0\0\0";
        answer[15] = index as u8;
        // SAFETY: the caller gives a place for 16 bytes, or null, which is refused.
        unsafe { write_out("uuid", place, answer) }
    })
}

pub unsafe extern "C" fn primary_context(index: i32, flags: *mut u32, active: *mut i32) -> i32 {
    call("aclrtGetPrimaryCtxState", || {
        let device = device(index)?;
        let is = CONTEXTS.all().iter().any(|context| context.device.index == device.index);
        // SAFETY: the caller gives places for the answers, or null, which is refused.
        unsafe {
            write_out("flags", flags, 0)?;
            write_out("active", active, i32::from(is))
        }
    })
}

pub extern "C" fn exception_callback(_function: usize) -> i32 {
    call("aclrtSetExceptionInfoCallback", || not_here("aclrtSetExceptionInfoCallback"))
}

/// Refuses a function that the emulator lacks, by name.
pub fn not_here(name: &str) -> Result<(), Fault> {
    Err(Fault::new(code::FEATURE_NOT_SUPPORT, format!("{name} is not implemented by this emulator")))
}
