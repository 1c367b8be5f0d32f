//! Workers of PyTorch that are wrong in one known way, to see that whoever judges devices says so: `qualify`, `diagnose`,
//! votes. For tests and rehearsals only; nothing that ships depends on it.
//!
//! A defect is one function in `defects.py` (or `held_out.py`, which scores guesses and is not read by who writes
//! them): it stands in the place of one operator of the real worker and leaves everything else as it is. Its device says so
//! in its level: `DEFECT=name`.

use std::path::{Path, PathBuf};
use toprope_protocol::remote::{RemoteDevice, WorkerCommand};
use toprope_pytorch::{OpenOptions, PyTorchError, WORKER, command, interpreter, open_with};
use toprope_world::World;

mod bench; // one worker, one defect after the other

pub use bench::{Bench, Switch};

const SWITCH: &str = include_str!("switch.py");
const KNOWN: &str = include_str!("defects.py");
const HELD_OUT: &str = include_str!("held_out.py");

/// What starts the worker; a defect stands in front of it.
const START: &str = "\ntry:\n    main()\n";

/// How a defect shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// Each time that its operands meet it.
    Always,
    /// Now and then: it takes repetition.
    Sometimes,
    /// In time alone: results are right.
    InTime,
}

/// One way to be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect {
    /// The name of its function.
    pub name: &'static str,
    /// The operator that it stands in the place of.
    pub operator: &'static str,
    /// In what way it is wrong, by the names that `toprope-diagnose` guesses: one, or several that say the same of it.
    /// Beside those: `slow`, `refusal` and `differs_in_range`, which are told without a guess.
    pub kinds: Vec<&'static str>,
    file: &'static str,
}

/// Those that tests are written with.
pub fn known() -> Vec<Defect> {
    announced(KNOWN)
}

/// Those that score guesses.
pub fn held_out() -> Vec<Defect> {
    announced(HELD_OUT)
}

/// The defect of this name among [`known`] ones.
pub fn find(name: &str) -> Option<Defect> {
    known().into_iter().find(|defect| defect.name == name)
}

/// What the lines `@defect("operator", "kind")` and the `def name(` below each announce.
fn announced(file: &'static str) -> Vec<Defect> {
    let mut pending = None;
    let mut defects = Vec::new();
    for line in file.lines() {
        if let Some(rest) = line.strip_prefix("@defect(") {
            let mut words = rest.split('"').skip(1).step_by(2);
            pending = words.next().zip(words.next());
        } else if let Some(rest) = line.strip_prefix("def ")
            && let Some((operator, kinds)) = pending.take()
            && let Some((name, _)) = rest.split_once('(')
        {
            defects.push(Defect { name, operator, kinds: kinds.split('|').collect(), file });
        }
    }
    defects
}

fn inserted(file: &str, switch: &str) -> String {
    format!("\n{SWITCH}\n\n{file}\n\n{switch}\n")
}

fn with_defects(inserted: &str, python: Option<&Path>) -> Result<WorkerCommand, PyTorchError> {
    let mut command = command("pytorch:cpu", python)?;
    let (worker, start) = WORKER.split_at(WORKER.rfind(START).unwrap_or(WORKER.len()));
    // One script for each defect that a test opens: a few hundred KiB in all.
    command.script = Some(String::leak(format!("{worker}{inserted}{start}")));
    Ok(command)
}

impl Defect {
    /// How it shows.
    pub fn shows(&self) -> Shows {
        match self.kinds.first() {
            Some(&("race" | "bit_flips")) => Shows::Sometimes,
            Some(&"slow") => Shows::InTime,
            _ => Shows::Always,
        }
    }

    /// What stands in front of the line that starts the worker.
    fn inserted(&self) -> String {
        inserted(self.file, &format!("switch_on(\"{}\")", self.name))
    }

    /// How the worker with this defect is started.
    ///
    /// # Errors
    /// There is no interpreter.
    pub fn command(&self, python: Option<&Path>) -> Result<WorkerCommand, PyTorchError> {
        with_defects(&self.inserted(), python)
    }

    /// Opens `pytorch:cpu` with this defect.
    ///
    /// # Errors
    /// There is no interpreter, or it has no torch.
    pub fn open(&self, world: &dyn World, options: &OpenOptions<'_>) -> Result<RemoteDevice, PyTorchError> {
        open_with(world, "pytorch:cpu", &self.command(options.python)?, options)
    }

    /// The text of an interpreter that puts this defect into any worker that it is asked to run: saved as a file that may be
    /// executed, it goes where `--python` or `TOPROPE_PYTHON` takes an interpreter, so that the binary that ships meets a
    /// bad device without knowing of defects. Asked for anything else it is the interpreter behind it.
    ///
    /// # Errors
    /// There is no interpreter.
    pub fn interpreter(&self, python: Option<&Path>) -> Result<String, PyTorchError> {
        let python: PathBuf = interpreter::find(python)?;
        Ok(format!(
            r#"#!{python}
"""An interpreter with a defect in it: {name} ({kind}) in {operator} of every worker of Toprope that it runs."""
import os, sys
DEFECT = {inserted:?}
START = {START:?}
at = next((i for i, word in enumerate(sys.argv) if word == "toprope worker"), None)
if at is None:
    os.execv({python:?}, [{python:?}] + sys.argv[1:])
with open(sys.argv[at - 1], "rb") as file:
    worker, start = file.read().decode().rsplit(START, 1)
print("DEFECT: {name} in {operator} of this worker", file=sys.stderr)
sys.argv = ["-c"] + sys.argv[at - 1 :]
exec(compile(worker + DEFECT + START + start, "toprope-worker-with-a-defect.py", "exec"))
"#,
            python = python.display(),
            name = self.name,
            kind = self.kinds.join(" or "),
            operator = self.operator,
            inserted = self.inserted(),
        ))
    }
}
