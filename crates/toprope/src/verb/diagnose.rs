//! `toprope diagnose`: which operator a device computes wrong, since when, and in what way.

mod script; // a training script of the user's own
mod show; // what a person reads

use crate::command::Diagnose;
use crate::exit::{Exit, Failure, OrExit};
use crate::verb::oracle::oracle;
use crate::verb::replay::{Source, open_device};
use serde::Serialize;
use std::path::PathBuf;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::shrink::shrink;
use toprope_diagnose::bound::rate_bound;
use toprope_diagnose::free::{Growth, free_run};
use toprope_diagnose::lockstep::{Found, Named, Options, Party, Walk, walk};
use toprope_diagnose::row::Row;
use toprope_diagnose::spans::{Spans, spans};
use toprope_diagnose::step::StepValues;
use toprope_diagnose::{Effort, Guess, guess, vote};
use toprope_program::{Description, Device, OPERATORS};
use toprope_world::{RealWorld, World, write_durably};

/// What `--json` prints last.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The first wrong operator; null where all agree.
    pub first_wrong: Option<FirstWrong>,
    /// The step that was looked at.
    pub step: u64,
    /// The subject first, the trusted device last.
    pub devices: Vec<Description>,
    /// Instructions that were looked at.
    pub instructions: usize,
    /// Instructions that the subject gets wrong.
    pub wrong: usize,
    /// Instructions that the subject refused: not run.
    pub not_run: usize,
    /// Rows with bits that differed from run to run.
    pub unsteady: usize,
    /// Rows of which the oracle judged a part.
    pub sampled: usize,
    /// The first operator whose bits differ from run to run, all of them within the tolerance; null where none was seen.
    pub not_deterministic: Option<NotDeterministic>,
    /// Clean runs of the instruction that had the fewest, among those that are not wrong.
    pub clean_runs: u64,
    /// The largest rate, per run of one instruction, of a fault in it that those clean runs miss with probability 5 %.
    pub missed_rate_bound: f64,
    /// Who is to blame, where three devices took part.
    pub vote: Option<String>,
    /// Whether the step gives the same bits in spans as one operator at a time.
    pub spans: SpansSummary,
    /// How the error grows, from a run of the whole step on each.
    pub growth: Option<GrowthSummary>,
    /// The worst rows.
    pub table: Vec<Row>,
}

/// The first wrong operator.
#[derive(Debug, Serialize)]
pub struct FirstWrong {
    /// Its name.
    pub operator: String,
    /// The part of the model.
    pub layer: String,
    /// The step.
    pub step: u64,
    /// Distance of the worst element from the exact result; null where it is no number.
    pub error: Option<f64>,
    /// The largest distance that is accepted there; null where the result must be exact.
    pub tolerance: Option<f64>,
    /// The kind of defect with the experiments that tell.
    pub defect_guess: Guess,
    /// A program that shows it, as text.
    pub reproducer: Option<String>,
    /// Where it was saved, for `toprope report`.
    pub saved: Option<PathBuf>,
    /// The whole row.
    pub row: Row,
}

/// An operator whose bits differ from run to run.
#[derive(Debug, Serialize)]
pub struct NotDeterministic {
    /// Its name.
    pub operator: String,
    /// The part of the model.
    pub layer: String,
    /// The step.
    pub step: u64,
    /// How often it was run.
    pub runs: u64,
    /// Runs among them whose bits are not the first one's.
    pub other_bits: u64,
    /// Whether the device says that its bits repeat.
    pub promised: bool,
    /// The kind of defect with the experiments that tell.
    pub defect_guess: Guess,
}

/// The subject's step in spans against one operator at a time.
#[derive(Debug, Default, Serialize)]
pub struct SpansSummary {
    /// Results whose bits are the same both ways.
    pub same: Option<u64>,
    /// Why it was not tried.
    pub not_run: Option<String>,
}

/// How an error grows.
#[derive(Debug, Serialize)]
pub struct GrowthSummary {
    /// The first value that differs in any bit.
    pub first: Option<String>,
    /// The largest relative distance by part of the model, in the order of the step.
    pub parts: Vec<(String, Option<f64>)>,
    /// The loss on the subject and on the trusted device.
    pub loss: Option<(f64, f64)>,
    /// Relative distance of the next state.
    pub state: Option<f64>,
}

