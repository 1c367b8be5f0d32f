//! Any chip that the user's own PyTorch runs on, as a device: a script that speaks the worker protocol, carried in the
//! binary and run by the user's interpreter, and an oracle that we did not write.
//!
//! The script is `operators.py` (the contract in plain torch), `verify.py` (its results by other code) and `worker.py`
//! (everything else). The guard starts it
//! itself ([`command`]); whoever wants the device in its own process holds its other end ([`open`]). No code of torch runs
//! on this side. docs/pytorch.md tells what it computes and where it differs from the oracle.

pub mod chips; // what torch sees
pub mod collectives; // ranks of torch.distributed, and which is missing
pub mod interpreter; // the user's own Python
pub mod name; // devices and their variants

use crate::interpreter::NoInterpreter;
use crate::name::{Name, NameError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use toprope_program::{Fault, FaultKind};
use toprope_protocol::remote::{RemoteDevice, SCRIPT, WorkerCommand, WorkerOptions};
use toprope_protocol::{Hello, VERSION};
use toprope_world::{SharedRegion, World};

/// What the interpreter runs.
pub const WORKER: &str =
    concat!(include_str!("operators.py"), include_str!("verify.py"), include_str!("worker.py"));

/// The contract's operators in plain torch, as the worker has them: what a report carries of them.
pub const OPERATORS: &str = concat!(include_str!("operators.py"), include_str!("verify.py"));

/// Reads the script from its file and runs it under a name that tracebacks can show.
const RUN: &str = "import sys; exec(compile(open(sys.argv[1], 'rb').read(), 'toprope-worker.py', 'exec'))";

/// Python and torch come up in seconds; from a slow disk in a minute.
pub const START_LIMIT: Duration = Duration::from_secs(120);

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum PyTorchError {
    /// The name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The interpreter.
    #[error(transparent)]
    Interpreter(#[from] NoInterpreter),
    /// The worker came up and refused, or did not come up.
    #[error("{}", told(fault))]
    Fault {
        /// What it said.
        fault: Box<Fault>,
    },
}

/// A refusal to open is the worker's own sentence; anything else is a fault as it stands.
fn told(fault: &Fault) -> String {
    match &fault.kind {
        FaultKind::Unsupported { operator, reason, .. } if operator == "open" => reason.clone(),
        FaultKind::Lost { reason, .. } => {
            format!("{reason} (what Python said stands above); name the one that has torch with --python")
        }
        _ => fault.to_string(),
    }
}

/// How the worker of this device is started.
///
/// # Errors
/// The name is wrong, or there is no interpreter.
pub fn command(name: &str, python: Option<&Path>) -> Result<WorkerCommand, PyTorchError> {
    Name::parse(name)?;
    let program = interpreter::find(python)?;
    // `-P` (3.11) is left out: older interpreters refuse it; `-u` keeps what libraries print in order.
    let arguments = ["-u", "-c", RUN, SCRIPT, "toprope worker", name].map(Into::into).to_vec();
    Ok(WorkerCommand { program, arguments, script: Some(WORKER) })
}

/// How to open it in this process.
pub struct OpenOptions<'a> {
    /// The interpreter, where the caller says which.
    pub python: Option<&'a Path>,
    /// Threads that torch may use on the host.
    pub threads: Option<usize>,
    /// Host memory that may be adopted; other memory of this process cannot be.
    pub regions: &'a [Arc<SharedRegion>],
}

/// Bytes of the region that holds the progress word.
const CONTROL_BYTES: usize = 64;

/// Starts a worker of this process's own and waits until it is up.
///
/// # Errors
/// The name is wrong, there is no interpreter, or what the worker said.
pub fn open(world: &dyn World, name: &str, options: &OpenOptions<'_>) -> Result<RemoteDevice, PyTorchError> {
    let command = command(name, options.python)?;
    open_with(world, name, &command, options)
}

/// The same with another command: tests start workers that misbehave.
///
/// # Errors
/// What the worker said, or that it said nothing.
pub fn open_with(
    world: &dyn World,
    name: &str,
    command: &WorkerCommand,
    options: &OpenOptions<'_>,
) -> Result<RemoteDevice, PyTorchError> {
    let refused = |fault: Fault| PyTorchError::Fault { fault: Box::new(fault) };
    let lost = |reason: String| refused(Fault::new(name, FaultKind::Lost { reason, for_good: false }));
    let control = world.shared_memory().create("toprope-control", CONTROL_BYTES);
    let control = control.map_err(|error| lost(error.to_string()))?;
    let regions: Vec<Arc<SharedRegion>> =
        std::iter::once(control).chain(options.regions.iter().cloned()).collect();
    let hello = Hello {
        version: VERSION,
        toprope: env!("CARGO_PKG_VERSION").into(),
        run: String::new(),
        rank: 0,
        device: name.into(),
        threads: options.threads,
        level: None,
        regions: Vec::new(),
        progress: (0, 0),
        faults: None,
    };
    let options = WorkerOptions { command, regions: &regions, hello, generation: 1, patience: START_LIMIT };
    let mut device = RemoteDevice::launch(world, options).map_err(refused)?;
    match device.ready(START_LIMIT).map_err(refused)? {
        Some(_) => Ok(device),
        None => Err(refused(Fault::new(name, FaultKind::Hang { waited_ms: START_LIMIT.as_millis() as u64 }))),
    }
}
