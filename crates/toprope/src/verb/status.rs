//! `toprope status RUN`: how a run stands, live or ended. It only reads, but for `--html`.

use crate::command::Status;
use crate::exit::{Exit, Failure, OrExit};
use crate::progress::duration;
use crate::report;
use serde::Serialize;
use std::fmt::Write;
use std::io::Write as _;
use std::path::PathBuf;
use toprope_guard::journal::{
    Accounts, Commit, FaultRecord, GuardSummary, Proof, RunRecord, RunState, fault_line, one_line,
};
use toprope_world::RealWorld;

/// Faults that are shown; the journal and the report have all.
const FAULTS_SHOWN: usize = 10;
const LINES_SHOWN: usize = 3;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    run: PathBuf,
    run_id: &'a str,
    #[serde(flatten)]
    state: &'a RunState,
    attempts: usize,
    steps: u64,
    loss: Option<f64>,
    tokens_per_second: Option<f64>,
    step_seconds_median: Option<f64>,
    checkpoint: Option<u64>,
    #[serde(flatten)]
    guard: GuardSummary,
    accounts: Accounts,
    proof: Option<Proof>,
    lines_passed_over: usize,
}

/// Shows a run.
pub fn run(arguments: &Status, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    let run = RunRecord::read(&world, &arguments.run).or_exit(Exit::Run)?;
    let accounts = Accounts::of(&run);
    let proof = run.ledger.is_kept().then(|| run.ledger.prove());
    let guard = GuardSummary::of(&run);
    for line in run.bad_lines.iter().take(LINES_SHOWN) {
        eprintln!("warning: {}", one_line(&line.to_string()));
    }
    if run.bad_lines.len() > LINES_SHOWN {
        eprintln!("warning: skipped {} more lines", run.bad_lines.len() - LINES_SHOWN);
    }
    let holds = proof.as_ref().is_none_or(Proof::holds);
    let mut text = overview(&run, &accounts, &guard, proof.as_ref());
    if arguments.ledger {
        text.push_str(&ledger(&run));
    }
    if arguments.html {
        let path = report::write(&world, &run).or_exit(Exit::Run)?;
        let _ = writeln!(text, "wrote {}", path.display());
    }
    if json {
        let summary = Summary {
            run: arguments.run.clone(),
            run_id: &run.run_id,
            state: &run.state,
            attempts: run.attempts.len(),
            steps: run.committed_steps(),
            loss: run.steps.last().and_then(|step| step.loss),
            tokens_per_second: rate(&run),
            step_seconds_median: accounts.clean_step_seconds,
            checkpoint: run.checkpoints.last().map(|(step, _)| *step),
            guard,
            accounts,
            proof,
            lines_passed_over: run.bad_lines.len(),
        };
        let _ = writeln!(text, "{}", serde_json::to_string(&summary).or_exit(Exit::Internal)?);
    }
    // A pager that was closed is no failure of the run.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if holds {
        Ok(Exit::Done)
    } else {
        Err(Failure::new(
            Exit::Run,
            format!(
                "{}: the ledger does not prove that each batch was counted once (above)\nhint: see docs/journal.md; \
                 a checkpoint from before the place that is named is not touched by it",
                arguments.run.display()
            ),
        ))
    }
}

/// What a person reads.
fn overview(run: &RunRecord, accounts: &Accounts, guard: &GuardSummary, proof: Option<&Proof>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "run {} in {}: {}", one_line(&run.run_id), run.folder.display(), state(&run.state));
    let attempts = run.attempts.len();
    let loss = run.steps.last().and_then(|step| step.loss);
    let loss = loss.map_or_else(|| "not known".to_owned(), |loss| format!("{loss:.4}"));
    let rate = rate(run).map(|rate| format!(", {rate:.0} tokens/s")).unwrap_or_default();
    let pace = accounts.clean_step_seconds.map(|s| format!(", {:.1} ms a step", s * 1e3)).unwrap_or_default();
    let _ = writeln!(
        text,
        "  {} step(s) in {attempts} attempt(s), loss {loss}{rate}{pace}",
        run.committed_steps()
    );
    match run.checkpoints.last() {
        Some((step, _)) => writeln!(text, "  newest durable checkpoint: step {step}"),
        None => writeln!(text, "  no durable checkpoint yet"),
    }
    .unwrap_or_default();
    for device in &guard.devices {
        let serving = run.timeline.iter().rev().find(|segment| segment.device == device.name);
        let duty = serving.map(|segment| format!("{:?}", segment.duty).to_lowercase()).unwrap_or_default();
        let duty = if duty.is_empty() { "in reserve".to_owned() } else { format!("last {duty}") };
        let _ = writeln!(
            text,
            "  device {}: {} step(s), {} fault(s), {duty}",
            one_line(&device.name),
            device.steps,
            device.faults
        );
    }
    if let Some(goodput) = accounts.goodput {
        let _ = writeln!(
            text,
            "  goodput {:.1} % of {}; {} lost to faults, {} step(s) redone",
            100.0 * goodput,
            duration(accounts.wall_seconds),
            duration(guard.seconds_lost),
            guard.steps_redone
        );
    }
    text.push_str(&faults(&run.faults, guard));
    match proof {
        None => text.push_str("  no ledger: the run has no guard\n"),
        Some(proof) => {
            let _ = writeln!(text, "  {}", proof_line(proof));
        }
    }
    text
}

