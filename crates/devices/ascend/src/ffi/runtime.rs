//! The runtime: devices, contexts, streams, events and memory. Each wrapper answers the vendor's code or what was asked.

use super::abi::{Code, DEVICE_TO_HOST, HOST_TO_DEVICE, Handle, SUCCESS};
use super::library::Libraries;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use toprope_program::HostRegion;

/// Declares the functions, required ones first; gives a table of their addresses and what is missing of it.
macro_rules! functions {
    (
        required { $($need:ident = $need_symbol:literal ($($need_type:ty),*) -> $need_answer:ty;)* }
        optional { $($may:ident = $may_symbol:literal ($($may_type:ty),*) -> $may_answer:ty;)* }
    ) => {
        /// CANN's functions that are called beside operators and their objects.
        pub(crate) const FUNCTIONS: &[&str] = &[$($need_symbol,)* $($may_symbol,)*];

        #[derive(Debug)]
        struct Functions {
            $($need: unsafe extern "C" fn($($need_type),*) -> $need_answer,)*
            $($may: Option<unsafe extern "C" fn($($may_type),*) -> $may_answer>,)*
        }

        impl Functions {
            fn load(libraries: &Libraries) -> Result<Functions, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(let $need = libraries.symbol($need_symbol);
                if $need.is_none() { missing.push($need_symbol); })*
                match ($($need,)*) {
                    ($(Some($need),)*) => Ok(Functions {
                        // SAFETY: the symbol is CANN's, and this is the prototype that its clients call it by.
                        $($need: unsafe {
                            std::mem::transmute::<*const c_void, unsafe extern "C" fn($($need_type),*) -> $need_answer>($need)
                        },)*
                        $($may: libraries.symbol($may_symbol).map(|address| {
                            // SAFETY: as above.
                            unsafe {
                                std::mem::transmute::<*const c_void, unsafe extern "C" fn($($may_type),*) -> $may_answer>(address)
                            }
                        }),)*
                    }),
                    _ => Err(missing),
                }
            }
        }
    };
}

functions! {
    required {
        init = "aclInit"(*const c_char) -> Code;
        device_count = "aclrtGetDeviceCount"(*mut u32) -> Code;
        set_device = "aclrtSetDevice"(i32) -> Code;
        create_context = "aclrtCreateContext"(*mut Handle, i32) -> Code;
        destroy_context = "aclrtDestroyContext"(Handle) -> Code;
        set_context = "aclrtSetCurrentContext"(Handle) -> Code;
        create_stream = "aclrtCreateStream"(*mut Handle) -> Code;
        destroy_stream = "aclrtDestroyStream"(Handle) -> Code;
        synchronize_stream = "aclrtSynchronizeStream"(Handle) -> Code;
        synchronize_timeout = "aclrtSynchronizeStreamWithTimeout"(Handle, i32) -> Code;
        wait_event = "aclrtStreamWaitEvent"(Handle, Handle) -> Code;
        create_event = "aclrtCreateEvent"(*mut Handle) -> Code;
        destroy_event = "aclrtDestroyEvent"(Handle) -> Code;
        record_event = "aclrtRecordEvent"(Handle, Handle) -> Code;
        event_status = "aclrtQueryEventStatus"(Handle, *mut c_int) -> Code;
        malloc = "aclrtMalloc"(*mut *mut c_void, usize, c_int) -> Code;
        free = "aclrtFree"(*mut c_void) -> Code;
        malloc_host = "aclrtMallocHost"(*mut *mut c_void, usize) -> Code;
        free_host = "aclrtFreeHost"(*mut c_void) -> Code;
        memory_info = "aclrtGetMemInfo"(c_int, *mut usize, *mut usize) -> Code;
        memcpy = "aclrtMemcpy"(*mut c_void, usize, *const c_void, usize, c_int) -> Code;
        memcpy_async = "aclrtMemcpyAsync"(*mut c_void, usize, *const c_void, usize, c_int, Handle) -> Code;
        memset = "aclrtMemset"(*mut c_void, usize, i32, usize) -> Code;
        recent_message = "aclGetRecentErrMsg"() -> *const c_char;
        soc_name = "aclrtGetSocName"() -> *const c_char;
    }
    optional {
        create_event_ex = "aclrtCreateEventExWithFlag"(*mut Handle, u32) -> Code;
        peek_last = "aclrtPeekAtLastError"(c_int) -> Code;
        failure_mode = "aclrtSetStreamFailureMode"(Handle, u64) -> Code;
        saturation = "aclrtSetDeviceSatMode"(c_int) -> Code;
        system_option = "aclrtSetSysParamOpt"(c_int, i64) -> Code;
        version = "aclrtGetVersion"(*mut i32, *mut i32, *mut i32) -> Code;
        capability = "aclGetDeviceCapability"(u32, c_int, *mut i64) -> Code;
        attribute = "aclGetCannAttribute"(c_int, *mut i32) -> Code;
        package_version = "aclsysGetCANNVersion"(c_int, *mut PackageVersion) -> Code;
        reset_force = "aclrtResetDeviceForce"(i32) -> Code;
        abort = "aclrtDeviceTaskAbort"(i32, u32) -> Code;
        bad_memory = "aclrtGetMemUceInfo"(i32, *mut BadMemory, usize, *mut usize) -> Code;
        repair_memory = "aclrtMemUceRepair"(i32, *mut BadMemory, usize) -> Code;
    }
}

