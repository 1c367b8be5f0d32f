//! `toprope report`: the evidence on one operator as an archive that can be sent.

use crate::command::Report;
use crate::exit::{Exit, Failure, OrExit};
use crate::verb::diagnose::{check_operators, names};
use crate::verb::oracle::oracle;
use crate::verb::replay::{Source, open_device};
use std::collections::BTreeMap;
use std::path::PathBuf;
use toprope_devices::AscendCase;
use toprope_diagnose::bundle::{
    BundleError, Evidence, Further, Jury, Request, Surroundings, bounds, files, gather, pack,
};
use toprope_diagnose::lockstep::{Named, Options, Party, walk};
use toprope_diagnose::probe::{Outcome, Probe};
use toprope_diagnose::search::search;
use toprope_program::Device;
use toprope_world::{RealWorld, World, write_durably};

/// Where drawn operands come from.
const SEED: u64 = 20_240_229;

/// Cases that are tried where the run's step does not show the fault.
const CASES: u64 = 48;

/// Writes a report.
pub fn run(arguments: &Report, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    check_operators(std::slice::from_ref(&arguments.operator))?;
    let names = names(&arguments.device, &arguments.against)?;
    let mut devices = Vec::new();
    for name in &names {
        devices.push(open_device(name, arguments.threads, arguments.python.as_deref())?);
    }
    let threads =
        arguments.threads.unwrap_or_else(|| devices.last().map_or(1, |device| device.describe().units));
    let source = Source::open(&world, &arguments.run, &arguments.sets, threads.max(1))?;
    let step = arguments.step.unwrap_or_else(|| source.last_step());
    source.check_step(step)?;
    let found = find(&world, arguments, &source, &names, &mut devices, step)?;
    let evidence = evidence(arguments, &names, &mut devices, &found)?;
    let surroundings = Surroundings {
        source: format!("step {step} of {}", source.name),
        command: command(arguments, step),
        environment: environment(),
        redact: arguments.redact,
        torch_operators: toprope_devices::torch_operators().to_string(),
        programs: by_the_vendor(&names[0], &evidence)?.into_iter().collect(),
    };
    let folder = format!("toprope-report-{}", arguments.operator);
    let files = files(&evidence, &surroundings).or_exit(Exit::Internal)?;
    let archive = pack(&folder, &files).or_exit(Exit::Internal)?;
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| source.folder.clone().unwrap_or_default().join(format!("{folder}.tar.gz")));
    write_durably(world.files(), &out, &archive).or_exit(Exit::Run)?;
    println!("{}: {}", evidence.guess.kind, evidence.guess.sentence);
    let (wrong, runs) = evidence.before;
    println!("{wrong} of {runs} runs are wrong");
    println!("wrote {} ({} files, {} bytes)", out.display(), files.len(), archive.len());
    if json {
        let names: Vec<&String> = files.iter().map(|(name, _)| name).collect();
        let report = serde_json::json!({
            "operator": arguments.operator, "step": step, "device": names_of(&evidence), "guess": evidence.guess,
            "wrong_runs": wrong, "runs": runs, "archive": out, "files": names, "own_data": evidence.own_data,
        });
        println!("{report}");
    }
    Ok(Exit::Done)
}

/// The case as a program against the vendor's library alone, where the device has one.
fn by_the_vendor(name: &str, evidence: &Evidence) -> Result<Option<Further>, Failure> {
    let (wrong, runs) = evidence.before;
    let remark =
        format!("{} ({}); {wrong} of {runs} runs were wrong.", evidence.guess.sentence, evidence.guess.kind);
    let bounds = bounds(evidence);
    let case = AscendCase {
        program: evidence.probe.program(),
        symbols: evidence.probe.symbols(),
        first: evidence.probe.is_first(),
        values: evidence.probe.values(),
        want: &evidence.exact.want,
        bounds: &bounds,
        remark: &remark,
    };
    let source = toprope_devices::ascend_reproducer(name, &case).transpose().or_exit(Exit::Internal)?;
    Ok(source.map(|source| Further {
        name: "repro_aclnn.cpp".into(),
        source,
        told: "`repro_aclnn.cpp` makes the same calls of CANN with the same arguments, strides and formats, and nothing else: the line that compiles it stands at its head. It ends with 1 where a run is wrong."
            .into(),
    }))
}

fn names_of(evidence: &Evidence) -> Vec<&str> {
    evidence.jury.iter().map(|juror| juror.standing.device.as_str()).collect()
}

/// What shows the fault.
struct Found {
    probe: Probe,
    observed: Option<Outcome>,
    place: String,
}

