//! The workspace's binaries, built once and for all chores alike.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds everything and says where it lies. By package, cargo would choose other features of what packages share, and build
/// the same crates again for each chore; after the tests there is nothing left to do.
pub fn built(root: &Path) -> Result<PathBuf, String> {
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--workspace", "--all-targets"])
        .args(["--features", "toprope/parquet"])
        .current_dir(root)
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !status.success() {
        return Err("the workspace does not build".into());
    }
    Ok(release(root))
}

/// Where it lies.
pub fn release(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    root.join(target).join("release")
}
