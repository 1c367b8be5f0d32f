//! The tiny recipe's training step on the emulated NPU: in lockstep with the oracle, operator by operator, and freely for some
//! steps beside the reference device.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;
use std::sync::Arc;
use toprope_conformance::lockstep::Lockstep;
use toprope_conformance::values::{Regime, draw};
use toprope_conformance::verdict::Verdict;
use toprope_model::deepseek_v3::build_train;
use toprope_model::{DeepseekV3Config, MuonOptions, TrainingOptions};
use toprope_program::check::{self, CheckLevel, CheckPlan};
use toprope_program::{
    DType, Device, Range, Role, Session, StateLayout, Tensor, Validated, Width, shape, validate,
};
use toprope_reference::ReferenceDevice;

/// `recipes/tiny-moe.toml`'s model.
fn program(dtype: DType, checked: bool) -> Arc<Validated> {
    moved_by(None, dtype, checked)
}

/// The same with Muon for the matrices of hidden layers, where it is given.
fn moved_by(muon: Option<MuonOptions>, dtype: DType, checked: bool) -> Arc<Validated> {
    let config = DeepseekV3Config::from_json(
        r#"{"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 64, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
            "v_head_dim": 8, "max_position_embeddings": 32, "q_lora_rank": 16, "first_k_dense_replace": 1,
            "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5,
            "num_nextn_predict_layers": 1}"#,
    )
    .unwrap();
    let options =
        TrainingOptions { sequence: 32, micro_batch_sequences: 4, dtype, muon, ..TrainingOptions::default() };
    let mut program = build_train(&config, &options, "tiny-moe").unwrap();
    if checked {
        check::insert(&mut program, &CheckPlan { level: CheckLevel::Full });
    }
    Arc::new(validate(program).unwrap_or_else(|defects| panic!("{defects:#?}")))
}

#[test]
fn the_tiny_recipe_agrees_operator_by_operator() {
    // Muon is in the update alone.
    let (all, update) = (&Range::ALL[..], &[Range::Update][..]);
    for (dtype, variants, muon, ranges) in [
        (DType::Bf16, "", None, all),
        (DType::F32, "", None, all),
        (DType::Bf16, "+fused=off", None, all),
        (DType::Bf16, "", Some(MuonOptions::default()), update),
    ] {
        let mut subject = support::ascend(variants);
        let mut oracle = support::oracle();
        let program = moved_by(muon, dtype, ranges == all);
        let symbols = program.program().bounds();
        let values = draw(program.program(), &symbols, 1, Regime::Normal);
        let mut lockstep = Lockstep::open(&mut subject, &mut oracle, &program, &symbols, values).unwrap();
        let mut wrong = Vec::new();
        for &range in ranges {
            for index in 0..program.program().range(range).len() {
                let step = lockstep.step(&mut subject, &mut oracle, range, index, true).unwrap();
                if let Verdict::Differ(finding) = &step.judgement.verdict {
                    wrong.push(format!("{} {index} {}: {finding}", range.name(), step.operator));
                }
            }
        }
        assert!(wrong.is_empty(), "{dtype} {variants}:\n{}", wrong.join("\n"));
        lockstep.close(&mut subject, &mut oracle).unwrap();
    }
}

/// The inputs of a step: random tokens in one document a sequence.
fn feed(session: &Session, device: &mut dyn Device, program: &Validated, step: usize) {
    let symbols = program.program().bounds();
    for value in program.program().values.iter().filter(|value| value.role == Role::Input) {
        let sizes = shape::sizes(&value.shape, &symbols);
        let count: usize = sizes.iter().product();
        let data = (0..count).map(|at| match value.name.as_str() {
            "positions" => (at % 32) as f64,
            "segment_start" => (at - at % 32) as f64,
            "rates" => {
                [1e-2, 1.0 - 0.9f64.powi(step as i32 + 1), 1.0 - 0.95f64.powi(step as i32 + 1)][at % 3]
            }
            // A text that can be learnt: each word follows from the one before.
            _ if value.dtype == DType::I32 => ((at * 7 + step) % 32) as f64,
            _ => 1.0 / count as f64,
        });
        let tensor = Tensor::rounded(value.dtype, &sizes, data);
        session.write(device, &value.name, &tensor.to_bytes(Width::Native)).unwrap();
    }
}

