//! A bad device for the binary that ships: an interpreter with a defect in it, named where `--python` names one.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use toprope_conformance::{Options, run_suite};
use toprope_defects::{Defect, find};
use toprope_devices::OpenOptions;

fn saved(defect: &Defect, folder: &Path) -> PathBuf {
    let path = folder.join("python-with-a-defect");
    std::fs::write(&path, defect.interpreter(None).expect("an interpreter")).expect("it is written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it may be executed");
    path
}

#[test]
fn the_registry_opens_a_bad_device_through_it() {
    if support::healthy().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let defect = find("doubled_weight_gradient").expect("a known defect");
    let python = Some(saved(&defect, folder.path()));
    let mut device = toprope_devices::open("pytorch:cpu", &OpenOptions { python, ..OpenOptions::default() })
        .expect("it opens as any other");
    assert!(device.describe().level.ends_with("DEFECT=doubled_weight_gradient"), "{:?}", device.describe());
    let options = Options {
        operators: Some(vec!["rms_norm_gradient", "rms_norm"]),
        cases_per_operator: 8,
        programs: 0,
        shrink: false,
        ..Options::default()
    };
    let report = run_suite(device.as_mut(), &mut support::oracle(), &options).expect("the suite runs");
    let named: Vec<_> = report.differences.iter().map(|difference| difference.operator.as_str()).collect();
    assert!(!named.is_empty() && named.iter().all(|name| *name == "rms_norm_gradient"), "{named:?}");
}

/// Whatever else it is asked for it hands on.
#[test]
fn for_anything_else_it_is_the_interpreter_behind_it() {
    if support::healthy().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let python = saved(&find("all_nan").expect("a known defect"), folder.path());
    let output = Command::new(python).args(["-c", "print(6 * 7)"]).output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "42");
}
