//! The engine of a guarded run: devices in worker processes of this same binary.

use super::Programs;
use super::retest::retest;
use crate::command::Train;
use crate::exit::{Exit, Failure, OrExit};
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::verb::validated::validated;
use serde_json::json;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use toprope_guard::hook::Hook;
use toprope_guard::inject::{self, Home, Scheduled, What};
use toprope_guard::journal::{FaultRecord, fault_line};
use toprope_guard::policy::Level;
use toprope_guard::remote::WorkerCommand;
use toprope_guard::supervisor::{
    DeviceSpec, FAULTS_MAX, News, OnOwnFault, Options, Recorder, Supervisor, insert_digests,
};
use toprope_program::Validated;
use toprope_program::check::{self, CheckLevel, CheckPlan, CheckSite};
use toprope_train::batch::StepInputs;
use toprope_train::checkpoint::Identity;
use toprope_train::engine::{Checkpoints, Guarded, GuardedOptions, GuardedSteps};
use toprope_train::initial::InitialState;
use toprope_train::recipe::{Recipe, StatePlan};
use toprope_train::run_folder::RunFolder;
use toprope_world::World;

/// What the engine is made of.
pub(super) struct Parts<'a> {
    pub(super) arguments: &'a Train,
    pub(super) recipe: &'a Recipe,
    pub(super) world: &'a Arc<dyn World>,
    pub(super) programs: &'a Programs,
    pub(super) checked: Checked,
    pub(super) inputs: &'a Arc<StepInputs>,
    pub(super) folder: &'a Rc<RefCell<RunFolder>>,
    pub(super) identity: &'a Identity,
    pub(super) initial: &'a Arc<InitialState>,
    pub(super) restored: bool,
    pub(super) progress: &'a Rc<RefCell<Progress>>,
    pub(super) metrics: Option<Arc<Metrics>>,
    pub(super) disk_full: Arc<AtomicBool>,
    pub(super) step_estimate: Duration,
}

/// This binary, as a worker.
pub(super) fn worker_command(arguments: &Train) -> Result<WorkerCommand, Failure> {
    let program = std::env::current_exe().or_exit(Exit::Internal)?;
    let mut words = vec!["worker".into()];
    if let Some(python) = &arguments.python {
        words.extend(["--python".into(), python.into()]);
    }
    Ok(WorkerCommand { program, arguments: words, script: None })
}

/// A device as the command line asks for it. In a rehearsal every device is held by this binary's own worker, which
/// injects the faults.
pub(super) fn spec(name: &str, arguments: &Train) -> Result<DeviceSpec, Failure> {
    // The level is the primary's; a fallback names its own, as in `cpu:avx2`.
    let level = arguments.level.clone().filter(|_| name == arguments.device());
    let own = toprope_devices::own_worker(name, arguments.python.as_deref()).or_exit(Exit::Device)?;
    let in_host_memory = toprope_devices::in_host_memory(name);
    let command = own.filter(|_| arguments.faults.is_none());
    Ok(DeviceSpec { name: name.into(), threads: arguments.threads, level, command, in_host_memory })
}

/// Builds the engine; starts nothing yet.
pub(super) fn engine(parts: Parts<'_>) -> Result<Guarded, Failure> {
    let (recorder, on_own_fault) = (recorder(&parts), on_own_fault(&parts));
    let Parts {
        arguments,
        recipe,
        world,
        programs,
        inputs,
        folder,
        identity,
        initial,
        restored,
        step_estimate,
        checked,
        ..
    } = parts;
    let names = std::iter::once(arguments.device()).chain(arguments.fallback.iter().map(String::as_str));
    let (checkpoints, run_id) = {
        let folder = folder.borrow();
        (folder.checkpoints(), folder.run_id().to_string())
    };
    let durable = Checkpoints {
        world: world.clone(),
        folder: checkpoints,
        run_id: run_id.clone(),
        identity: identity.clone(),
        seed: recipe.seed,
        program: programs.train.clone(),
        initial: initial.clone(),
    };
    let Checked { program, sites, faults } = checked;
    let devices = names.map(|name| spec(name, arguments)).collect::<Result<Vec<DeviceSpec>, Failure>>()?;
    let in_host_memory = devices.iter().all(|device| device.in_host_memory);
    let supervisor = Supervisor::new(Options {
        world: world.clone(),
        run: run_id,
        command: worker_command(arguments)?,
        devices,
        program,
        sites,
        checks: match recipe.guard.level {
            Level::Off => CheckLevel::Off,
            Level::Sampled => CheckLevel::Sampled,
            Level::Full | Level::Shadow => CheckLevel::Full,
        },
        // A chip with memory of its own cannot adopt the host's.
        state_on_device: recipe.training.state == StatePlan::OnDevice || !in_host_memory,
        shadow: recipe.guard.level == Level::Shadow,
        retest: retest(recipe, inputs, &programs.train),
        layout: recipe.training.state.into(),
        policy: recipe.guard.clone(),
        steps: Box::new(GuardedSteps::new(inputs.clone())),
        durable: Box::new(durable),
        recorder,
        faults,
        on_own_fault,
        step_estimate,
    })
    .or_exit(Exit::Memory)?;
    let options = GuardedOptions {
        supervisor,
        train: programs.train.clone(),
        evaluate: Some(programs.evaluate.clone()),
        logits: Some(programs.logits.clone()),
        initial: (!restored).then(|| initial.clone()),
    };
    Guarded::open(options).map_err(|error| super::not_begun(&error))
}

/// The step as the guard runs it.
pub(super) struct Checked {
    pub(super) program: Arc<Validated>,
    sites: Vec<CheckSite>,
    faults: Vec<Scheduled>,
}

