//! Devices, contexts, streams, events, memory, executors.

use std::ffi::{CStr, CString, c_void};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::library::*;
use crate::{acl, launch, ok, plan, run};

#[test]
fn each_library_has_its_functions_and_no_other() {
    begin();
    let files = ["ascendcl", "nnopbase", "opapi"];
    let handles = files.map(|name| {
        let file = std::env::current_exe().unwrap().with_file_name(format!("lib{name}.so"));
        let file = CString::new(file.to_str().unwrap()).unwrap();
        // SAFETY: the library is ours.
        unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW) }
    });
    let mut count = 0;
    for library in files {
        for name in cann_emulator::entry::names(library) {
            for (file, handle) in files.iter().zip(handles) {
                let text = CString::new(name).unwrap();
                // SAFETY: the handle is valid.
                let found = unsafe { libc::dlsym(handle, text.as_ptr()) };
                assert_eq!(!found.is_null(), *file == library, "{name} in lib{file}.so");
            }
            count += 1;
        }
    }
    println!("{count} functions");
    assert!(count > 600);
}

#[test]
fn device_addresses_are_no_host_memory() {
    begin();
    let address = allocate(1 << 20);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let range = maps.lines().find(|line| {
        let (range, _) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(from)..number(to)).contains(&address)
    });
    assert!(range.unwrap().contains(" ---p "), "{range:?}");
    assert_eq!(get(address, 4), [0xFF; 4], "fresh memory is not cleared");
}

#[test]
fn copies_and_fills() {
    begin();
    let (a, b) = (allocate(64), allocate(64));
    let bytes: Vec<u8> = (0..64).collect();
    put(a, &bytes);
    ok!("aclrtMemcpyAsync", b, 64usize, a, 64usize, 3i32, 0usize);
    ok!("aclrtSynchronizeStream", 0usize);
    assert_eq!(get(b, 64), bytes);
    ok!("aclrtMemset", b + 8, 8usize, 7i32, 8usize);
    assert_eq!(get(b, 24)[6..18], [6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 16, 17]);
    // Two rows of 4 out of rows of 16.
    ok!("aclrtMemcpy2d", b, 8usize, a, 16usize, 4usize, 2usize, 3i32);
    assert_eq!(get(b, 12)[..4], [0, 1, 2, 3]);
    assert_eq!(get(b, 12)[8..], [16, 17, 18, 19]);
    assert_eq!(acl!("aclrtMemcpy", a, 4usize, bytes.as_ptr() as usize, 8usize, 1i32), 107000);
    assert!(message().contains("8 bytes do not fit"), "{}", message());
    assert_eq!(acl!("aclrtMemcpy", bytes.as_ptr() as usize, 8usize, a, 8usize, 0i32), 107000);
    assert!(message().contains("is a device address"), "{}", message());
}

#[test]
fn a_thread_has_no_device_until_it_sets_one() {
    begin();
    let outcome = std::thread::spawn(|| {
        let mut device = -1i32;
        let first = acl!("aclrtGetDevice", &mut device as *mut i32);
        let told = message();
        ok!("aclrtSetDevice", 1i32);
        ok!("aclrtGetDevice", &mut device as *mut i32);
        (first, told, device)
    });
    let (first, told, device) = outcome.join().unwrap();
    assert_eq!((first, device), (107002, 1));
    assert!(told.contains("aclrtSetDevice"), "{told}");
    let mut own = -1i32;
    ok!("aclrtGetDevice", &mut own as *mut i32);
    assert_eq!(own, 0);
}

static ORDER: AtomicU32 = AtomicU32::new(0);

extern "C" fn slow(argument: *mut c_void) {
    std::thread::sleep(std::time::Duration::from_millis(60));
    ORDER.fetch_max(argument as u32, Ordering::SeqCst);
}

extern "C" fn check(argument: *mut c_void) {
    // Whoever runs after the slow one finds its mark.
    ORDER.fetch_add(if ORDER.load(Ordering::SeqCst) == argument as u32 { 1 } else { 100 }, Ordering::SeqCst);
}

