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

pub use bench::Bench;

const SWITCH: &str = include_str!("switch.py");
const KNOWN: &str = include_str!("defects.py");
const HELD_OUT: &str = include_str!("held_out.py");

/// What starts the worker; a defect stands in front of it.
const START: &str = "\ntry:\n    main()\n";

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $name:literal shows $shows:ident),* $(,)?) => {
        /// In what way a result is wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind { $($(#[doc = $doc])+ $kind),* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            /// The name.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name),* }
            }

            /// How it shows.
            pub fn shows(self) -> Shows {
                match self { $(Kind::$kind => Shows::$shows),* }
            }
        }
    };
}

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

kinds! {
    /// A running sum in fewer bits: the error grows with the number of terms.
    LowPrecisionAccumulation = "low_precision_accumulation" shows Always,
    /// What lies behind the last whole tile: only sizes that the tile does not divide.
    Tail = "tail" shows Always,
    /// Keys that must not be seen are, or the other way round.
    Mask = "mask" shows Always,
    /// Elements are read from or written to other places.
    Layout = "layout" shows Always,
    /// Epsilon of another size or in another place.
    Epsilon = "epsilon" shows Always,
    /// The optimizer's moments are not corrected for their start at zero.
    BiasCorrection = "bias_correction" shows Always,
    /// An output, or a term of it, times a constant.
    Factor = "factor" shows Always,
    /// A term of a sum is left out.
    MissingTerm = "missing_term" shows Always,
    /// Another sign.
    Sign = "sign" shows Always,
    /// Another formula.
    Formula = "formula" shows Always,
    /// An intermediate result leaves the range of its type.
    Overflow = "overflow" shows Always,
    /// Infinity becomes the largest number.
    Saturation = "saturation" shows Always,
    /// Bits are dropped where they must be rounded.
    Truncation = "truncation" shows Always,
    /// Numbers below 2^-126 become zero.
    Subnormals = "subnormals" shows Always,
    /// Zero, infinity and NaN among operands, or NaN for everything.
    SpecialValues = "special_values" shows Always,
    /// Equals, or what counts as equal, in another order.
    Ties = "ties" shows Always,
    /// Indices outside of their table.
    Index = "index" shows Always,
    /// Elements that do not depend on operands.
    Stuck = "stuck" shows Always,
    /// What was there before.
    Stale = "stale" shows Always,
    /// The last bits differ from run to run.
    OrderChanges = "order_changes" shows Always,
    /// Writes outside of its output.
    StrayWrite = "stray_write" shows Always,
    /// Fails in the middle of a run.
    Refusal = "refusal" shows Always,
    /// A check that never fires.
    BlindCheck = "blind_check" shows Always,
    /// Reads before somebody has written, now and then.
    Race = "race" shows Sometimes,
    /// Single bits, now and then.
    BitFlips = "bit_flips" shows Sometimes,
    /// Right, and late.
    Slow = "slow" shows InTime,
}

/// One way to be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect {
    /// The name of its function.
    pub name: &'static str,
    /// The operator that it stands in the place of.
    pub operator: &'static str,
    /// In what way it is wrong.
    pub kind: Kind,
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
            && let Some((operator, kind)) = pending.take()
            && let Some(kind) = Kind::ALL.iter().find(|known| known.name() == kind)
            && let Some((name, _)) = rest.split_once('(')
        {
            defects.push(Defect { name, operator, kind: *kind, file });
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
            kind = self.kind.name(),
            operator = self.operator,
            inserted = self.inserted(),
        ))
    }
}