/// The step with its checks and digests, validated, and what is to be injected into it.
pub(super) fn checked(arguments: &Train, recipe: &Recipe, train: &Validated) -> Result<Checked, Failure> {
    let (program, sites) = step(train)?;
    let faults = faults(arguments, recipe, &program)?;
    Ok(Checked { program, sites, faults })
}

/// The step with its checks and digests, validated.
pub fn step(train: &Validated) -> Result<(Arc<Validated>, Vec<CheckSite>), Failure> {
    let mut program = train.program().clone();
    let sites = check::insert(&mut program, &CheckPlan { level: CheckLevel::Full });
    insert_digests(&mut program);
    Ok((validated(program)?, sites))
}

/// What is to be injected: parsed, drawn, and refused where it cannot happen.
fn faults(arguments: &Train, recipe: &Recipe, program: &Validated) -> Result<Vec<Scheduled>, Failure> {
    let Some(spec) = &arguments.faults else { return Ok(Vec::new()) };
    let text = match spec.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Failure::new(Exit::Usage, format!("--faults {spec}: {error}")))?,
        None => spec.clone(),
    };
    let refused = |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, format!("--faults: {error}"));
    let schedule = inject::parse(&text).map_err(|error| refused(&error))?;
    let steps = recipe.training.steps;
    inject::check(&schedule, program.program(), steps).map_err(|error| refused(&error))?;
    let faults = inject::expand(&schedule, program.program(), steps).map_err(|error| refused(&error))?;
    if faults.len() > FAULTS_MAX {
        return Err(refused(&format!("{} faults are more than {FAULTS_MAX}", faults.len())));
    }
    Ok(faults)
}

/// Writes to the journal and tells the user.
fn recorder(parts: &Parts<'_>) -> Recorder {
    let (world, folder, progress) = (parts.world.clone(), parts.folder.clone(), parts.progress.clone());
    let devices: Vec<String> = std::iter::once(parts.arguments.device().to_string())
        .chain(parts.arguments.fallback.iter().cloned())
        .collect();
    let metrics = parts.metrics.clone();
    let mut hook =
        parts.recipe.guard.on_fault.as_ref().map(|command| Hook::new(command, parts.folder.borrow().path()));
    // Faults that are not over: each is told once it is known what it cost.
    let mut open: Vec<FaultRecord> = Vec::new();
    Box::new(move |news| {
        let mut lines = Vec::new();
        let (record, durable) = match news {
            News::Ended => {
                lines.extend(open.drain(..).map(|fault| fault_line(&fault)));
                if let Some(hook) = &mut hook {
                    lines.extend(
                        hook.finish(&*world).into_iter().map(|warning| format!("warning: {warning}")),
                    );
                }
                for line in lines {
                    progress.borrow().line(&line);
                }
                return;
            }
            News::Decision { entry, injected } => {
                let now = world.clock().wall();
                let fault = FaultRecord::of_entry(entry, &devices, now, injected);
                let mut record = serde_json::to_value(entry).unwrap_or_default();
                if let (Some(fields), Some(_)) = (record.as_object_mut(), &fault) {
                    fields.insert("injected".into(), injected.into());
                }
                if let Some(metrics) = &metrics {
                    metrics.entry(entry, &devices, injected);
                }
                let durable = fault.is_some();
                if let (true, Some(hook), Some(line)) = (durable, &mut hook, record.as_object()) {
                    lines
                        .extend(hook.fault(&*world, line).err().map(|warning| format!("warning: {warning}")));
                }
                open.extend(fault);
                (record, durable)
            }
            News::Injected { fired, step } => {
                let record = json!({ "event": "injected", "step": step, "id": fired.id, "what": fired.what });
                (record, false)
            }
            News::Recovered { step, seconds, steps_redone } => {
                if let Some(metrics) = &metrics {
                    metrics.recovered(seconds, steps_redone);
                }
                for mut fault in open.drain(..) {
                    fault.cost_seconds = Some(seconds);
                    fault.steps_redone = Some(steps_redone);
                    lines.push(fault_line(&fault));
                }
                let record = json!({
                    "event": "recovered", "step": step, "seconds": seconds, "steps_redone": steps_redone,
                });
                (record, false)
            }
        };
        if let Some(hook) = &mut hook {
            lines.extend(hook.poll(&*world).into_iter().map(|warning| format!("warning: {warning}")));
        }
        let mut folder = folder.borrow_mut();
        let mut written = folder.event(&*world, &record);
        if durable {
            written = written.and_then(|()| folder.sync(&*world));
        }
        lines.extend(written.err().map(|error| format!("warning: {error}")));
        for line in lines {
            progress.borrow().line(&line);
        }
    })
}

/// Faults of this very process and its disk.
fn on_own_fault(parts: &Parts<'_>) -> OnOwnFault {
    let (full, folder, world) = (parts.disk_full.clone(), parts.folder.clone(), parts.world.clone());
    Box::new(move |what| match what {
        What::KillSupervisor => crate::verb::worker::die(),
        What::DiskFull => full.store(true, Ordering::Release),
        What::AtRest { home: Home::Checkpoint, .. } => damage_newest(&*world, &folder.borrow().checkpoints()),
        _ => {}
    })
}

/// Adds a byte to the newest checkpoint's tensors.
fn damage_newest(world: &dyn World, checkpoints: &Path) {
    let listed = world.files().list(checkpoints).unwrap_or_default();
    let newest = listed.iter().rfind(|entry| entry.name.starts_with("step-"));
    if let Some(entry) = newest {
        let path = checkpoints.join(&entry.name).join("state.safetensors");
        // Where it cannot be damaged, the rehearsal finds it intact and says so.
        let _ = world.files().append(&path).and_then(|mut file| file.write(&[0]));
    }
}
