//! The detection campaign, built and run.

use std::path::Path;
use std::process::Command;

/// Hands its arguments on.
pub fn run(root: &Path, arguments: &[String]) -> Result<(), String> {
    // `campaign cost` starts workers of the binary, `campaign npu` on the emulator beside it: the default members.
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--features", "toprope/parquet"])
        .current_dir(root)
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !built.success() {
        return Err("the binary does not build".into());
    }
    let status = Command::new("cargo")
        .args(["run", "--quiet", "--release", "--package", "toprope-campaign", "--"])
        .args(arguments)
        .current_dir(root)
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err("the campaign failed; its report says where".into()) }
}
