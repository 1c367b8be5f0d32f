//! Checks on whole steps of the tiny recipes: nothing but their results changes, and a healthy device raises no alarm.

use crate::support::{cpu, inputs, recipe, reference};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use toprope_model::deepseek_v3;
use toprope_program::check::{self, CheckKind, CheckLevel, CheckPlan, CheckSite};
use toprope_program::{
    DType, Device, Program, Range, Role, Session, StateLayout, Tensor, Validated, Width, hash, text, validate,
};
use toprope_train::batch::StepInputs;
use toprope_train::recipe::Recipe;

/// A training run with checks.
struct Checked {
    device: Box<dyn Device>,
    session: Session,
    program: Arc<Validated>,
    sites: Vec<CheckSite>,
    inputs: StepInputs,
    /// What the state must digest to, by bit.
    chain: HashMap<u16, Vec<Tensor>>,
    /// By kind and operator: checks judged, and the largest distance in units of the limit.
    seen: BTreeMap<(CheckKind, String), (u64, f64)>,
}

fn plain(recipe: &Recipe) -> Program {
    deepseek_v3::build_train(&recipe.model, &recipe.training_options(), &recipe.name).unwrap()
}

impl Checked {
    fn new(mut device: Box<dyn Device>, recipe: &Recipe, level: CheckLevel, layout: StateLayout) -> Checked {
        let mut program = plain(recipe);
        let sites = check::insert(&mut program, &CheckPlan { level });
        let program = Arc::new(validate(program).unwrap_or_else(|defects| panic!("{defects:#?}")));
        let session = Session::open(&mut *device, program.clone(), Width::Native, layout).unwrap();
        for (_, value) in program.program().values_with_ids() {
            if let Role::State { initial } = &value.role {
                let sizes = toprope_program::shape::sizes(&value.shape, &program.program().bounds());
                let drawn = initial.draw(recipe.seed, &value.name, sizes.iter().product());
                let tensor = Tensor::rounded(value.dtype, &sizes, drawn.into_iter().map(f64::from));
                session.write(&mut *device, &value.name, &tensor.to_bytes(Width::Native)).unwrap();
            }
        }
        let (inputs, chain, seen) = (inputs(recipe), HashMap::new(), BTreeMap::new());
        Checked { device, session, program, sites, inputs, chain, seen }
    }

    fn read(&mut self, ids: &[toprope_program::ValueId]) -> Vec<Tensor> {
        let program = self.program.clone();
        let one = |id: &toprope_program::ValueId| {
            let value = program.program().value(*id);
            let bytes = self.session.read(&mut *self.device, &value.name).unwrap();
            let sizes = toprope_program::shape::sizes(&value.shape, &program.program().bounds());
            Tensor::from_bytes(value.dtype, &sizes, Width::Native, &bytes).unwrap()
        };
        ids.iter().map(one).collect()
    }

    /// One step; every check that fired must hold.
    fn step(&mut self, step: u64, level: CheckLevel) {
        let mask = check::mask(&self.sites, level, step, 7);
        self.session.set_checks(mask.clone());
        let batch = self.inputs.step(step);
        let device = &mut *self.device;
        for (name, data) in &batch.micro[0].integers {
            if self.session.has(name) {
                self.session.write_i32(device, name, data).unwrap();
            }
        }
        for (name, data) in &batch.scalars {
            if self.session.has(name) {
                self.session.write_f32(device, name, data).unwrap();
            }
        }
        self.session.set_first(true);
        self.session.run(device, Range::Accumulate).unwrap();
        self.session.run(device, Range::Update).unwrap();
        let sites = self.sites.clone();
        for site in sites.iter().filter(|site| mask.fires(site.bit)) {
            let mut results = self.read(&site.results);
            match site.kind {
                CheckKind::State => match self.chain.get(&site.bit) {
                    Some(before) => results.extend(before.iter().cloned()),
                    None => continue,
                },
                _ => results.extend(self.read(&site.against)),
            }
            assert_eq!(check::judge(site, &results), None, "step {step}: {site:?}");
            let seen = self.seen.entry((site.kind, site.checked.operator.clone())).or_default();
            let distance = if site.limit > 0.0 { results[0].data[0] / site.limit } else { 0.0 };
            *seen = (seen.0 + 1, seen.1.max(distance));
        }
        if level != CheckLevel::Off {
            for site in sites.iter().filter(|site| site.kind == CheckKind::State) {
                let next = self.read(&site.against);
                self.chain.insert(site.bit, next);
            }
        }
        self.session.flip();
    }

    /// The bytes of the state and of every carried value and output of the unchecked program.
    fn kept(&mut self, plain: &Program) -> Vec<(String, Vec<u8>)> {
        let wanted = |role: &Role| matches!(role, Role::State { .. } | Role::Carried | Role::Output);
        let names = plain.values.iter().filter(|value| wanted(&value.role)).map(|value| value.name.clone());
        names
            .map(|name| {
                let bytes = self.session.read(&mut *self.device, &name).unwrap();
                (name, bytes)
            })
            .collect()
    }
}

fn device(name: &str) -> Box<dyn Device> {
    if name == "cpu" { Box::new(cpu(2)) } else { reference(Width::Native) }
}