/// What CANN says of its own version.
#[repr(C)]
struct PackageVersion {
    version: [u8; 128],
    parts: [[u8; 64]; 4],
    reserved: [u8; 128],
}

/// An uncorrectable error of memory, as CANN tells and takes it.
#[repr(C)]
#[derive(Clone, Copy)]
struct BadMemory {
    address: *mut c_void,
    bytes: usize,
    reserved: [usize; 14],
}

/// Errors of memory that are asked for at once, as many as the vendor's own client does.
const BAD_MEMORY_MAX: usize = 128;

/// A stream of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream(Handle);

/// A point in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event(Handle);

/// A device's context, which a thread makes its own before it calls anything else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context(Handle);

/// Host memory that copies may go to while the host does something else.
#[derive(Debug)]
pub(crate) struct Pinned {
    address: *mut c_void,
    bytes: usize,
}

// SAFETY: handles are names that CANN takes from any thread whose context is set; nothing is reached through them here.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Send for Context {}
// SAFETY: memory with one owner.
unsafe impl Send for Pinned {}

impl Stream {
    /// The handle for operators' second phase.
    pub(super) fn handle(self) -> Handle {
        self.0
    }
}

/// The loaded runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    functions: Functions,
}

fn answer<T>(code: Code, value: T) -> Result<T, Code> {
    if code == SUCCESS { Ok(value) } else { Err(code) }
}

/// Calls a function; its pointers come from the wrapper that uses this.
macro_rules! call {
    ($self:ident . $function:ident ( $($argument:expr),* )) => {
        // SAFETY: the prototype is CANN's, pointers to results are this frame's, handles and addresses are CANN's own.
        unsafe { ($self.functions.$function)($($argument),*) }
    };
    ($self:ident . $function:ident ? ( $($argument:expr),* )) => {
        // SAFETY: as above.
        $self.functions.$function.map(|function| unsafe { function($($argument),*) })
    };
}

