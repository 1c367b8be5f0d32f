//! The three libraries, opened once, and the few calls that every test needs.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::OnceLock;

pub const F32: i32 = 0;
pub const F16: i32 = 1;
pub const I32: i32 = 3;
pub const I64: i32 = 9;
pub const BOOL: i32 = 12;
pub const BF16: i32 = 27;

/// Bytes of an element.
pub fn size_of(dtype: i32) -> usize {
    match dtype {
        F16 | BF16 => 2,
        I64 => 8,
        BOOL => 1,
        _ => 4,
    }
}

fn open(name: &str) -> usize {
    let folder = std::env::current_exe().unwrap();
    let file = CString::new(folder.with_file_name(name).to_str().unwrap()).unwrap();
    // SAFETY: the library is ours.
    let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    // SAFETY: dlerror gives a C string after a failure.
    assert!(!handle.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
    handle as usize
}

/// The address of a function, from the library in which CANN has it.
pub fn symbol(name: &str) -> *mut c_void {
    static HANDLES: OnceLock<[usize; 3]> = OnceLock::new();
    let handles = HANDLES.get_or_init(|| {
        if std::env::var_os("CANN_EMULATOR_DEVICES").is_none() {
            // SAFETY: before the libraries are opened nothing in this process reads the environment.
            unsafe { std::env::set_var("CANN_EMULATOR_DEVICES", "16") };
        }
        ["libascendcl.so", "libnnopbase.so", "libopapi.so"].map(open)
    });
    let library = match name {
        _ if name.starts_with("aclnn") && !["aclnnInit", "aclnnFinalize"].contains(&name) => 2,
        _ if name.starts_with("aclCreate")
            || name.starts_with("aclDestroy")
            || name.starts_with("aclSet") =>
        {
            1
        }
        _ if name.starts_with("aclnn") => 1,
        _ => 0,
    };
    let text = CString::new(name).unwrap();
    // SAFETY: the handle is of a library that stays open.
    let found = unsafe { libc::dlsym(handles[library] as *mut c_void, text.as_ptr()) };
    assert!(!found.is_null(), "{name} is missing");
    found
}

/// Calls a C function that answers with an i32; its argument types are those of the arguments.
#[macro_export]
macro_rules! acl {
    (@any $argument:expr) => { _ };
    ($name:expr $(, $argument:expr)* $(,)?) => {{
        let symbol = $crate::library::symbol($name);
        // SAFETY: the arguments have the types of CANN's prototype.
        #[allow(clippy::macro_metavars_in_unsafe, reason = "a call of this macro is a C call, types and all")]
        unsafe {
            let function: unsafe extern "C" fn($($crate::acl!(@any $argument)),*) -> i32 = std::mem::transmute(symbol);
            function($($argument),*)
        }
    }};
}

/// As `acl`, and fails the test where the answer is not 0.
#[macro_export]
macro_rules! ok {
    ($name:expr $(, $argument:expr)* $(,)?) => {{
        let code = $crate::acl!($name $(, $argument)*);
        assert_eq!(code, 0, "{}: {}", $name, $crate::library::message());
    }};
}

/// The first phase of an operator: its code, workspace size and executor.
#[macro_export]
macro_rules! plan {
    ($name:literal $(, $argument:expr)* $(,)?) => {{
        let (mut size, mut executor) = (0u64, 0usize);
        let code = $crate::acl!(
            concat!("aclnn", $name, "GetWorkspaceSize") $(, $argument)*, &mut size as *mut u64, &mut executor as *mut usize
        );
        (code, size, executor)
    }};
}

/// Both phases on the default stream, without waiting; the code of the first that failed.
#[macro_export]
macro_rules! launch {
    ($name:literal $(, $argument:expr)* $(,)?) => {{
        let (code, size, executor) = $crate::plan!($name $(, $argument)*);
        if code != 0 {
            code
        } else {
            $crate::library::second_phase(concat!("aclnn", $name), size, executor)
        }
    }};
}

/// Both phases, and waits; fails the test where anything failed.
#[macro_export]
macro_rules! run {
    ($name:literal $(, $argument:expr)* $(,)?) => {{
        let code = $crate::launch!($name $(, $argument)*);
        assert_eq!(code, 0, "{}: {}", $name, $crate::library::message());
        $crate::ok!("aclrtSynchronizeDevice");
    }};
}

/// What this thread was told last.
pub fn message() -> String {
    // SAFETY: the function has this signature and answers with a C string.
    unsafe {
        let function: unsafe extern "C" fn() -> *const c_char =
            std::mem::transmute(symbol("aclGetRecentErrMsg"));
        CStr::from_ptr(function()).to_string_lossy().into_owned()
    }
}

/// Launches an executor, with a workspace of exactly the size that was asked for.
pub fn second_phase(name: &str, size: u64, executor: usize) -> i32 {
    let workspace = if size > 0 { allocate(size as usize) } else { 0 };
    acl!(name, workspace, size, executor, 0usize)
}

/// Sets device 0 on this thread.
pub fn begin() {
    begin_on(0);
}

/// Sets a device on this thread: tests that lose theirs have one of their own.
pub fn begin_on(device: i32) {
    acl!("aclInit", std::ptr::null::<c_char>());
    ok!("aclrtSetDevice", device);
}

/// Runs an ignored test of this file in a process of its own, with defects; what it printed.
pub fn child(test: &str, case: &str, defects: &str) -> (bool, String) {
    child_with(test, case, &[("CANN_EMULATOR_DEFECTS", defects)])
}

/// The same with any settings.
pub fn child_with(test: &str, case: &str, settings: &[(&str, &str)]) -> (bool, String) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env("CANN_CHILD", case)
        .env("CANN_EMULATOR_DEVICES", "2")
        .env_remove("CANN_EMULATOR_DEFECTS")
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// Device memory.
pub fn allocate(bytes: usize) -> usize {
    let mut address = 0usize;
    ok!("aclrtMalloc", &mut address as *mut usize, bytes, 0i32);
    address
}

/// Copies to the device.
pub fn put(address: usize, bytes: &[u8]) {
    ok!("aclrtMemcpy", address, bytes.len(), bytes.as_ptr() as usize, bytes.len(), 1i32);
}

/// Copies from the device.
pub fn get(address: usize, count: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; count];
    ok!("aclrtMemcpy", bytes.as_mut_ptr() as usize, count, address, count, 2i32);
    bytes
}

