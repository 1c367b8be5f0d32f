//! Placement changes where an operator runs and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;
use toprope_conformance::{Options, Oracle, run_suite};
use toprope_cpu::CpuDevice;
use toprope_placed::{Guest, PlacedDevice};
use toprope_program::placed::PlacedName;
use toprope_program::{
    Device, HostRegion, Progress, Range, Session, StateLayout, Ticket, Width, text, validate,
};
use toprope_reference::{ReferenceDevice, magnitudes};
use toprope_world::RealWorld;

fn cpu() -> Box<dyn Device> {
    let options = toprope_cpu::Options { threads: Some(1), ..toprope_cpu::Options::default() };
    Box::new(CpuDevice::new(options).unwrap())
}

fn reference(width: Width) -> ReferenceDevice {
    ReferenceDevice::new(toprope_reference::Options { width, ..Default::default() })
}

/// The cpu with these operators on the reference device.
fn placed(operators: &[&str]) -> PlacedDevice {
    let operators: Vec<String> = operators.iter().map(|operator| (*operator).to_string()).collect();
    let moved = operators.iter().map(|operator| (operator.clone(), "reference".to_string())).collect();
    let name = PlacedName { device: "cpu".into(), moved };
    let guest = Guest { device: Box::new(reference(Width::Native)), operators };
    PlacedDevice::new(&name, cpu(), vec![guest], Box::new(RealWorld::new()))
}

const PROGRAM: &str = "program \"three\" evaluate\ninput %a: f32[16, 16]\noutput %d: f32[16, 16]\naccumulate {\n  \
     %b: f32[16, 16] = matmul(%a, %a) {\"output\":\"f32\"}\n  \
     %c: f32[16, 16] = add(%b, %a) {\"output\":\"f32\"}\n  \
     %d = matmul(%c, %a) {\"output\":\"f32\"}\n}\n";

fn session(device: &mut dyn Device) -> Session {
    let program = Arc::new(validate(text::parse(PROGRAM).unwrap()).unwrap());
    let session = Session::open(device, program, Width::Native, StateLayout::Double).unwrap();
    let numbers: Vec<f32> = (0..256).map(|at| (at % 7) as f32 * 0.25 - 0.5).collect();
    session.write_f32(device, "a", &numbers).unwrap();
    session
}

#[test]
fn every_operator_is_right_wherever_it_runs() {
    // Every second operator moves, so that spans are cut in many ways.
    let half: Vec<&str> = toprope_program::OPERATORS.iter().map(|record| record.name).step_by(2).collect();
    let mut subject = placed(&half);
    let mut oracle = Oracle::new(Box::new(reference(Width::Wide)), magnitudes);
    let options =
        Options { seed: 3, cases_per_operator: 3, programs: 40, shrink: false, ..Options::default() };
    let report = run_suite(&mut subject, &mut oracle, &options).unwrap();
    println!("{report}");
    assert!(report.cases > 90, "{} cases", report.cases);
    assert!(report.differences.is_empty(), "{:?}", report.differences);
    assert!(report.refused().is_empty(), "{:?}", report.refused());
}

#[test]
fn a_wrong_operator_is_not_used_once_it_is_moved() {
    let sums: Vec<f32> = [placed(&[]), placed(&["matmul"]), placed(&["matmul", "add"])]
        .iter_mut()
        .map(|device| {
            let session = session(device);
            for _ in 0..2 {
                session.run(device, Range::Accumulate).unwrap();
            }
            session.read_f32(device, "d").unwrap().iter().sum()
        })
        .collect();
    // These numbers are exact in f32, whatever computes them.
    assert!(sums[0] != 0.0 && sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
}

#[test]
fn copies_and_waits_stand_behind_runs_on_either_device() {
    // All operators are the guest's: the first device runs nothing.
    let mut device = placed(&["matmul", "add"]);
    let session = session(&mut device);
    let ticket = session.queue(&mut device, Range::Accumulate).unwrap();
    let bytes = session.plan().work_bytes;
    let host = vec![0u64; bytes.div_ceil(8)].leak();
    // SAFETY: the memory is never given back, and nobody else has it.
    let to = unsafe { HostRegion::new(host.as_mut_ptr().cast(), bytes) };
    let copy = device.copy_out(session.bindings().work, 0, to, ticket).unwrap();
    assert_eq!(device.wait(copy, Duration::from_secs(60)).unwrap(), Progress::Done);
    assert_eq!(device.wait(ticket, Duration::ZERO).unwrap(), Progress::Done);
    let mut read = vec![0u8; bytes];
    device.read(session.bindings().work, 0, &mut read).unwrap();
    let copied: Vec<u8> = host.iter().flat_map(|word| word.to_ne_bytes()).take(bytes).collect();
    assert!(read == copied && read.iter().any(|byte| *byte != 0));
    assert!(copy > ticket && ticket > Ticket(0));
    session.close(&mut device).unwrap();
}

#[test]
fn it_says_what_it_is() {
    let device = placed(&["matmul"]);
    let description = device.describe();
    assert_eq!(description.name, "cpu with matmul on reference");
    assert!(description.level.contains("matmul on reference"), "{}", description.level);
    assert!(!description.emulated);
}
