//! `toprope worker`: a device behind two pipes. Started by the supervisor, not by people.

use crate::exit::{Exit, Failure, OrExit};
use toprope_devices::{OpenError, OpenOptions};
use toprope_guard::worker::{Opened, Opening, serve};
use toprope_program::{Fault, FaultKind, Width};
use toprope_world::RealWorld;

/// Serves until the supervisor is gone.
pub fn run() -> Result<Exit, Failure> {
    let world = RealWorld::new();
    let (input, mut output) = (Box::new(std::io::stdin()), std::io::stdout());
    serve(&world, input, &mut output, &open).or_exit(Exit::Internal)?;
    Ok(Exit::Done)
}

fn open(Opening { hello, progress, .. }: Opening<'_>) -> Result<Opened, Fault> {
    let (threads, level) = (hello.threads, hello.level.clone());
    let options = OpenOptions { threads, level, width: Width::Native, progress };
    let device =
        toprope_devices::open(&hello.device, &options).map_err(|error| refused(&hello.device, &error))?;
    Ok(Opened::in_earnest(device))
}

fn refused(device: &str, error: &OpenError) -> Fault {
    let kind = FaultKind::Unsupported {
        operator: "open".into(),
        dtype: None,
        shape: Vec::new(),
        reason: error.to_string(),
    };
    Fault::new(device, kind)
}
