//! Collectives as far as one machine shows them: every rank a process of the user's PyTorch, payloads of integers compared
//! bit for bit, bandwidth by size, and the rank that never arrives named at once instead of at the library's timeout.
//!
//! Each rank runs `collectives/rank.py` and says before each operation that it goes in and behind it that it came out.

mod suspect; // which rank explains wrong results
mod watch; // who is where, and who is missing

pub use watch::{Absence, Missing, Patience};

use crate::interpreter::{self, NoInterpreter};
use serde::Serialize;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use toprope_world::{ChildProcess, Exit, Launch, ProcessError, Stream, World};
use watch::Watch;

/// What each rank runs.
pub const RANK: &str = include_str!("collectives/rank.py");

/// Reads as many bytes of standard input as it is told and runs them; what follows is for them.
const RUN: &str =
    "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv[1])), 'toprope-rank.py', 'exec'))";

/// Ranks where the device is this host and nobody says how many.
const HOST_RANKS: usize = 4;

/// How long the last word of a process that has ended may take to be read.
const TICK: Duration = Duration::from_millis(20);

macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $type { $($(#[$variant_doc])* $variant),* }

        impl $type {
            /// All of them.
            pub const ALL: &[$type] = &[$($type::$variant),*];

            /// The name in reports and in the script.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name),* }
            }
        }
    };
}

named! {
    /// A collective.
    Operation {
        /// Every rank gets the sum.
        AllReduce = "all_reduce",
        /// Every rank gets every rank's block.
        AllGather = "all_gather",
        /// Each rank gets its block of the sum.
        ReduceScatter = "reduce_scatter",
        /// Every rank gets the root's block; roots take turns.
        Broadcast = "broadcast",
        /// Each rank gets a block of its own from every rank.
        AllToAll = "all_to_all",
    }
}

named! {
    /// What payloads are stored as; the numbers are integers in each.
    Payload {
        /// 32-bit integers.
        I32 = "i32",
        /// 64-bit integers.
        I64 = "i64",
        /// f32 that hold integers: sums are exact.
        F32 = "f32",
    }
}

impl Operation {
    /// Blocks that a rank holds of the larger of its two buffers.
    fn blocks(self, ranks: usize) -> usize {
        match self {
            Operation::AllReduce | Operation::Broadcast => 1,
            Operation::AllGather | Operation::ReduceScatter | Operation::AllToAll => ranks,
        }
    }

    /// Bytes over each rank's busiest wire for each byte of the larger buffer, in the best algorithm: an all-reduce moves
    /// all but a rank's own part twice, as nccl-tests counts it.
    fn wire_share(self, ranks: usize) -> f64 {
        let others = (ranks as f64 - 1.0) / ranks as f64;
        match self {
            Operation::AllReduce => 2.0 * others,
            Operation::AllGather | Operation::ReduceScatter | Operation::AllToAll => others,
            Operation::Broadcast => 1.0,
        }
    }
}

impl Payload {
    fn bytes(self) -> usize {
        match self {
            Payload::I32 | Payload::F32 => 4,
            Payload::I64 => 8,
        }
    }
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The interpreter, where the caller says which.
    pub python: Option<PathBuf>,
    /// `cpu` (gloo), `cuda` (nccl), `npu` (hccl) or `xpu` (xccl).
    pub device: String,
    /// How many ranks; none is one for each device, and four on the host.
    pub ranks: Option<usize>,
    /// Elements of a block.
    pub elements: Vec<usize>,
    /// Timed runs of each operation behind the one that is checked first.
    pub repeats: usize,
    /// How long is waited for whom.
    pub patience: Patience,
    /// How long Python, torch and the group may take to come up.
    pub start_limit: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            python: None,
            device: "cpu".into(),
            ranks: None,
            elements: vec![1, 1031, 1 << 16, 1 << 20],
            repeats: 3,
            patience: Patience {
                arrival: Duration::from_secs(2),
                operation: Duration::from_secs(60),
                cause: Duration::from_millis(500),
            },
            start_limit: crate::START_LIMIT,
        }
    }
}

