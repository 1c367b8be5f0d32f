//! `toprope diagnose --script`: hands a training script to the Python package `toprope`.

use crate::command::Diagnose;
use crate::exit::{Exit, Failure, OrExit};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toprope_world::{EntryKind, Exit as Ended, Launch, Stream, World};

/// How long the look for the package may take: importing torch is slow on some machines.
const LOOK: Duration = Duration::from_secs(120);

/// A day: a training script takes what it takes.
const SCRIPT: Duration = Duration::from_secs(86_400);

/// Runs the package on a script.
pub fn run(world: &dyn World, arguments: &Diagnose, script: &Path, json: bool) -> Result<Exit, Failure> {
    match world.files().inspect(script).or_exit(Exit::Usage)? {
        Some(EntryKind::File { .. }) => {}
        _ => return Err(Failure::new(Exit::Usage, format!("{}: there is no such script", script.display()))),
    }
    let python = arguments
        .python
        .clone()
        .or_else(|| std::env::var_os("TOPROPE_PYTHON").map(PathBuf::from))
        .unwrap_or_else(|| "python3".into());
    let look =
        ["-c", "import importlib.util, sys; sys.exit(0 if importlib.util.find_spec('toprope') else 3)"];
    let found = ended(world, &python, look.map(OsString::from).to_vec(), Stream::Null, LOOK)?;
    if found != Ended::Code(0) {
        return Err(Failure::new(
            Exit::Device,
            format!(
                "{} does not have the Python package `toprope`, which runs the script\nhint: install it with `{} -m pip install toprope`, or from this repository with `-m pip install ./python`, or name another interpreter with --python",
                python.display(),
                python.display()
            ),
        ));
    }
    let mut list: Vec<OsString> = ["-m", "toprope", "diagnose"].map(OsString::from).to_vec();
    list.push(script.into());
    list.extend([
        "--step".into(),
        arguments.step.unwrap_or(1).to_string().into(),
        "--device".into(),
        arguments.device.clone().into(),
    ]);
    if json {
        list.push("--json".into());
    }
    for (option, path) in [("--html", &arguments.html), ("--cases", &arguments.cases)] {
        if let Some(path) = path {
            list.extend([option.into(), path.into()]);
        }
    }
    list.push("--".into());
    list.extend(arguments.script_arguments.iter().cloned());
    match ended(world, &python, list, Stream::Inherit, SCRIPT)? {
        // The package's codes are those of this table; it has told its own errors.
        Ended::Code(code) => match Exit::ALL.into_iter().find(|exit| i32::from(exit.code()) == code) {
            Some(Exit::Internal) | None => {
                let message = format!("{}: the script's diagnosis ended with {code}", script.display());
                Err(Failure::new(Exit::Internal, message))
            }
            Some(exit) => Ok(exit),
        },
        other => {
            Err(Failure::new(Exit::Device, format!("{}: the script's diagnosis {other}", script.display())))
        }
    }
}

fn ended(
    world: &dyn World,
    python: &Path,
    arguments: Vec<OsString>,
    output: Stream,
    limit: Duration,
) -> Result<Ended, Failure> {
    let launch = Launch {
        program: python.to_path_buf(),
        arguments,
        output,
        error: output,
        dies_with_parent: true,
        ..Launch::default()
    };
    let mut child = world.processes().spawn(&launch).or_exit(Exit::Device)?;
    let ended = child.wait(limit).or_exit(Exit::Device)?;
    ended.ok_or_else(|| {
        let _ = child.kill();
        Failure::new(Exit::Device, format!("{} did not end within {} s", python.display(), limit.as_secs()))
    })
}
