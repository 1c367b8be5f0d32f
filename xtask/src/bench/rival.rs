//! A rival: a script that stays between rounds, and the best of its settings.

use serde_json::{Map, Value};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A script that has warmed up and measures again whenever it is asked, so that compiling is paid once.
pub struct Kept {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    errors: std::path::PathBuf,
    /// What it said when it was ready.
    pub ready: Value,
}

impl Kept {
    /// Starts it and waits until it is warm.
    pub fn start(mut command: Command) -> Result<Self, String> {
        let name = format!("toprope-bench-{}-rival", std::process::id());
        let errors = std::env::temp_dir().join(name);
        let file =
            std::fs::File::create(&errors).map_err(|error| format!("{}: {error}", errors.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        let output = BufReader::new(output);
        let mut kept = Kept { child, input: Some(input), output, errors, ready: Value::Null };
        kept.ready = kept.line()?;
        Ok(kept)
    }

    /// One round of it.
    pub fn round(&mut self) -> Result<Value, String> {
        if let Some(input) = &mut self.input {
            // Where it has ended, reading says why.
            let _ = input.write_all(b"\n").and_then(|()| input.flush());
        }
        self.line()
    }

    fn line(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        loop {
            line.clear();
            match self.output.read_line(&mut line) {
                Ok(0) | Err(_) => return Err(format!("the rival ended: {}", last_line(&self.errors))),
                Ok(_) if line.starts_with('{') => {
                    return serde_json::from_str(&line).map_err(|error| format!("{error} in `{line}`"));
                }
                Ok(_) => {}
            }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The end of its input is its end.
        self.input = None;
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.errors);
    }
}

fn last_line(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_string()
}

/// The last line of JSON that a command prints.
pub fn last_json(mut command: Command) -> Result<Value, String> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(last) = text.lines().rev().find(|line| line.starts_with('{')) else {
        let errors = String::from_utf8_lossy(&output.stderr);
        let told = errors.lines().find(|line| line.starts_with("error: "));
        let told = told.or_else(|| errors.lines().rev().find(|line| !line.trim().is_empty()));
        return Err(told.unwrap_or("it said nothing").trim_start_matches("error: ").to_string());
    };
    serde_json::from_str(last).map_err(|error| format!("{error} in `{last}`"))
}

/// A figure of a record.
pub fn figure(record: &Value, key: &str) -> Result<f64, String> {
    record[key].as_f64().filter(|x| *x > 0.0).ok_or_else(|| format!("no `{key}` in {record}"))
}

/// A text of a record.
pub fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    record[key].as_str().unwrap_or_default()
}

/// The best setting for `work`: of the file where it has one of this machine, or else by `search`, whose lines are shown as
/// they come; the file then has it too.
pub fn best(file: Option<&Path>, machine: &str, work: &str, search: Command) -> Result<Value, String> {
    let mut known = match file.map(std::fs::read_to_string) {
        Some(Ok(text)) => serde_json::from_str::<Map<String, Value>>(&text)
            .map_err(|error| format!("{}: {error}", file.unwrap_or(Path::new("")).display()))?,
        _ => Map::new(),
    };
    if let Some(best) = known.get(work).filter(|best| text(best, "machine") == machine) {
        println!("{work}: the best setting is {}, as {} found", text(best, "variant"), told_when(best));
        return Ok(best.clone());
    }
    let mut best = searched(work, search)?;
    best["machine"] = machine.into();
    best["found"] = super::machine::date().into();
    println!("{work}: the best setting is {}", text(&best, "variant"));
    if let Some(file) = file {
        known.insert(work.into(), best.clone());
        let text = serde_json::to_string_pretty(&known).map_err(|error| error.to_string())?;
        std::fs::write(file, text + "\n").map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(best)
}

/// How a best setting is told in a row.
pub fn told_when(best: &Value) -> String {
    let tried = best["searched"].as_array().map_or(0, Vec::len);
    format!("a search of {tried} settings on {}", text(best, "found"))
}

fn searched(work: &str, mut search: Command) -> Result<Value, String> {
    let mut child =
        search.stdout(Stdio::piped()).spawn().map_err(|error| format!("cannot start {search:?}: {error}"))?;
    let mut tried: Vec<Value> = Vec::new();
    let mut best = Value::Null;
    for line in BufReader::new(child.stdout.take().ok_or("no pipe")?).lines() {
        let line = line.map_err(|error| error.to_string())?;
        let Ok(record) = serde_json::from_str::<Value>(&line) else { continue };
        if record["best"].as_bool() == Some(true) {
            best = record;
        } else {
            let (variant, rate) = (text(&record, "variant"), &record["tokens_per_second"]);
            println!("  {work}: {variant}: {rate} tokens/s");
            tried.push(serde_json::json!([variant, rate]));
        }
    }
    child.wait().map_err(|error| error.to_string())?;
    if best.is_null() {
        return Err("the search for the rival's best setting found none".into());
    }
    best["searched"] = tried.into();
    Ok(best)
}

/// glibc's allocator that keeps what was freed, as the scripts' own table has it.
pub const KEEPING_ALLOCATOR: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "1000000000000")];
