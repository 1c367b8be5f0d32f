//! Runs the guard through simulated schedules, and says which seeds fail.

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use toprope_guard::decide::{Counters, Mutant};
use toprope_simulator::run::{Outcome, run};
use toprope_simulator::schedule::Schedule;
use toprope_simulator::shrink::shrink;

#[derive(Parser)]
#[command(
    name = "toprope-simulator",
    about = "The guard's decisions over simulated workers, devices, memory and disk"
)]
struct Arguments {
    #[command(subcommand)]
    mode: Option<Mode>,
    #[command(flatten)]
    seeds: Seeds,
}

#[derive(Subcommand)]
enum Mode {
    /// A simulated day of faults, with measured costs: how much of it was useful.
    Goodput,
}

#[derive(Args)]
struct Seeds {
    /// The seeds, from A to below B.
    #[arg(long, value_name = "A..B", value_parser = range, default_value = "0..500")]
    seeds: (u64, u64),
    /// One seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Of a seed's faults, only these, by number.
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<usize>>,
    /// Use a guard that is wrong on purpose.
    #[arg(long, value_parser = mutant)]
    mutant: Option<Mutant>,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (low, high) = text.split_once("..").ok_or("give two numbers, as in 0..500")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("`{text}`: {error}"));
    let (low, high) = (number(low)?, number(high)?);
    if low < high { Ok((low, high)) } else { Err(format!("{low}..{high} holds no seed")) }
}

fn mutant(text: &str) -> Result<Mutant, String> {
    let found = Mutant::ALL.iter().find(|(_, name)| *name == text).map(|(mutant, _)| *mutant);
    found.ok_or_else(|| {
        let names: Vec<&str> = Mutant::ALL.iter().map(|(_, name)| *name).collect();
        format!("no such mutant; there are {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.mode {
        Some(Mode::Goodput) => ExitCode::FAILURE,
        None => simulate(&arguments.seeds),
    }
}

fn simulate(arguments: &Seeds) -> ExitCode {
    let (low, high) = arguments.seed.map_or(arguments.seeds, |seed| (seed, seed + 1));
    let mut struck = 0;
    let mut events = 0;
    let mut missed = 0;
    let mut resumed = 0;
    let mut stopped = 0;
    let mut sums = counts(&Counters::default()).map(|_| 0);
    let mut failed = Vec::new();
    for seed in low..high {
        let mut schedule = Schedule::draw(seed);
        if let Some(only) = &arguments.only {
            let kept = only.iter().filter_map(|index| schedule.faults.get(*index).copied());
            schedule.faults = kept.collect();
        }
        let outcome = if arguments.trace {
            println!("{schedule:#?}");
            run(&schedule, arguments.mutant, Some(&mut |line| println!("{line}")))
        } else {
            run(&schedule, arguments.mutant, None)
        };
        struck += outcome.struck;
        events += outcome.events;
        missed += outcome.missed;
        resumed += outcome.processes - 1;
        stopped += u64::from(outcome.stopped_by_policy);
        for counters in &outcome.counters {
            for (sum, (_, count)) in sums.iter_mut().zip(counts(counters)) {
                *sum += count;
            }
        }
        if outcome.violation.is_some() {
            report(&schedule, &outcome, arguments.mutant);
            failed.push(seed);
        }
    }
    for (sum, (name, _)) in sums.iter().zip(counts(&Counters::default())) {
        print!("{sum} {name}, ");
    }
    println!("{stopped} stops for bad data");
    println!(
        "{} schedules, {struck} faults, {events} events, {resumed} resumes, {missed} wrong results that no check \
         caught: {} violations",
        high - low,
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What shows that every way through the guard was taken.
fn counts(counters: &Counters) -> [(&'static str, u64); 14] {
    [
        ("faults seen", counters.faults.values().sum()),
        ("alarms", counters.alarms),
        ("false alarms", counters.false_alarms),
        ("alarms of the data", counters.data_alarms),
        ("retries", counters.retries),
        ("roll-backs", counters.roll_backs),
        ("steps redone", counters.steps_redone),
        ("states refused", counters.states_refused),
        ("promotions", counters.promotions),
        ("restarts", counters.restarts),
        ("fail-overs", counters.fail_overs),
        ("fail-backs", counters.fail_backs),
        ("batches left out", counters.batches_skipped),
        ("snapshots", counters.snapshots),
    ]
}

fn report(schedule: &Schedule, outcome: &Outcome, mutant: Option<Mutant>) {
    let violation = outcome.violation.as_deref().unwrap_or("none");
    println!("seed {}: {violation}", schedule.seed);
    let smallest = shrink(schedule, mutant);
    let all = Schedule::draw(schedule.seed).faults;
    let mut indices = Vec::new();
    let mut from = 0;
    for fault in &smallest.faults {
        if let Some(at) = all.iter().skip(from).position(|other| other == fault) {
            indices.push((from + at).to_string());
            from += at + 1;
        }
        println!("  {fault:?}");
    }
    let name = Mutant::ALL.iter().find(|(other, _)| Some(*other) == mutant);
    let name = name.map_or(String::new(), |(_, name)| format!(" --mutant {name}"));
    println!(
        "  toprope-simulator --seed {} --only {} --trace{name}",
        schedule.seed,
        if indices.is_empty() { "none".into() } else { indices.join(",") }
    );
}
