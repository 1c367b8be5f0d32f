//! A report's archive holds what it says, and its script runs where torch is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use flate2::read::GzDecoder;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use toprope_conformance::Reproducer;
use toprope_conformance::mutant::{Mutant, MutantDevice};
use toprope_diagnose::Kind;
use toprope_diagnose::bundle::{
    BundleError, Evidence, File, Jury, Request, Surroundings, files, gather, pack,
};
use toprope_diagnose::lockstep::Named;
use toprope_diagnose::search::search;
use toprope_program::Device;

fn gathered(mutant: Mutant, request: Request) -> Result<Evidence, BundleError> {
    let mutated =
        || -> Box<dyn Device> { Box::new(MutantDevice::new(Box::new(support::reference()), mutant)) };
    let (mut subject, mut oracle) = (mutated(), support::oracle());
    let (failing, _) = search(subject.as_mut(), &mut oracle, mutant.operator(), 48, 1).unwrap();
    let failing = failing.unwrap();
    let (mut other, mut trusted) = (support::cpu(), support::reference());
    let mut reopen = || Some(mutated());
    let mut jury = Jury {
        devices: vec![
            Named { name: "bad".into(), device: subject.as_mut() },
            Named { name: "cpu".into(), device: &mut other },
            Named { name: "reference".into(), device: &mut trusted },
        ],
        reopen: &mut reopen,
    };
    gather(&mut jury, &mut oracle, &failing.probe, failing.observed.as_ref(), &failing.case, request)
}

const REQUEST: Request = Request { include_data: false, runs: 8, seed: 3 };

fn surroundings(redact: bool) -> Surroundings {
    Surroundings {
        programs: Vec::new(),
        source: "step 3 of /home/somebody/runs/tiny".into(),
        command: "toprope report /home/somebody/runs/tiny --operator matmul".into(),
        environment: BTreeMap::from([("host".into(), "secret-host".into()), ("os".into(), "linux".into())]),
        redact,
        torch_operators: include_str!("../../devices/pytorch/src/operators.py").into(),
    }
}

fn unpacked(archive: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(GzDecoder::new(archive));
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        found.insert(name, text);
    }
    found
}

#[test]
fn a_report_holds_what_it_says() {
    let evidence = gathered(Mutant::DroppedTailColumns, REQUEST).unwrap();
    assert_eq!(evidence.guess.kind, Kind::DroppedTail);
    assert_eq!((evidence.before, evidence.after), ((8, 8), Some((8, 8))));
    assert!(!evidence.own_data);
    assert!(evidence.jury[0].standing.is_wrong());
    assert!(evidence.jury[1..].iter().all(|juror| !juror.standing.is_wrong()));
    let differs =
        |device: &str| evidence.matrix.iter().filter(|c| c.device == device && c.verdict == "differ").count();
    evidence
        .matrix
        .iter()
        .filter(|c| c.verdict == "differ" && c.device != "bad")
        .for_each(|c| println!("{c:?}"));
    assert!(differs("bad") > 0 && differs("cpu") == 0 && differs("reference") == 0);
    let files = files(&evidence, &surroundings(false)).unwrap();
    let packed = pack("toprope-report-matmul", &files).unwrap();
    assert_eq!(packed, pack("toprope-report-matmul", &files).unwrap(), "the same files pack to other bytes");
    let found = unpacked(&packed);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let expected = ["README.md", "case.json", "env.json", "matrix.csv", "repro_torch.py", "reproducer.tp"];
    assert_eq!(names, expected.map(|name| format!("toprope-report-matmul/{name}")));
    let readme = &found["toprope-report-matmul/README.md"];
    println!("{readme}");
    for words in [
        "does not divide by 16",
        "8 of 8 runs are wrong",
        "after a reset",
        "cosine",
        "**wrong**",
        "Condition",
    ] {
        assert!(readme.contains(words), "no `{words}` in\n{readme}");
    }
    // The case is a program that shows the fault again, and that a right device passes.
    let saved = Reproducer::parse(&found["toprope-report-matmul/reproducer.tp"]).unwrap();
    let mut bad = MutantDevice::new(Box::new(support::reference()), Mutant::DroppedTailColumns);
    assert!(saved.first_difference(&mut bad, &mut support::oracle()).is_some());
    assert!(saved.first_difference(&mut support::cpu(), &mut support::oracle()).is_none());
}

#[test]
fn redacting_leaves_names_and_paths_out() {
    let evidence = gathered(Mutant::StuckLane, REQUEST).unwrap();
    let told = |redact| -> String {
        let files = files(&evidence, &surroundings(redact)).unwrap();
        files.into_iter().map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect()
    };
    assert!(told(false).contains("secret-host") && told(false).contains("/home/somebody"));
    let redacted = told(true);
    assert!(!redacted.contains("secret-host") && !redacted.contains("somebody"), "{redacted}");
}

#[test]
fn what_shows_on_own_numbers_only_needs_leave() {
    // Subnormal numbers are never drawn.
    let refused = gathered(Mutant::SubnormalsFlushedInMultiply, REQUEST).unwrap_err();
    assert!(matches!(refused, BundleError::OwnData("multiply")), "{refused}");
    assert!(refused.to_string().contains("--include-data"));
    let request = Request { include_data: true, ..REQUEST };
    let evidence = gathered(Mutant::SubnormalsFlushedInMultiply, request).unwrap();
    assert!(evidence.own_data && evidence.jury[0].standing.is_wrong());
}

/// The interpreter that has torch; a test without one says so, and fails where one is required.
fn torch() -> Option<String> {
    let python = std::env::var("TOPROPE_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import torch"]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(std::env::var_os("TOPROPE_TORCH_REQUIRED").is_none(), "{python} has no torch");
    println!("SKIPPED, NOTHING WAS TESTED: {python} has no torch");
    None
}

fn write_all(folder: &Path, files: &[File]) {
    for (name, content) in files {
        std::fs::write(folder.join(name), content).unwrap();
    }
}

/// The script in a folder of its own: a right torch passes it, and one with a wrong product does not.
#[test]
fn the_script_runs_with_nothing_but_torch() {
    let Some(python) = torch() else { return };
    let spoiled = "import runpy, sys, torch\nright = torch.Tensor.__matmul__\ndef wrong(a, b):\n    y = right(a, b)\n    y[..., y.shape[-1] // 16 * 16:] = 0\n    return y\ntorch.Tensor.__matmul__ = wrong\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n";
    for (mutant, shows) in [
        (Mutant::DroppedTailColumns, true),
        (Mutant::MaskOffByOne, false),
        (Mutant::BiasCorrectionMissing, false),
        (Mutant::DoubledWeightGradient, false),
        (Mutant::RopeSign, false),
    ] {
        let evidence = gathered(mutant, REQUEST).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path(), &files(&evidence, &surroundings(false)).unwrap());
        std::fs::write(folder.path().join("spoil.py"), spoiled).unwrap();
        let run = |arguments: &[&str]| {
            let mut command = Command::new(&python);
            command.args(arguments).current_dir(folder.path()).env_clear();
            command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
            let output = command.output().unwrap();
            (
                output.status.code(),
                format!(
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                ),
            )
        };
        let (code, text) = run(&["-I", "repro_torch.py"]);
        println!("{text}");
        assert_eq!(code, Some(0), "{}: {text}", mutant.name());
        if shows {
            let (code, text) = run(&["spoil.py", "repro_torch.py", "--repeat", "3"]);
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains("3 of 3 run(s) are wrong"), "{text}");
        }
    }
}
