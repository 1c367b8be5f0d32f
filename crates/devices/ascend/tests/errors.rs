//! Errors of the vendor's runtime, as the emulator gives them: each in a process of its own, since settings are the process's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use toprope_ascend::{AscendDevice, Options};
use toprope_program::{
    Allocation, Device, Fault, FaultKind, HostRegion, Progress, Range, Session, StateLayout, Ticket, Width,
    text, validate,
};

const VARIANTS: &str = "TOPROPE_TEST_VARIANTS";
/// Runs before those that are told: after eight the device no longer waits for each operator.
const BEFORE: &str = "TOPROPE_TEST_BEFORE";

/// A product, a sum, a product: what can fail.
const PROGRAM: &str = "program \"three\" evaluate\ninput %a: f32[64, 64]\noutput %d: f32[64, 64]\naccumulate {\n  \
     %b: f32[64, 64] = matmul(%a, %a) {\"output\":\"f32\"}\n  \
     %c: f32[64, 64] = add(%b, %a) {\"output\":\"f32\"}\n  \
     %d = matmul(%c, %a) {\"output\":\"f32\"}\n}\n";

fn session(device: &mut AscendDevice) -> Result<Session, Fault> {
    let program = Arc::new(validate(text::parse(PROGRAM).unwrap()).unwrap());
    let session = Session::open(device, program, Width::Native, StateLayout::Double)?;
    session.write_f32(device, "a", &[0.01; 64 * 64])?;
    Ok(session)
}

/// Queues a copy of a run's memory to the host behind it.
fn copied(device: &mut AscendDevice, session: &Session, after: Ticket) -> Result<Ticket, Fault> {
    let bytes = session.plan().work_bytes;
    let host = vec![0u64; bytes.div_ceil(8)].leak();
    // SAFETY: the memory is never given back, and nobody else has it.
    let to = unsafe { HostRegion::new(host.as_mut_ptr().cast(), bytes) };
    device.copy_out(session.bindings().work, 0, to, after)
}

/// Runs three times on one device and prints what came; the body of the processes that the tests start.
#[test]
fn child() {
    let Some(variants) = std::env::var_os(VARIANTS) else { return };
    let mut device = support::ascend(&variants.to_string_lossy());
    let session = match session(&mut device) {
        Ok(session) => session,
        Err(fault) => return println!("open: {fault}"),
    };
    let before = std::env::var(BEFORE).unwrap().parse().unwrap();
    for _ in 0..before {
        session.run(&mut device, Range::Accumulate).unwrap();
    }
    for turn in ["first", "second", "third"] {
        let queued = session.queue(&mut device, Range::Accumulate);
        let copy = queued.as_ref().ok().map(|ticket| copied(&mut device, &session, *ticket));
        // A hang is met by the caller's deadline, never by the device's own patience.
        let waited = queued.and_then(|ticket| device.wait(ticket, Duration::from_millis(500)));
        match waited {
            Ok(Progress::Done) => println!("{turn}: done"),
            Ok(Progress::Running { instruction }) => {
                println!("{turn}: running at {instruction:?}");
                // What hangs cannot be waited for, nor given back.
                std::process::exit(0);
            }
            Err(fault) => println!("{turn}: {fault}"),
        }
        match copy {
            Some(Ok(ticket)) => match device.wait(ticket, Duration::from_millis(500)) {
                Ok(progress) => println!("{turn} copy: {progress:?}"),
                Err(fault) => println!("{turn} copy: {fault}"),
            },
            Some(Err(fault)) => println!("{turn} copy: {fault}"),
            None => {}
        }
    }
    match device.allocate(Allocation::Own(64)) {
        Ok(_) => println!("allocate: done"),
        Err(fault) => println!("allocate: {fault}"),
    }
}

/// What the child prints under these defects.
fn under(defects: &str, variants: &str, before: u32) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("CANN_EMULATOR_DEFECTS", defects)
        .env("CANN_EMULATOR_MEMORY", "100000000")
        .env(VARIANTS, variants)
        .env(BEFORE, before.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    println!("{defects} {variants}\n{text}");
    text
}