/// Diagnoses.
pub fn run(arguments: &Diagnose, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    if let Some(script) = &arguments.script {
        return script::run(&world, arguments, script, json);
    }
    let names = names(&arguments.device, &arguments.against)?;
    check_operators(&arguments.operators)?;
    // Devices first: they are cheap to refuse.
    let mut devices = Vec::new();
    for name in &names {
        devices.push(open_device(name, arguments.threads, arguments.python.as_deref())?);
    }
    let threads =
        arguments.threads.unwrap_or_else(|| devices.last().map_or(1, |device| device.describe().units));
    let what = arguments.run.as_deref().unwrap_or_default();
    let source = Source::open(&world, what, &arguments.sets, threads.max(1))?;
    let mut bench = Bench { world: &world, arguments, source: &source, names: &names, devices };
    let (step, values) = match (arguments.from, arguments.to) {
        (Some(from), Some(to)) => match bench.bisect(from, to)? {
            Some(found) => found,
            None => return bench.agree_until(from, to, json),
        },
        _ => {
            let step = arguments.step.unwrap_or(0);
            (step, bench.values(step)?)
        }
    };
    bench.diagnose(step, &values, json)
}

/// The devices' names: subject, others, trusted.
pub fn names(device: &str, against: &[String]) -> Result<Vec<String>, Failure> {
    let mut names = vec![device.to_string()];
    names.extend(against.iter().cloned());
    if names.len() > 3 {
        let message =
            format!("--against {}: at most two devices beside --device have a vote", against.join(","));
        return Err(Failure::new(Exit::Usage, message));
    }
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            return Err(Failure::new(
                Exit::Usage,
                format!(
                    "{name} is named twice: a device cannot be held against itself\nhint: --against takes another device, such as cpu, reference or cpu:portable"
                ),
            ));
        }
    }
    Ok(names)
}

/// Refuses operators that the contract does not have.
pub fn check_operators(operators: &[String]) -> Result<(), Failure> {
    for operator in operators {
        if !OPERATORS.iter().any(|record| record.name == operator) {
            let known: Vec<&str> = OPERATORS.iter().map(|record| record.name).collect();
            return Err(Failure::new(
                Exit::Usage,
                format!("there is no operator `{operator}`; there is {}", known.join(", ")),
            ));
        }
    }
    Ok(())
}

/// The devices on the bench, and where steps come from.
struct Bench<'a> {
    world: &'a dyn World,
    arguments: &'a Diagnose,
    source: &'a Source,
    names: &'a [String],
    devices: Vec<Box<dyn Device>>,
}

