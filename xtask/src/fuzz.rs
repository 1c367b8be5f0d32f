//! Fuzzing guided by coverage, on stable Rust: the compiler's own coverage pass, and LLVM's libFuzzer, which a C++ compiler
//! builds. There is no address sanitizer on stable; what is fuzzed holds no `unsafe`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A counter at every branch, and the operands of comparisons, which libFuzzer takes as hints.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
/// Seconds after which an input hangs.
const HANG_SECONDS: u32 = 10;
/// MiB after which an input takes too much memory.
const MEMORY_MIB: u32 = 2048;

/// Drives one target, or each in turn, for so many minutes each.
pub fn run(root: &Path, target: Option<&str>, minutes: f64) -> Result<(), String> {
    let targets = targets(root)?;
    if let Some(name) = target.filter(|name| !targets.iter().any(|target| target == name)) {
        return Err(format!("there is no target `{name}`\nhint: choose one of {}", targets.join(", ")));
    }
    let binary = build(root)?;
    let made = root.join("fuzz/target");
    let mut failed = Vec::new();
    for name in targets.iter().filter(|name| target.is_none_or(|target| target == name.as_str())) {
        println!("\n== {name}: {minutes} min");
        let (found, crashes) = (made.join("corpus").join(name), made.join("crashes").join(name));
        for folder in [&found, &crashes] {
            std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        let status = Command::new(&binary)
            .env("TOPROPE_FUZZ_TARGET", name)
            .arg(&found)
            .arg(root.join("fuzz/corpus").join(name))
            .arg(format!("-max_total_time={}", (minutes * 60.0).max(1.0) as u64))
            .arg(format!("-timeout={HANG_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .arg("-print_final_stats=1")
            .status()
            .map_err(|error| format!("cannot run {}: {error}", binary.display()))?;
        if !status.success() {
            failed.push(format!("{name} (its input lies in {})", crashes.display()));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!(
        "failed: {}\nhint: mend what it shows, and copy the input to fuzz/corpus/TARGET, where a test runs it from then on",
        failed.join(", ")
    ))
}

/// Their names are those of the corpus' folders; a test holds them against the code's table.
fn targets(root: &Path) -> Result<Vec<String>, String> {
    let folder = root.join("fuzz/corpus");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// Builds the fuzzer. A named target keeps the flags away from build scripts, which could not be linked with them.
fn build(root: &Path) -> Result<PathBuf, String> {
    let version =
        Command::new("rustc").arg("-vV").output().map_err(|error| format!("cannot run rustc: {error}"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc -vV names no host")?;
    let status = Command::new("cargo")
        .args(["build", "--release", "--locked", "--target", host])
        .current_dir(root.join("fuzz"))
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", root.join("fuzz/target"))
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !status.success() {
        return Err("the fuzzer could not be built; see above".into());
    }
    Ok(root.join("fuzz/target").join(host).join("release/toprope-fuzzer"))
}
