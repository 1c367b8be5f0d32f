//! Wrong calls and wrong addresses: named with operator and tensor, never a crash.

use crate::library::*;
use crate::{acl, launch, ok, plan};

#[test]
fn wrong_arguments_are_refused_at_once() {
    begin();
    let ((x, _), (y, _), (out, _)) = (floats(&[2, 3], &[0.0; 6]), floats(&[4], &[0.0; 4]), room(&[2, 3]));
    let one = scalar(1.0);
    let refused = |code: i32, number: i32, text: &str| {
        assert_eq!(code, number, "{}", message());
        assert!(message().contains(text), "{}", message());
    };
    refused(
        plan!("Add", x, 0usize, one, out).0,
        161001,
        "aclnnAddGetWorkspaceSize: 161001 (ACLNN_PARAM_NULLPTR): other is null",
    );
    refused(plan!("Add", x, y, one, out).0, 161002, "other (float32 [4]");
    refused(plan!("Add", x, x, one, y).0, 161002, "out (float32 [4]");
    refused(plan!("Add", x, x, 12345usize, out).0, 161002, "is no aclScalar");
    refused(plan!("Softmax", x, 5i64, out).0, 161002, "has no dimension 5");
    refused(plan!("Cast", x, F16, out).0, 161002, "must be of the type float16");
    refused(plan!("Matmul", x, x, out, 0i8).0, 161002, "its inner dimension must be 3");
    refused(plan!("Permute", x, ints(&[0, 0]), out).0, 161002, "is no order of its dimensions");
    let mut size = 0u64;
    refused(
        acl!("aclnnNegGetWorkspaceSize", x, out, &mut size as *mut u64, 0usize),
        161001,
        "executor is null",
    );
    // An executor belongs to its operator, a workspace has the size that was asked for.
    let (code, _, executor) = plan!("Neg", x, out);
    assert_eq!(code, 0);
    refused(
        acl!("aclnnAbs", 0usize, 0u64, executor, 0usize),
        561103,
        "was planned by aclnnNegGetWorkspaceSize",
    );
    let (code, size, executor) = plan!("Softmax", x, -1i64, out);
    assert!(code == 0 && size > 1);
    refused(acl!("aclnnSoftmax", allocate(1), 1u64, executor, 0usize), 161002, "were asked for");
    assert_eq!(tensor(F32, &[1; 9], None, 0, 0), 0);
    assert!(message().contains("at most 8"), "{}", message());
    assert_eq!(tensor(13, &[1], None, 0, 0), 0);
    assert!(message().contains("data type 13"), "{}", message());
    assert_eq!(acl!("aclrtFree", 0usize), 107000);
    assert_eq!(acl!("aclDestroyTensor", 0usize), 107017);
}

/// Launches what must fail on its stream; the text of the failure. The device is lost until a forced reset.
fn fails(device: i32, launch: impl FnOnce() -> i32) -> String {
    assert_eq!(launch(), 0, "a wrong address is found when the task runs, not before: {}", message());
    assert_eq!(acl!("aclrtSynchronizeDevice"), 507035);
    let told = message();
    let mut address = 0usize;
    assert_eq!(acl!("aclrtMalloc", &mut address as *mut usize, 64usize, 0i32), 507899, "the device is lost");
    assert_eq!(acl!("aclrtResetDevice", device), 507035, "a plain reset does not help");
    assert_eq!(acl!("aclrtSetDevice", device), 507035);
    ok!("aclrtResetDeviceForce", device);
    ok!("aclrtSetDevice", device);
    told
}

