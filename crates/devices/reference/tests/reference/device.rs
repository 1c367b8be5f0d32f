//! The device: spans, progress, both halves of the state, adopted memory, refusals.

use crate::numbers::{floats, integers};
use crate::session::Session;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use toprope_program::operator::*;
use toprope_program::{
    Allocation, Builder, DType, Device, FaultKind, HostRegion, Initial, MemoryPlan, Phase, Program, Progress,
    Range, Span, StateLayout, Ticket, Type, Width, validate,
};
use toprope_reference::{Options, ReferenceDevice};

/// Adds twice the input to a weight and counts steps.
fn step() -> Program {
    let mut b = Builder::new("step", Phase::Train);
    let weight = b.state("weight", Type::new(DType::F32, [3]), Initial::Zeros);
    let counter = b.state("counter", Type::new(DType::I32, [1]), Initial::Zeros);
    let x = b.input("x", DType::F32, [3]);
    let twice = b.one("twice", Scale { factor: 2.0 }, [x.into()]).unwrap();
    let sum = b.accumulate("sum", twice).unwrap();
    b.set_range(Range::Update);
    let next = [b.next(weight), b.next(counter)];
    b.apply_to(Add { output: DType::F32 }, vec![weight.into(), sum.into()], vec![next[0]]).unwrap();
    b.apply_to(Increment { by: 1 }, vec![counter.into()], vec![next[1]]).unwrap();
    b.finish()
}

#[test]
fn a_step_writes_the_next_state_and_leaves_the_current_one() {
    let mut session = Session::new(step(), Width::Native);
    session.write("weight", &floats(&[3], &[1.0, 2.0, 3.0]));
    session.write("counter", &integers(&[1], &[i32::MAX]));
    session.write("x", &floats(&[3], &[0.5, 0.5, -1.0]));
    for first in [true, false] {
        session.bindings.first = first;
        session.run(Range::Accumulate);
    }
    session.run(Range::Update);
    assert_eq!(session.read("weight'").data, [3.0, 4.0, -1.0]);
    assert_eq!(session.read("counter'").data, [f64::from(i32::MIN)]);
    assert_eq!(session.read("weight").data, [1.0, 2.0, 3.0]);
    // A commit is a flip: what was next is current.
    std::mem::swap(&mut session.bindings.current, &mut session.bindings.next);
    session.run(Range::Update);
    assert_eq!(session.read("weight'").data, [5.0, 6.0, -5.0]);
    assert_eq!(session.read("weight").data, [3.0, 4.0, -1.0]);
}

#[test]
fn instructions_run_alone_and_mark_their_progress() {
    let mut session = Session::new(step(), Width::Native);
    session.write("x", &floats(&[3], &[1.0, 2.0, 3.0]));
    let word = |session: &Session| {
        let word = session.progress.word();
        (word.ticket.load(Ordering::Acquire), word.instruction.load(Ordering::Acquire))
    };
    assert_eq!(word(&session), (0, 0));
    session.run_span(Span { range: Range::Accumulate, from: 0, to: 1 });
    assert_eq!(word(&session), (1, 1));
    assert!(session.read("sum").data[0].is_nan(), "the second instruction did not run");
    session.run_span(Span { range: Range::Accumulate, from: 1, to: 2 });
    assert_eq!(word(&session), (2, 2));
    assert_eq!(session.read("sum").data, [2.0, 4.0, 6.0]);
    session.run_span(Span { range: Range::Accumulate, from: 1, to: 1 });
    assert_eq!(word(&session), (3, 0));
}

#[test]
fn adopted_memory_is_computed_on_in_place_and_copied_out() {
    let program = Arc::new(validate(step()).unwrap());
    let plan = Arc::new(MemoryPlan::new(&program, Width::Native, StateLayout::InPlace));
    let mut device = ReferenceDevice::new(Options::default());
    let prepared = device.prepare(Arc::clone(&program), Arc::clone(&plan)).unwrap();
    let mut host = vec![0u64; plan.state_bytes / 8];
    // SAFETY: `host` outlives the device's use of it, and nobody else writes it.
    let region = unsafe { HostRegion::new(host.as_mut_ptr().cast(), plan.state_bytes) };
    let state = device.allocate(Allocation::Adopt(region)).unwrap();
    let work = device.allocate(Allocation::Own(plan.work_bytes)).unwrap();
    let x = plan.place(program.program().find("x").unwrap()).unwrap();
    device.write(work, x.offset_bytes, &floats(&[3], &[1.0; 3]).to_bytes(Width::Native)).unwrap();
    let bindings = toprope_program::Bindings {
        current: state,
        next: state,
        work,
        symbols: Vec::new(),
        first: true,
        checks: Default::default(),
    };
    let mut ticket = Ticket(0);
    for range in Range::ALL {
        let to = program.program().range(range).len();
        ticket = device.run(prepared, Span { range, from: 0, to }, &bindings).unwrap();
    }
    let mut copy = vec![0u8; plan.state_bytes];
    // SAFETY: `copy` outlives the copy, and nobody else writes it.
    let to = unsafe { HostRegion::new(copy.as_mut_ptr(), copy.len()) };
    let copied = device.copy_out(state, 0, to, ticket).unwrap();
    assert!(copied > ticket);
    assert_eq!(device.wait(copied, Duration::ZERO).unwrap(), Progress::Done);
    device.release(state).unwrap();
    device.release(work).unwrap();
    let bytes: Vec<u8> = host.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(bytes, copy);
    let weight = plan.place(program.program().find("weight").unwrap()).unwrap().offset_bytes;
    assert_eq!(bytes[weight..weight + 4], 2f32.to_le_bytes());
}

#[test]
fn a_plan_of_another_width_or_program_is_refused() {
    let program = Arc::new(validate(step()).unwrap());
    let wide = Arc::new(MemoryPlan::new(&program, Width::Wide, StateLayout::Double));
    let mut device = ReferenceDevice::new(Options::default());
    let fault = device.prepare(Arc::clone(&program), wide).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Unsupported { .. }), "{fault}");
    assert!(fault.to_string().contains("the device was opened Native"), "{fault}");
    let mut foreign = MemoryPlan::new(&program, Width::Native, StateLayout::Double);
    foreign.places.clear();
    let fault = device.prepare(program, Arc::new(foreign)).unwrap_err();
    assert_eq!(fault.place.map(|place| place.operator), Some("scale".into()));
}

#[test]
fn memory_that_is_not_there_is_a_fault() {
    let mut device = ReferenceDevice::new(Options::default());
    let fault = device.allocate(Allocation::Own(usize::MAX)).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::OutOfMemory { .. }), "{fault}");
    // Two values of 2^45 elements are no defect of the program, and 2^49 bytes are beyond any address space.
    let mut b = Builder::new("vast", Phase::Evaluate);
    let x = b.input("x", DType::F32, [1 << 45]);
    let y = b.one("y", Scale { factor: 2.0 }, [x.into()]).unwrap();
    b.accumulate("sum", y).unwrap();
    let program = Arc::new(validate(b.finish()).unwrap());
    let plan = Arc::new(MemoryPlan::new(&program, Width::Native, StateLayout::Double));
    let fault = device.prepare(program, plan).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::OutOfMemory { .. }), "{fault}");
    assert_eq!(fault.place.map(|place| place.index), Some(0));
}