fn line<'a>(text: &'a str, what: &str) -> &'a str {
    let start = format!("{what}: ");
    text.lines().find(|line| line.contains(&start)).unwrap_or_else(|| panic!("no line {what} in {text}"))
}

#[test]
fn an_error_that_sticks_ends_the_device() {
    let text = under("runtime.vector_core_exception@op=Add,call=9", "", 8);
    let first = line(&text, "first");
    assert!(first.contains("507035 VECTOR_CORE_EXCEPTION"), "{first}");
    assert!(first.contains("reset the device or start a new process"), "{first}");
    assert!(first.contains("+launch=sync names the true one"), "{first}");
    // The same fault for whatever comes after.
    assert!(line(&text, "third").contains("507035") && line(&text, "allocate").contains("507035"), "{text}");
}

#[test]
fn waiting_for_each_operator_names_the_true_one() {
    // By name, and in a device's first runs: those of a worker that was started anew.
    for (variants, call, before) in [("+launch=sync", 9, 8), ("", 1, 0)] {
        let defects = format!("runtime.vector_core_exception@op=Add,call={call},delay=1");
        let text = under(&defects, variants, before);
        assert!(line(&text, "first").contains("accumulate 1 `add`"), "{text}");
    }
}

#[test]
fn a_device_that_is_gone_is_lost() {
    let text = under("runtime.lost_heartbeat@op=Matmul,call=2", "", 0);
    let first = line(&text, "first");
    assert!(first.contains("lost: ACL_ERROR 507010 LOST_HEARTBEAT"), "{first}");
    assert!(first.contains("replace the device"), "{first}");
}

#[test]
fn an_error_that_passes_leaves_a_device_that_goes_on() {
    let text = under("runtime.wait_timeout@op=Matmul,times=1,sticky=no", "", 0);
    assert!(line(&text, "first").contains("107019 WAIT_TIMEOUT"), "{text}");
    assert!(line(&text, "second").ends_with("second: done"), "{text}");
}

#[test]
fn a_copy_behind_what_failed_is_not_called_done() {
    let text = under("runtime.wait_timeout@op=Matmul,call=17,sticky=no", "", 8);
    assert!(line(&text, "first").contains("107019 WAIT_TIMEOUT"), "{text}");
    assert!(line(&text, "first copy").contains("107019 WAIT_TIMEOUT"), "{text}");
    assert!(line(&text, "second copy").ends_with("Done"), "{text}");
}

#[test]
fn a_hang_is_a_deadline_that_passed() {
    for (call, before) in [(2, 0), (18, 8)] {
        let text = under(&format!("runtime.hang@op=Matmul,call={call}"), "", before);
        assert!(line(&text, "first").contains("running at Some(2)"), "{text}");
    }
}

#[test]
fn bad_memory_is_repaired_and_the_worker_is_not_used_again() {
    let text = under("runtime.device_mem_error@op=Add,call=9", "", 8);
    let first = line(&text, "first");
    assert!(first.contains("507053 DEVICE_MEM_ERROR"), "{first}");
    assert!(first.contains("1 memory error(s) repaired"), "{first}");
    assert!(line(&text, "allocate").contains("507053"), "{text}");
}

#[test]
fn memory_that_does_not_suffice_is_told_in_bytes() {
    let mut device = support::ascend("");
    let fault = device.allocate(Allocation::Own(1 << 50)).unwrap_err();
    let needed = |kind: &FaultKind| match kind {
        FaultKind::OutOfMemory { needed_bytes, .. } => *needed_bytes,
        _ => 0,
    };
    assert_eq!(needed(&fault.kind), 1 << 50, "{fault}");
    // The device is none the worse for it.
    let session = session(&mut device).unwrap();
    session.run(&mut device, Range::Accumulate).unwrap();
    assert!(session.read_f32(&mut device, "d").unwrap().iter().all(|x| x.is_finite()));
}

#[test]
fn a_device_that_is_not_there_is_told_how_many_are() {
    let name = support::name("");
    let error = AscendDevice::open(&name.replace("ascend:0", "ascend:63"), Options::default());
    let error = error.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("there is no NPU 63: CANN sees"), "{error}");
}