/// Why nothing could be said.
#[derive(Debug, thiserror::Error)]
pub enum CollectivesError {
    /// The interpreter.
    #[error(transparent)]
    Interpreter(#[from] NoInterpreter),
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No backend that this knows.
    #[error("there are no collectives for `{device}`: it is one of cpu, cuda, npu and xpu")]
    Device {
        /// What was asked for.
        device: String,
    },
    /// Too few ranks, or more than there are devices.
    #[error("{asked} ranks were asked for; it takes 2 at least{}", devices.map(|(count, kind)| format!(", and here {} of {kind}", if count == 1 { "is 1 device".into() } else { format!("are {count} devices") })).unwrap_or_default())]
    Ranks {
        /// How many were asked for.
        asked: usize,
        /// How many devices there are, where they are not the host.
        devices: Option<(usize, &'static str)>,
    },
    /// A rank did not come up.
    #[error("rank {rank} did not come up: {reason}")]
    Start {
        /// Which.
        rank: usize,
        /// Why.
        reason: String,
    },
}

/// A block that a rank received wrongly.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Wrong {
    /// Who received it.
    pub rank: usize,
    /// Who sent it; none where it is a sum.
    pub from: Option<usize>,
    /// The first wrong element of the block.
    pub element: usize,
    /// What it is.
    pub got: f64,
    /// What it must be.
    pub want: f64,
    /// How many elements are wrong.
    pub count: usize,
}

/// What became of one operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// It ran; right where nothing is wrong.
    Ran {
        /// Seconds of the slowest rank in the fastest repeat.
        seconds: f64,
        /// What was received wrongly.
        wrong: Vec<Wrong>,
    },
    /// It did not run, and why: the backend lacks it, or a rank was missing before.
    NotRun {
        /// Why.
        reason: String,
    },
}

/// One operation on one size and type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which.
    pub operation: Operation,
    /// Its numbers' type.
    pub dtype: Payload,
    /// Elements of a block.
    pub elements: usize,
    /// Bytes of the larger of a rank's two buffers.
    pub bytes: usize,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Row {
    /// Bytes per second over each rank's wire, where it ran.
    pub fn bandwidth_bytes_per_second(&self, ranks: usize) -> Option<f64> {
        match self.outcome {
            Outcome::Ran { seconds, .. } if seconds > 0.0 => {
                Some(self.bytes as f64 * self.operation.wire_share(ranks) / seconds)
            }
            _ => None,
        }
    }
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Report {
    /// gloo, nccl, hccl or xccl.
    pub backend: String,
    /// torch's version.
    pub torch: String,
    /// What ranks run on, by rank.
    pub hardware: Vec<String>,
    /// How many ranks.
    pub ranks: usize,
    /// Every operation that was asked for, in order.
    pub rows: Vec<Row>,
    /// Who is missing, at which row, and why.
    pub missing: Option<Missing>,
    /// The one rank that alone explains every wrong result.
    pub suspect: Option<usize>,
}

impl Report {
    /// Whether everything that ran is right and nobody is missing. What did not run is no part of it: see
    /// [`Report::not_run`].
    pub fn passed(&self) -> bool {
        let ran = self.rows.iter().any(|row| matches!(row.outcome, Outcome::Ran { .. }));
        ran && self.missing.is_none() && self.wrong().next().is_none()
    }

    /// Wrong blocks with their rows.
    pub fn wrong(&self) -> impl Iterator<Item = (&Row, &Wrong)> {
        self.rows.iter().flat_map(|row| match &row.outcome {
            Outcome::Ran { wrong, .. } => wrong.iter().map(move |wrong| (row, wrong)).collect::<Vec<_>>(),
            Outcome::NotRun { .. } => Vec::new(),
        })
    }

    /// Rows that did not run, with why.
    pub fn not_run(&self) -> impl Iterator<Item = (&Row, &str)> {
        self.rows.iter().filter_map(|row| match &row.outcome {
            Outcome::NotRun { reason } => Some((row, reason.as_str())),
            Outcome::Ran { .. } => None,
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} ranks over {} (torch {})", self.ranks, self.backend, self.torch)?;
        writeln!(f, "{:<16} {:<5} {:>12} {:>12} {:>12}", "operation", "dtype", "bytes", "seconds", "GB/s")?;
        for row in &self.rows {
            let (name, dtype) = (row.operation.name(), row.dtype.name());
            match &row.outcome {
                Outcome::Ran { seconds, wrong } => {
                    let rate = row.bandwidth_bytes_per_second(self.ranks).unwrap_or(0.0) / 1e9;
                    write!(f, "{name:<16} {dtype:<5} {:>12} {seconds:>12.6} {rate:>12.3}", row.bytes)?;
                    match wrong.first() {
                        None => writeln!(f, "  right, bit for bit")?,
                        Some(first) => writeln!(f, "  WRONG: {first}")?,
                    }
                }
                Outcome::NotRun { reason } => {
                    writeln!(f, "{name:<16} {dtype:<5} {:>12} not run: {reason}", row.bytes)?;
                }
            }
        }
        if let Some(missing) = &self.missing {
            let row = self.rows.get(missing.at);
            let place = row.map_or("the end".into(), |row| {
                format!("{} of {} bytes ({})", row.operation.name(), row.bytes, row.dtype.name())
            });
            writeln!(f, "MISSING from {place}: {missing}")?;
        }
        match self.suspect {
            Some(rank) => writeln!(f, "rank {rank} alone explains every wrong result"),
            None if self.wrong().next().is_some() => writeln!(f, "no rank alone explains every wrong result"),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let from = self.from.map(|from| format!(" what rank {from} sent")).unwrap_or_default();
        let (element, got, want, count) = (self.element, self.got, self.want, self.count);
        write!(f, "rank {} received{from}: element {element} is {got}, not {want} ({count} wrong)", self.rank)
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranks = self.ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let who = if self.ranks.len() == 1 { "rank" } else { "ranks" };
        match &self.absence {
            Absence::Ended(Some(exit)) => write!(f, "{who} {ranks}, whose process {exit}"),
            Absence::Ended(None) => write!(f, "{who} {ranks}, whose process ended"),
            Absence::NeverArrived(waited) => {
                write!(f, "{who} {ranks} never arrived; others waited {:.1} s", waited.as_secs_f64())
            }
            Absence::NeverLeft(waited) => {
                write!(f, "{who} {ranks} came in and not out within {:.1} s", waited.as_secs_f64())
            }
            Absence::Failed(reason) => write!(f, "{who} {ranks}, which failed: {reason}"),
        }
    }
}

/// A rank's process and what it says.
struct Rank {
    child: Box<dyn ChildProcess>,
    input: Option<Box<dyn Write + Send>>,
}

/// A line of a rank, or the end of its output.
type Heard = (usize, Option<Value>);

struct Group<'a> {
    world: &'a dyn World,
    ranks: Vec<Rank>,
    heard: Receiver<Heard>,
    sender: Sender<Heard>,
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            rank.input = None;
            // One that has ended is left as it is; nothing depends on how the others end.
            let _ = rank.child.kill();
            let _ = rank.child.wait(Duration::from_secs(5));
        }
    }
}

