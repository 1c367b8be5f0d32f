//! The machine and the build that figures are of.

use std::path::Path;
use std::process::Command;

/// The processor, its instructions for bf16, memory and system.
pub fn describe() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim()).to_string()
    };
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let known = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"].into_iter().filter(|flag| has(flag));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let kib: f64 = kib.trim().trim_end_matches(" kB").parse().unwrap_or(f64::NAN);
    format!(
        "{cores} cores of {} (family {}, model {}; {}), {:.0} GiB, Linux {}",
        field("model name"),
        field("cpu family"),
        field("model"),
        known.collect::<Vec<_>>().join(", "),
        kib / 1048576.0,
        said("uname", &["-r"], Path::new("."))
    )
}

/// Whether the processor has a flag.
pub fn has(flag: &str) -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|each| each == flag)
}

/// Our version and commit, and the compiler.
pub fn build(root: &Path) -> String {
    let commit = said("git", &["describe", "--always", "--dirty", "--abbrev=10"], root);
    format!(
        "toprope {} ({commit}), {}, release",
        env!("CARGO_PKG_VERSION"),
        said("rustc", &["--version"], root)
    )
}

/// Today.
pub fn date() -> String {
    said("date", &["-u", "+%F"], Path::new("."))
}

fn said(program: &str, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    output.map_or("?".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
}
