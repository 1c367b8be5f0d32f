//! Random programs on the cpu device, level by level, each operator against the reference device in wide width:
//! `cargo run --release -p toprope-conformance --example programs [COUNT [SEED]]`, or `cargo xtask programs`.
//!
//! `COUNT` programs are shared among the dispatch levels of this machine, each with seeds of its own. Prints the counts of
//! every operator; whatever differed is saved below `target/conformance/` as a program in the printed form, and the exit
//! code is 1 where something did.

use std::process::ExitCode;
use toprope_conformance::{Floor, Options, Oracle, Report, run_suite};
use toprope_cpu::level::Level;
use toprope_cpu::{CpuDevice, Options as CpuOptions};
use toprope_program::Width;
use toprope_reference::{Options as ReferenceOptions, ReferenceDevice, magnitudes};

/// Programs of one call of the suite: what a line of progress stands for.
const BLOCK: u64 = 500;

fn number(argument: Option<String>, default: u64) -> Result<u64, Box<dyn std::error::Error>> {
    let Some(text) = argument else { return Ok(default) };
    text.parse().map_err(|_| format!("{text:?} is not a number; usage: programs [COUNT [SEED]]").into())
}

fn names(levels: &[Level]) -> String {
    if levels.is_empty() {
        return "none".into();
    }
    levels.iter().map(Level::to_string).collect::<Vec<_>>().join(", ")
}

/// Saves what differed, a program in the printed form each, and says where.
fn save(report: &Report) -> std::io::Result<()> {
    let folder = std::path::Path::new("target/conformance");
    for (name, text) in report.failures() {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join(&name), text)?;
        println!("saved {}", folder.join(name).display());
    }
    Ok(())
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let count = number(arguments.next(), 10_000)?;
    let seed = number(arguments.next(), 1)?;
    let levels = Level::available();
    let each = count.div_ceil(levels.len() as u64);
    let mut objections = Vec::new();
    let mut programs = 0;
    for (place, level) in (0u64..).zip(levels) {
        let mut total = None;
        let mut done = 0;
        while done < each {
            let size = BLOCK.min(each - done);
            // A suite of n programs takes the seeds from 1,000,003·seed on: blocks and levels never meet.
            let seed = seed.wrapping_mul(1 << 20).wrapping_add(place << 12).wrapping_add(done / BLOCK);
            let cpu = CpuOptions { level: Some(level), threads: Some(2), ..CpuOptions::default() };
            let mut subject = CpuDevice::new(cpu)?;
            let wide = ReferenceOptions { width: Width::Wide, ..ReferenceOptions::default() };
            let mut oracle = Oracle::new(Box::new(ReferenceDevice::new(wide)), magnitudes);
            // Whether each operator is seen often enough is a question to the whole.
            let floor = Floor { agree: 0, ..Floor::default() };
            let special = done == 0;
            let options =
                Options { seed, cases_per_operator: 0, special, programs: size, floor, ..Options::default() };
            let report = run_suite(&mut subject, &mut oracle, &options)?;
            done += size;
            if let Err(error) = save(&report) {
                eprintln!("warning: programs that differ are not saved, only printed below: {error}");
            }
            let first = seed.wrapping_mul(1_000_003);
            let differences = report.differences.len();
            println!(
                "{level}: {done} of {each} programs, seeds {first} to {}, {differences} differences",
                first.wrapping_add(size - 1)
            );
            match &mut total {
                None => total = Some(report),
                Some(total) => total.add(report),
            }
        }
        let Some(total) = total else { continue };
        println!("\n{total}");
        programs += total.programs;
        objections.extend(total.objections().into_iter().map(|objection| format!("{level}: {objection}")));
    }
    let (there, absent): (Vec<Level>, Vec<Level>) = Level::ALL.iter().partition(|level| level.is_available());
    println!("dispatch levels: ran on {}; not on this machine: {}", names(&there), names(&absent));
    if objections.is_empty() {
        println!("{programs} random programs: every operator that could be compared agreed");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: {}", objections.join("\n"));
    Ok(ExitCode::FAILURE)
}
