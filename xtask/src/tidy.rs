//! What a compiler does not see: dependency direction, banned calls, unsafe only where it is listed, pages up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of our crates each may use. ARCHITECTURE.md holds the same table for people; this test compares the two.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "toprope",
        &[
            "toprope-conformance",
            "toprope-devices",
            "toprope-diagnose",
            "toprope-formats",
            "toprope-guard",
            "toprope-model",
            "toprope-program",
            "toprope-qualify",
            "toprope-train",
            "toprope-world",
        ],
    ),
    ("toprope-qualify", &["toprope-conformance", "toprope-diagnose", "toprope-program"]),
    ("toprope-diagnose", &["toprope-conformance", "toprope-program"]),
    ("toprope-train", &["toprope-guard", "toprope-model", "toprope-program", "toprope-world"]),
    ("toprope-guard", &["toprope-program", "toprope-protocol", "toprope-world"]),
    ("toprope-protocol", &["toprope-program", "toprope-world"]),
    (
        "toprope-campaign",
        &[
            "toprope-ascend",
            "toprope-devices",
            "toprope-guard",
            "toprope-model",
            "toprope-program",
            "toprope-train",
            "toprope-world",
        ],
    ),
    (
        "toprope-fuzz",
        &[
            "toprope-formats",
            "toprope-model",
            "toprope-program",
            "toprope-protocol",
            "toprope-train",
            "toprope-world",
        ],
    ),
    ("toprope-simulator", &["toprope-guard"]),
    ("toprope-model", &["toprope-formats", "toprope-program", "toprope-world"]),
    ("toprope-formats", &["toprope-world"]),
    ("toprope-conformance", &["toprope-program"]),
    (
        "toprope-devices",
        &[
            "toprope-ascend",
            "toprope-cpu",
            "toprope-program",
            "toprope-protocol",
            "toprope-placed",
            "toprope-pytorch",
            "toprope-reference",
            "toprope-world",
        ],
    ),
    ("toprope-pytorch", &["toprope-program", "toprope-protocol", "toprope-world"]),
    ("toprope-placed", &["toprope-program", "toprope-world"]),
    ("toprope-defects", &["toprope-program", "toprope-protocol", "toprope-pytorch", "toprope-world"]),
    ("toprope-ascend", &["toprope-program"]),
    ("toprope-reference", &["toprope-program"]),
    ("toprope-cpu", &["toprope-program"]),
    ("toprope-program", &[]),
    ("toprope-world", &[]),
    ("cann-emulator", &[]),
    ("cann-emulator-ascendcl", &[]),
    ("cann-emulator-nnopbase", &[]),
    ("cann-emulator-opapi", &[]),
    ("cann-emulator-dcmi", &[]),
    ("xtask", &[]),
];

/// Where `unsafe` may stand: kernels, FFI, host regions, shared memory.
const UNSAFE_IN: &[&str] = &[
    "crates/conformance/src/memory.rs",
    "crates/devices/ascend/src/ffi/",
    "crates/devices/cpu/",
    "crates/devices/reference/src/memory.rs",
    "crates/emulator/",
    "crates/protocol/src/remote.rs",
    "crates/guard/src/supervisor/",
    "crates/guard/src/worker.rs",
    "crates/program/src/device.rs",
    "crates/world/src/",
];

/// Calls that only the world seam makes (in `src`; tests may).
const BANNED: &[(&str, &str)] = &[
    ("std::time::Instant", "take the time from World::clock"),
    ("std::time::SystemTime", "take the time from World::clock"),
    ("std::thread::sleep", "sleep through World::clock"),
    ("std::fs::write", "write through World::files"),
    ("File::create", "write through World::files"),
    ("std::process::Command", "start processes through World::processes"),
];

/// Crates that the bans do not bind, and why: the seam itself, chores, what measures or reads only, and the emulator,
/// which stands in for a vendor's library and knows nothing of ours.
const UNBOUND: &[&str] = &["crates/world/", "xtask/", "crates/devices/cpu/", "crates/emulator/"];

const LINES_MAX: usize = 900;

