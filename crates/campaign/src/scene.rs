//! A recipe's training step with its checks, on a device in which faults can happen, and states to start from that were
//! recorded in a clean run.

use crate::CampaignError;
use crate::harm::Change;
use crate::rules::History;
use std::collections::BTreeMap;
use std::sync::Arc;
use toprope_devices::{OpenOptions, open};
use toprope_guard::inject::{Handle, Injected, NoHooks, OwnFirings, Scheduled};
use toprope_model::deepseek_v3;
use toprope_program::check::{CheckKind, CheckLevel, CheckPlan, CheckSite, Mismatch, insert, judge};
use toprope_program::shape::sizes;
use toprope_program::{
    CheckMask, DType, Device, Fault, Range, Role, Session, StateLayout, Tensor, Validated, ValueId, Width,
    validate,
};
use toprope_train::batch::{StepBatch, StepInputs};
use toprope_train::data::{Document, Tokens};
use toprope_train::initial::drawn;
use toprope_train::recipe::{Recipe, built_in, parse};
use toprope_train::tokenizer::Tokenizer;

/// Text that is here whatever the machine has: this project's own.
const TEXT: [&str; 4] = [
    include_str!("../../program/src/autodiff.rs"),
    include_str!("../../program/src/memory.rs"),
    include_str!("../../program/src/session.rs"),
    include_str!("../../../ARCHITECTURE.md"),
];

/// What one execution of a step gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The loss that was differentiated.
    pub loss: f64,
    /// The norm of all gradients.
    pub gradient_norm: f64,
    /// Gradients and counters, in the order of [`Scene::carried`].
    pub carried: Vec<Vec<u8>>,
    /// The next state, in the order of [`Scene::states`]; state without a next half is as it was.
    pub next: Vec<Vec<u8>>,
    /// Checks that fired and did not hold, by index of [`Scene::sites`].
    pub mismatches: Vec<(usize, Mismatch)>,
    /// The largest distance of a check over its limit.
    pub largest: f64,
    /// What the device answered, where it failed.
    pub fault: Option<Fault>,
}

impl Outcome {
    /// Whether all bits that leave the step are those of another execution.
    pub fn same_bits(&self, other: &Outcome) -> bool {
        self.fault.is_none()
            && other.fault.is_none()
            && self.loss.to_bits() == other.loss.to_bits()
            && self.carried == other.carried
            && self.next == other.next
    }

    /// Whether a number that must be finite is not.
    pub fn is_non_finite(&self) -> bool {
        !self.loss.is_finite() || !self.gradient_norm.is_finite()
    }
}

/// A state and its batch, with what the step gives on a healthy device.
pub struct Frozen {
    /// The step, counted from 0.
    pub step: u64,
    /// The state, in the order of [`Scene::states`].
    pub state: Vec<Vec<u8>>,
    /// What the update of the step before left for checks of state at rest.
    pub before: BTreeMap<ValueId, Tensor>,
    /// What the step gives.
    pub clean: Outcome,
    /// What the state's tensors change by in this step.
    pub change: Change,
    /// What rules that look back have seen.
    pub history: History,
}

/// A value that a scene reads.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its sizes.
    pub sizes: Vec<usize>,
    /// For a state: the name of its next half, where it has one.
    pub next: Option<String>,
}

/// A recipe's step.
pub struct Scene {
    /// The recipe and dtype, such as `tiny-moe bf16`.
    pub name: String,
    /// The checked program.
    pub program: Arc<Validated>,
    /// Its checks.
    pub sites: Vec<CheckSite>,
    /// Its state, in the order of declaration.
    pub states: Vec<Named>,
    /// Its gradients and counters.
    pub carried: Vec<Named>,
    /// States to start from.
    pub frozen: Vec<Frozen>,
    /// The injector.
    pub handle: Handle,
    device: Injected,
    session: Session,
    inputs: StepInputs,
    /// The checks that fired in the last execution.
    fired: CheckMask,
    dirty: bool,
    prepared_step: Option<u64>,
}

pub(crate) fn wrong(recipe: &str, reason: impl std::fmt::Display) -> CampaignError {
    CampaignError::Recipe { recipe: recipe.into(), reason: reason.to_string() }
}

/// A recipe in a dtype, with keys changed as `--set` does.
///
/// # Errors
/// A name that no recipe has, a key that does not fit.
pub fn recipe(name: &str, dtype: DType, sets: &[String]) -> Result<Recipe, CampaignError> {
    let text = built_in(name).ok_or_else(|| wrong(name, "there is no such recipe"))?;
    let mut all = vec![format!("training.dtype={dtype}")];
    all.extend_from_slice(sets);
    parse(name, text, &all).map_err(|error| wrong(name, error))
}

