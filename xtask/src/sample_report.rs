//! A sample of what `toprope report` sends: a worker of PyTorch with a known defect, diagnosed and reported as a user would.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What `diagnose` leaves where an operator is wrong (docs/exit-codes.md).
const WRONG: i32 = 14;

/// Writes `out`, and runs what is in it with an interpreter that knows nothing of us.
pub fn run(root: &Path, defect: &str, python: Option<&str>, out: &Path) -> Result<(), String> {
    let release = crate::built::built(root)?;
    let folder = std::env::temp_dir().join(format!("toprope-sample-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let written = write(&release, &folder, defect, python, out);
    // The folder is ours alone.
    let _ = std::fs::remove_dir_all(&folder);
    written
}

fn write(
    release: &Path,
    folder: &Path,
    defect: &str,
    python: Option<&str>,
    out: &Path,
) -> Result<(), String> {
    let bad = folder.join("python-with-a-defect");
    let mut make = Command::new(release.join("examples/interpreter"));
    make.arg(defect).arg(&bad).args(python);
    succeeds(make, "the interpreter with a defect")?;
    let toprope = release.join("toprope");
    let device = ["--device", "pytorch:cpu", "--against", "cpu", "--python"];
    let mut diagnose = Command::new(&toprope);
    diagnose.args(["diagnose", "tiny-moe", "--json"]).args(device).arg(&bad).current_dir(folder);
    let output = ran(diagnose)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    if output.status.code() != Some(WRONG) {
        return Err(format!("diagnose ended with {}: {}", output.status, told(&output)));
    }
    let report: serde_json::Value =
        serde_json::from_str(last).map_err(|error| format!("{error} in {last}"))?;
    let operator =
        report["first_wrong"]["operator"].as_str().ok_or("diagnose names no operator")?.to_string();
    println!("{}", text.trim_end().strip_suffix(last).unwrap_or(&text));
    let mut report = Command::new(&toprope);
    report.args(["report", "tiny-moe", "--redact", "--operator", &operator]).args(device).arg(&bad);
    report.arg("--out").arg(out);
    println!("{}", succeeds(report, "the report")?.trim_end());
    let mut unpack = Command::new("tar");
    unpack.arg("-xzf").arg(out).arg("-C").arg(folder);
    succeeds(unpack, "tar")?;
    let inside = folder.join(format!("toprope-report-{operator}"));
    let page = inside.join("README.md");
    println!("\n{}", std::fs::read_to_string(&page).map_err(|error| format!("{}: {error}", page.display()))?);
    // The defect is the worker's: the torch of whoever gets the report is right.
    let mut repeat = Command::new(python.unwrap_or("python3"));
    repeat.arg("repro_torch.py").current_dir(&inside);
    println!("repro_torch.py on a right torch:\n{}", succeeds(repeat, "repro_torch.py")?.trim_end());
    Ok(())
}

fn ran(mut command: Command) -> Result<Output, String> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start {}: {error}", command.get_program().display()))
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What it prints, where it ends well.
fn succeeds(command: Command, what: &str) -> Result<String, String> {
    let output = ran(command)?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{what}: {}", told(&output).trim_end())),
    }
}
