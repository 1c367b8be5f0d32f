//! The foreign client: llama.cpp's ggml with its CANN backend, out of a source package, unchanged, against the emulator.
//! Everything fetched or built lies below `target/foreign/`; nothing of it is committed.

mod build; // what is compiled, and how
mod cases; // which cases there are
mod decode; // tokens on the emulated NPU beside tokens on the CPU
mod fetch; // packages, pinned
mod findings; // cases that fail through the client's own defects
mod page; // docs/foreign.md
mod suite; // runs cases, also where the client aborts

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Set by CI: what could not be run is a failure then.
const REQUIRED: &str = "TOPROPE_FOREIGN_REQUIRED";

/// Kinds of operators that must pass.
const KINDS_MIN: usize = 40;

/// What is asked for.
pub struct Asked {
    /// Every case, not a sample of each kind.
    pub all: bool,
    /// Greedy decoding too.
    pub decode: bool,
    /// Write `docs/foreign.md`, of what was run.
    pub write: bool,
}

/// Where things lie.
pub struct Place {
    root: PathBuf,
    /// `target/foreign/VERSION`.
    folder: PathBuf,
    /// Where cargo puts release builds.
    release: PathBuf,
}

impl Place {
    fn new(root: &Path) -> Result<Place, String> {
        // The client's build does not take `..` in paths.
        let root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
        let release = crate::built::release(&root);
        let target = release.parent().ok_or("the build has no folder")?;
        let folder = target.join("foreign").join(fetch::VERSION);
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Place { root, folder, release })
    }

    fn source(&self) -> PathBuf {
        self.folder.join("source/vendor/llama.cpp")
    }

    /// A program that finds the emulator's libraries and the client's.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join("bin").join(name));
        let paths = [self.folder.join("cann/lib64"), self.folder.join("build/bin")];
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        command.env("LD_LIBRARY_PATH", paths.join(":"));
        command
    }
}

/// Runs a command, and says what failed with the end of what it printed.
fn must(what: &str, command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{what}: cannot start: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(30)..].join("\n  ");
    Err(format!("{what}: {}\n  {last}", output.status))
}

/// Writes a file where its content changed, so that what depends on it is not built again.
fn write(path: &Path, text: &str) -> Result<(), String> {
    if std::fs::read_to_string(path).is_ok_and(|have| have == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Fetches, builds, runs, judges.
pub fn run(root: &Path, asked: &Asked) -> Result<(), String> {
    let place = Place::new(root)?;
    if let Err(why) = fetch::all(&place, asked.decode) {
        println!("FOREIGN CLIENT NOT RUN, NOTHING WAS TESTED: {why}");
        return if std::env::var_os(REQUIRED).is_some() {
            Err(format!("the foreign client was not run, and {REQUIRED} is set"))
        } else {
            Ok(())
        };
    }
    build::all(&place, asked.decode)?;
    let listed = cases::list(&place)?;
    let chosen = cases::choose(&listed, asked.all);
    let outcomes = suite::run(&place, &chosen)?;
    let table = suite::Table::new(&listed, &outcomes, asked.all);
    print!("{}", table.text());
    let mut wrong = findings::judge(&outcomes);
    wrong.extend(findings::witnesses(&place)?);
    if table.kinds_passed() < KINDS_MIN {
        wrong.push(format!("{} kinds of operators passed, {KINDS_MIN} must", table.kinds_passed()));
    }
    let decoded = if asked.decode { Some(decode::run(&place)?) } else { None };
    if let Some(decoded) = &decoded {
        println!("{}", decoded.text());
        wrong.extend(decoded.wrong());
    }
    if wrong.is_empty() {
        if asked.write {
            page::write(root, &table, decoded.as_ref())?;
        }
        Ok(())
    } else {
        Err(format!("the foreign client: {} finding(s):\n  {}", wrong.len(), wrong.join("\n  ")))
    }
}
