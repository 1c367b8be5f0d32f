//! The device's interface: queues, deadlines, faults, refusals.

mod support;

use std::sync::Arc;
use std::time::Duration;
use support::{Run, device, small_program};
use toprope_cpu::{CpuDevice, Level, Options};
use toprope_program::{
    Allocation, DType, Device, FaultKind, HostRegion, MemoryPlan, Program, Progress, ProgressPlace,
    ProgressWord, Range, Role, StateLayout, Tensor, Width, check, text, validate,
};

const LONG: Duration = Duration::from_secs(300);

fn parse(source: &str) -> Program {
    text::parse(source).unwrap_or_else(|error| panic!("{error}\n{source}"))
}

/// One product that takes a core far longer than a look at its ticket.
fn long_program() -> Program {
    parse(
        "program \"long\" evaluate\ninput %a: f32[1536, 1536]\noutput %c: f32[1536, 1536]\naccumulate {\n  \
         %b: f32[1536, 1536] = matmul(%a, %a) {\"output\":\"f32\"}\n  \
         %c = matmul(%b, %a) {\"output\":\"f32\"}\n}\n",
    )
}

#[test]
fn a_deadline_that_passes_tells_how_far_the_device_is() {
    let mut run = Run::new(device(None, 1), long_program(), StateLayout::Double);
    let ticket = run.queue(Range::Accumulate, 0, 2, true);
    let later = run.queue(Range::Accumulate, 0, 2, true);
    assert!(later > ticket);
    let first = run.device.wait(later, Duration::ZERO).unwrap();
    assert_eq!(first, Progress::Running { instruction: None }, "the first run is still under way");
    let mut seen = Vec::new();
    loop {
        match run.device.wait(ticket, Duration::from_millis(1)).unwrap() {
            Progress::Done => break,
            Progress::Running { instruction } => seen.extend(instruction),
        }
    }
    assert!(seen.is_sorted() && seen.iter().all(|index| *index < 2), "{seen:?}");
    assert_eq!(run.device.wait(later, LONG).unwrap(), Progress::Done);
    assert_eq!(run.device.wait(ticket, Duration::ZERO).unwrap(), Progress::Done, "done is done for ever");
}

#[test]
fn progress_is_marked_in_the_callers_word() {
    use std::sync::atomic::Ordering;
    let word = Arc::new(ProgressWord::default());
    word.generation.store(7, Ordering::Relaxed);
    let options = Options { progress: ProgressPlace::Own(word.clone()), ..Options::default() };
    let mut run = Run::new(CpuDevice::new(options).unwrap(), small_program(DType::F32), StateLayout::Double);
    run.feed(1, 96, 67);
    let ticket = run.queue(Range::Accumulate, 3, 20, true);
    run.device.wait(ticket, LONG).unwrap();
    assert_eq!(word.ticket.load(Ordering::Relaxed), ticket.0);
    assert_eq!(word.instruction.load(Ordering::Relaxed), 20, "one more than the index of the last");
    assert_eq!(word.generation.load(Ordering::Relaxed), 7, "the caller's");
}

#[test]
fn a_copy_waits_for_its_ticket_and_for_nothing_later() {
    let mut run = Run::new(device(None, 2), small_program(DType::F32), StateLayout::Double);
    run.step();
    let bytes = run.plan.state_bytes;
    let mut want = vec![0u8; bytes];
    let next = run.buffers[1];
    run.device.read(next, 0, &mut want).unwrap();
    // The same step again, copied out behind its update.
    let ticket = run.queue(Range::Update, 0, run.count(Range::Update), false);
    let mut got = vec![0u8; bytes];
    // SAFETY: `got` lives until the copy is done, and nobody else touches it.
    let to = unsafe { HostRegion::new(got.as_mut_ptr(), bytes) };
    let copied = run.device.copy_out(next, 0, to, ticket).unwrap();
    let after = run.queue(Range::Accumulate, 0, run.count(Range::Accumulate), true);
    assert_eq!(run.device.wait(copied, LONG).unwrap(), Progress::Done);
    assert!(got == want);
    assert_eq!(run.device.wait(after, LONG).unwrap(), Progress::Done);
}