/// Runs all checks; reports every finding.
pub fn check(root: &Path) -> Result<(), String> {
    let mut findings = Vec::new();
    let graph = metadata(root)?;
    dependencies(&graph, &mut findings);
    for file in sources(root)? {
        let text = std::fs::read_to_string(root.join(&file))
            .map_err(|error| format!("{}: {error}", file.display()))?;
        source(&file.to_string_lossy(), &text, &mut findings);
    }
    let binary = crate::built::built(root)?.join("toprope");
    for (name, file) in crate::docs::PAGES {
        let have = std::fs::read(root.join(file)).unwrap_or_default();
        if have != crate::docs::page(&binary, name)? {
            findings.push(format!("{file} is out of date: run `cargo xtask docs`"));
        }
    }
    maps(root, &mut findings)?;
    architecture(root, &mut findings)?;
    fuzzer(root, &graph, &mut findings)?;
    if findings.is_empty() {
        println!("tidy");
        Ok(())
    } else {
        Err(format!("{} finding(s):\n  {}", findings.len(), findings.join("\n  ")))
    }
}

fn sources(root: &Path) -> Result<Vec<PathBuf>, String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("cannot run git: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(PathBuf::from).filter(|path| root.join(path).exists()).collect())
}

fn source(file: &str, text: &str, findings: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES_MAX {
        findings.push(format!("{file}: {lines} lines; a file holds one idea in at most {LINES_MAX}"));
    }
    let name = file.rsplit('/').next().unwrap_or(file);
    if ["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"].contains(&name) {
        findings.push(format!("{file}: name a file after its idea"));
    }
    let test = file.contains("/tests/") || file.contains("/benches/") || file.contains("/examples/");
    let own = file == "xtask/src/tidy.rs";
    // Unit tests stand at the end of their files.
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    for (number, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or(line);
        let place = || format!("{file}:{}", number + 1);
        let uses_unsafe =
            line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl");
        if uses_unsafe && !test && !own && !UNSAFE_IN.iter().any(|allowed| file.starts_with(allowed)) {
            findings.push(format!("{}: unsafe stands only in kernels, FFI and shared memory", place()));
        }
        if test || UNBOUND.iter().any(|free| file.starts_with(free)) {
            continue;
        }
        for (call, mend) in BANNED {
            if line.contains(call) {
                findings.push(format!("{}: `{call}`: {mend}", place()));
            }
        }
    }
}

/// What each crate of ours names that tests do not: whether it is one of ours, and its name.
type Uses = BTreeMap<String, BTreeSet<(bool, String)>>;

fn metadata(root: &Path) -> Result<Uses, String> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    let parsed: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("cargo metadata: {error}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let mut graph = Uses::new();
    for package in parsed["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default().to_string();
        let used = package["dependencies"].as_array().into_iter().flatten();
        // Tests may look at anything, and what is optional may be absent from a lock file.
        let used = used.filter(|dependency| {
            let absent = dependency["path"].is_null() && dependency["optional"].as_bool() == Some(true);
            dependency["kind"].as_str() != Some("dev") && !absent
        });
        let named = |dependency: &serde_json::Value| {
            Some((!dependency["path"].is_null(), dependency["name"].as_str()?.to_string()))
        };
        graph.insert(name, used.filter_map(named).collect());
    }
    Ok(graph)
}

/// The fuzzer is a workspace of its own, which no build of this one looks at: its lock file must know what our crates use by now.
fn fuzzer(root: &Path, graph: &Uses, findings: &mut Vec<String>) -> Result<(), String> {
    let page = "fuzz/Cargo.lock";
    let text = std::fs::read_to_string(root.join(page)).map_err(|error| format!("{page}: {error}"))?;
    for package in text.split("[[package]]").filter(|package| !package.contains("\nsource = ")) {
        let quoted: BTreeSet<&str> = package.split('"').skip(1).step_by(2).collect();
        let name = package.split('"').nth(1).unwrap_or_default();
        // A version stands behind the name where there are several.
        let locked = |other: &str| quoted.iter().any(|quoted| quoted.split(' ').next() == Some(other));
        let missing = graph.get(name).into_iter().flatten().find(|(_, other)| !locked(other));
        if let Some((_, other)) = missing {
            findings.push(format!(
                "{page}: {name} uses {other} by now: run `cargo metadata --manifest-path fuzz/Cargo.toml`"
            ));
        }
    }
    Ok(())
}