/// An aclTensor over device memory.
pub fn tensor(dtype: i32, shape: &[i64], strides: Option<&[i64]>, offset: i64, address: usize) -> usize {
    type Create =
        unsafe extern "C" fn(*const i64, u64, i32, *const i64, i64, i32, *const i64, u64, usize) -> usize;
    let storage = [shape.iter().product::<i64>()];
    let strides = strides.map_or(std::ptr::null(), <[i64]>::as_ptr);
    // SAFETY: CANN's prototype.
    unsafe {
        let create: Create = std::mem::transmute(symbol("aclCreateTensor"));
        create(shape.as_ptr(), shape.len() as u64, dtype, strides, offset, 2, storage.as_ptr(), 1, address)
    }
}

/// A dense f32 tensor with values; its handle and address.
pub fn floats(shape: &[i64], values: &[f32]) -> (usize, usize) {
    let address = allocate((values.len() * 4).max(4));
    put(address, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>());
    (tensor(F32, shape, None, 0, address), address)
}

/// A dense tensor of another type from its bytes.
pub fn dense(dtype: i32, shape: &[i64], bytes: &[u8]) -> (usize, usize) {
    let address = allocate(bytes.len().max(4));
    put(address, bytes);
    (tensor(dtype, shape, None, 0, address), address)
}

/// A dense f32 tensor to write to.
pub fn room(shape: &[i64]) -> (usize, usize) {
    let address = allocate((shape.iter().product::<i64>() as usize * 4).max(4));
    (tensor(F32, shape, None, 0, address), address)
}

/// f32 values at an address.
pub fn read(address: usize, count: usize) -> Vec<f32> {
    get(address, count * 4).chunks(4).map(|bytes| f32::from_ne_bytes(bytes.try_into().unwrap())).collect()
}

/// i64 values at an address.
pub fn read_i64(address: usize, count: usize) -> Vec<i64> {
    get(address, count * 8).chunks(8).map(|bytes| i64::from_ne_bytes(bytes.try_into().unwrap())).collect()
}

fn create<T>(name: &str, values: *const T, second: u64) -> usize {
    // SAFETY: CANN's prototypes of aclCreate…(value, size).
    unsafe {
        let function: unsafe extern "C" fn(*const T, u64) -> usize = std::mem::transmute(symbol(name));
        function(values, second)
    }
}

/// An aclScalar of f32.
pub fn scalar(value: f32) -> usize {
    // SAFETY: CANN's prototype; the type is an i32.
    unsafe {
        let function: unsafe extern "C" fn(*const f32, i32) -> usize =
            std::mem::transmute(symbol("aclCreateScalar"));
        function(&value, F32)
    }
}

/// An aclIntArray.
pub fn ints(values: &[i64]) -> usize {
    create("aclCreateIntArray", values.as_ptr(), values.len() as u64)
}

/// An aclBoolArray.
pub fn bools(values: &[bool]) -> usize {
    create("aclCreateBoolArray", values.as_ptr(), values.len() as u64)
}

/// An aclTensorList.
pub fn list(tensors: &[usize]) -> usize {
    create("aclCreateTensorList", tensors.as_ptr(), tensors.len() as u64)
}
