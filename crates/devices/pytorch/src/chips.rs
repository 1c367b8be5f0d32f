//! The chips that the user's torch sees, by their own names: asked of a short process, since no code of torch runs here.

use crate::PyTorchError;
use crate::interpreter;
use crate::name::PREFIX;
use std::io::Read;
use std::path::Path;
use std::time::Duration;
use toprope_program::{Fault, FaultKind};
use toprope_world::{Exit, Launch, Stream, World};

/// A chip that torch sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chip {
    /// What opens it, as `pytorch:cuda:3`.
    pub name: String,
    /// What its vendor calls it.
    pub hardware: String,
}

/// One line for each chip: torch's name, a tab, the vendor's.
const ASK: &str = r#"
import contextlib
import torch
with contextlib.suppress(ImportError):
    import torch_npu
for backend in ("cuda", "npu", "xpu"):
    module = getattr(torch, backend, None)
    with contextlib.suppress(Exception):
        for index in range(module.device_count() if module is not None and module.is_available() else 0):
            print(f"{backend}:{index}", module.get_device_name(index), sep="\t")
with contextlib.suppress(Exception):
    if torch.backends.mps.is_available():
        print("mps", "Apple GPU", sep="\t")
"#;

/// More output than this is not a list of chips.
const BYTES_MAX: u64 = 1 << 16;

/// The chips beside the host's processor; importing torch takes seconds.
///
/// # Errors
/// There is no interpreter, or it has no torch, or it does not answer within `limit`.
pub fn chips(world: &dyn World, python: Option<&Path>, limit: Duration) -> Result<Vec<Chip>, PyTorchError> {
    let program = interpreter::find(python)?;
    let lost = |reason: String| PyTorchError::Fault {
        fault: Box::new(Fault::new("pytorch", FaultKind::Lost { reason, for_good: false })),
    };
    let launch = Launch {
        program: program.clone(),
        arguments: ["-c", ASK].map(Into::into).to_vec(),
        output: Stream::Pipe,
        error: Stream::Null,
        dies_with_parent: true,
        ..Launch::default()
    };
    let mut child = world.processes().spawn(&launch).map_err(|error| lost(error.to_string()))?;
    let output = child.take_output();
    let ended = child.wait(limit).map_err(|error| lost(error.to_string()))?;
    if ended.is_none() {
        // It is gone with this process at the latest.
        let _ = child.kill();
    }
    match ended {
        Some(Exit::Code(0)) => {}
        Some(_) => {
            return Err(lost(format!("{} has no torch that can be asked for chips", program.display())));
        }
        None => {
            let reason = format!("{} told of no chips within {} s", program.display(), limit.as_secs());
            return Err(lost(reason));
        }
    }
    let mut text = String::new();
    if let Some(output) = output {
        output.take(BYTES_MAX).read_to_string(&mut text).map_err(|error| lost(error.to_string()))?;
    }
    Ok(listed(&text))
}

fn listed(text: &str) -> Vec<Chip> {
    let chip = |line: &str| {
        let (name, hardware) = line.split_once('\t')?;
        Some(Chip { name: format!("{PREFIX}{name}"), hardware: hardware.trim().to_string() })
    };
    text.lines().filter_map(chip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;

    #[test]
    fn each_line_is_a_device_that_opens() {
        let chips = listed(
            "a library's own line\ncuda:0\tNVIDIA H200\ncuda:1\tNVIDIA H200\nnpu:7\tAscend910B4 \nmps\tApple GPU\n",
        );
        assert_eq!(chips.len(), 4);
        assert_eq!(chips[2], Chip { name: "pytorch:npu:7".into(), hardware: "Ascend910B4".into() });
        assert!(chips.iter().all(|chip| Name::parse(&chip.name).is_ok()), "{chips:?}");
    }
}
