//! One supervised run on the emulated NPU, with defects that files switch on and off.

use super::{Bench, DEVICE, FALLBACK, STEPS};
use crate::CampaignError;
use crate::scene::wrong;
use serde_json::Value;
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use toprope_guard::decide::{Entry, FaultKind, Place};
use toprope_guard::journal::{Ledger, LogLine, Proof, Record};
use toprope_guard::policy::{Policy, SnapshotEvery, WrongOperator};
use toprope_guard::remote::WorkerCommand;
use toprope_guard::supervisor::{
    CommittedState, DeviceSpec, Durable, News, Options, Recorder, Supervisor, TakeValue,
};
use toprope_program::StateLayout;
use toprope_program::check::CheckLevel;
use toprope_train::checkpoint::OwnedTensor;
use toprope_train::engine::{Engine, Guarded, GuardedOptions, GuardedSteps};
use toprope_train::initial::InitialState;
use toprope_world::write_durably;

/// A defect with the file that switches it on.
#[derive(Clone, Debug)]
pub struct Switch {
    /// The rule, without the file: `runtime.hang@op=Matmul`.
    pub rule: String,
    /// Whether it shows once and not as long as it is on.
    pub once: bool,
    /// Before which step it is switched on; none before the workers are started.
    pub on: Option<u64>,
    /// Before which step it is switched off again, where it is not for good.
    pub off: Option<u64>,
}

/// What a run meets.
#[derive(Clone, Debug)]
pub struct Disturbance {
    /// Its defects.
    pub switches: Vec<Switch>,
    /// Whether a second worker stands by.
    pub standby: bool,
    /// How many checks fire.
    pub checks: CheckLevel,
}

impl Disturbance {
    /// Nothing.
    pub fn none() -> Disturbance {
        Disturbance { switches: Vec::new(), standby: false, checks: CheckLevel::Full }
    }

    /// One defect.
    pub fn one(switch: Switch) -> Disturbance {
        Disturbance { switches: vec![switch], ..Disturbance::none() }
    }
}

/// A fault as the guard recorded it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The class with its particulars.
    pub kind: FaultKind,
    /// The operator, where one was named.
    pub place: Option<Place>,
    /// What was done.
    pub action: String,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The faults, in order; slowness, which nothing is done about, is left out.
    pub faults: Vec<Seen>,
    /// Operators that were moved.
    pub moved: Vec<String>,
    /// Whether the run left its device.
    pub left: bool,
    /// The ledger's proof.
    pub proof: Proof,
    /// The last state, or why there is none.
    pub state: Result<Vec<OwnedTensor>, String>,
    /// The loss of each step.
    pub losses: Vec<f64>,
    /// For each switch whether its file was taken; one that stays on counts as met.
    pub met: Vec<bool>,
    /// Wall time.
    pub seconds: f64,
}

/// Numbers the folders of runs.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// A worker that is not up within this is a hang; well above what one takes on a busy machine.
const LAUNCH_SECONDS: f64 = 10.0;

impl Bench {
    fn policy(&self, disturbance: &Disturbance) -> Policy {
        let mut policy = Policy {
            standby: disturbance.standby,
            snapshot_every: SnapshotEvery::Steps(1),
            wrong_operator: WrongOperator::Move,
            launch_limit_seconds: LAUNCH_SECONDS,
            ..self.recipe.guard.clone()
        };
        policy.restart.apart_seconds = 0.01;
        policy.restart.backoff_seconds = 0.05;
        policy.retest.after_seconds = 0.2;
        policy
    }

    /// Runs all steps under the guard.
    ///
    /// # Errors
    /// The run could not be made; what happens to it is in the outcome.
    pub fn run(&self, disturbance: &Disturbance) -> Result<Outcome, CampaignError> {
        let clock = || self.world.clock().monotonic();
        let started = clock();
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.join(number.to_string());
        self.world.files().create_folder(&folder)?;
        let files: Vec<PathBuf> =
            (0..disturbance.switches.len()).map(|index| folder.join(index.to_string())).collect();
        let rules: Vec<String> = disturbance
            .switches
            .iter()
            .zip(&files)
            .map(|(switch, file)| {
                let joint = if switch.rule.contains('@') { ',' } else { '@' };
                let key = if switch.once { "token" } else { "while" };
                format!("{}{joint}{key}={}", switch.rule, file.display())
            })
            .collect();
        let entries: Rc<RefCell<Vec<Entry>>> = Rc::default();
        let spec = |name: &str| DeviceSpec {
            name: name.into(),
            threads: Some(1),
            level: None,
            command: None,
            in_host_memory: toprope_devices::in_host_memory(name),
        };
        let supervisor = Supervisor::new(Options {
            world: self.world.clone(),
            run: "npu".into(),
            command: self.command(&rules),
            devices: vec![spec(DEVICE), spec(FALLBACK)],
            program: self.program.clone(),
            sites: self.sites.clone(),
            checks: disturbance.checks,
            layout: StateLayout::Double,
            shadow: false,
            state_on_device: true,
            // A device that answers with its description was opened anew: enough to go back to an emulator.
            retest: Arc::new(|device| {
                let description = toprope_program::Device::describe(device);
                (true, format!("{} was opened", description.name))
            }),
            policy: self.policy(disturbance),
            steps: Box::new(GuardedSteps::new(self.inputs.clone())),
            durable: Box::new(NoCheckpoints),
            recorder: recorder(&entries),
            faults: Vec::new(),
            on_own_fault: Box::new(|_| {}),
            step_estimate: Duration::from_millis(500),
        });
        let supervisor = supervisor.map_err(|error| wrong("npu", error))?;
        let options = GuardedOptions {
            supervisor,
            train: self.train.clone(),
            evaluate: None,
            logits: None,
            initial: Some(Arc::new(InitialState::drawn(self.recipe.seed))),
        };
        let mut engine = Guarded::open(options).map_err(|error| wrong("npu", error))?;
        let mut losses = Vec::new();
        let state = self.steps(&mut engine, disturbance, &files, &mut losses)?;
        engine.finish();
        drop(engine);
        let taken = |file: &PathBuf| matches!(self.world.files().inspect(file), Ok(None));
        let met = disturbance.switches.iter().zip(&files).map(|(switch, file)| !switch.once || taken(file));
        let met = met.collect();
        self.world.files().remove_folder(&folder)?;
        let entries = entries.take();
        Ok(Outcome {
            faults: faults(&entries),
            moved: moved(&entries),
            left: entries.iter().any(|entry| matches!(entry, Entry::FailedOver { .. })),
            proof: proof(&entries),
            state,
            losses,
            met,
            seconds: clock().saturating_sub(started).as_secs_f64(),
        })
    }

