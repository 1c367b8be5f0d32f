//! Reserved addresses and physical memory mapped there.

use crate::library::*;
use crate::{acl, launch, ok, run};

const PIECE: usize = 1 << 21;

/// `aclrtPhysicalMemProp` of memory on a device.
#[repr(C)]
struct Wanted {
    handle_type: i32,
    allocation_type: i32,
    attribute: i32,
    device: u32,
    location: i32,
    reserve: u64,
}

fn wanted(device: u32) -> Wanted {
    Wanted { handle_type: 0, allocation_type: 0, attribute: 4, device, location: 1, reserve: 0 }
}

fn physical(device: u32, size: usize) -> usize {
    let (mut handle, wanted) = (0usize, wanted(device));
    ok!("aclrtMallocPhysical", &mut handle as *mut usize, size, &wanted as *const Wanted, 0u64);
    handle
}

fn reserve(size: usize) -> usize {
    let mut address = 0usize;
    ok!("aclrtReserveMemAddress", &mut address as *mut usize, size, 0usize, 0usize, 1u64);
    address
}

#[test]
fn pieces_side_by_side_are_one_memory() {
    begin_on(12);
    let (mut size, asked) = (0usize, wanted(12));
    ok!("aclrtMemGetAllocationGranularity", &asked as *const Wanted, 1i32, &mut size as *mut usize);
    assert_eq!(size, PIECE);
    let range = reserve(4 * PIECE);
    let (first, second) = (physical(12, PIECE), physical(12, PIECE));
    ok!("aclrtMapMem", range, PIECE, 0usize, first, 0u64);
    ok!("aclrtMapMem", range + PIECE, PIECE, 0usize, second, 0u64);
    assert_eq!(get(range, 4), [0xFF; 4], "fresh memory is not cleared");
    // A tensor of 4 elements across the border.
    let across = range + PIECE - 8;
    put(across, &[1f32, 2.0, 3.0, 4.0].map(f32::to_ne_bytes).concat());
    let x = tensor(F32, &[4], None, 0, across);
    run!("Neg", x, x);
    assert_eq!(read(across, 4), [-1.0, -2.0, -3.0, -4.0]);
    // Past what is mapped nothing may be touched, although it is reserved.
    let past = tensor(F32, &[4], None, 0, range + 2 * PIECE - 8);
    assert_eq!(launch!("Neg", x, past), 0);
    assert_eq!(acl!("aclrtSynchronizeDevice"), 507035);
    assert!(message().contains("reach 8 bytes past"), "{}", message());
    ok!("aclrtResetDeviceForce", 12i32);
}

#[test]
fn content_moves_with_its_piece() {
    begin_on(13);
    let range = reserve(2 * PIECE);
    let piece = physical(13, PIECE);
    ok!("aclrtMapMem", range, PIECE, 0usize, piece, 0u64);
    put(range + 64, b"kept");
    ok!("aclrtUnmapMem", range);
    ok!("aclrtMapMem", range + PIECE, PIECE, 0usize, piece, 0u64);
    assert_eq!(get(range + PIECE + 64, 4), b"kept");
    // A piece that is mapped lives on without its handle.
    ok!("aclrtFreePhysical", piece);
    assert_eq!(get(range + PIECE + 64, 4), b"kept");
    assert_eq!(acl!("aclrtReleaseMemAddress", range), 107000);
    assert!(message().contains("aclrtUnmapMem comes first"), "{}", message());
    assert_eq!(acl!("aclrtFree", range + PIECE), 107000);
    assert!(message().contains("was mapped there"), "{}", message());
    ok!("aclrtUnmapMem", range + PIECE);
    ok!("aclrtReleaseMemAddress", range);
    let (mut bytes, gone) = ([0u8; 4], range + PIECE + 64);
    assert_eq!(acl!("aclrtMemcpy", bytes.as_mut_ptr() as usize, 4usize, gone, 4usize, 2i32), 507035);
    assert!(message().contains("which were freed"), "{}", message());
}

#[test]
fn wrong_mappings_are_refused() {
    begin_on(14);
    let range = reserve(2 * PIECE);
    let (piece, other) = (physical(14, PIECE), physical(14, PIECE));
    let refused = |code: i32, text: &str| {
        assert_eq!(code, 107000, "{}", message());
        assert!(message().contains(text), "{}", message());
    };
    refused(acl!("aclrtMapMem", range + 4096, PIECE, 0usize, piece, 0u64), "must be a multiple");
    refused(acl!("aclrtMapMem", range, PIECE / 2, 0usize, piece, 0u64), "must be a multiple");
    refused(acl!("aclrtMapMem", range, 2 * PIECE, 0usize, piece, 0u64), "of a piece of");
    refused(acl!("aclrtMapMem", range + 2 * PIECE, PIECE, 0usize, piece, 0u64), "in no reserved range");
    refused(acl!("aclrtMapMem", range, PIECE, 64usize, piece, 0u64), "offset is 64");
    ok!("aclrtMapMem", range, PIECE, 0usize, piece, 0u64);
    refused(acl!("aclrtMapMem", range, PIECE, 0usize, other, 0u64), "is mapped at");
    refused(acl!("aclrtUnmapMem", range + PIECE), "nothing was mapped");
    assert_eq!(acl!("aclrtMapMem", range + PIECE, PIECE, 0usize, 4711usize, 0u64), 107017);
    let (mut handle, host) = (0usize, Wanted { location: 0, ..wanted(14) });
    let asked = &host as *const Wanted;
    refused(acl!("aclrtMallocPhysical", &mut handle as *mut usize, PIECE, asked, 0u64), "location 0");
    let (mut free, mut total) = (0usize, 0usize);
    ok!("aclrtGetMemInfo", 1i32, &mut free as *mut usize, &mut total as *mut usize);
    assert_eq!(total - free, 2 * PIECE, "physical memory counts, reserved addresses do not");
    // A forced reset ends mappings as it ends allocations.
    ok!("aclrtResetDeviceForce", 14i32);
    ok!("aclrtReleaseMemAddress", range);
}
