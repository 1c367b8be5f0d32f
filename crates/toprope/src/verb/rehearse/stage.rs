//! This binary's own `train` in a process of its own, as a user would run it.

use crate::exit::{Exit, Failure, OrExit};
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;
use toprope_world::{ChildProcess, Exit as Ended, Launch, RealWorld, Stream, World};

/// Where runs are played.
pub(super) struct Stage<'a> {
    pub(super) world: &'a RealWorld,
    pub(super) recipe: &'a str,
    /// Each run has a folder in it.
    pub(super) folder: &'a Path,
}

/// How one process of `train` ended.
pub(super) struct Played {
    /// The state's hash, where it ended in order.
    pub(super) hash: Option<String>,
    pub(super) ended: Ended,
    /// What it said.
    pub(super) told: String,
    pub(super) seconds: f64,
}

/// A `train` that goes on.
pub(super) struct Playing {
    pub(super) child: Box<dyn ChildProcess>,
    name: String,
    output: JoinHandle<String>,
    errors: JoinHandle<String>,
    started: Duration,
}

/// No run takes longer; one that does is a hang of ours.
const LIMIT: Duration = Duration::from_secs(300);

impl Stage<'_> {
    /// Where a run's journal and report are.
    pub(super) fn run_folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs `train` to its end.
    pub(super) fn train(
        &self,
        name: &str,
        steps: u64,
        further: &[&str],
        faults: Option<&str>,
        resume: bool,
    ) -> Result<Played, Failure> {
        let mut arguments: Vec<String> = Vec::new();
        if resume {
            arguments.push("--resume".into());
        } else {
            arguments.extend([self.recipe.into(), "--steps".into(), steps.to_string()]);
            let quick = ["checkpoint.every=10", "evaluation.final_tokens=256", "sample.tokens=0"];
            arguments.extend(quick.iter().flat_map(|set| ["--set".to_string(), (*set).to_string()]));
            arguments.extend(further.iter().map(|argument| (*argument).to_string()));
        }
        if let Some(faults) = faults {
            arguments.extend(["--faults".to_string(), faults.to_string()]);
        }
        self.begin(name, arguments, Vec::new())?.end(self.world)
    }

    /// Starts `train` with these arguments and variables.
    pub(super) fn begin(
        &self,
        name: &str,
        further: Vec<String>,
        environment: Vec<(OsString, OsString)>,
    ) -> Result<Playing, Failure> {
        let program = std::env::current_exe().or_exit(Exit::Internal)?;
        let mut arguments: Vec<OsString> = ["train", "--json", "--run"].map(OsString::from).into();
        arguments.push(self.run_folder(name).into());
        arguments.extend(further.into_iter().map(OsString::from));
        let launch = Launch {
            program,
            arguments,
            environment,
            input: Stream::Null,
            output: Stream::Pipe,
            error: Stream::Pipe,
            dies_with_parent: true,
            ..Launch::default()
        };
        let started = self.world.clock().monotonic();
        let mut child = self.world.processes().spawn(&launch).or_exit(Exit::Internal)?;
        // Both pipes are read, so that neither fills up.
        let output = heard(child.take_output());
        let errors = heard(child.take_error());
        Ok(Playing { child, name: name.into(), output, errors, started })
    }
}

/// Reads a pipe to its end on a thread.
fn heard(pipe: Option<Box<dyn Read + Send>>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut pipe) = pipe {
            // What cannot be read is missing from a message only.
            let _ = pipe.read_to_string(&mut text);
        }
        text
    })
}

impl Playing {
    /// Waits for the end.
    pub(super) fn end(mut self, world: &RealWorld) -> Result<Played, Failure> {
        let Some(ended) = self.child.wait(LIMIT).or_exit(Exit::Internal)? else {
            self.child.kill().or_exit(Exit::Internal)?;
            return Err(Failure::new(Exit::Internal, format!("{}: no end within {LIMIT:?}", self.name)));
        };
        let output = self.output.join().unwrap_or_default();
        let summary: Option<serde_json::Value> =
            serde_json::from_str(output.lines().last().unwrap_or_default()).ok();
        let hash = summary.and_then(|summary| Some(summary.get("state_hash")?.as_str()?.to_string()));
        let told = self.errors.join().unwrap_or_default();
        let seconds = world.clock().monotonic().saturating_sub(self.started).as_secs_f64();
        Ok(Played { hash, ended, told, seconds })
    }
}

/// The end of what a process said.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}