/// Batches of this project's own text.
///
/// # Errors
/// Text that does not fit the recipe.
pub fn inputs(recipe: &Recipe) -> Result<StepInputs, CampaignError> {
    let error = |reason: &dyn std::fmt::Display| wrong(&recipe.name, reason);
    let documents: Vec<Document> = TEXT
        .iter()
        .enumerate()
        .map(|(index, text)| Document::new(index.to_string(), (*text).to_string()))
        .collect();
    let tokenizer = Tokenizer::byte();
    let tokens = |documents: &[Document]| {
        Tokens::of_documents(documents, &tokenizer, 1, "the campaign").map_err(|e| error(&e))
    };
    let schedule = StepInputs::schedule(recipe).map_err(|e| error(&e))?;
    StepInputs::new(recipe, schedule, tokens(&documents[..3])?, tokens(&documents[3..])?)
        .map_err(|e| error(&e))
}

/// A program with checks of a level, and the checks.
///
/// # Errors
/// A recipe whose program is not valid.
pub fn checked(
    recipe: &Recipe,
    level: CheckLevel,
) -> Result<(Arc<Validated>, Vec<CheckSite>), CampaignError> {
    let built = deepseek_v3::build_train(&recipe.model, &recipe.training_options(), &recipe.name);
    let mut program = built.map_err(|error| wrong(&recipe.name, error))?;
    let sites = insert(&mut program, &CheckPlan { level });
    let defects = |defects: Vec<toprope_program::Defect>| {
        let lines: Vec<String> = defects.iter().map(ToString::to_string).collect();
        wrong(&recipe.name, lines.join("; "))
    };
    Ok((Arc::new(validate(program).map_err(defects)?), sites))
}

/// A processor with this many threads.
///
/// # Errors
/// A machine that does not let it start.
pub fn device(threads: usize) -> Result<Box<dyn Device>, CampaignError> {
    let options = OpenOptions { threads: Some(threads), ..OpenOptions::default() };
    open("cpu", &options).map_err(|error| wrong("cpu", error))
}

/// Draws the initial state into a session.
///
/// # Errors
/// The device's fault.
pub fn draw_state(session: &Session, device: &mut dyn Device, seed: u64) -> Result<(), Fault> {
    for (_, value) in session.program().program().state() {
        if let Some(bytes) = drawn(value, seed) {
            session.write(device, &value.name, &bytes)?;
        }
    }
    Ok(())
}

/// Writes a micro-batch and the step's scalars.
///
/// # Errors
/// The device's fault.
pub fn write_batch(
    session: &mut Session,
    device: &mut dyn Device,
    batch: &StepBatch,
    micro: usize,
) -> Result<(), Fault> {
    let inputs = &batch.micro[micro];
    session.set_first(micro == 0);
    session.bind(inputs.sequences);
    for (name, numbers) in inputs.integers.iter().filter(|(name, _)| session.has(name)) {
        session.write_i32(device, name, numbers)?;
    }
    for (name, numbers) in batch.scalars.iter().filter(|(name, _)| session.has(name)) {
        session.write_f32(device, name, numbers)?;
    }
    Ok(())
}

impl Scene {
    /// Builds a recipe's step with all checks and runs it without faults up to the last of `freeze`, recording the state
    /// before each of those steps. Every recorded step is run `repeats` times and must give the same bits.
    ///
    /// # Errors
    /// A recipe that does not build, a device that fails or does not repeat itself.
    pub fn new(
        recipe: &Recipe,
        threads: usize,
        freeze: &[u64],
        repeats: usize,
    ) -> Result<Scene, CampaignError> {
        let (program, sites) = checked(recipe, CheckLevel::Full)?;
        let handle = Handle::new(Vec::new(), Arc::new(OwnFirings::new(0)));
        let mut device = Injected::new(device(threads)?, handle.clone(), Box::new(NoHooks));
        let session = Session::open(&mut device, program.clone(), Width::Native, StateLayout::Double)?;
        draw_state(&session, &mut device, recipe.seed)?;
        let bounds = program.program().bounds();
        let named = |wanted: &dyn Fn(&Role) -> bool| -> Vec<Named> {
            let values = program.program().values_with_ids().filter(|(_, value)| wanted(&value.role));
            values
                .map(|(id, value)| {
                    let next =
                        program.program().values.iter().find(|next| next.role == Role::Next { of: id });
                    Named {
                        name: value.name.clone(),
                        dtype: value.dtype,
                        sizes: sizes(&value.shape, &bounds),
                        next: next.map(|next| next.name.clone()),
                    }
                })
                .collect()
        };
        let states = named(&|role| matches!(role, Role::State { .. }));
        let carried = named(&|role| *role == Role::Carried);
        let mut scene = Scene {
            name: format!("{} {}", recipe.name, recipe.training.dtype),
            inputs: inputs(recipe)?,
            frozen: Vec::new(),
            fired: CheckMask::default(),
            dirty: false,
            prepared_step: None,
            program,
            sites,
            states,
            carried,
            handle,
            device,
            session,
        };
        scene.record(freeze, repeats)?;
        Ok(scene)
    }

