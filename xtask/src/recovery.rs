//! How long a run stands still when its worker is killed, with a standby and without, beside torchrun in the same run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `kills` of each; torchrun where an interpreter with torch is named.
pub fn run(root: &Path, kills: usize, python: Option<&str>) -> Result<(), String> {
    let binary = crate::built::built(root)?.join("toprope");
    for (name, standby) in [("with standby", "guard.standby=true"), ("without", "guard.standby=false")] {
        let (mut seconds, redone) = ours(&binary, kills, standby)?;
        println!("toprope, {name}: {seconds:.3?} s, steps redone {redone:?}");
        seconds.sort_by(f64::total_cmp);
        println!("toprope, {name}: median {:.3} s, most {:.3} s", seconds[kills / 2], seconds[kills - 1]);
    }
    if let Some(python) = python {
        let mut command = Command::new(python);
        command.arg(root.join("benches/rivals/pytorch_recover.py")).args(["--kills", &kills.to_string()]);
        let output = command.output().map_err(|error| format!("cannot start {python}: {error}"))?;
        println!("torchrun: {}", String::from_utf8_lossy(&output.stdout).trim());
    }
    Ok(())
}

fn ours(binary: &Path, kills: usize, standby: &str) -> Result<(Vec<f64>, Vec<u64>), String> {
    let run = std::env::temp_dir().join(format!("toprope-recovery-{}-{standby}", std::process::id()));
    let steps = (12 + 8 * kills).to_string();
    let mut command = Command::new(binary);
    command.args(["train", "bench-moe", "--steps", &steps, "--set", "evaluation.final_tokens=256"]);
    command.args(["--set", standby, "--run"]).arg(&run).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("cannot start the run: {error}"))?;
    let lines = |event: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(run.join("journal.jsonl")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line["event"] == event).collect()
    };
    let (mut seconds, mut redone) = (Vec::new(), Vec::new());
    let wait = |ready: &dyn Fn() -> bool| -> Result<(), String> {
        for _ in 0..6000 {
            if ready() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("the run does not get on".into())
    };
    for kill in 0..kills {
        wait(&|| lines("committed").len() >= 8 + 8 * kill)?;
        // A moment within a step: another one each time.
        std::thread::sleep(Duration::from_millis(70 * (kill as u64 % 5)));
        let committed: Vec<f64> = lines("committed").iter().filter_map(|line| clock(&line["time"])).collect();
        let mut apart: Vec<f64> = committed.windows(2).map(|pair| pair[1] - pair[0]).collect();
        apart.sort_by(f64::total_cmp);
        let usual = apart[apart.len() / 2];
        let worker = crate::worker_kills::worker_of(child.id()).ok_or("the run has no worker")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
        let killed = now.as_secs_f64() % 86_400.0;
        Command::new("kill").args(["-KILL", &worker.to_string()]).status().map_err(|e| e.to_string())?;
        wait(&|| lines("recovered").len() > kill)?;
        let recovered = &lines("recovered")[kill];
        let at = clock(&recovered["time"]).ok_or("a line without a time")?;
        seconds.push((at - killed - usual).max(0.0));
        redone.push(recovered["steps_redone"].as_u64().unwrap_or(u64::MAX));
    }
    child.wait().map_err(|error| error.to_string())?;
    // The folder is ours alone.
    let _ = std::fs::remove_dir_all(&run);
    Ok((seconds, redone))
}

/// Seconds of the day of a journal's time.
fn clock(time: &serde_json::Value) -> Option<f64> {
    let day = time.as_str()?.split_once('T')?.1.trim_end_matches('Z');
    let mut parts = day.split(':');
    let mut number = || parts.next()?.parse::<f64>().ok();
    Some(number()? * 3600.0 + number()? * 60.0 + number()?)
}