#[test]
fn checks_change_no_bit_of_anything_else() {
    for (recipe_name, dtype, device_name, layout) in [
        ("tiny-moe", DType::Bf16, "cpu", StateLayout::Double),
        ("tiny-moe", DType::F32, "cpu", StateLayout::InPlace),
        ("tiny-dense", DType::Bf16, "cpu", StateLayout::InPlace),
        ("tiny-dense", DType::F32, "reference", StateLayout::Double),
        ("tiny-moe", DType::Bf16, "reference", StateLayout::Double),
    ] {
        let recipe = recipe(recipe_name, dtype);
        let plain = plain(&recipe);
        let steps = if device_name == "cpu" { 3 } else { 1 };
        let run = |insert: CheckLevel, level: CheckLevel| {
            let mut run = Checked::new(device(device_name), &recipe, insert, layout);
            (0..steps).for_each(|step| run.step(step, level));
            run.kept(&plain)
        };
        let without = run(CheckLevel::Off, CheckLevel::Off);
        for level in [CheckLevel::Off, CheckLevel::Sampled, CheckLevel::Full] {
            let with = run(CheckLevel::Full, level);
            for ((name, want), (_, got)) in without.iter().zip(&with) {
                assert!(want == got, "{recipe_name} {dtype} {device_name} {level:?}: %{name} differs");
            }
        }
    }
}

#[test]
fn checks_leave_the_hash_and_survive_printing() {
    for name in ["tiny-dense", "tiny-moe", "bench-dense", "bench-moe"] {
        let recipe = recipe(name, DType::Bf16);
        let mut program = plain(&recipe);
        let before = hash::program_hash(&program);
        let sites = check::insert(&mut program, &CheckPlan { level: CheckLevel::Full });
        assert_eq!(hash::program_hash(&program), before, "{name}");
        assert_eq!(text::parse(&text::print(&program)).unwrap(), program, "{name}");
        for site in &sites {
            let instruction = &program.range(site.checked.range)[site.checked.index];
            assert_eq!(instruction.operator.name(), site.checked.operator);
            assert_eq!(program.value(instruction.outputs[0]).name, site.checked.output);
            assert_eq!(instruction.check, None);
        }
        // Every product, attention, norm and optimizer is watched.
        let watched = |operator: &str| sites.iter().filter(|s| s.checked.operator == operator).count();
        for operator in
            ["matmul", "grouped_matmul", "grouped_outer", "attention_gradient", "rms_norm", "adamw"]
        {
            let all = program.accumulate.iter().chain(&program.update);
            let there = all.filter(|i| i.check.is_none() && i.operator.name() == operator).count();
            assert!(watched(operator) >= there, "{name}: {operator} {} of {there}", watched(operator));
        }
    }
}

#[test]
fn sampled_covers_every_site_in_its_steps_and_is_the_same_again() {
    for name in ["tiny-moe", "bench-moe"] {
        let mut program = plain(&recipe(name, DType::Bf16));
        let sites = check::insert(&mut program, &CheckPlan { level: CheckLevel::Sampled });
        for (start, seed) in [(0, 1), (5, 2), ((1 << 40) - 3, 3)] {
            let masks: Vec<_> = (0..check::STEPS_MAX as u64)
                .map(|step| check::mask(&sites, CheckLevel::Sampled, start + step, seed))
                .collect();
            for site in &sites {
                assert!(masks.iter().any(|mask| mask.fires(site.bit)), "{name}: {site:?} never fires");
            }
            assert_eq!(masks[3], check::mask(&sites, CheckLevel::Sampled, start + 3, seed));
            // No step costs more than its share and the dearest site.
            let total: f64 = sites.iter().map(|site| site.cost_share).sum();
            let dearest = sites.iter().map(|site| site.cost_share).fold(0.0, f64::max);
            for mask in &masks {
                let cost: f64 = sites.iter().filter(|s| mask.fires(s.bit)).map(|s| s.cost_share).sum();
                assert!(
                    cost <= total / check::STEPS_MAX as f64 + dearest + 0.01,
                    "{name}: {cost} of {total}"
                );
            }
        }
    }
}

/// Trains with every check on and gives the number judged.
fn soak(name: &str, dtype: DType, steps: u64) -> u64 {
    let mut run = Checked::new(device("cpu"), &recipe(name, dtype), CheckLevel::Full, StateLayout::Double);
    (0..steps).for_each(|step| run.step(step, CheckLevel::Full));
    for ((kind, operator), (count, largest)) in &run.seen {
        println!("{name} {dtype} {kind:?} of {operator}: {count} checks, largest {largest:.3} of the limit");
    }
    run.seen.values().map(|seen| seen.0).sum()
}

#[test]
fn a_healthy_device_raises_no_alarm() {
    let mut judged = 0;
    for name in ["tiny-dense", "tiny-moe"] {
        for dtype in [DType::F32, DType::Bf16] {
            judged += soak(name, dtype, 12);
        }
    }
    assert!(judged > 9_000, "{judged}");
}

/// `cargo test --release -p toprope --test recipes soak -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes; the figures are in docs/checks.md"]
fn soak_of_the_tiny_recipes() {
    let mut judged = 0;
    for name in ["tiny-dense", "tiny-moe"] {
        for dtype in [DType::F32, DType::Bf16] {
            judged += soak(name, dtype, 300);
        }
    }
    println!("{judged} checks, no alarm");
    assert!(judged > 200_000, "{judged}");
}