fn grouped() -> Program {
    parse(
        "program \"grouped\" evaluate\ninput %a: f32[6, 4]\ninput %w: f32[2, 4, 3]\ninput %o: i32[3]\n\
         output %y: f32[6, 3]\noutput %z: f32[6, 4]\naccumulate {\n  \
         %z = add(%a, %a) {\"output\":\"f32\"}\n  \
         %y = grouped_matmul(%a, %w, %o) {\"output\":\"f32\"}\n}\n",
    )
}

#[test]
fn what_the_device_lacks_is_refused_before_a_run() {
    let mut device = device(None, 1);
    let program = Arc::new(validate(grouped()).unwrap());
    let plan = Arc::new(MemoryPlan::new(&program, Width::Wide, StateLayout::Double));
    let fault = device.prepare(program, plan).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Unsupported { .. }), "{fault}");
    let fault = device.allocate(Allocation::Own(usize::MAX / 2)).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::OutOfMemory { .. }), "{fault}");
    let mut memory = [0u8; 256];
    let odd = memory.as_mut_ptr().wrapping_add(memory.as_ptr().align_offset(64) + 1);
    // SAFETY: inside `memory`, which outlives the call.
    let region = unsafe { HostRegion::new(odd, 64) };
    assert!(device.allocate(Allocation::Adopt(region)).is_err(), "not aligned");
    assert!(CpuDevice::new(Options { threads: Some(0), ..Options::default() }).is_err());
    for level in Level::ALL {
        let opened = CpuDevice::new(Options { level: Some(level), ..Options::default() });
        assert_eq!(opened.is_ok(), level.is_available(), "{level}");
    }
}

#[test]
#[should_panic(expected = "symbols [4] lie outside their bounds")]
fn a_symbol_above_its_bound_is_the_callers_bug() {
    let mut run = Run::new(device(None, 1), small_program(DType::F32), StateLayout::Double);
    run.symbols = vec![4];
    run.all(Range::Accumulate, true);
}

#[test]
#[should_panic(expected = "span")]
fn a_span_behind_the_end_is_the_callers_bug() {
    let mut run = Run::new(device(None, 1), small_program(DType::F32), StateLayout::Double);
    run.run(Range::Update, 0, 10_000, true);
}

#[test]
fn checks_fire_only_where_their_bit_is_set_and_pass_on_a_healthy_device() {
    let mut program = small_program(DType::Bf16);
    let plan = check::CheckPlan { level: check::CheckLevel::Full };
    let sites = check::insert(&mut program, &plan);
    assert!(sites.len() > 10);
    let mut run = Run::new(device(None, 2), program, StateLayout::Double);
    run.step();
    for site in sites.iter().filter(|site| site.against.is_empty()) {
        let results: Vec<Tensor> = site.results.iter().map(|id| run.tensor(*id)).collect();
        assert_eq!(check::judge(site, &results), None, "{site:?} {results:?}");
    }
    let mut plain = Run::new(device(None, 2), small_program(DType::Bf16), StateLayout::Double);
    plain.step();
    let wanted = |role: &Role| matches!(role, Role::Carried | Role::Next { .. });
    support::assert_same("with checks", &run.bytes(wanted), &plain.bytes(wanted));
}

#[test]
fn the_profile_counts_every_call_once() {
    let device = CpuDevice::new(Options { profile: true, threads: Some(2), ..Options::default() }).unwrap();
    let mut run = Run::new(device, small_program(DType::F32), StateLayout::Double);
    run.step();
    let profile = run.device.take_profile();
    assert!(profile.iter().all(|entry| entry.calls == if entry.range == Range::Update { 1 } else { 2 }));
    // Instructions that were fused into another are counted there.
    let updates = profile.iter().filter(|entry| entry.range == Range::Update).count();
    assert_eq!(updates, run.count(Range::Update));
    assert!(profile.len() < run.count(Range::Update) + run.count(Range::Accumulate));
    assert!(run.device.take_profile().is_empty());
}
