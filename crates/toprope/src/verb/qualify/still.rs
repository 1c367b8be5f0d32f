//! Whether an earlier verdict still stands: it was of one chip, one driver, one library.

use crate::exit::{Exit, Failure};
use serde_json::Value;
use std::path::Path;
use toprope_devices::{OpenOptions, open};
use toprope_program::Description;

/// A verdict that somebody kept is no larger than this.
const BYTES_MAX: u64 = 256 << 20;

/// Reads the last line of an earlier `--json`, opens the device, and tells what is another one now. Nothing is measured.
pub fn run(path: &Path, device: Option<&str>, options: &OpenOptions, json: bool) -> Result<Exit, Failure> {
    let wrong = |reason: String| Failure::new(Exit::Data, format!("{}: {reason}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > BYTES_MAX {
        return Err(wrong(format!("{bytes} bytes are more than a verdict has")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let no_verdict = || wrong("its last line is none of `toprope qualify --json`".into());
    let earlier: Value = serde_json::from_str(last).map_err(|_| no_verdict())?;
    let word = |value: &Value| value.as_str().map(String::from);
    let (Some(verdict), Some(name), Some(expires)) = (
        word(&earlier["verdict"]),
        word(&earlier["opened"]).or_else(|| word(&earlier["device"])),
        earlier["expires"].as_object(),
    ) else {
        return Err(no_verdict());
    };
    let name = device.map_or(name, String::from);
    let opened = open(&name, options).map_err(|error| Failure::new(Exit::Device, error))?;
    let changed = changes(&Value::Object(expires.clone()), &opened.describe());
    for change in &changed {
        println!("  {change}");
    }
    match changed.is_empty() {
        true => println!(
            "{name}: `{verdict}` still stands: hardware, level and versions are those that it was found on"
        ),
        false => println!("{name}: `{verdict}` has expired; qualify it again"),
    }
    if json {
        println!(
            "{}",
            serde_json::json!({ "verdict": verdict, "device": name, "stands": changed.is_empty(), "changed": changed })
        );
    }
    Ok(if changed.is_empty() { Exit::Done } else { Exit::Inconclusive })
}

/// What is not as it was.
fn changes(expires: &Value, now: &Description) -> Vec<String> {
    let mut changed = Vec::new();
    let mut compare = |what: &str, before: Option<&str>, now: Option<&str>| {
        if before != now {
            let told = |version: Option<&str>| version.unwrap_or("not told").to_string();
            changed.push(format!("{what}: {} then, {} now", told(before), told(now)));
        }
    };
    compare("hardware", expires["hardware"].as_str(), Some(&now.hardware));
    compare("level", expires["level"].as_str(), Some(&now.level));
    let version =
        |name: &str| now.versions.iter().find(|(one, _)| one == name).map(|(_, version)| version.as_str());
    let before = expires["versions"].as_object();
    for (name, earlier) in before.into_iter().flatten() {
        compare(name, earlier.as_str(), version(name));
    }
    for (name, _) in now.versions.iter().filter(|(name, _)| before.is_none_or(|all| !all.contains_key(name)))
    {
        compare(name, None, version(name));
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_new_driver_ends_a_verdict() {
        let options = OpenOptions { threads: Some(1), ..OpenOptions::default() };
        let mut now = open("reference", &options).unwrap().describe();
        now.versions = vec![("driver".into(), "2".into()), ("torch".into(), "2.15".into())];
        let expires =
            json!({"hardware": now.hardware, "level": now.level, "versions": {"driver": "1", "cann": "8"}});
        assert_eq!(
            changes(&expires, &now),
            ["driver: 1 then, 2 now", "cann: 8 then, not told now", "torch: not told then, 2.15 now"]
        );
        let same = json!({"hardware": now.hardware, "level": now.level, "versions": {"driver": "2", "torch": "2.15"}});
        assert!(changes(&same, &now).is_empty());
    }
}
