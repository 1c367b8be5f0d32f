//! The guard's decisions through simulated schedules, and through a simulated day.

use crate::built::built;
use std::path::Path;
use std::process::Command;

/// `count` schedules from seed 0 on, then 24 hours at one fault a minute.
pub fn run(root: &Path, count: u64) -> Result<(), String> {
    let seeds = format!("0..{count}");
    let release = built(root)?;
    for arguments in [vec!["--seeds", seeds.as_str()], vec!["goodput"]] {
        let status = Command::new(release.join("toprope-simulator"))
            .args(&arguments)
            .current_dir(root)
            .status()
            .map_err(|error| format!("cannot run toprope-simulator: {error}"))?;
        if !status.success() {
            return Err(format!("toprope-simulator {}: see above", arguments.join(" ")));
        }
    }
    Ok(())
}