impl Bench<'_> {
    /// The values of a step, its state replayed on a trusted device of its own.
    fn values(&self, step: u64) -> Result<StepValues, Failure> {
        self.source.check_step(step)?;
        let trusted = self.names.last().map_or("cpu", String::as_str);
        let device = open_device(trusted, self.arguments.threads, self.arguments.python.as_deref())?;
        let state = self.source.state(self.world, device, step)?;
        self.source.values(step, &state)
    }

    fn walk(&mut self, values: &StepValues, stop_at_first: bool) -> Result<Walk, Failure> {
        let operators = &self.arguments.operators;
        let options = Options {
            repeat: self.arguments.repeat,
            operators: (!operators.is_empty()).then(|| operators.clone()),
            stop_at_first,
            ..Options::default()
        };
        let mut oracle = oracle();
        let (subject, rest) = self.devices.split_first_mut().ok_or_else(nothing)?;
        let (trusted, others) = rest.split_last_mut().ok_or_else(nothing)?;
        let others = others.iter_mut().zip(&self.names[1..]);
        let mut party = Party {
            subject: Named { name: self.names[0].clone(), device: subject.as_mut() },
            others: others
                .map(|(device, name)| Named { name: name.clone(), device: device.as_mut() })
                .collect(),
            trusted: Named { name: self.names.last().cloned().unwrap_or_default(), device: trusted.as_mut() },
            oracle: &mut oracle,
        };
        let mut progress = show::Progress::default();
        let result = walk(&mut party, &self.source.program, values, &options, &mut |row, done, all| {
            progress.row(row, done, all);
        });
        progress.finish();
        result.or_exit(Exit::Device)
    }

    /// The first step of a range that differs, by halves.
    fn bisect(&mut self, from: u64, to: u64) -> Result<Option<(u64, StepValues)>, Failure> {
        if from > to {
            return Err(Failure::new(Exit::Usage, format!("--from {from} lies behind --to {to}")));
        }
        self.source.check_step(to)?;
        let mut differs = |step: u64| -> Result<Option<StepValues>, Failure> {
            let values = self.values(step)?;
            let walk = self.walk(&values, true)?;
            let told = walk
                .first
                .as_ref()
                .map_or("all agree".to_string(), |found| format!("{} is wrong", found.row.operator));
            println!("step {step}: {told}");
            Ok(walk.first.map(|_| values))
        };
        let Some(mut found) = differs(to)?.map(|values| (to, values)) else { return Ok(None) };
        let mut low = from;
        while low < found.0 {
            let middle = low + (found.0 - low) / 2;
            match differs(middle)? {
                Some(values) => found = (middle, values),
                None => low = middle + 1,
            }
        }
        println!("step {} is the first from {from} on that differs", found.0);
        Ok(Some(found))
    }

    fn agree_until(&self, from: u64, to: u64, json: bool) -> Result<Exit, Failure> {
        println!("step {to} agrees on {}: nothing to look for from step {from} on", self.names.join(" and "));
        if json {
            println!("{}", serde_json::json!({ "first_wrong": null, "from": from, "to": to, "table": [] }));
        }
        Ok(Exit::Done)
    }

    fn diagnose(&mut self, step: u64, values: &StepValues, json: bool) -> Result<Exit, Failure> {
        let walk = self.walk(values, false)?;
        let descriptions: Vec<Description> = self.devices.iter().map(|device| device.describe()).collect();
        let growth = if self.arguments.operators.is_empty() { self.growth(values) } else { None };
        let (first, spans) = match &walk.first {
            Some(found) => {
                let reason = "an operator is wrong already when it runs alone";
                let spans = SpansSummary { not_run: Some(reason.into()), ..SpansSummary::default() };
                (Some(self.first_wrong(found, step)?), spans)
            }
            None => self.in_spans(values, step),
        };
        let promised = descriptions.first().is_some_and(|device| device.deterministic);
        let not_deterministic = match &walk.first_unsteady {
            Some(found) => Some(self.not_deterministic(found, step, promised)?),
            None => None,
        };
        // Each instruction's own runs speak for it, not those of the others; a wrong one is found, and not missed.
        let clean = walk.rows.iter().filter(|row| !row.is_wrong()).map(Row::subject);
        let clean = clean.filter(|subject| subject.verdict != toprope_diagnose::row::Outcome::Refused);
        let clean_runs = clean.map(|subject| subject.runs - subject.wrong_runs).min().unwrap_or(0);
        let blame = walk.first.as_ref().and_then(|found| vote::blame(&found.row));
        let said = blame.map(|blame| {
            let same = descriptions.len() == 3 && descriptions[0].hardware == descriptions[1].hardware;
            vote::sentence(&self.names[0], &self.names[1], blame, same)
        });
        let count = |holds: &dyn Fn(&Row) -> bool| walk.rows.iter().filter(|row| holds(row)).count();
        let report = Report {
            step,
            devices: descriptions,
            instructions: walk.rows.len(),
            wrong: count(&Row::is_wrong),
            not_run: count(&|row| row.subject().verdict == toprope_diagnose::row::Outcome::Refused),
            unsteady: count(&|row| row.subject().other_bits > 0),
            sampled: count(&|row| row.sampled.is_some()),
            not_deterministic,
            clean_runs,
            missed_rate_bound: rate_bound(clean_runs, 0.05),
            vote: said.or_else(|| walk.rows.iter().find_map(|row| row.vote.clone())),
            spans,
            growth,
            table: show::ranked(&walk.rows),
            first_wrong: first,
        };
        print!("{}", show::text(&self.source.name, self.names, &report, self.arguments.repeat));
        if json {
            println!("{}", serde_json::to_string(&report).or_exit(Exit::Internal)?);
        }
        let unsteady = report.not_deterministic.as_ref().is_some_and(|found| found.promised);
        Ok(match report.first_wrong {
            Some(_) => Exit::Wrong,
            None if unsteady => Exit::NotDeterministic,
            None => Exit::Done,
        })
    }

    /// What is known of an operator whose bits differ from run to run.
    fn not_deterministic(
        &mut self,
        found: &Found,
        step: u64,
        promised: bool,
    ) -> Result<NotDeterministic, Failure> {
        let (row, subject) = (&found.row, found.row.subject());
        Ok(NotDeterministic {
            operator: row.operator.clone(),
            layer: row.layer.clone(),
            step,
            runs: subject.runs,
            other_bits: subject.other_bits,
            promised,
            defect_guess: self.guessed(found)?,
        })
    }

    fn guessed(&mut self, found: &Found) -> Result<Guess, Failure> {
        let mut oracle = oracle();
        let subject = self.devices.first_mut().ok_or_else(nothing)?;
        let repeats = usize::try_from(self.arguments.repeat).unwrap_or(usize::MAX).clamp(12, 2000);
        let effort = Effort { repeats, ..Effort::default() };
        match guess(subject.as_mut(), &mut oracle, &found.probe, found.observed.as_ref(), effort) {
            // What a wrong operator brings down may well come down while it is looked into.
            Err(Obstacle::Subject(fault)) => Ok(Guess::failed(&fault)),
            guess => guess.or_exit(Exit::Device),
        }
    }

    /// The whole step freely on both; what keeps a device from it is told and no failure of the diagnosis.
    fn growth(&mut self, values: &StepValues) -> Option<GrowthSummary> {
        let (subject, rest) = self.devices.split_first_mut()?;
        let trusted = rest.last_mut()?;
        match free_run(subject.as_mut(), trusted.as_mut(), &self.source.program, values) {
            Ok(growth) => Some(summary(&growth)),
            Err(error) => {
                eprintln!("warning: no free run: {error}");
                None
            }
        }
    }

    /// The step on the subject alone, in spans; what keeps the device from it is told and no failure of the diagnosis.
    fn in_spans(&mut self, values: &StepValues, step: u64) -> (Option<FirstWrong>, SpansSummary) {
        let not_run = |reason: String| SpansSummary { not_run: Some(reason), ..SpansSummary::default() };
        if !self.arguments.operators.is_empty() {
            return (None, not_run("some operators only were asked for".into()));
        }
        let Some(subject) = self.devices.first_mut() else { return (None, SpansSummary::default()) };
        match spans(subject.as_mut(), &self.names[0], &self.source.program, values) {
            Ok(Spans::Same(count)) => (None, SpansSummary { same: Some(count), not_run: None }),
            Ok(Spans::NotRun(reason)) => (None, not_run(reason)),
            Err(error) => (None, not_run(error.to_string())),
            Ok(Spans::Differs(found)) => {
                let (row, guess) = *found;
                let first = FirstWrong {
                    operator: row.operator.clone(),
                    layer: row.layer.clone(),
                    step,
                    error: row.worst.as_ref().and_then(|worst| worst.error),
                    tolerance: None,
                    defect_guess: guess,
                    reproducer: None,
                    saved: None,
                    row,
                };
                (Some(first), SpansSummary::default())
            }
        }
    }

    fn first_wrong(&mut self, found: &Found, step: u64) -> Result<FirstWrong, Failure> {
        let guess = self.guessed(found)?;
        let mut oracle = oracle();
        let subject = self.devices.first_mut().ok_or_else(nothing)?;
        let row = found.row.clone();
        let whole = found.probe.reproducer(&self.names[0], &row.subject().finding);
        // Large ones are not shrunk: each try runs on both devices.
        let text = if found.probe.elements() <= SHRUNK_ELEMENTS_MAX {
            Some(shrink(subject.as_mut(), &mut oracle, whole).to_string())
        } else if found.probe.elements() <= TEXT_ELEMENTS_MAX {
            Some(whole.to_string())
        } else {
            None
        };
        let saved = self.save(step, &row, text.as_deref())?;
        Ok(FirstWrong {
            operator: row.operator.clone(),
            layer: row.layer.clone(),
            step,
            error: row.worst.as_ref().and_then(|worst| worst.error),
            tolerance: row.worst.as_ref().and_then(|worst| worst.tolerance),
            defect_guess: guess,
            reproducer: text,
            saved,
            row,
        })
    }

    /// Keeps the reproducer in the run's folder.
    fn save(&self, step: u64, row: &Row, text: Option<&str>) -> Result<Option<PathBuf>, Failure> {
        let (Some(folder), Some(text)) = (&self.source.folder, text) else { return Ok(None) };
        let files = self.world.files();
        let folder = folder.join("diagnose");
        if files.inspect(&folder).or_exit(Exit::Run)?.is_none() {
            files.create_folder(&folder).or_exit(Exit::Run)?;
        }
        let path = folder.join(format!("step-{step:08}-{}.tp", row.operator));
        write_durably(files, &path, text.as_bytes()).or_exit(Exit::Run)?;
        Ok(Some(path))
    }
}

/// Above this a reproducer is not shrunk.
const SHRUNK_ELEMENTS_MAX: usize = 20_000;

/// Above this a reproducer is no text.
const TEXT_ELEMENTS_MAX: usize = 1 << 20;

fn nothing() -> Failure {
    Failure::new(Exit::Internal, "no device was opened")
}

fn summary(growth: &Growth) -> GrowthSummary {
    let mut parts: Vec<(String, Option<f64>)> = Vec::new();
    for distance in growth
        .distances
        .iter()
        .filter(|distance| distance.micro_batch == 0 || distance.range == toprope_program::Range::Update)
    {
        match parts.last_mut() {
            Some((part, most)) if *part == distance.layer => {
                *most = most.zip(distance.relative).map(|(a, b)| a.max(b));
            }
            _ => parts.push((distance.layer.clone(), distance.relative)),
        }
    }
    let first = growth.distances.first();
    GrowthSummary {
        first: first.map(|d| format!("{} of {} in {}", d.value, d.operator, d.layer)),
        parts,
        loss: growth.loss.filter(|(a, b)| a.is_finite() && b.is_finite()),
        state: growth.state.filter(|state| state.is_finite()),
    }
}
