//! A user's own shapes: small first, whole where time and memory allow, and told as what they are.

mod support;

use std::cell::Cell;
use std::time::Duration;
use support::{bench, cpu};
use toprope_conformance::mutant::Mutant;
use toprope_conformance::values::Regime;
use toprope_diagnose::Probe;
use toprope_program::operator::{
    Attention, AttentionGradient, Combine, Gather, LinearCrossEntropy, Matmul, ScatterAdd,
};
use toprope_program::{DType, Device, Operator, Program, Type};
use toprope_qualify::Deadline;
use toprope_qualify::result::OperatorResult;
use toprope_qualify::setting::Setting;
use toprope_qualify::shapes::{self, Need, distinct};

fn program(operator: impl Into<Operator>, operands: &[Type]) -> Program {
    let probe = Probe::of(&operator.into(), operands, 1, Regime::Normal, true).expect("it takes them");
    probe.program().program().clone()
}

fn float(sizes: &[usize]) -> Type {
    Type::new(DType::F32, sizes.iter().copied())
}

fn whole(sizes: &[usize]) -> Type {
    Type::new(DType::I32, sizes.iter().copied())
}

fn run(
    open: &dyn Fn() -> Result<Box<dyn Device>, String>,
    programs: &[Program],
    clock: &dyn Fn() -> Duration,
) -> Vec<OperatorResult> {
    run_allowing(0.0, open, programs, clock)
}

fn run_allowing(
    allowance: f64,
    open: &dyn Fn() -> Result<Box<dyn Device>, String>,
    programs: &[Program],
    clock: &dyn Fn() -> Duration,
) -> Vec<OperatorResult> {
    let need = Need { training: true, inference: true };
    let listed: Vec<(&Program, Need)> = programs.iter().map(|program| (program, need)).collect();
    let mut bench = bench(open, 1);
    bench.clock = clock;
    bench.oracle.allowance = allowance;
    let deadline = Deadline::within(clock, Duration::from_secs(60));
    let results = shapes::run(&mut bench, &distinct(&listed), &deadline).expect("it is sound");
    let results: Vec<OperatorResult> = results.into_iter().map(|(result, _)| result).collect();
    for result in &results {
        println!(
            "{} {}: {:?} {:?} {:?}",
            result.name, result.shape, result.passed, result.extent, result.finding
        );
    }
    results
}

fn matmul() -> Program {
    program(Matmul { output: DType::F32, row_sums: false }, &[float(&[700, 900]), float(&[900, 1100])])
}

fn large() -> Vec<Program> {
    let head = |heads: usize, width: usize| float(&[1024, heads, width]);
    let lse = float(&[1024, 4]);
    vec![
        matmul(),
        program(Gather { output: DType::F32 }, &[float(&[40_000, 64]), whole(&[3000])]),
        program(
            ScatterAdd { output: DType::F32, rows: 40_000.into() },
            &[float(&[3000, 64]), whole(&[3000])],
        ),
        program(Combine {}, &[float(&[8192, 300]), whole(&[1024, 8]), float(&[1024, 8])]),
        program(LinearCrossEntropy {}, &[float(&[600, 64]), float(&[40_000, 64]), whole(&[600])]),
        program(Attention { scale: 0.2 }, &[head(4, 32), head(2, 32), head(2, 16), whole(&[1024])]),
        program(
            AttentionGradient { scale: 0.2, sums: false },
            &[head(4, 32), head(2, 32), head(2, 16), head(4, 16), lse, head(4, 16), whole(&[1024])],
        ),
    ]
}

#[test]
fn with_time_they_are_run_whole_and_judged_by_samples() {
    let open = || Ok(cpu(None));
    let stands = || Duration::ZERO;
    for result in run(&open, &large(), &stands) {
        let extent = result.extent.expect("it was run");
        assert!(result.passed == Some(true) && extent.whole, "{} {:?}", result.name, result.finding);
        assert!(extent.told.starts_with("whole, judged ") && extent.told.contains(" of "), "{}", extent.told);
        // Once small, once whole, and in bands and with special values besides.
        assert!(result.cases >= 7, "{}: {} cases", result.name, result.cases);
    }
}

#[test]
fn without_time_a_part_is_run_and_told_as_one() {
    let open = || Ok(cpu(None));
    let turns = Cell::new(0);
    // Each look at the clock takes so long that a minute does not suffice for all of them whole.
    let runs = || {
        turns.set(turns.get() + 1);
        Duration::from_millis(900 * turns.get())
    };
    let mut parts = 0;
    for result in run(&open, &large(), &runs) {
        let extent = result.extent.expect("a part was run");
        assert_eq!(result.passed, Some(true), "{} {}", result.name, extent.told);
        if !extent.whole {
            parts += 1;
            let told = extent.told.starts_with("as [") && extent.told.contains("whole it takes about");
            assert!(told, "{}", extent.told);
        }
    }
    assert!(parts > 3, "{parts} in part");
}

#[test]
fn what_is_wrong_in_a_large_shape_only_is_found_in_its_sample() {
    // A product that leaves the last column of wide results out: small parts are narrower than it minds.
    let wide = || Ok(Box::new(support::wide_column(cpu(None), 1000)) as Box<dyn Device>);
    let stands = || Duration::ZERO;
    let found = run(&wide, &[matmul()], &stands);
    assert_eq!(found[0].passed, Some(false));
    assert_eq!(found[0].failures, 1, "{:?}", found[0]);
}

#[test]
fn a_settings_errors_are_let_through_in_a_sample_and_no_others() {
    let tf32 = Setting::OperandBits { bits: 10 };
    let allowance = tf32.allowance().expect("it adds to errors").1;
    let rounding = || Ok(support::rounding_of(cpu(None), 10));
    let stands = || Duration::ZERO;
    assert_eq!(run(&rounding, &[matmul()], &stands)[0].passed, Some(false));
    let found = run_allowing(allowance, &rounding, &[matmul()], &stands);
    assert_eq!(found[0].passed, Some(true), "{:?}", found[0]);
    let wide = || Ok(support::rounding_of(Box::new(support::wide_column(cpu(None), 1000)), 10));
    let found = run_allowing(allowance, &wide, &[matmul()], &stands);
    assert_eq!(found[0].passed, Some(false), "{:?}", found[0]);
}

#[test]
fn a_wrong_operator_is_found_small_already() {
    let open = || Ok(support::mutant(Mutant::BfloatAccumulation));
    let stands = || Duration::ZERO;
    assert!(run(&open, &[matmul()], &stands).iter().all(|result| result.passed == Some(false)));
}