fn dependencies(graph: &Uses, findings: &mut Vec<String>) {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    for (name, used) in graph {
        match allowed.get(name.as_str()) {
            None => findings.push(format!("crate {name} is not in xtask's table of dependencies")),
            Some(may) => {
                for (_, other) in used.iter().filter(|(ours, other)| *ours && !may.contains(&other.as_str()))
                {
                    findings.push(format!("crate {name} must not know {other}"));
                }
            }
        }
    }
    for (name, _) in MAY_USE {
        if !graph.contains_key(*name) {
            findings.push(format!("crate {name} in xtask's table does not exist"));
        }
    }
}

/// Pages that lead a reader through the tree.
const MAPS: &[&str] = &["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"];

/// The maps name only what exists: paths in backticks, and the targets of links.
fn maps(root: &Path, findings: &mut Vec<String>) -> Result<(), String> {
    for page in MAPS {
        let text = std::fs::read_to_string(root.join(page)).map_err(|error| format!("{page}: {error}"))?;
        for path in paths(&text).into_iter().filter(|path| !root.join(path).exists()) {
            findings.push(format!("{page}: `{path}` does not exist"));
        }
    }
    Ok(())
}

/// What a page says of the tree: paths in backticks below a folder of ours, and links that do not leave the tree.
fn paths(text: &str) -> BTreeSet<&str> {
    let is_below = |path: &&str| {
        ["crates/", "docs/", "recipes/", "tests/", "xtask/", "benches/", "python/", ".ci/"]
            .iter()
            .any(|root| path.starts_with(root))
            && !path.contains(['*', '{', '<', '…'])
            && !path.contains("NAME")
    };
    let mut found: BTreeSet<&str> = BTreeSet::new();
    // Fenced blocks are commands: their words may be paths too.
    for (index, block) in text.split("```").enumerate() {
        if index % 2 == 1 {
            found.extend(block.split_whitespace().filter(is_below));
            continue;
        }
        for span in block.split('`').skip(1).step_by(2) {
            found.extend(
                span.split_whitespace()
                    .map(|word| word.split([':', '#']).next().unwrap_or(word))
                    .filter(is_below),
            );
        }
        for link in block.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or(link);
            found.extend(Some(path).filter(|path| !path.is_empty() && !path.contains("://")));
        }
    }
    found
}

/// ARCHITECTURE.md's table of parts says what the code does.
fn architecture(root: &Path, findings: &mut Vec<String>) -> Result<(), String> {
    let page = "ARCHITECTURE.md";
    let text = std::fs::read_to_string(root.join(page)).map_err(|error| format!("{page}: {error}"))?;
    for (name, may) in MAY_USE.iter().filter(|(name, _)| *name != "xtask") {
        let row = text.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let Some(row) = row else {
            findings.push(format!("{page}: no row `{name}` in the table of parts"));
            continue;
        };
        let listed: BTreeSet<&str> =
            row.split('|').nth(3).unwrap_or_default().split('`').skip(1).step_by(2).collect();
        if listed != may.iter().copied().collect() {
            findings.push(format!("{page}: the row of `{name}` lists {listed:?}, it may use {may:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_from_backticks_commands_and_links() {
        let page = "See `crates/a/src/b.rs`, `crates/c.rs:12`, `cargo run`, `runs/x`, `crates/*/d.rs`, `crates/NAME.rs` and [e](docs/e.md#f), \
                    [g](https://example.org/docs/h.md).\n```sh\ncargo run -- inspect recipes/i.toml  # tests/\n```\n`.ci/run`";
        let want = ["crates/a/src/b.rs", "crates/c.rs", "docs/e.md", "recipes/i.toml", "tests/", ".ci/run"];
        assert_eq!(paths(page), want.into_iter().collect());
    }
}