    fn record(&mut self, freeze: &[u64], repeats: usize) -> Result<(), CampaignError> {
        let last = freeze.iter().copied().max().unwrap_or(0);
        let mut history = History::default();
        let mut before = BTreeMap::new();
        for step in 0..=last {
            let state = if freeze.contains(&step) { Some(self.read_states()?) } else { None };
            let clean = self.execute(step, &CheckMask::all(self.bits()), &before)?;
            if let Some(fault) = clean.fault {
                return Err(fault.into());
            }
            let left = self.left_for_next()?;
            if let Some(state) = state {
                for _ in 1..repeats {
                    let again = self.execute(step, &CheckMask::all(self.bits()), &before)?;
                    if !again.same_bits(&clean) {
                        return Err(CampaignError::NotRepeatable { scene: self.name.clone(), step });
                    }
                }
                let change = Change::between(&self.states, &state, &clean.next);
                let (clean, before, history) = (clean.clone(), before.clone(), history.clone());
                self.frozen.push(Frozen { step, state, before, clean, change, history });
            }
            history.see(&self.carried, &clean);
            before = left;
            self.session.flip();
        }
        self.dirty = true;
        Ok(())
    }

    /// One more than the largest bit of a check.
    pub fn bits(&self) -> usize {
        self.sites.iter().map(|site| usize::from(site.bit) + 1).max().unwrap_or(0)
    }

    /// The inputs of a step.
    pub fn batch(&self, step: u64) -> StepBatch {
        self.inputs.step(step)
    }

    fn read_states(&mut self) -> Result<Vec<Vec<u8>>, Fault> {
        self.states.iter().map(|state| self.session.read(&mut self.device, &state.name)).collect()
    }

    /// What this step's update left for checks of state at rest in the next one: digests that it gives in any case, and
    /// those of checks that fired.
    fn left_for_next(&mut self) -> Result<BTreeMap<ValueId, Tensor>, Fault> {
        let update = &self.program.program().update;
        let given = |id: &ValueId| {
            let writer = update.iter().find(|instruction| instruction.outputs.contains(id));
            writer.is_some_and(|writer| writer.check.is_none_or(|bit| self.fired.fires(bit)))
        };
        let sites = self.sites.iter().filter(|site| site.kind == CheckKind::State);
        let wanted = sites.flat_map(|site| site.against.iter().copied()).filter(given);
        let wanted: Vec<ValueId> = wanted.collect();
        wanted.into_iter().map(|id| Ok((id, self.tensor(id)?))).collect()
    }

    fn tensor(&mut self, id: ValueId) -> Result<Tensor, Fault> {
        let value = self.program.program().value(id);
        let shape = sizes(&value.shape, &self.session.bindings().symbols);
        let bytes = self.session.read(&mut self.device, &value.name)?;
        let empty = Tensor { dtype: value.dtype, sizes: Vec::new(), data: Vec::new() };
        Ok(Tensor::from_bytes(value.dtype, &shape, Width::Native, &bytes).unwrap_or(empty))
    }

    /// A value's stored bytes as the device has them now.
    ///
    /// # Errors
    /// The device's fault.
    pub fn read(&mut self, name: &str) -> Result<Vec<u8>, Fault> {
        self.session.read(&mut self.device, name)
    }

    /// Puts the recorded state back, where anything may have changed it.
    ///
    /// # Errors
    /// The device's fault.
    pub fn restore(&mut self, at: usize) -> Result<(), Fault> {
        let step = self.frozen[at].step;
        if self.dirty || self.prepared_step != Some(step) {
            for (named, bytes) in self.states.iter().zip(&self.frozen[at].state) {
                self.session.write(&mut self.device, &named.name, bytes)?;
            }
            (self.dirty, self.prepared_step) = (false, Some(step));
        }
        Ok(())
    }