#[test]
fn streams_run_in_order_and_wait_for_events() {
    begin();
    let (mut one, mut other, mut event) = (0usize, 0usize, 0usize);
    ok!("aclrtCreateStream", &mut one as *mut usize);
    ok!("aclrtCreateStream", &mut other as *mut usize);
    ok!("aclrtCreateEventExWithFlag", &mut event as *mut usize, 8u32);
    // An event that was never recorded holds nobody up.
    ok!("aclrtStreamWaitEvent", other, event);
    ok!("aclrtSynchronizeStream", other);
    type Function = extern "C" fn(*mut c_void);
    ok!("aclrtLaunchHostFunc", one, slow as Function, 7usize as *mut c_void);
    ok!("aclrtRecordEvent", event, one);
    ok!("aclrtStreamWaitEvent", other, event);
    ok!("aclrtLaunchHostFunc", other, check as Function, 7usize as *mut c_void);
    let (mut old, mut new) = (-1i32, -1i32);
    ok!("aclrtQueryEvent", event, &mut old as *mut i32);
    ok!("aclrtQueryEventStatus", event, &mut new as *mut i32);
    assert_eq!((old, new), (1, 0), "not reached yet, told in opposite words");
    assert_eq!(acl!("aclrtSynchronizeStreamWithTimeout", other, 1i32), 507046);
    ok!("aclrtSynchronizeStream", other);
    assert_eq!(ORDER.load(Ordering::SeqCst), 8);
    ok!("aclrtQueryEvent", event, &mut old as *mut i32);
    ok!("aclrtQueryEventStatus", event, &mut new as *mut i32);
    assert_eq!((old, new), (0, 1));
    let mut second = 0usize;
    ok!("aclrtCreateEvent", &mut second as *mut usize);
    let mut ms = 0f32;
    assert_eq!(acl!("aclrtEventElapsedTime", &mut ms as *mut f32, event, second), 107006);
    ok!("aclrtRecordEvent", second, other);
    ok!("aclrtSynchronizeEvent", second);
    ok!("aclrtEventElapsedTime", &mut ms as *mut f32, event, second);
    assert!(ms > 0.0);
    assert_eq!(acl!("aclrtEventElapsedTime", &mut ms as *mut f32, second, event), 107007);
    ok!("aclrtDestroyStream", one);
    assert_eq!(acl!("aclrtSynchronizeStream", one), 107017);
    assert!(message().contains("destroyed"), "{}", message());
}

#[test]
fn a_stream_of_another_context_is_refused() {
    begin();
    let mut stream = 0usize;
    ok!("aclrtCreateStream", &mut stream as *mut usize);
    std::thread::spawn(move || {
        ok!("aclrtSetDevice", 2i32);
        assert_eq!(acl!("aclrtSynchronizeStream", stream), 107003);
    })
    .join()
    .unwrap();
}

#[test]
fn executors_own_their_arguments_and_are_used_once() {
    begin();
    let (x, _) = floats(&[3], &[1.0, 2.0, 3.0]);
    let (out, address) = room(&[3]);
    let factor = scalar(2.5);
    let (code, size, executor) = plan!("Muls", x, factor, out);
    assert_eq!(code, 0, "{}", message());
    for (name, handle) in [("aclDestroyTensor", x), ("aclDestroyTensor", out), ("aclDestroyScalar", factor)] {
        ok!(name, handle);
    }
    assert_eq!(second_phase("aclnnMuls", size, executor), 0, "{}", message());
    ok!("aclrtSynchronizeDevice");
    assert_eq!(read(address, 3), [2.5, 5.0, 7.5]);
    assert_eq!(second_phase("aclnnMuls", size, executor), 561103);
    assert!(message().contains("used up"), "{}", message());
    assert_eq!(acl!("aclnnMuls", 0usize, 0u64, 0usize, 0usize), 561103);
    // A destroyed tensor cannot be planned with.
    let (code, ..) = plan!("Muls", x, scalar(1.0), room(&[3]).0);
    assert_eq!(code, 161002);
    assert!(message().contains("was destroyed"), "{}", message());
}

#[test]
fn repeatable_executors_run_again_on_other_memory() {
    begin();
    let (x, from) = floats(&[2], &[1.0, 2.0]);
    let (out, to) = room(&[2]);
    let (code, size, executor) = plan!("Neg", x, out);
    assert_eq!(code, 0);
    assert_eq!(acl!("aclDestroyAclOpExecutor", executor), 561102);
    ok!("aclSetAclOpExecutorRepeatable", executor);
    for step in 0..3 {
        put(from, &(step as f32).to_ne_bytes());
        assert_eq!(second_phase("aclnnNeg", size, executor), 0, "{}", message());
        ok!("aclrtSynchronizeDevice");
        assert_eq!(read(to, 2), [-(step as f32), -2.0]);
    }
    let (other, elsewhere) = room(&[2]);
    ok!("aclSetOutputTensorAddr", executor, 0usize, other, elsewhere);
    assert_eq!(second_phase("aclnnNeg", size, executor), 0);
    ok!("aclrtSynchronizeDevice");
    assert_eq!(read(elsewhere, 2), [-2.0, -2.0]);
    ok!("aclDestroyAclOpExecutor", executor);
    assert_eq!(acl!("aclSetAclOpExecutorRepeatable", executor), 561103);
}

#[test]
fn a_list_takes_its_tensors_along() {
    begin();
    let (x, _) = floats(&[1], &[1.0]);
    let parts = list(&[x]);
    ok!("aclDestroyTensorList", parts);
    assert_eq!(acl!("aclDestroyTensor", x), 107017);
}