/// The first place of the step, or the first generated case, where the operator is wrong.
fn find(
    world: &dyn World,
    arguments: &Report,
    source: &Source,
    names: &[String],
    devices: &mut [Box<dyn Device>],
    step: u64,
) -> Result<Found, Failure> {
    let operator = arguments.operator.as_str();
    let trusted = names.last().map_or("cpu", String::as_str);
    let mut oracle = oracle();
    let program = source.program.program();
    let there =
        program.accumulate.iter().chain(&program.update).filter(|i| i.operator.name() == operator).count();
    if there > 0 {
        let device = open_device(trusted, arguments.threads, arguments.python.as_deref())?;
        let state = source.state(world, device, step)?;
        let values = source.values(step, &state)?;
        let (subject, rest) = devices.split_first_mut().ok_or_else(nothing)?;
        let trusted_device = rest.last_mut().ok_or_else(nothing)?;
        let mut party = Party {
            subject: Named { name: names[0].clone(), device: subject.as_mut() },
            others: Vec::new(),
            trusted: Named { name: trusted.into(), device: trusted_device.as_mut() },
            oracle: &mut oracle,
        };
        let options = Options {
            repeat: arguments.repeat.min(4),
            operators: Some(vec![operator.into()]),
            stop_at_first: true,
            ..Options::default()
        };
        let walk =
            walk(&mut party, &source.program, &values, &options, &mut |_, _, _| {}).or_exit(Exit::Device)?;
        if let Some(found) = walk.first {
            let (row, probe) = (found.row, found.probe);
            let place = format!("{} in {}, {}", row.operator, row.layer, row.shape);
            return Ok(Found { probe, observed: found.observed, place });
        }
    }
    let subject = devices.first_mut().ok_or_else(nothing)?;
    let (failing, tried) =
        search(subject.as_mut(), &mut oracle, operator, CASES, SEED).or_exit(Exit::Device)?;
    match failing {
        Some(failing) => Ok(Found {
            probe: failing.probe,
            observed: failing.observed,
            place: format!("the generated {}", failing.case),
        }),
        None => Err(Failure::new(
            Exit::Run,
            format!(
                "`{operator}` passed on {}: {there} instruction(s) of step {step} and {tried} generated cases are right; there is nothing to report\nhint: `toprope diagnose {} --step {step} --device {}` names the operators that are wrong",
                names[0], source.name, names[0]
            ),
        )),
    }
}

fn evidence(
    arguments: &Report,
    names: &[String],
    devices: &mut [Box<dyn Device>],
    found: &Found,
) -> Result<Evidence, Failure> {
    let mut oracle = oracle();
    let (threads, python) = (arguments.threads, arguments.python.as_deref());
    let subject = names[0].clone();
    let mut reopen = move || open_device(&subject, threads, python).ok();
    let named = devices.iter_mut().zip(names);
    let mut jury = Jury {
        devices: named.map(|(device, name)| Named { name: name.clone(), device: device.as_mut() }).collect(),
        reopen: &mut reopen,
    };
    let request = Request { include_data: arguments.include_data, runs: arguments.repeat, seed: SEED };
    let gathered =
        gather(&mut jury, &mut oracle, &found.probe, found.observed.as_ref(), &found.place, request);
    gathered.map_err(|error| {
        let exit = match error {
            BundleError::Passed { .. } | BundleError::OwnData(_) => Exit::Run,
            BundleError::Obstacle(_) => Exit::Device,
            BundleError::Probe(_) => Exit::Internal,
        };
        Failure::new(exit, error)
    })
}

fn command(arguments: &Report, step: u64) -> String {
    let Report { run, operator, device, against, .. } = arguments;
    format!(
        "toprope report {run} --operator {operator} --device {device} --against {} --step {step}",
        against.join(",")
    )
}

fn environment() -> BTreeMap<String, String> {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_string());
    let mut facts = BTreeMap::new();
    facts.insert("os".to_string(), std::env::consts::OS.to_string());
    facts.insert("architecture".to_string(), std::env::consts::ARCH.to_string());
    for (name, path) in [("host", "/proc/sys/kernel/hostname"), ("kernel", "/proc/sys/kernel/osrelease")] {
        if let Ok(text) = read(path) {
            facts.insert(name.to_string(), text);
        }
    }
    let working: std::io::Result<PathBuf> = std::env::current_dir();
    if let Ok(path) = working {
        facts.insert("working_path".to_string(), path.display().to_string());
    }
    facts
}

fn nothing() -> Failure {
    Failure::new(Exit::Internal, "no device was opened")
}
