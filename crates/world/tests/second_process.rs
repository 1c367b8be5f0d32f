//! A region in shared memory and a second process: this binary starts itself as the child (its own `main`, because the
//! child is not a test).

#![allow(clippy::unwrap_used)] // all of it is a test, but without the harness clippy cannot see that

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use toprope_world::{Exit, Launch, RealWorld, RegionHandle, SharedMemoryError, SharedRegion, Stream, World};

const LENGTH: usize = 3 * 4096 + 100;
const PROGRESS: usize = 0;
const ANSWER: usize = 8;
const PATTERN_START: usize = 64;
const PATIENCE: Duration = Duration::from_secs(60);

fn pattern(offset: usize) -> u8 {
    (offset as u8).wrapping_mul(31).wrapping_add(7)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => child(&arguments[2], arguments[3] == "hang"),
        _ => {
            child_reads_and_writes_the_region();
            progress_is_readable_after_a_hung_child_is_killed();
            a_region_that_was_not_passed_on_cannot_be_opened();
            a_handle_of_another_length_is_refused();
            a_region_of_no_bytes_is_refused();
            println!("5 checks of shared memory between two processes passed");
        }
    }
}

fn child(handle: &str, hang: bool) {
    let world = RealWorld::new();
    let handle: RegionHandle = handle.parse().unwrap();
    let region = match world.shared_memory().open(handle) {
        Ok(region) => region,
        Err(error) => {
            println!("{error}");
            std::process::exit(3);
        }
    };
    let mut equal = 0;
    for offset in PATTERN_START..region.len() {
        // SAFETY: inside the region; the parent wrote before it started this process and does not write now.
        equal += u64::from(unsafe { region.as_ptr().add(offset).read() } == pattern(offset));
    }
    region.word(ANSWER).unwrap().store(equal, Ordering::Release);
    // SAFETY: inside the region; the parent reads after this process has ended.
    unsafe { region.as_ptr().add(region.len() - 1).write(99) };
    region.word(PROGRESS).unwrap().store(42, Ordering::Release);
    if !hang {
        return;
    }
    loop {
        world.clock().sleep(Duration::from_millis(50));
    }
}

fn filled_region(world: &RealWorld) -> Arc<SharedRegion> {
    let region = world.shared_memory().create("second process", LENGTH).unwrap();
    assert_eq!(region.len(), LENGTH);
    for offset in 0..LENGTH {
        // SAFETY: inside the region, which no other process has yet.
        assert_eq!(unsafe { region.as_ptr().add(offset).read() }, 0);
    }
    for offset in PATTERN_START..LENGTH {
        // SAFETY: as above.
        unsafe { region.as_ptr().add(offset).write(pattern(offset)) };
    }
    region
}

fn launch(handle: RegionHandle, manner: &str, regions: Vec<Arc<SharedRegion>>) -> Launch {
    Launch {
        program: std::env::current_exe().unwrap(),
        arguments: vec!["child".into(), handle.to_string().into(), manner.into()],
        regions,
        output: Stream::Pipe,
        ..Launch::default()
    }
}

fn child_reads_and_writes_the_region() {
    let world = RealWorld::new();
    let region = filled_region(&world);
    let start = launch(region.handle().unwrap(), "leave", vec![Arc::clone(&region)]);
    let mut process = world.processes().spawn(&start).unwrap();
    assert_ne!(process.id(), world.processes().own_id());
    assert_eq!(process.wait(PATIENCE).unwrap(), Some(Exit::Code(0)));
    assert_eq!(region.word(ANSWER).unwrap().load(Ordering::Acquire), (LENGTH - PATTERN_START) as u64);
    // SAFETY: inside the region; the child has ended.
    assert_eq!(unsafe { region.as_ptr().add(LENGTH - 1).read() }, 99);
    assert!(!world.processes().is_alive(process.id()));
}

fn progress_is_readable_after_a_hung_child_is_killed() {
    let world = RealWorld::new();
    let region = filled_region(&world);
    let start = launch(region.handle().unwrap(), "hang", vec![Arc::clone(&region)]);
    let mut process = world.processes().spawn(&start).unwrap();
    let began = world.clock().monotonic();
    while region.word(PROGRESS).unwrap().load(Ordering::Acquire) != 42 {
        assert!(world.clock().monotonic() - began < PATIENCE, "the child made no progress");
        world.clock().sleep(Duration::from_millis(1));
    }
    assert_eq!(process.wait(Duration::ZERO).unwrap(), None);
    assert!(world.processes().is_alive(process.id()));
    process.kill().unwrap();
    assert_eq!(process.wait(PATIENCE).unwrap(), Some(Exit::Signal(9)));
    process.kill().unwrap();
    assert_eq!(region.word(PROGRESS).unwrap().load(Ordering::Acquire), 42);
}

fn a_region_that_was_not_passed_on_cannot_be_opened() {
    let world = RealWorld::new();
    let region = filled_region(&world);
    let mut process =
        world.processes().spawn(&launch(region.handle().unwrap(), "leave", Vec::new())).unwrap();
    let mut said = String::new();
    process.take_output().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(process.wait(PATIENCE).unwrap(), Some(Exit::Code(3)), "{said}");
    assert!(said.starts_with("cannot open the shared region"), "{said}");
    assert_eq!(region.word(ANSWER).unwrap().load(Ordering::Acquire), 0);

    let missing = Launch { program: PathBuf::from("/no/such/program"), ..Launch::default() };
    let error = world.processes().spawn(&missing).err().unwrap();
    assert!(error.to_string().starts_with("cannot start /no/such/program: "), "{error}");
}

fn a_handle_of_another_length_is_refused() {
    let world = RealWorld::new();
    let region = filled_region(&world);
    let handle = RegionHandle { length: LENGTH * 2, ..region.handle().unwrap() };
    match world.shared_memory().open(handle).unwrap_err() {
        SharedMemoryError::Length { found, .. } => assert_eq!(found, LENGTH as u64),
        other => panic!("{other}"),
    }
}

fn a_region_of_no_bytes_is_refused() {
    let error = RealWorld::new().shared_memory().create("nothing", 0).unwrap_err();
    assert!(error.to_string().contains("at least one byte"), "{error}");
}
