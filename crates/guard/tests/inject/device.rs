//! Faults that happen.

use crate::support::Step;
use std::sync::{Arc, Mutex};
use toprope_cpu::{CpuDevice, Options};
use toprope_guard::inject::{
    Firings, Handle, Hooks, Injected, OwnFirings, Point, SharedFirings, expand, parse,
};
use toprope_program::operator::PRODUCT_LIMIT;

use toprope_program::{FaultKind, ProgressPlace, Range};
use toprope_world::SharedRegion;

fn undisturbed(checked: bool) -> Vec<u8> {
    let mut step = Step::new("", checked);
    step.run().unwrap();
    step.next_state()
}

#[test]
fn a_transient_fault_happens_once_and_leaves_no_trace_in_the_retry() {
    let clean = undisturbed(false);
    let mut step = Step::new("step 3: flip bit 28 of matmul in layers.1", false);
    step.run().unwrap();
    assert_eq!(step.next_state(), clean, "it is not step 3 yet");
    step.handle.set_step(3);
    step.run().unwrap();
    assert_ne!(step.next_state(), clean);
    let injected = step.handle.take_injected();
    assert_eq!(injected.len(), 1);
    assert_eq!((injected[0].step, injected[0].elements), (3, 1));
    assert_eq!(injected[0].place.as_ref().unwrap().operator, "matmul");
    step.run().unwrap();
    assert_eq!(step.next_state(), clean, "the retry");
    assert!(step.handle.take_injected().is_empty());
}

#[test]
fn a_persistent_fault_repeats_its_bits_on_its_device_only() {
    let clean = undisturbed(false);
    let mut step = Step::new("step 3 device cpu always: missing_carry of matmul count 7 seed 5", false);
    step.handle.set_step(4);
    step.run().unwrap();
    let first = step.next_state();
    step.run().unwrap();
    assert_eq!(step.next_state(), first);
    assert_ne!(first, clean);
    step.handle.set_enabled(false);
    step.run().unwrap();
    assert_eq!(step.next_state(), clean, "the injector is off");
    let mut other = Step::new("step 0 device cuda:0 always: nan of matmul", false);
    other.run().unwrap();
    assert_eq!(other.next_state(), clean, "another device");
}

#[test]
fn in_compute_the_checksum_follows_the_product_and_at_rest_it_does_not() {
    // An identity of accumulator, operands and row sums sees a wrong accumulator ...
    let mut step = Step::new("step 0: flip bit 29 of matmul in layers.0", true);
    step.session.run(&mut step.device, Range::Accumulate).unwrap();
    assert!(step.worst_check() > PRODUCT_LIMIT as f32, "{}", step.worst_check());
    // ... and not bits that change behind it.
    let mut step = Step::new("step 0: flip at rest activation layers.0.mlp.down bit 13", true);
    step.session.run(&mut step.device, Range::Accumulate).unwrap();
    assert_eq!(step.handle.take_injected()[0].elements, 1);
    assert!(step.worst_check() <= PRODUCT_LIMIT as f32, "{}", step.worst_check());
    let mut clean = Step::new("", true);
    clean.session.run(&mut clean.device, Range::Accumulate).unwrap();
    assert_ne!(step.read("loss"), clean.read("loss"));
}

#[test]
fn bits_at_rest_change_where_the_schedule_says() {
    let mut clean = Step::new("", false);
    clean.run().unwrap();
    let name = "model.norm.weight";
    let mut state = Step::new("step 0: flip at rest state model.norm.weight bit 30", false);
    state.session.run(&mut state.device, Range::Accumulate).unwrap();
    let (had, has) = (clean.read(name), state.read(name));
    assert_eq!(had.iter().zip(&has).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>(), 1);
    let mut carried = Step::new("step 0: flip at rest carried gradient.model.norm.weight bit 30", false);
    carried.session.run(&mut carried.device, Range::Accumulate).unwrap();
    assert_eq!(carried.read("gradient.model.norm.weight"), clean.read("gradient.model.norm.weight"));
    carried.session.run(&mut carried.device, Range::Update).unwrap();
    assert_ne!(carried.read("gradient.model.norm.weight"), clean.read("gradient.model.norm.weight"));
    let mut torn = Step::new("step 0: tear state", false);
    torn.run().unwrap();
    assert_ne!(torn.next_state(), clean.next_state());
}

#[test]
fn faults_of_the_process_are_counted_before_they_happen_and_answer_by_their_class() {
    for (text, class) in [
        ("step 0: die in update at 2 (before)", "lost"),
        ("step 0: die in accumulate", "lost"),
        ("step 0: hang at attention", "hang"),
        ("step 0: driver 507015", "driver"),
        ("step 0: out_of_memory in adamw (after)", "out_of_memory"),
        ("step 0: unsupported in swiglu", "unsupported"),
    ] {
        let mut step = Step::new(text, false);
        let fault = step.run().unwrap_err();
        assert_eq!(fault.kind.class().name(), class, "{text}");
        assert!(fault.place.is_some() && fault.step == Some(0), "{text}: {fault:?}");
        assert_eq!(step.handle.take_injected().len(), 1, "{text}");
        step.run().unwrap_or_else(|fault| panic!("{text}: the retry met {fault}"));
        assert_eq!(step.next_state(), undisturbed(false), "{text}");
    }
    let mut step = Step::new("step 0: driver -5 in update", false);
    assert!(matches!(step.run().unwrap_err().kind, FaultKind::Driver { code: -5, .. }));
}