    /// Arms faults afresh.
    pub fn arm(&mut self, faults: Vec<Scheduled>) {
        let firings = Arc::new(OwnFirings::new(faults.len()));
        self.handle.replace(faults, firings);
    }

    /// Says that the state may have changed.
    pub fn soil(&mut self) {
        self.dirty = true;
    }

    /// Makes the next state the current one, as a guard that saw nothing would.
    pub fn commit(&mut self) -> Result<BTreeMap<ValueId, Tensor>, Fault> {
        let left = self.left_for_next()?;
        self.session.flip();
        self.dirty = true;
        Ok(left)
    }

    /// Runs instructions of the first range of a step up to and with `index`, and stops there.
    ///
    /// # Errors
    /// The device's fault.
    pub fn run_up_to(&mut self, step: u64, range: Range, index: usize) -> Result<(), Fault> {
        self.handle.set_step(step);
        let batch = self.inputs.step(step);
        write_batch(&mut self.session, &mut self.device, &batch, 0)?;
        self.session.set_checks(CheckMask::default());
        let span = toprope_program::Span { range, from: 0, to: index + 1 };
        let ticket = self.session.queue_span(&mut self.device, span)?;
        self.session.wait(&mut self.device, range, ticket)
    }

    /// Runs a step from the current state with these checks; commits nothing. Device faults are in the outcome.
    ///
    /// # Errors
    /// Reading and writing that fails.
    pub fn execute(
        &mut self,
        step: u64,
        checks: &CheckMask,
        before: &BTreeMap<ValueId, Tensor>,
    ) -> Result<Outcome, Fault> {
        let batch = self.inputs.step(step);
        self.execute_batch(step, &batch, checks, before)
    }

    /// The same with another batch.
    ///
    /// # Errors
    /// Reading and writing that fails.
    pub fn execute_batch(
        &mut self,
        step: u64,
        batch: &StepBatch,
        checks: &CheckMask,
        before: &BTreeMap<ValueId, Tensor>,
    ) -> Result<Outcome, Fault> {
        self.handle.set_step(step);
        self.session.set_checks(checks.clone());
        self.fired = checks.clone();
        let mut fault = None;
        for micro in 0..batch.micro.len() {
            write_batch(&mut self.session, &mut self.device, batch, micro)?;
            fault = fault.or(self.session.run(&mut self.device, Range::Accumulate).err());
        }
        fault = fault.or_else(|| self.session.run(&mut self.device, Range::Update).err());
        let read = |scene: &mut Scene, name: &str| scene.session.read_scalar(&mut scene.device, name);
        let (loss, gradient_norm) = (f64::from(read(self, "loss")?), f64::from(read(self, "gradient_norm")?));
        let carried: Result<_, Fault> =
            self.carried.iter().map(|named| self.session.read(&mut self.device, &named.name)).collect();
        let next: Result<_, Fault> = self
            .states
            .iter()
            .map(|state| self.session.read(&mut self.device, state.next.as_ref().unwrap_or(&state.name)))
            .collect();
        let mut outcome = Outcome {
            loss,
            gradient_norm,
            carried: carried?,
            next: next?,
            mismatches: Vec::new(),
            largest: 0.0,
            fault,
        };
        if outcome.fault.is_none() {
            self.judge(checks, before, &mut outcome)?;
        }
        Ok(outcome)
    }

    fn judge(
        &mut self,
        checks: &CheckMask,
        before: &BTreeMap<ValueId, Tensor>,
        outcome: &mut Outcome,
    ) -> Result<(), Fault> {
        for index in 0..self.sites.len() {
            let site = self.sites[index].clone();
            // There is no update before the first step, and not every check fired in the one before.
            let unknown =
                site.kind == CheckKind::State && !site.against.iter().all(|id| before.contains_key(id));
            if !checks.fires(site.bit) || unknown {
                continue;
            }
            let mut results = Vec::with_capacity(site.results.len() + site.against.len());
            for id in &site.results {
                results.push(self.tensor(*id)?);
            }
            for id in &site.against {
                match before.get(id).filter(|_| site.kind == CheckKind::State) {
                    Some(tensor) => results.push(tensor.clone()),
                    None => results.push(self.tensor(*id)?),
                }
            }
            if site.against.is_empty() && site.limit > 0.0 {
                let distances = results.iter().filter_map(|tensor| tensor.data.first());
                outcome.largest = distances.fold(outcome.largest, |worst, d| worst.max(d / site.limit));
            }
            if let Some(mismatch) = judge(&site, &results) {
                outcome.mismatches.push((index, mismatch));
            }
        }
        Ok(())
    }
}