#[test]
fn wrong_addresses_are_named_with_operator_and_tensor() {
    begin_on(4);
    let one = scalar(1.0);
    let contains = |text: &str, parts: &[&str]| {
        for part in parts {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    };
    // An overrun by 8 bytes.
    let told = fails(4, || {
        let (x, address) = floats(&[6], &[0.0; 6]);
        let long = tensor(F32, &[8], None, 0, address);
        launch!("Add", long, x_of(8), one, room(&[8]).0).max(i32::from(x == 0))
    });
    contains(&told, &["aclnnAdd", "self (float32 [8]", "reach 8 bytes past the 24 bytes"]);
    // A stride that leaves the allocation, in the result.
    let told = fails(4, || {
        let address = allocate(32);
        launch!("Neg", x_of(8), tensor(F32, &[8], Some(&[2]), 0, address))
    });
    contains(&told, &["aclnnNeg", "out (float32 [8], strides [2]", "past the 32 bytes"]);
    // Freed before the task ran.
    let told = fails(4, || {
        let (x, address) = floats(&[4], &[0.0; 4]);
        ok!("aclrtFree", address);
        launch!("Exp", x, room(&[4]).0)
    });
    contains(&told, &["aclnnExp", "self", "which were freed"]);
    // A host address.
    let host = [0.0f32; 4];
    let told = fails(4, || launch!("Abs", tensor(F32, &[4], None, 0, host.as_ptr() as usize), room(&[4]).0));
    contains(&told, &["aclnnAbs", "self", "is a host address"]);
    // A workspace that was freed.
    let told = fails(4, || {
        let (code, size, executor) = plan!("Softmax", x_of(4), -1i64, room(&[4]).0);
        assert_eq!(code, 0);
        let workspace = allocate(size as usize);
        ok!("aclrtFree", workspace);
        acl!("aclnnSoftmax", workspace, size, executor, 0usize)
    });
    contains(&told, &["aclnnSoftmax", "workspace", "which were freed"]);
    // Memory of another device.
    let told = fails(4, || {
        ok!("aclrtSetDevice", 5i32);
        let x = x_of(4);
        ok!("aclrtSetDevice", 4i32);
        launch!("Sin", x, room(&[4]).0)
    });
    contains(&told, &["aclnnSin", "self", "lies on device 5, the operator runs on 4"]);
    // An index outside, and a copy out of bounds.
    let told = fails(4, || {
        let (index, _) = dense(I64, &[1], &9i64.to_ne_bytes());
        launch!("IndexSelect", x_of(4), 0i64, index, room(&[1]).0)
    });
    contains(&told, &["aclnnIndexSelect", "index[0] is 9, outside 0..4"]);
    let told =
        fails(4, || acl!("aclrtMemcpyAsync", allocate(16), 64usize, allocate(64), 64usize, 3i32, 0usize));
    contains(&told, &["aclrtMemcpyAsync", "dst", "reach 48 bytes past the 16 bytes"]);
}

fn x_of(count: usize) -> usize {
    floats(&[count as i64], &vec![0.5; count]).0
}

#[test]
fn an_aborted_stream_takes_nothing_more() {
    begin_on(6);
    let mut stream = 0usize;
    ok!("aclrtCreateStream", &mut stream as *mut usize);
    ok!("aclrtSetStreamFailureMode", stream, 1u64);
    assert_eq!(acl!("aclrtSetStreamFailureMode", stream, 2u64), 107000);
    ok!("aclrtStreamAbort", stream);
    assert_eq!(acl!("aclrtRecordEvent", 0usize, stream), 107017);
    let code = acl!("aclrtMemsetAsync", allocate(8), 8usize, 0i32, 8usize, stream);
    assert_eq!(code, 107023, "{}", message());
}

#[test]
fn an_aborted_device_refuses_until_it_is_reset() {
    begin_on(7);
    let address = allocate(16);
    ok!("aclrtDeviceTaskAbort", 7i32, 0u32);
    assert_eq!(acl!("aclrtMemset", address, 16usize, 0i32, 16usize), 107022);
    let (mut bad, mut count) = ([0u8; 256], 9usize);
    ok!("aclrtGetMemUceInfo", 7i32, bad.as_mut_ptr() as usize, 2usize, &mut count as *mut usize);
    assert_eq!(count, 0);
    ok!("aclrtResetDevice", 7i32);
    ok!("aclrtSetDevice", 7i32);
    ok!("aclrtMemset", address, 16usize, 0i32, 16usize);
}
