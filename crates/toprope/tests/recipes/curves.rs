//! Losses of whole runs on `cpu` and `reference`, within the curve tolerance of the design: f32 within 1e-5 relative,
//! bf16 within 2e-3, over the first 20 steps.

use crate::support::{cpu, inputs, program, recipe, reference};
use std::sync::Arc;
use toprope_program::{DType, Device, StateLayout, Width};
use toprope_train::checkpoint::{OwnedTensor, TensorView, state_hash};
use toprope_train::engine::{Engine, Local, LocalOptions};
use toprope_train::initial::InitialState;
use toprope_train::recipe::Recipe;

fn engine(device: Box<dyn Device>, recipe: &Recipe, layout: StateLayout) -> Local {
    let options = LocalOptions {
        train: program(recipe),
        evaluate: None,
        logits: None,
        layout,
        initial: Some(Arc::new(InitialState::drawn(recipe.seed))),
        profile: None,
    };
    Local::open(device, options).unwrap()
}

fn losses(engine: &mut Local, recipe: &Recipe, steps: u64) -> Vec<f64> {
    let inputs = inputs(recipe);
    (0..steps)
        .map(|step| {
            engine.begin(step, &inputs.step(step)).unwrap();
            let loss = engine.verdict().unwrap().loss;
            engine.commit().unwrap();
            loss
        })
        .collect()
}

fn hash(state: &[OwnedTensor]) -> String {
    let views: Vec<TensorView<'_>> = state
        .iter()
        .map(|t| TensorView { name: &t.name, dtype: t.dtype, shape: &t.shape, bytes: &t.bytes })
        .collect();
    state_hash(&views)
}

#[test]
fn cpu_and_reference_stay_within_the_curve_tolerance() {
    for name in ["tiny-dense", "tiny-moe"] {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::Bf16, 2e-3)] {
            let recipe = recipe(name, dtype);
            let fast = losses(&mut engine(Box::new(cpu(2)), &recipe, StateLayout::Double), &recipe, 20);
            let exact =
                losses(&mut engine(reference(Width::Native), &recipe, StateLayout::Double), &recipe, 20);
            let distance = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs();
            let worst = fast.iter().zip(&exact).map(distance).fold(0.0, f64::max);
            println!("{name} {dtype}: worst relative distance {worst:.2e} in 20 steps");
            assert!(worst <= tolerance, "{name} {dtype}: {worst:.2e}\n{fast:?}\n{exact:?}");
            assert!(exact[19] < exact[0], "{name} {dtype} learns");
        }
    }
}

#[test]
fn the_state_has_the_same_bits_whatever_the_threads_and_the_layout() {
    for name in ["tiny-dense", "tiny-moe"] {
        let recipe = recipe(name, DType::F32);
        let run = |threads, layout| {
            let mut engine = engine(Box::new(cpu(threads)), &recipe, layout);
            losses(&mut engine, &recipe, 12);
            hash(&engine.snapshot().unwrap())
        };
        let one = run(1, StateLayout::Double);
        assert_eq!(one, run(2, StateLayout::Double), "{name}: threads");
        assert_eq!(one, run(3, StateLayout::Double), "{name}: threads");
        assert_eq!(one, run(2, StateLayout::InPlace), "{name}: layout");
    }
}

#[test]
fn a_run_goes_on_from_a_snapshot_with_the_same_bits() {
    let recipe = recipe("tiny-moe", DType::Bf16);
    let inputs = inputs(&recipe);
    let mut whole = engine(Box::new(cpu(2)), &recipe, StateLayout::Double);
    let mut middle = Vec::new();
    for step in 0..10 {
        if step == 5 {
            middle = whole.snapshot().unwrap();
        }
        whole.begin(step, &inputs.step(step)).unwrap();
        whole.commit().unwrap();
    }
    let mut resumed = engine(Box::new(cpu(1)), &recipe, StateLayout::Double);
    resumed.restore(&mut middle.into_iter().map(Ok)).unwrap();
    for step in 5..10 {
        resumed.begin(step, &inputs.step(step)).unwrap();
        resumed.commit().unwrap();
    }
    assert_eq!(hash(&whole.snapshot().unwrap()), hash(&resumed.snapshot().unwrap()));
}

#[test]
fn micro_batches_add_up_to_the_whole_step() {
    let whole = recipe("tiny-dense", DType::F32);
    let mut parts = whole.clone();
    parts.training.micro_batch = Some(2);
    let one = losses(&mut engine(Box::new(cpu(2)), &whole, StateLayout::Double), &whole, 5);
    let two = losses(&mut engine(Box::new(cpu(2)), &parts, StateLayout::Double), &parts, 5);
    for (a, b) in one.iter().zip(&two) {
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{one:?} {two:?}");
    }
}