impl Group<'_> {
    fn now(&self) -> Duration {
        self.world.clock().monotonic()
    }

    fn launch(&mut self, python: &Path, script: &str, about: &Value) -> Result<(), CollectivesError> {
        let number = self.ranks.len();
        let arguments = ["-u", "-c", RUN, &script.len().to_string(), "toprope rank", &number.to_string()];
        let launch = Launch {
            program: python.to_path_buf(),
            arguments: arguments.iter().map(Into::into).collect(),
            input: Stream::Pipe,
            output: Stream::Pipe,
            error: Stream::Inherit,
            dies_with_parent: true,
            ..Launch::default()
        };
        let mut child = self.world.processes().spawn(&launch)?;
        let (input, output) = (child.take_input(), child.take_output());
        self.ranks.push(Rank { child, input });
        let start =
            |error: std::io::Error| CollectivesError::Start { rank: number, reason: error.to_string() };
        if let Some(output) = output {
            let sender = self.sender.clone();
            let reader = std::thread::Builder::new().name(format!("toprope-rank-{number}"));
            reader.spawn(move || read_all(number, output, &sender)).map_err(start)?;
        }
        self.say(number, script.as_bytes()).map_err(start)?;
        self.say(number, format!("{about}\n").as_bytes()).map_err(start)
    }

    fn say(&mut self, rank: usize, bytes: &[u8]) -> std::io::Result<()> {
        match self.ranks.get_mut(rank).and_then(|rank| rank.input.as_mut()) {
            Some(input) => input.write_all(bytes).and_then(|()| input.flush()),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn say_all(&mut self, line: &Value, ranks: usize) -> Result<(), CollectivesError> {
        for rank in 0..ranks {
            let said = self.say(rank, format!("{line}\n").as_bytes());
            said.map_err(|error| CollectivesError::Start { rank, reason: error.to_string() })?;
        }
        Ok(())
    }

    /// The next thing that a rank says, within `limit`.
    fn hear(&self, limit: Duration) -> Option<Heard> {
        self.heard.recv_timeout(limit).ok()
    }

    fn exit(&mut self, rank: usize) -> Option<Exit> {
        self.ranks.get_mut(rank).and_then(|rank| rank.child.wait(Duration::from_secs(1)).ok().flatten())
    }

    /// Waits for a line of this kind from each of `ranks`.
    fn await_all(
        &mut self,
        event: &str,
        ranks: std::ops::Range<usize>,
        limit: Duration,
    ) -> Result<Vec<Value>, CollectivesError> {
        let started = self.now();
        let mut got: Vec<Option<Value>> = vec![None; ranks.len()];
        while let Some(waiting) = got.iter().position(Option::is_none) {
            let rest = limit.saturating_sub(self.now().saturating_sub(started));
            let Some((rank, line)) = self.hear(rest) else {
                let reason = format!("it has said nothing for {:.0} s", limit.as_secs_f64());
                return Err(CollectivesError::Start { rank: ranks.start + waiting, reason });
            };
            let reason = match line {
                Some(line) if line["event"] == event => {
                    if let Some(place) = rank.checked_sub(ranks.start).and_then(|at| got.get_mut(at)) {
                        *place = Some(line);
                    }
                    continue;
                }
                Some(line) => text(&line, "reason"),
                None => match self.exit(rank) {
                    Some(exit) => format!("its process {exit}; what Python said stands above"),
                    None => "its process ended".into(),
                },
            };
            return Err(CollectivesError::Start { rank, reason });
        }
        Ok(got.into_iter().flatten().collect())
    }
}

fn read_all(rank: usize, output: Box<dyn Read + Send>, sender: &Sender<Heard>) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { break };
        // What is no line of ours comes from a library and says nothing about ranks.
        if let Ok(value) = serde_json::from_str(&line)
            && sender.send((rank, Some(value))).is_err()
        {
            return;
        }
    }
    // Nobody listens any more where this fails.
    let _ = sender.send((rank, None));
}

