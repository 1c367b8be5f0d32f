//! Whose journal it is: every line that begins an attempt names the same run, and a version that is known here.

use super::{JOURNAL_VERSION, JournalError, LogLine, one_line};
use serde_json::Value;
use std::path::Path;

/// Collects what a journal's lines say of the run's name and of the journal's version.
#[derive(Clone, Debug, Default)]
pub struct JournalIdentity {
    run_id: Option<String>,
    /// Who wrote last.
    pub(super) version: Option<String>,
    /// The first line of another run: its number and that run.
    other: Option<(u64, String)>,
    /// The first line of a newer version: its number, the version, who wrote it.
    newer: Option<(u64, u64, String)>,
}

impl JournalIdentity {
    /// Takes a line in.
    pub fn line(&mut self, line: &LogLine) {
        let text = |name: &str| line.value.get(name).and_then(Value::as_str);
        let Some(run_id) = text("run_id") else { return };
        let by = text("toprope_version").unwrap_or("unknown");
        let version = line.value.get("journal_version").and_then(Value::as_u64).unwrap_or(0);
        if version > JOURNAL_VERSION {
            self.newer.get_or_insert_with(|| (line.number, version, by.to_owned()));
        }
        self.version = Some(by.to_owned());
        match &self.run_id {
            None => self.run_id = Some(run_id.to_owned()),
            Some(expected) if expected != run_id => {
                self.other.get_or_insert_with(|| (line.number, run_id.to_owned()));
            }
            Some(_) => {}
        }
    }

    /// The run's name, after all lines; none where no line has one.
    ///
    /// # Errors
    /// A line is of another run, or of a newer version of the journal.
    pub fn run_id(self, path: &Path) -> Result<Option<String>, JournalError> {
        let path = path.to_owned();
        if let Some((line, found, by)) = self.newer {
            return Err(JournalError::Version { path, line, found, by: one_line(&by) });
        }
        match (self.run_id, self.other) {
            (Some(expected), Some((line, found))) => {
                let (found, expected) = (one_line(&found), one_line(&expected));
                Err(JournalError::OtherRun { path, line, found, expected })
            }
            (run_id, _) => Ok(run_id),
        }
    }
}