impl Runtime {
    /// Resolves the functions, or names what is missing.
    pub(crate) fn load(libraries: &Libraries) -> Result<Runtime, Vec<&'static str>> {
        Ok(Runtime { functions: Functions::load(libraries)? })
    }

    pub(crate) fn init(&self) -> Code {
        call!(self.init(null()))
    }

    pub(crate) fn device_count(&self) -> Result<u32, Code> {
        let mut count = 0;
        answer(call!(self.device_count(&mut count)), ()).map(|()| count)
    }

    pub(crate) fn set_device(&self, device: i32) -> Code {
        call!(self.set_device(device))
    }

    pub(crate) fn create_context(&self, device: i32) -> Result<Context, Code> {
        let mut context = null_mut();
        answer(call!(self.create_context(&mut context, device)), ()).map(|()| Context(context))
    }

    pub(crate) fn destroy_context(&self, context: Context) -> Code {
        call!(self.destroy_context(context.0))
    }

    pub(crate) fn enter(&self, context: Context) -> Code {
        call!(self.set_context(context.0))
    }

    pub(crate) fn create_stream(&self) -> Result<Stream, Code> {
        let mut stream = null_mut();
        answer(call!(self.create_stream(&mut stream)), ()).map(|()| Stream(stream))
    }

    /// After a task that failed the rest of the stream is not run; none where the runtime has no such switch.
    pub(crate) fn stop_on_failure(&self, stream: Stream) -> Option<Code> {
        call!(self.failure_mode?(stream.0, 1))
    }

    pub(crate) fn destroy_stream(&self, stream: Stream) -> Code {
        call!(self.destroy_stream(stream.0))
    }

    pub(crate) fn synchronize(&self, stream: Stream) -> Code {
        call!(self.synchronize_stream(stream.0))
    }

    /// Waits at most so many milliseconds; [`super::abi::STREAM_SYNC_TIMEOUT`] where that was not enough.
    pub(crate) fn synchronize_within(&self, stream: Stream, ms: i32) -> Code {
        call!(self.synchronize_timeout(stream.0, ms))
    }

    pub(crate) fn wait_for(&self, stream: Stream, event: Event) -> Code {
        call!(self.wait_event(stream.0, event.0))
    }

    /// An event that may be recorded again.
    pub(crate) fn create_event(&self) -> Result<Event, Code> {
        let mut event = null_mut();
        let code = match call!(self.create_event_ex?(&mut event, 1)) {
            Some(code) => code,
            None => call!(self.create_event(&mut event)),
        };
        answer(code, ()).map(|()| Event(event))
    }

    pub(crate) fn destroy_event(&self, event: Event) -> Code {
        call!(self.destroy_event(event.0))
    }

    pub(crate) fn record(&self, event: Event, stream: Stream) -> Code {
        call!(self.record_event(event.0, stream.0))
    }

    pub(crate) fn is_complete(&self, event: Event) -> Result<bool, Code> {
        let mut status = 0;
        answer(call!(self.event_status(event.0, &mut status)), ()).map(|()| status == 1)
    }

    /// Device memory; freed by [`Runtime::free`].
    pub(crate) fn malloc(&self, bytes: usize) -> Result<u64, Code> {
        let mut address = null_mut();
        answer(call!(self.malloc(&mut address, bytes, 0)), ()).map(|()| address as u64)
    }

    pub(crate) fn free(&self, address: u64) -> Code {
        call!(self.free(address as *mut c_void))
    }

    /// Zeroes device memory.
    pub(crate) fn zero(&self, address: u64, bytes: usize) -> Code {
        call!(self.memset(address as *mut c_void, bytes, 0, bytes))
    }

    /// Copies to the device and waits for it.
    pub(crate) fn upload(&self, address: u64, bytes: &[u8]) -> Code {
        call!(self.memcpy(
            address as *mut c_void,
            bytes.len(),
            bytes.as_ptr().cast(),
            bytes.len(),
            HOST_TO_DEVICE
        ))
    }

    /// Copies from the device and waits for it.
    pub(crate) fn download(&self, bytes: &mut [u8], address: u64) -> Code {
        let count = bytes.len();
        call!(self.memcpy(bytes.as_mut_ptr().cast(), count, address as *const c_void, count, DEVICE_TO_HOST))
    }

    /// Queues a copy from the device to pinned memory.
    pub(crate) fn download_later(&self, to: &Pinned, bytes: usize, address: u64, stream: Stream) -> Code {
        let bytes = bytes.min(to.bytes);
        call!(self.memcpy_async(
            to.address,
            to.bytes,
            address as *const c_void,
            bytes,
            DEVICE_TO_HOST,
            stream.0
        ))
    }

    pub(crate) fn pin(&self, bytes: usize) -> Result<Pinned, Code> {
        let mut address = null_mut();
        answer(call!(self.malloc_host(&mut address, bytes)), ()).map(|()| Pinned { address, bytes })
    }

    pub(crate) fn unpin(&self, pinned: Pinned) -> Code {
        call!(self.free_host(pinned.address))
    }

    /// Free and total bytes of the device's memory (of its HBM, or of what else it has).
    pub(crate) fn memory(&self) -> Option<(u64, u64)> {
        [1, 0].into_iter().find_map(|kind| {
            let (mut free, mut total) = (0usize, 0usize);
            let code = call!(self.memory_info(kind, &mut free, &mut total));
            (code == SUCCESS && total > 0).then_some((free as u64, total as u64))
        })
    }

    /// The vendor's text on the last failure; empty where there is none.
    pub(crate) fn message(&self) -> String {
        text(call!(self.recent_message())).unwrap_or_default()
    }

    /// The chip, as it calls itself.
    pub(crate) fn soc(&self) -> String {
        text(call!(self.soc_name())).unwrap_or_else(|| "unnamed chip".into())
    }

    /// The last asynchronous error that this thread saw, where the runtime tells.
    pub(crate) fn last_error(&self) -> Code {
        call!(self.peek_last?(0)).unwrap_or(SUCCESS)
    }

    /// Whether overflow gives infinities (IEEE) rather than the largest number: set before streams are made.
    pub(crate) fn set_ieee(&self, ieee: bool) -> Option<Code> {
        call!(self.saturation?(c_int::from(ieee)))
    }

    /// Algorithms whose results repeat.
    pub(crate) fn set_deterministic(&self, on: bool) -> Option<Code> {
        call!(self.system_option?(0, i64::from(on)))
    }

    /// Whether the chip and its CANN know IEEE infinities; none where it does not say.
    pub(crate) fn knows_ieee(&self) -> Option<bool> {
        let mut value = 0;
        (call!(self.attribute?(0, &mut value))? == SUCCESS).then_some(value == 1)
    }

    /// Vector and matrix units.
    pub(crate) fn cores(&self, device: u32) -> Option<i64> {
        let mut value = 0;
        (call!(self.capability?(device, 0, &mut value))? == SUCCESS).then_some(value)
    }

    /// Resets a device that refuses everything else; none where the runtime has no such call.
    pub(crate) fn reset_by_force(&self, device: i32) -> Option<Code> {
        call!(self.reset_force?(device))
    }

    /// Stops what is queued and repairs what memory errors the device tells; how many, where it can.
    pub(crate) fn stop_and_repair(&self, device: i32) -> Option<usize> {
        call!(self.abort?(device, 0))?;
        let none = BadMemory { address: null_mut(), bytes: 0, reserved: [0; 14] };
        let (mut found, mut count) = ([none; BAD_MEMORY_MAX], 0);
        let code = call!(self.bad_memory?(device, found.as_mut_ptr(), BAD_MEMORY_MAX, &mut count))?;
        let count = count.min(BAD_MEMORY_MAX);
        if code != SUCCESS || count == 0 {
            return Some(0);
        }
        let code = call!(self.repair_memory?(device, found.as_mut_ptr(), count))?;
        Some(if code == SUCCESS { count } else { 0 })
    }

    /// Versions of the runtime and of the package, where they are told.
    pub(crate) fn versions(&self) -> Vec<(String, String)> {
        let mut versions = Vec::new();
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        if call!(self.version?(&mut major, &mut minor, &mut patch)) == Some(SUCCESS) {
            versions.push(("acl".into(), format!("{major}.{minor}.{patch}")));
        }
        let mut package = PackageVersion { version: [0; 128], parts: [[0; 64]; 4], reserved: [0; 128] };
        if call!(self.package_version?(0, &mut package)) == Some(SUCCESS)
            && let Ok(text) = CStr::from_bytes_until_nul(&package.version)
        {
            versions.push(("cann".into(), text.to_string_lossy().into_owned()));
        }
        versions
    }
}

impl Pinned {
    /// Copies everything to memory of the host.
    pub(crate) fn copy_to(&self, to: HostRegion) {
        let bytes = self.bytes.min(to.bytes);
        // SAFETY: the copy from the device is done; `HostRegion::new` promises mapped memory that nobody else uses now.
        unsafe { std::ptr::copy_nonoverlapping(self.address.cast::<u8>(), to.address, bytes) }
    }
}

fn text(address: *const c_char) -> Option<String> {
    if address.is_null() {
        return None;
    }
    // SAFETY: CANN's strings end in NUL and are static or the thread's, valid until its next failing call.
    Some(unsafe { CStr::from_ptr(address) }.to_string_lossy().into_owned())
}