#[test]
fn casts_round_to_nearest_even() {
    begin();
    // 1 + 2^-8 lies between two numbers of bf16; 65520 rounds to infinity in f16.
    let values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -2.5, 65519.0, 65520.0, f32::NAN];
    let (x, _) = floats(&[6], &values);
    let (brain, half) = (dense(BF16, &[6], &[0; 12]), dense(F16, &[6], &[0; 12]));
    run!("Cast", x, BF16, brain.0);
    run!("Cast", x, F16, half.0);
    let words = |address| {
        get(address, 12).chunks(2).map(|b| u16::from_ne_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(words(brain.1)[..3], [0x3F80, 0x3F82, 0xC020]);
    assert_eq!(words(half.1)[2..5], [0xC100, 0x7BFF, 0x7C00]);
    let integers = dense(I32, &[6], &[0; 24]);
    run!("Cast", x, I32, integers.0);
    let back: Vec<i32> =
        get(integers.1, 12).chunks(4).map(|b| i32::from_ne_bytes(b.try_into().unwrap())).collect();
    assert_eq!(back, [1, 1, -2]);
}

#[test]
fn integers_wrap() {
    begin();
    let bytes = |values: &[i64]| values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
    let (x, _) = dense(I64, &[2], &bytes(&[i64::MAX, 3]));
    let (y, _) = dense(I64, &[2], &bytes(&[2, i64::MAX]));
    let (out, address) = dense(I64, &[2], &bytes(&[0, 0]));
    run!("Mul", x, y, out);
    assert_eq!(read_i64(address, 2), [-2, i64::MAX - 2]);
    let (total, sum) = dense(I64, &[], &bytes(&[0]));
    run!("ReduceSum", y, ints(&[]), 0u8, I64, total);
    assert_eq!(read_i64(sum, 1), [i64::MIN + 1]);
}

#[test]
fn saturation_is_a_mode_of_the_device() {
    begin_on(3);
    let (x, _) = floats(&[2], &[12.0, f32::NAN]);
    let (out, address) = dense(F16, &[2], &[0; 4]);
    let words =
        || get(address, 4).chunks(2).map(|b| u16::from_ne_bytes(b.try_into().unwrap())).collect::<Vec<_>>();
    run!("Exp", x, out);
    assert_eq!(words()[0], 0x7C00);
    ok!("aclrtSetDeviceSatMode", 0i32);
    run!("Exp", x, out);
    assert_eq!(words(), [0x7BFF, 0]);
}

#[test]
fn the_device_says_what_it_is() {
    begin();
    // SAFETY: CANN's prototypes: both answer with a C string.
    let text = |name| unsafe {
        let function: unsafe extern "C" fn() -> *const std::ffi::c_char = std::mem::transmute(symbol(name));
        CStr::from_ptr(function()).to_str().unwrap().to_string()
    };
    assert_eq!(text("aclrtGetSocName"), "Ascend910B3");
    assert!(text("cannEmulatorVersion").starts_with("cann-emulator "));
    let (mut free, mut total) = (0usize, 0usize);
    ok!("aclrtGetMemInfo", 1i32, &mut free as *mut usize, &mut total as *mut usize);
    assert!(free <= total && total > 0);
    let mut huge = 0usize;
    assert_eq!(acl!("aclrtMalloc", &mut huge as *mut usize, total + 1, 0i32), 207001);
    assert!(message().contains("Failed to allocate"), "{}", message());
    let mut count = 0u32;
    ok!("aclrtGetDeviceCount", &mut count as *mut u32);
    assert_eq!(acl!("aclrtSetDevice", count as i32), 107001);
}

#[test]
fn what_is_absent_refuses_by_name() {
    begin();
    let (x, _) = floats(&[2], &[1.0, 2.0]);
    let code = launch!("StridedSlice", x, 0usize, 0usize, 0usize, 0i64, 0i64, 0i64, 0i64, 0i64, x);
    assert_eq!(code, 561003);
    assert!(message().contains("aclnnStridedSlice is not implemented"), "{}", message());
    let mut count = 0usize;
    assert_eq!(acl!("aclrtGetMemUsageInfo", 0u32, 0usize, 0usize, &mut count as *mut usize), 207000);
    assert!(message().contains("aclrtGetMemUsageInfo is not implemented"), "{}", message());
}

/// ggml-cann resets its device first and destroys its streams then.
#[test]
fn a_stream_may_be_destroyed_after_its_device_was_reset() {
    begin_on(11);
    let mut stream = 0usize;
    ok!("aclrtCreateStream", &mut stream as *mut usize);
    ok!("aclrtResetDevice", 11i32);
    begin_on(11);
    assert_eq!(acl!("aclrtSynchronizeStream", stream), 107017, "it is of no other use");
    ok!("aclrtDestroyStream", stream);
    assert_eq!(acl!("aclrtDestroyStream", stream), 107017);
}

#[test]
fn a_message_outlives_the_next_failures() {
    begin();
    // SAFETY: CANN's prototype: answers with a C string.
    let text = || unsafe {
        let function: unsafe extern "C" fn() -> *const std::ffi::c_char =
            std::mem::transmute(symbol("aclGetRecentErrMsg"));
        CStr::from_ptr(function())
    };
    assert_eq!(acl!("aclrtDestroyStream", 1usize), 107017);
    let first = text();
    assert_eq!(acl!("aclrtDestroyEvent", 1usize), 107017);
    assert!(first.to_str().unwrap().starts_with("aclrtDestroyStream"), "{first:?}");
    assert!(text().to_str().unwrap().starts_with("aclrtDestroyEvent"));
}