/// Trains some steps; the loss of each.
fn train(device: &mut dyn Device, program: &Arc<Validated>, steps: usize) -> Vec<f64> {
    let mut session = Session::open(device, program.clone(), Width::Native, StateLayout::Double).unwrap();
    let symbols = program.program().bounds();
    for value in &program.program().values {
        if let Role::State { initial } = &value.role {
            let sizes = shape::sizes(&value.shape, &symbols);
            let numbers = initial.draw(1, &value.name, sizes.iter().product());
            let tensor = Tensor::rounded(value.dtype, &sizes, numbers.into_iter().map(f64::from));
            session.write(device, &value.name, &tensor.to_bytes(Width::Native)).unwrap();
        }
    }
    let mut losses = Vec::new();
    for step in 0..steps {
        feed(&session, device, program, step);
        session.set_first(true);
        session.run(device, Range::Accumulate).unwrap();
        session.run(device, Range::Update).unwrap();
        losses.push(session.read_scalar(device, "loss").unwrap().into());
        session.flip();
    }
    losses
}

#[test]
fn twenty_steps_follow_the_reference() {
    let mut subject = support::ascend("");
    let program = program(DType::Bf16, false);
    let got = train(&mut subject, &program, 20);
    let mut reference = ReferenceDevice::new(toprope_reference::Options::default());
    let want = train(&mut reference, &program, 20);
    println!("{got:?}\n{want:?}");
    assert!(want[19] < want[0] - 0.5, "nothing was learnt: {want:?}");
    for (step, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= 0.02 * want.abs(), "step {step}: loss {got} and {want}");
    }
}

/// Where the emulator lists what is called of it.
const CALLS: &str = "CANN_EMULATOR_CALLS";
/// Steps of the process whose calls are listed. In the first four the device waits for each operator, so that one which fails is
/// named.
const STEPS: usize = 7;
const CAREFUL: usize = 4;

/// Trains some steps; the body of the process whose calls are listed.
#[test]
fn child() {
    if std::env::var_os(CALLS).is_some() {
        train(&mut support::ascend(""), &program(DType::Bf16, false), STEPS);
    }
}

/// Between the first and the last operator of a range the host neither waits nor copies, and asks for no memory: a step is two
/// queues of launches.
#[test]
fn no_operator_waits_for_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("calls");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child"])
        .env(CALLS, &list)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&list).unwrap();
    let is_launch = |name: &str| name.starts_with("aclnn") && !name.ends_with("GetWorkspaceSize");
    let waits = |name: &str| {
        ["Memcpy", "Memset", "Synchronize", "Query", "Malloc", "Free"].iter().any(|part| name.contains(part))
    };
    let mut queues = vec![0];
    for name in text.lines().filter(|name| name.starts_with("acl")) {
        let last = queues.len() - 1;
        if is_launch(name) {
            queues[last] += 1;
        } else if waits(name) && queues[last] > 0 {
            queues.push(0);
        }
    }
    queues.retain(|launches| *launches > 0);
    let steps = STEPS - CAREFUL;
    let queues = &queues[queues.len() - 2 * steps..];
    println!("launches of each queue of the last {steps} steps: {queues:?}");
    assert!(queues.chunks(2).all(|step| step == &queues[..2]), "each step is as the first: {queues:?}");
    let program = program(DType::Bf16, false);
    // Some operators take several launches, and few none.
    for (launches, range) in queues.iter().zip([Range::Accumulate, Range::Update]) {
        assert!(*launches >= program.program().range(range).len(), "{}: {launches}", range.name());
    }
}