    /// This binary's worker under these defects; a variable of its own process, set by `env`, so that runs beside each other
    /// have their own.
    fn command(&self, rules: &[String]) -> WorkerCommand {
        if rules.is_empty() {
            return self.worker.clone();
        }
        let variable = format!("CANN_EMULATOR_DEFECTS={}", rules.join("; "));
        let mut arguments: Vec<std::ffi::OsString> =
            vec![variable.into(), self.worker.program.clone().into()];
        arguments.extend(self.worker.arguments.iter().cloned());
        WorkerCommand { program: "/usr/bin/env".into(), arguments, script: None }
    }

    /// The inner error is the guard's, which gave up.
    fn steps(
        &self,
        engine: &mut Guarded,
        disturbance: &Disturbance,
        files: &[PathBuf],
        losses: &mut Vec<f64>,
    ) -> Result<Result<Vec<OwnedTensor>, String>, CampaignError> {
        let switch = |before: Option<u64>| -> Result<(), CampaignError> {
            for (switch, file) in disturbance.switches.iter().zip(files) {
                if switch.on == before {
                    write_durably(self.world.files(), file, b"")?;
                }
                if before.is_some() && switch.off == before && self.world.files().inspect(file)?.is_some() {
                    self.world.files().remove_file(file)?;
                }
            }
            Ok(())
        };
        switch(None)?;
        for step in 0..STEPS {
            switch(Some(step))?;
            let batch = self.inputs.step(step);
            let done = engine.begin(step, &batch).and_then(|()| engine.verdict());
            match done.and_then(|verdict| engine.commit().map(|_| verdict)) {
                Ok(verdict) => losses.push(verdict.loss),
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        Ok(engine.snapshot().map_err(|error| error.to_string()))
    }
}

fn recorder(entries: &Rc<RefCell<Vec<Entry>>>) -> Recorder {
    let entries = entries.clone();
    Box::new(move |news| {
        if let News::Decision { entry, .. } = news {
            entries.borrow_mut().push(entry.clone());
        }
    })
}

fn faults(entries: &[Entry]) -> Vec<Seen> {
    let seen = |entry: &Entry| match entry {
        Entry::Fault { kind: FaultKind::Slow { .. }, .. } => None,
        Entry::Fault { kind, place, action, .. } => {
            Some(Seen { kind: kind.clone(), place: place.clone(), action: action.clone() })
        }
        _ => None,
    };
    entries.iter().filter_map(seen).collect()
}

fn moved(entries: &[Entry]) -> Vec<String> {
    let name = |entry: &Entry| match entry {
        Entry::OperatorMoved { operator, .. } => Some(operator.clone()),
        _ => None,
    };
    entries.iter().filter_map(name).collect()
}

/// The proof that the journal's own reader would make of these entries.
fn proof(entries: &[Entry]) -> Proof {
    let mut ledger = Ledger::default();
    for (index, entry) in entries.iter().enumerate() {
        let Ok(Value::Object(mut value)) = serde_json::to_value(entry) else { continue };
        value.insert("attempt".into(), 1.into());
        let line = LogLine { number: index as u64 + 1, offset: 0, value };
        match Record::of_line(&line) {
            Ok(record) => ledger.apply(&record),
            Err(_) => ledger.damaged(line.number),
        }
    }
    ledger.prove()
}

/// No checkpoint is written or read: snapshots in the host's memory are what is tried here.
struct NoCheckpoints;

impl Durable for NoCheckpoints {
    fn newest(&mut self, _take: &mut TakeValue<'_>) -> Result<Option<u64>, String> {
        Ok(None)
    }

    fn write(&mut self, _step: u64, _state: &CommittedState<'_>) -> Result<(), String> {
        Ok(())
    }
}