/// What the ledger proves, in a line.
pub fn proof_line(proof: &Proof) -> String {
    let skipped = match proof.skipped {
        0 => String::new(),
        count => format!(", {count} left out by the policy"),
    };
    let taken_back = match proof.taken_back {
        0 => String::new(),
        count => format!("; {count} commit(s) were taken back and count for nothing"),
    };
    let counted = format!(
        "{} batches committed{skipped}, {} lost, {} doubled{taken_back}",
        proof.committed, proof.batches_lost, proof.batches_doubled
    );
    match &proof.violation {
        None => format!("ledger proven: {counted}"),
        Some(violation) => format!("LEDGER BROKEN: {violation} ({counted})"),
    }
}

fn faults(faults: &[FaultRecord], guard: &GuardSummary) -> String {
    if faults.is_empty() {
        return "  no faults\n".to_owned();
    }
    let classes = guard.faults.iter().filter(|(_, count)| **count > 0);
    let classes: Vec<String> = classes.map(|(class, count)| format!("{class} {count}")).collect();
    let injected = match guard.faults_injected {
        0 => String::new(),
        count => format!(", {count} of them injected"),
    };
    let mut text = format!("  {} fault(s): {}{injected}\n", faults.len(), classes.join(", "));
    for fault in &faults[faults.len().saturating_sub(FAULTS_SHOWN)..] {
        let _ = writeln!(text, "    {}", fault_line(fault));
    }
    text
}

fn state(state: &RunState) -> String {
    match state {
        RunState::Running { process } => format!("running (process {process})"),
        RunState::Done => "done".to_owned(),
        RunState::Stopped { reason } => format!("stopped: {}", one_line(reason)),
        RunState::Died => "not running; its process ended without a word: go on with --resume".to_owned(),
    }
}

/// Tokens a second over the last steps.
fn rate(run: &RunRecord) -> Option<f64> {
    let last = &run.steps[run.steps.len().saturating_sub(20)..];
    let seconds: f64 = last.iter().map(|step| step.seconds).sum();
    let tokens: u64 = last.iter().map(|step| step.tokens).sum();
    (seconds > 0.0 && tokens > 0).then(|| tokens as f64 / seconds)
}

/// The ledger: a line for each stretch of steps that one attempt committed on the same devices, and for each batch that
/// was left out.
fn ledger(run: &RunRecord) -> String {
    let mut text = String::from("ledger (batches have the numbers of their steps):\n");
    let mut stretch: Option<(&Commit, &Commit)> = None;
    let mut skipped = run.ledger.skipped().peekable();
    let show = |text: &mut String, (first, last): (&Commit, &Commit)| {
        let devices: Vec<String> = first.devices.iter().map(|name| one_line(name)).collect();
        let _ = writeln!(
            text,
            "  steps {}..={}  attempt {}  executions {}..={}  {}  lines {}..={}",
            first.step,
            last.step,
            first.attempt,
            first.execution,
            last.execution,
            devices.join(" + "),
            first.line,
            last.line
        );
    };
    for commit in run.ledger.commits() {
        stretch = match stretch {
            Some((first, last))
                if last.step + 1 == commit.step
                    && commit.execution.checked_sub(1) == Some(last.execution)
                    && last.attempt == commit.attempt
                    && last.devices == commit.devices =>
            {
                Some((first, commit))
            }
            before => {
                if let Some(before) = before {
                    show(&mut text, before);
                }
                while let Some(step) = skipped.next_if(|step| *step < commit.step) {
                    let _ = writeln!(text, "  step {step}  left out by the policy");
                }
                Some((commit, commit))
            }
        };
    }
    if let Some(last) = stretch {
        show(&mut text, last);
    }
    for step in skipped {
        let _ = writeln!(text, "  step {step}  left out by the policy");
    }
    text
}
