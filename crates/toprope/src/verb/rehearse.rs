//! `toprope rehearse`: a run on a device that fails in every way that the guard is for, and whether each promise held.

mod acts; // the story on the emulated NPU, in four acts
mod curve; // the loss beside an undisturbed run's
mod scenes; // every class of fault injected, on the processor
mod stage; // `train` in a process of its own
mod watch; // a run's journal while it is written

use crate::command::Rehearse;
use crate::exit::{Exit, Failure};

/// Rehearses.
pub fn run(arguments: &Rehearse, json: bool) -> Result<Exit, Failure> {
    match arguments.device.as_str() {
        "cpu" => scenes::run(arguments, json),
        name if name.starts_with("ascend:") => acts::run(arguments, json),
        name => Err(Failure::new(
            Exit::Usage,
            format!(
                "--device {name}: what is rehearsed are the emulator's defects, on ascend:0, or injected faults, on cpu\n\
                 hint: `toprope rehearse` or `toprope rehearse --device cpu`; on any other device `toprope train --faults` injects"
            ),
        )),
    }
}
