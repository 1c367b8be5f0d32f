//! The detection campaign, built and run.

use crate::built::built;
use std::path::Path;
use std::process::Command;

/// Hands its arguments on.
pub fn run(root: &Path, arguments: &[String]) -> Result<(), String> {
    // `campaign cost` starts workers of the binary, `campaign npu` on the emulator beside it.
    let status = Command::new(built(root)?.join("toprope-campaign"))
        .args(arguments)
        .current_dir(root)
        .status()
        .map_err(|error| format!("cannot run toprope-campaign: {error}"))?;
    if status.success() { Ok(()) } else { Err("the campaign failed; its report says where".into()) }
}