fn text(line: &Value, key: &str) -> String {
    line[key].as_str().unwrap_or_default().to_string()
}

fn number(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok())
}

/// Runs every operation on every size and type.
///
/// # Errors
/// There is no interpreter, it has no torch, or ranks do not come up. What is wrong with collectives stands in the report.
pub fn run(world: &dyn World, options: &Options) -> Result<Report, CollectivesError> {
    run_script(world, options, RANK)
}

/// The same with another script: tests start ranks that misbehave.
///
/// # Errors
/// As [`run`].
pub fn run_script(world: &dyn World, options: &Options, script: &str) -> Result<Report, CollectivesError> {
    let kind = match options.device.as_str() {
        "cpu" => None,
        "cuda" => Some("cuda"),
        "npu" => Some("npu"),
        "xpu" => Some("xpu"),
        other => return Err(CollectivesError::Device { device: other.into() }),
    };
    if let Some(asked) = options.ranks.filter(|asked| *asked < 2) {
        return Err(CollectivesError::Ranks { asked, devices: None });
    }
    let python = interpreter::find(options.python.as_deref())?;
    let (sender, heard) = channel();
    let mut group = Group { world, ranks: Vec::new(), heard, sender };
    // The library must not give up before we do.
    let limit_s = (options.patience.operation + options.start_limit).as_secs() + 60;
    let about = |rank: usize, port: usize| serde_json::json!({ "rank": rank, "device": options.device, "port": port, "limit_s": limit_s });
    group.launch(&python, script, &about(0, 0))?;
    let store = group.await_all("store", 0..1, options.start_limit)?;
    let devices = number(&store[0]["devices"]);
    let ranks = options.ranks.or(devices).unwrap_or(HOST_RANKS);
    let too_many = devices.is_some_and(|devices| ranks > devices);
    if ranks < 2 || too_many {
        return Err(CollectivesError::Ranks { asked: ranks, devices: devices.zip(kind) });
    }
    let port = number(&store[0]["port"]).unwrap_or(0);
    for rank in 1..ranks {
        group.launch(&python, script, &about(rank, port))?;
    }
    let mut rows = plan(options, ranks);
    let operations: Vec<Value> = rows.iter().map(asked).collect();
    let plan = serde_json::json!({ "ranks": ranks, "repeats": options.repeats, "operations": operations });
    group.say_all(&plan, ranks)?;
    let ready = group.await_all("ready", 0..ranks, options.start_limit)?;
    group.say_all(&serde_json::json!("go"), ranks)?;
    let missing = follow(&mut group, options, ranks, &mut rows);
    let results: Vec<(Operation, Vec<Wrong>)> = rows
        .iter()
        .filter_map(|row| match &row.outcome {
            Outcome::Ran { wrong, .. } => Some((row.operation, wrong.clone())),
            Outcome::NotRun { .. } => None,
        })
        .collect();
    Ok(Report {
        backend: text(&ready[0], "backend"),
        torch: text(&ready[0], "torch"),
        hardware: ready.iter().map(|line| text(line, "hardware")).collect(),
        ranks,
        rows,
        missing,
        suspect: suspect::one_that_explains(&results, ranks),
    })
}