#[test]
fn what_fired_outlives_the_device() {
    let region = Arc::new(SharedRegion::in_process(64).unwrap());
    let firings = || Arc::new(SharedFirings::new(region.clone(), 8, 2).unwrap());
    let faults = parse("step 0: die while answering; step 0: die in snapshot").unwrap();
    let faults = expand(&faults, &crate::support::program(), 1).unwrap();
    let first = Handle::new(faults.clone(), firings());
    assert_eq!(first.due_at(Point::Snapshot, "cpu"), Some(1));
    let second = Handle::new(faults, firings());
    assert_eq!(second.due_at(Point::Snapshot, "cpu"), None);
    assert_eq!(second.due_at(Point::Answer, "cpu"), Some(0));
    assert_eq!(firings().fired(1), 1);
    assert!(SharedFirings::new(region.clone(), 56, 2).is_none());
}

/// Hooks that write down what they were asked for.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Hooks for Heard {
    fn die(&mut self) {
        self.0.lock().unwrap().push("die".into());
    }

    fn hang(&mut self) {
        self.0.lock().unwrap().push("hang".into());
    }

    fn monotonic(&mut self) -> std::time::Duration {
        let mut heard = self.0.lock().unwrap();
        heard.push("time".into());
        std::time::Duration::from_secs(heard.len() as u64)
    }

    fn sleep(&mut self, duration: std::time::Duration) {
        self.0.lock().unwrap().push(format!("sleep {}", duration.as_secs()));
    }
}

#[test]
fn hooks_are_asked_and_a_hang_names_its_operator() {
    let program = &crate::support::program();
    let faults = parse("step 0: hang in update at 3; step 1: slow x3; step 2: die").unwrap();
    let faults = expand(&faults, program, 9).unwrap();
    let handle = Handle::new(faults, Arc::new(OwnFirings::new(3)));
    let (heard, progress) = (Heard::default(), ProgressPlace::default());
    let cpu = CpuDevice::new(Options { threads: Some(1), ..Options::default() }).unwrap();
    let mut step = Step::new("", false);
    let mut device =
        Injected::new(Box::new(cpu), handle.clone(), Box::new(heard.clone())).with_progress(progress.clone());
    let session = toprope_program::Session::open(
        &mut device,
        step.program.clone(),
        toprope_program::Width::Native,
        toprope_program::StateLayout::Double,
    )
    .unwrap();
    session.run(&mut device, Range::Accumulate).unwrap();
    assert!(session.run(&mut device, Range::Update).is_err());
    assert_eq!(progress.word().instruction.load(std::sync::atomic::Ordering::Acquire), 4);
    handle.set_step(1);
    heard.0.lock().unwrap().clear();
    session.run(&mut device, Range::Accumulate).unwrap();
    // One second by the test's clock, three times as long: two more.
    assert_eq!(*heard.0.lock().unwrap(), ["time", "time", "sleep 2"]);
    handle.set_step(2);
    assert!(session.run(&mut device, Range::Accumulate).is_err());
    assert!(heard.0.lock().unwrap().contains(&"die".to_string()));
    step.run().unwrap();
}

#[test]
fn a_repeatable_fault_repeats_in_its_own_replay_and_one_that_varies_does_not() {
    // The largest result of a kind of check.
    let worst = |text: &str, operator: &str| {
        let mut step = Step::new(text, true);
        step.run().unwrap();
        let program = step.program.clone();
        let all = program.program().accumulate.iter().chain(&program.program().update);
        let checks = all.filter(|i| i.operator.name() == operator);
        checks.fold(0.0f32, |worst, check| {
            let name = &program.program().value(check.outputs[0]).name;
            worst.max(step.session.read_scalar(&mut step.device, name).unwrap())
        })
    };
    assert_eq!(worst("", "compare"), 0.0);
    assert!(worst("step 0: flip bit 3 of increment", "compare") > 0.0, "transient");
    assert_eq!(worst("step 0 always: flip bit 3 of increment", "compare"), 0.0, "the same on both runs");
    // Other code does not repeat it.
    assert!(worst("", "verify") <= 2.0);
    assert!(worst("step 0 always: flip bit 3 of increment", "verify") > 2.0);
    for how in ["step 0: flip bit 29 of rms_norm", "step 0 always: flip bit 29 of rms_norm"] {
        assert!(worst(how, "verify") > 2.0, "{how}");
        assert!(worst(&format!("{how} anew"), "verify") > 2.0, "{how} anew");
    }
}
