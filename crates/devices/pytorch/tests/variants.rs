//! Every variant that the processor has, over the operators that it changes.

mod support;

use toprope_conformance::{Options, run_suite};

/// Cases of these operators, and what the device's level says.
fn passes(name: &str, operators: &[&'static str], level: &str, cases: u64) {
    let Some(mut subject) = support::torch(name) else { return };
    assert!(subject.describe().level.contains(level), "{}", subject.describe().level);
    let options = Options {
        cases_per_operator: cases,
        operators: Some(operators.to_vec()),
        programs: 0,
        shrink: false,
        ..Options::default()
    };
    let report = run_suite(subject.as_mut(), &mut support::oracle(), &options).expect("the suite runs");
    println!("{name}\n{report}");
    let differences: Vec<String> =
        report.differences.iter().map(|d| format!("{} in {}: {}", d.operator, d.case, d.finding)).collect();
    assert!(differences.is_empty(), "{name}\n{}", differences.join("\n"));
}

#[test]
fn attention_by_torchs_own_kernels() {
    let attention = ["attention", "attention_gradient", "attention_check"];
    for kernel in ["sdpa-math", "sdpa-flash"] {
        passes(&format!("pytorch:cpu+attention={kernel}"), &attention, &format!("attention={kernel}"), 24);
    }
}

#[test]
fn switches_are_recorded_and_change_nothing_here() {
    let name = "pytorch:cpu+tf32=on+reduced=on+deterministic=off";
    passes(name, &["matmul", "rms_norm"], "tf32=on hf32=off reduced=on mode=eager deterministic=off", 8);
}

/// The processor has no streams: that is a refusal, not a silent default.
#[test]
fn a_side_stream_is_refused_where_there_is_none() {
    if support::torch("pytorch:cpu").is_none() {
        return;
    }
    let world = toprope_world::RealWorld::new();
    let options = toprope_pytorch::OpenOptions { python: None, threads: Some(1), regions: &[] };
    let refused = toprope_pytorch::open(&world, "pytorch:cpu+stream=side", &options).err();
    let told = refused.expect("there is no such stream").to_string();
    assert!(told.contains("`cpu` has no streams"), "{told}");
}
