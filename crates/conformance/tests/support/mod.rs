//! The oracle that the tests hand in.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use toprope_conformance::{Oracle, Report};
use toprope_program::Width;
use toprope_reference::{Options, ReferenceDevice, magnitudes};

pub fn reference() -> ReferenceDevice {
    ReferenceDevice::new(Options::default())
}

pub fn oracle() -> Oracle {
    let device = ReferenceDevice::new(Options { width: Width::Wide, ..Options::default() });
    Oracle::new(Box::new(device), magnitudes)
}

/// How many random programs run: a few hundred, or as many as `TOPROPE_CONFORMANCE_PROGRAMS` says for a long run.
pub fn programs(default: u64) -> u64 {
    let asked = std::env::var("TOPROPE_CONFORMANCE_PROGRAMS").ok();
    asked.map_or(default, |count| count.parse().expect("TOPROPE_CONFORMANCE_PROGRAMS is a number"))
}

/// Saves what differed below `target/`, and says where.
pub fn save(report: &Report) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance");
    let save = |(name, text): (String, String)| {
        std::fs::create_dir_all(&folder).expect("a folder below target/ can be made");
        let file = folder.join(name);
        std::fs::write(&file, text).expect("a file below target/ can be written");
        println!("saved {}", file.display());
        file
    };
    report.failures().map(save).collect()
}

/// Fails with the table and a line for each difference; the programs lie below `target/`.
pub fn expect_pass(report: &Report) {
    let objections = report.objections();
    let json = serde_json::to_string(report).expect("a report is JSON");
    let back: Report = serde_json::from_str(&json).expect("the JSON is a report");
    assert_eq!(back.to_string(), report.to_string(), "the report does not come back from JSON");
    println!("{report}");
    save(report);
    let findings: Vec<String> =
        report.differences.iter().map(|d| format!("{} in {}: {}", d.operator, d.case, d.finding)).collect();
    assert!(objections.is_empty(), "{}\n{}", objections.join("\n"), findings.join("\n"));
    assert!(report.refused().is_empty(), "refused: {:?}", report.refused());
}