/// Every operation on every size and type; nothing has run yet.
fn plan(options: &Options, ranks: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for operation in Operation::ALL.iter().copied() {
        for dtype in Payload::ALL.iter().copied() {
            for elements in options.elements.iter().copied() {
                let bytes = elements * dtype.bytes() * operation.blocks(ranks);
                let outcome = Outcome::NotRun { reason: "a rank was missing before".into() };
                rows.push(Row { operation, dtype, elements, bytes, outcome });
            }
        }
    }
    rows
}

fn asked(row: &Row) -> Value {
    let (operation, dtype) = (row.operation.name(), row.dtype.name());
    serde_json::json!({ "operation": operation, "dtype": dtype, "elements": row.elements })
}

/// Hears all ranks to their end, or to the first that is missing.
fn follow(group: &mut Group<'_>, options: &Options, ranks: usize, rows: &mut [Row]) -> Option<Missing> {
    let mut watch = Watch::new(ranks, options.patience, group.now());
    let mut results: Vec<Vec<(Vec<f64>, Vec<Wrong>)>> = vec![Vec::new(); rows.len()];
    while !watch.is_over() {
        let heard = group.hear(TICK);
        let now = group.now();
        if let Some((rank, line)) = heard {
            let Some(line) = line else {
                let exit = group.exit(rank);
                watch.died(rank, exit, now);
                continue;
            };
            let at = number(&line["at"]).unwrap_or(0);
            match line["event"].as_str().unwrap_or_default() {
                "arrived" => watch.arrived(rank, at, now),
                "left" => {
                    watch.left(rank, at, now);
                    if let Some(results) = results.get_mut(at) {
                        results.push((seconds(&line["seconds"]), wrongs(rank, &line["wrong"])));
                    }
                }
                "absent" => {
                    watch.left(rank, at, now);
                    if let Some(row) = rows.get_mut(at) {
                        row.outcome = Outcome::NotRun { reason: text(&line, "reason") };
                    }
                }
                "end" => watch.ended(rank),
                "failed" | "refused" => watch.failed(rank, text(&line, "reason"), now),
                _ => {}
            }
            // All that was said is heard before anybody is judged.
            continue;
        }
        if let Some(missing) = watch.missing(now) {
            return finish(rows, results, ranks, Some(missing));
        }
    }
    finish(rows, results, ranks, None)
}

/// Puts what ranks said into the rows that all of them came out of.
fn finish(
    rows: &mut [Row],
    results: Vec<Vec<(Vec<f64>, Vec<Wrong>)>>,
    ranks: usize,
    missing: Option<Missing>,
) -> Option<Missing> {
    for (row, of_ranks) in rows.iter_mut().zip(results) {
        if of_ranks.len() < ranks {
            continue;
        }
        let turns = of_ranks.iter().map(|(seconds, _)| seconds.len()).min().unwrap_or(0);
        let slowest = |turn: usize| of_ranks.iter().map(|(seconds, _)| seconds[turn]).fold(0.0, f64::max);
        let seconds = (0..turns).map(slowest).fold(f64::INFINITY, f64::min);
        let mut wrong: Vec<Wrong> = of_ranks.into_iter().flat_map(|(_, wrong)| wrong).collect();
        wrong.sort_by_key(|wrong| (wrong.rank, wrong.from));
        row.outcome = Outcome::Ran { seconds: if seconds.is_finite() { seconds } else { 0.0 }, wrong };
    }
    missing
}

fn seconds(list: &Value) -> Vec<f64> {
    list.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

fn wrongs(rank: usize, list: &Value) -> Vec<Wrong> {
    let wrong = |found: &Value| Wrong {
        rank,
        from: number(&found["from"]),
        element: number(&found["element"]).unwrap_or(0),
        got: found["got"].as_f64().unwrap_or(f64::NAN),
        want: found["want"].as_f64().unwrap_or(f64::NAN),
        count: number(&found["count"]).unwrap_or(0),
    };
    list.as_array().into_iter().flatten().map(wrong).collect()
}
