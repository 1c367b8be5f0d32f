//! The programs under `tests/programs` at the root: those that must run right, and those that must be refused.

mod support;

use std::path::{Path, PathBuf};
use toprope_conformance::lockstep::Step;
use toprope_conformance::{Reproducer, Verdict};
use toprope_cpu::level::Level;
use toprope_cpu::{CpuDevice, Options as CpuOptions};
use toprope_program::validate::Spot;
use toprope_program::{Device, text, validate};

fn files(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
        .map(|entry| entry.expect("an entry of the folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tp"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no programs", root.display());
    files
}

fn devices() -> Vec<Box<dyn Device>> {
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(support::reference())];
    for level in Level::available() {
        let options = CpuOptions { level: Some(level), threads: Some(2), ..CpuOptions::default() };
        devices.push(Box::new(CpuDevice::new(options).expect("the level is available")));
    }
    devices
}

#[test]
fn saved_programs_run_right_on_their_devices() {
    for file in files("run") {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&file).unwrap();
        let saved = Reproducer::parse(&source).unwrap_or_else(|error| panic!("{name}: {error}"));
        // What is read is printed the same and read again.
        assert_eq!(Reproducer::parse(&saved.to_string()).as_ref(), Ok(&saved), "{name}");
        let mut agreed = 0;
        for mut device in devices() {
            let description = device.describe();
            let wanted = |d: &String| *d == "any" || *d == description.name;
            if !saved.devices.iter().any(wanted) {
                continue;
            }
            for &seed in &saved.seeds {
                let steps = saved.run(device.as_mut(), &mut support::oracle(), seed);
                let steps: Vec<Step> = steps.unwrap_or_else(|error| panic!("{name}: {error}"));
                for step in steps {
                    let (level, operator) = (&description.level, step.operator);
                    match step.judgement.verdict {
                        Verdict::Agree => agreed += 1,
                        Verdict::Incomparable(reason) => println!("{name}: {operator}: {reason}"),
                        Verdict::Differ(finding) => {
                            panic!(
                                "{name} on {} {level}, seed {seed}, {operator}: {finding}",
                                description.name
                            )
                        }
                    }
                }
            }
        }
        assert!(agreed > 0, "{name} ran on no device");
    }
}

/// The lines on which a message is expected, from 1.
fn expectations(source: &str) -> Vec<(usize, String)> {
    let mut expected = Vec::new();
    for (index, line) in source.lines().enumerate() {
        for message in line.split("# expect: ").skip(1) {
            expected.push((index + 1, message.trim().to_string()));
        }
    }
    expected
}

/// The line that a spot is on.
fn line_of(source: &str, spot: &Spot) -> usize {
    let starts = |wanted: &str| {
        source.lines().position(|line| line.trim_start().starts_with(wanted)).map_or(0, |index| index + 1)
    };
    match spot {
        Spot::Program => starts("program"),
        Spot::Symbol(name) => starts(&format!("symbol {name} ")),
        Spot::Value(name) => {
            let declares = |line: &str| {
                let mut words = line.split_whitespace();
                let kind = words.next().unwrap_or("");
                let word = words.next().unwrap_or("").trim_end_matches(':');
                !kind.starts_with('%') && word.strip_prefix('%') == Some(name.as_str())
            };
            source.lines().position(declares).map_or(0, |index| index + 1)
        }
        Spot::Instruction(range, index, _) => {
            let start = starts(&format!("{} {{", range.name()));
            let lines = source.lines().enumerate().skip(start);
            let is_instruction = |line: &str| line.trim_start().starts_with('%');
            lines.filter(|(_, line)| is_instruction(line)).nth(*index).map_or(0, |(at, _)| at + 1)
        }
    }
}

#[test]
fn invalid_programs_are_refused_on_the_expected_lines() {
    for file in files("invalid") {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&file).unwrap();
        let mut expected = expectations(&source);
        assert!(!expected.is_empty(), "{name} expects nothing");
        let program = match text::parse(&source) {
            Ok(program) => program,
            Err(error) => {
                let (line, message) = (error.line, error.to_string());
                let matches = |(at, start): &(usize, String)| *at == line && message.starts_with(start);
                assert!(
                    expected.len() == 1 && expected.iter().all(matches),
                    "{name}: {message}, not {expected:?}"
                );
                continue;
            }
        };
        let defects = validate(program).err().unwrap_or_else(|| panic!("{name} is valid"));
        let mut found: Vec<(usize, String)> =
            defects.iter().map(|defect| (line_of(&source, &defect.spot), defect.to_string())).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{name}");
    }
}
