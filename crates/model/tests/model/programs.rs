//! The programs as programs: valid, printed and parsed back, the same from build to build, no larger than they need be.

use crate::support::{dense, experts, options};
use toprope_model::DeepseekV3Config;
use toprope_model::adapter::{ALL_LINEAR, AdapterOptions};
use toprope_model::deepseek_v3::{build_evaluate, build_logits, build_train};
use toprope_model::parameters::parameters;
use toprope_program::recompute::Recompute;
use toprope_program::{
    DType, MemoryPlan, Operator, Program, Role, StateLayout, ValueId, Width, hash, json, text, validate,
};

fn all(config: &DeepseekV3Config, dtype: DType) -> [Program; 3] {
    let options = options(dtype);
    [
        build_train(config, &options, "tiny").unwrap(),
        build_evaluate(config, &options, "tiny").unwrap(),
        build_logits(config, dtype, options.sequence, "tiny").unwrap(),
    ]
}

#[test]
fn every_program_is_valid_and_parses_back_to_itself() {
    for config in [dense(), experts()] {
        for program in [all(&config, DType::F32), all(&config, DType::Bf16)].concat() {
            let printed = text::print(&program);
            assert_eq!(text::parse(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}")), program);
            assert_eq!(json::parse(&json::print(&program).unwrap()).unwrap(), program);
            let hash = hash::program_hash(&program);
            let validated = validate(program).unwrap_or_else(|defects| panic!("{defects:#?}"));
            assert_eq!(validated.hash(), hash);
        }
    }
}

/// Where one of these changes, every checkpoint of the configuration is another program's: say why in the commit.
#[test]
fn hashes_are_golden() {
    let have: Vec<String> = [dense(), experts()]
        .iter()
        .flat_map(|config| [all(config, DType::F32), all(config, DType::Bf16)].concat())
        .map(|program| hash::program_hash(&program)[..16].to_string())
        .collect();
    assert_eq!(have, GOLDEN, "in order: dense, experts; f32, bf16; train, evaluate, logits");
}

const GOLDEN: [&str; 12] = [
    "d6d39b72c76b9c48",
    "d4c214f07df3f16e",
    "7083d47275a4f089",
    "0fd8e2e3e692dc69",
    "a1772c9ac22b1693",
    "779ef8590ec5888f",
    "3a0192b13bf24e55",
    "d70a86a2b87787eb",
    "5db5f23e12062b5a",
    "212be7e7ab82c75b",
    "30c84a3dd1cd94c3",
    "d2d2b89dac7e59d7",
];

#[test]
fn the_state_of_the_other_programs_is_a_prefix_of_the_training_state() {
    for config in [dense(), experts()] {
        let [train, evaluate, logits] = all(&config, DType::Bf16);
        let state = |program: &Program| -> Vec<(String, Vec<_>)> {
            program.state().map(|(_, value)| (value.name.clone(), value.shape.clone())).collect()
        };
        let whole = state(&train);
        for other in [&evaluate, &logits] {
            let prefix = state(other);
            assert_eq!(prefix, whole[..prefix.len()]);
            assert_eq!(prefix.len(), parameters(&config).len());
        }
        let nexts = train.values.iter().filter(|value| matches!(value.role, Role::Next { .. })).count();
        assert_eq!(nexts, whole.len(), "every state value has a next half");
        assert_eq!(whole[whole.len() - 1].0, "step");
    }
}

#[test]
fn names_of_the_contract_are_there() {
    let [train, evaluate, logits] = all(&experts(), DType::Bf16);
    let has = |program: &Program, names: &[&str], role: fn(&Role) -> bool| {
        for name in names {
            let id = program.find(name).unwrap_or_else(|| panic!("no %{name}"));
            assert!(role(&program.value(id).role), "%{name}");
        }
    };
    let input = |role: &Role| *role == Role::Input;
    let carried = |role: &Role| *role == Role::Carried;
    let tokens = ["tokens", "targets", "positions", "segment_start"];
    has(&train, &tokens, input);
    has(
        &train,
        &["loss_scale", "mtp_tokens.1", "mtp_targets.1", "mtp_scale.1", "balance_scale", "rates"],
        input,
    );
    has(&train, &["loss", "loss_main", "loss_mtp", "loss_balance", "counts.1", "counts.2"], carried);
    has(&train, &["gradient_norm", "clip_factor"], |role| *role == Role::Output);
    has(&evaluate, &tokens, input);
    has(&evaluate, &["loss_sum", "target_count"], carried);
    has(&logits, &["logits"], |role| *role == Role::Output);
    for parameter in parameters(&experts()).iter().filter(|parameter| parameter.is_trained()) {
        has(&train, &[&format!("gradient.{}", parameter.name)], carried);
        for moment in ["m", "v"] {
            let name = format!("{}.{moment}", parameter.name);
            has(&train, &[&name], |role| matches!(role, Role::State { .. }));
        }
    }
    // No value got a number behind its name because the name was taken.
    for value in train.values.iter().filter(|value| value.role != Role::Scratch) {
        let stem = value.name.trim_end_matches(|c: char| c.is_ascii_digit());
        let numbered = ["mtp_tokens.", "mtp_targets.", "mtp_scale.", "counts."].contains(&stem);
        assert!(numbered || !stem.ends_with('.'), "%{}", value.name);
    }
}

#[test]
fn decay_is_for_matrices_alone() {
    let program = build_train(&experts(), &options(DType::F32), "tiny").unwrap();
    let mut seen = [0, 0];
    for instruction in &program.update {
        let Operator::Adamw(adamw) = &instruction.operator else { continue };
        let matrix = program.value(instruction.operands[0].value).shape.len() >= 2;
        assert_eq!(adamw.weight_decay, if matrix { 0.1 } else { 0.0 });
        seen[usize::from(matrix)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0);
}

#[test]
fn gradients_do_not_wait_in_scratch_memory() {
    let program = build_train(&experts(), &options(DType::Bf16), "tiny").unwrap();
    for (index, instruction) in program.accumulate.iter().enumerate() {
        if matches!(instruction.operator, Operator::Accumulate(_)) {
            let source = instruction.operands[1].value;
            let writer =
                program.accumulate[..index].iter().rposition(|i| i.outputs.contains(&source)).unwrap();
            let between = &program.accumulate[writer + 1..index];
            assert!(between.iter().all(|i| matches!(i.operator, Operator::Accumulate(_))));
        }
    }
}

#[test]
fn recomputing_takes_less_scratch_memory() {
    let adapter = |dora| AdapterOptions { rank: 2, alpha: 4.0, targets: vec![ALL_LINEAR.into()], dora };
    for (config, adapter) in
        [(dense(), None), (experts(), None), (dense(), Some(adapter(false))), (dense(), Some(adapter(true)))]
    {
        let scratch = |recompute: Recompute| {
            let mut options = options(DType::Bf16);
            (options.recompute, options.adapter) = (recompute, adapter.clone());
            options.micro_batch_sequences = 64;
            let program = validate(build_train(&config, &options, "tiny").unwrap()).unwrap();
            MemoryPlan::new(&program, Width::Native, StateLayout::Double).breakdown.scratch_bytes
        };
        let [nothing, elementwise, products] =
            [Recompute::Nothing, Recompute::Elementwise, Recompute::Products].map(scratch);
        assert!(elementwise < nothing, "{elementwise} {nothing}");
        assert!(products < elementwise, "{products} {elementwise}");
    }
}

/// With products everything that adapters add is computed again: the backward pass reads none of their sums as they were.
#[test]
fn sums_of_adapters_are_computed_again_with_products() {
    for (dora, sum) in [(false, ".adapted"), (true, ".sum")] {
        let mut options = options(DType::Bf16);
        let targets = vec![ALL_LINEAR.to_string()];
        options.adapter = Some(AdapterOptions { rank: 2, alpha: 4.0, targets, dora });
        let mut read = |recompute: Recompute| {
            options.recompute = recompute;
            let program = build_train(&dense(), &options, "tiny").unwrap();
            let named = |id: ValueId| program.value(id).name.as_str();
            let behind = |name: &str| name.contains(".gradient") || name.contains(".again");
            let backward = program
                .accumulate
                .iter()
                .filter(|instruction| instruction.outputs.iter().any(|id| behind(named(*id))));
            backward
                .flat_map(|instruction| &instruction.operands)
                .filter(|operand| named(operand.value).ends_with(sum))
                .count()
        };
        assert!(read(Recompute::Elementwise) > 0, "{sum}");
        assert_eq!(read(Recompute::Products), 0, "{sum}");
    }
}

#[test]
fn depth_scaling_shrinks_what_writes_to_the_residual_stream() {
    let mut options = options(DType::F32);
    options.depth_scaled_init = true;
    let program = build_train(&dense(), &options, "tiny").unwrap();
    for (_, value) in program.state() {
        let Role::State { initial: toprope_program::Initial::Normal { std } } = &value.role else { continue };
        let residual = value.name.ends_with("o_proj.weight") || value.name.ends_with("down_proj.weight");
        assert_eq!(*std, if residual { 0.01 } else { 0.02 }, "{}", value.name);
    }
}
