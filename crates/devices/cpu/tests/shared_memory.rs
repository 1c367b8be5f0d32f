//! A worker process computes in a memfd that the supervisor owns; the supervisor reads its progress word and its results
//! there, also after it has killed the worker. This file's process is the supervisor; started again, it is the worker.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use toprope_cpu::{CpuDevice, Options};
use toprope_program::{
    Allocation, Bindings, CheckMask, Device, HostRegion, MemoryPlan, Program, Progress, ProgressPlace,
    ProgressWord, Range, SharedWord, Span, StateLayout, Validated, Width, text, validate,
};

/// The environment variable that holds the file descriptor and so makes a worker.
const DESCRIPTOR: &str = "TOPROPE_TEST_DESCRIPTOR";
const GENERATION: u64 = 42;
/// The progress word's page; buffers lie behind it.
const HEADER_BYTES: usize = 4096;
/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(120);

fn program() -> Program {
    let source = "program \"counts\" evaluate\ninput %one: i32[1]\ncarried %total: i32[1]\ninput %a: f32[96, 96]\n\
        output %c: f32[96, 96]\naccumulate {\n  %total = accumulate(%total, %one)\n  \
        %b: f32[96, 96] = matmul(%a, %a) {\"output\":\"f32\"}\n  %c = matmul(%b, %a) {\"output\":\"f32\"}\n}\n";
    text::parse(source).unwrap_or_else(|error| panic!("{error}"))
}

fn prepared() -> (Arc<Validated>, Arc<MemoryPlan>) {
    let program = Arc::new(validate(program()).unwrap_or_else(|defects| panic!("{defects:#?}")));
    let plan = Arc::new(MemoryPlan::new(&program, Width::Native, StateLayout::Double));
    (program, plan)
}

fn map(descriptor: BorrowedFd<'_>, bytes: usize) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice; it is never unmapped.
    let address = unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, descriptor, 0) };
    address.unwrap().cast()
}

/// Runs for ever in the memory behind the descriptor.
fn work(descriptor: i32) -> ! {
    let (program, plan) = prepared();
    // SAFETY: the supervisor left this descriptor open for us.
    let file = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let base = map(file, HEADER_BYTES + plan.work_bytes);
    // SAFETY: the page is aligned and stays mapped.
    let word = unsafe { SharedWord::new(base.cast::<ProgressWord>()) };
    let options = Options { threads: Some(2), progress: ProgressPlace::Shared(word), ..Options::default() };
    let mut device = CpuDevice::new(options).unwrap();
    // SAFETY: the mapping stays, and the supervisor only reads it.
    let region = unsafe { HostRegion::new(base.wrapping_add(HEADER_BYTES), plan.work_bytes) };
    let work = device.allocate(Allocation::Adopt(region)).unwrap();
    let state = device.allocate(Allocation::Own(plan.state_bytes)).unwrap();
    let one = plan.place(program.program().find("one").unwrap()).unwrap();
    device.write(work, one.offset_bytes, &1i32.to_le_bytes()).unwrap();
    let prepared = device.prepare(program, plan).unwrap();
    let mut first = true;
    loop {
        let checks = CheckMask::default();
        let bindings = Bindings { current: state, next: state, work, symbols: vec![], first, checks };
        let span = Span { range: Range::Accumulate, from: 0, to: 3 };
        let ticket = device.run(prepared, span, &bindings).unwrap();
        assert_eq!(device.wait(ticket, PATIENCE).unwrap(), Progress::Done);
        first = false;
    }
}

fn start(file: &OwnedFd) -> Child {
    // The worker inherits the descriptor under its own number.
    fcntl_setfd(file, FdFlags::empty()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(DESCRIPTOR, file.as_raw_fd().to_string()).stdin(Stdio::null());
    command.spawn().unwrap()
}

/// Waits until `condition` holds, and fails where it does not in time.
fn until(what: &str, worker: &mut Child, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(worker.try_wait().unwrap().is_none(), "the worker ended before {what}");
        assert!(started.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn supervise() {
    let (program, plan) = prepared();
    let bytes = HEADER_BYTES + plan.work_bytes;
    let file = memfd_create("toprope-test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes as u64).unwrap();
    let base = map(std::os::fd::AsFd::as_fd(&file), bytes);
    // SAFETY: the page is aligned, zeroed and stays mapped; the word consists of atomics.
    let word = unsafe { &*base.cast::<ProgressWord>() };
    word.generation.store(GENERATION, Ordering::Relaxed);
    let total = plan.place(program.program().find("total").unwrap()).unwrap();
    let total = base.wrapping_add(HEADER_BYTES + total.offset_bytes).cast::<std::sync::atomic::AtomicI32>();
    // SAFETY: aligned to 64 bytes, inside the mapping.
    let total = unsafe { &*total };
    let mut worker = start(&file);
    until("the first instruction", &mut worker, || word.instruction.load(Ordering::Acquire) > 0);
    let before = word.ticket.load(Ordering::Relaxed);
    until("a later ticket", &mut worker, || word.ticket.load(Ordering::Relaxed) > before + 100);
    until("results", &mut worker, || total.load(Ordering::Relaxed) > 50);
    worker.kill().unwrap();
    worker.wait().unwrap();
    let (ticket, instruction) =
        (word.ticket.load(Ordering::Relaxed), word.instruction.load(Ordering::Acquire));
    assert!(ticket > before + 100, "the word outlives the worker");
    assert!((1..=3).contains(&instruction), "instruction {instruction}");
    assert_eq!(word.generation.load(Ordering::Relaxed), GENERATION, "the supervisor's");
    let count = total.load(Ordering::Relaxed);
    assert!(count > 50, "the results outlive the worker");
    println!("worker killed at ticket {ticket}, instruction {}; it had counted to {count}", instruction - 1);
}

fn main() {
    match std::env::var(DESCRIPTOR) {
        Ok(descriptor) => work(descriptor.parse().unwrap()),
        Err(_) => supervise(),
    }
}
