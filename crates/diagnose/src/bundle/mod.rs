//! A report that can be sent: the evidence on one operator as an archive that runs with no Toprope in reach.

mod case; // case.json: the operator, its operands and the exact result
mod draw; // operands from a seed, the same in Python
mod evidence; // what is run for it
mod matrix; // shape by dtype by device
mod pack; // the archive
mod python; // repro_torch.py
mod ratios; // msprobe's figures
mod readme; // one page

pub use case::bounds;
pub use draw::draw;
pub use evidence::{BundleError, Evidence, Jury, Request, gather};
pub use matrix::Cell;
pub use pack::pack;
pub use ratios::{Ratios, ratios};

use std::collections::BTreeMap;

/// A file of the archive: its name and content.
pub type File = (String, Vec<u8>);

/// What surrounds the evidence: where it was found, and what is told of the machine.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// What was run, such as a run's folder with a step.
    pub source: String,
    /// The command that made the report.
    pub command: String,
    /// Facts of the machine, by name.
    pub environment: BTreeMap<String, String>,
    /// Whether names of hosts and paths are left out.
    pub redact: bool,
    /// The operators in plain torch, a Python source.
    pub torch_operators: String,
    /// Programs that show the fault in other ways, as against the vendor's library alone.
    pub programs: Vec<Further>,
}

/// A program that goes with the report.
#[derive(Clone, Debug)]
pub struct Further {
    /// Its file's name.
    pub name: String,
    /// Its source.
    pub source: String,
    /// How it is run and what it says, for the page.
    pub told: String,
}

impl Surroundings {
    /// A text without hosts and paths, where that is asked for.
    fn told(&self, text: &str) -> String {
        if self.redact { redacted(text) } else { text.to_string() }
    }
}

/// Words that hold a path lose all but their last part.
fn redacted(text: &str) -> String {
    let word = |word: &str| match word.rsplit_once('/') {
        Some((before, last)) if !before.is_empty() || word.starts_with('/') => format!(".../{last}"),
        _ => word.to_string(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// The files of a report.
///
/// # Errors
/// What cannot be written as JSON.
pub fn files(evidence: &Evidence, surroundings: &Surroundings) -> Result<Vec<File>, serde_json::Error> {
    let case = serde_json::to_vec(&case::case(evidence))?;
    let mut files: Vec<File> = vec![
        ("README.md".into(), readme::readme(evidence, surroundings).into_bytes()),
        ("case.json".into(), case),
        ("matrix.csv".into(), matrix::csv(&evidence.matrix).into_bytes()),
        ("env.json".into(), serde_json::to_vec_pretty(&environment(evidence, surroundings))?),
        ("reproducer.tp".into(), evidence.reproducer.clone().into_bytes()),
    ];
    if let Some(script) = python::script(evidence.probe.operator().name(), &surroundings.torch_operators) {
        files.push(("repro_torch.py".into(), script.into_bytes()));
    }
    let programs = surroundings.programs.iter();
    files.extend(programs.map(|program| (program.name.clone(), program.source.clone().into_bytes())));
    Ok(files)
}

fn environment(evidence: &Evidence, surroundings: &Surroundings) -> serde_json::Value {
    let mut machine = surroundings.environment.clone();
    if surroundings.redact {
        machine
            .retain(|name, _| !name.contains("host") && !name.contains("path") && !name.contains("python"));
    }
    let devices: Vec<serde_json::Value> = evidence
        .jury
        .iter()
        .map(|juror| {
            let mut device = serde_json::to_value(&juror.description).unwrap_or_default();
            if let Some(name) =
                device.get("name").and_then(|name| name.as_str()).map(|name| surroundings.told(name))
            {
                device["name"] = name.into();
            }
            if surroundings.redact
                && let Some(fields) = device.as_object_mut()
            {
                fields.remove("health");
            }
            device
        })
        .collect();
    serde_json::json!({
        "toprope": env!("CARGO_PKG_VERSION"),
        "source": surroundings.told(&surroundings.source),
        "command": surroundings.told(&surroundings.command),
        "machine": machine,
        "devices": devices,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn paths_are_left_out() {
        assert_eq!(super::redacted("toprope report /home/me/runs/a --out x"), "toprope report .../a --out x");
        assert_eq!(super::redacted("and / or"), "and .../ or");
    }
}
