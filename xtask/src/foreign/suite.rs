//! Runs cases in processes of ggml's test program. The client ends its process where a call fails; then the case that it
//! was at is put down with the emulator's message, and the others go on in a new process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::process::Command;

use super::Place;
use super::cases::Case;

/// What became of a case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Passed,
    /// Ended a process that had run other cases before, with this message; passes in a process of its own.
    PassedAlone(String),
    /// Ends its process with this message; passes where the client takes memory from its own pool, as on a chip.
    PassedInPool(String),
    /// The results differ from those of the client's CPU backend.
    Differs(String),
    /// The process ended; the message that it ended with.
    Ended(String),
    /// The client's CPU backend does not take it: there is nothing to compare with.
    NotCompared,
}

/// Where the client's memory for intermediate results comes from.
#[derive(Clone, Copy)]
enum Pool {
    /// Single allocations: the emulator sees the bounds of each.
    Single,
    /// One range for all, the client's own choice.
    Own,
}

/// A case and its verdict.
pub struct Outcome {
    pub case: Case,
    pub verdict: Verdict,
}

/// Bytes of cases' names that a command line takes in one argument, and cases for one process.
const BYTES_MAX: usize = 100_000;
const CASES_MAX: usize = 400;
/// Seconds for one process.
const LIMIT: &str = "550";
/// What `timeout` exits with when they are over.
const LATE: i32 = 124;

/// Without colours and addresses, which differ from run to run.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\u{1b}', '0']) {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(colour) = rest.strip_prefix('\u{1b}') {
            rest = colour.split_once('m').map_or("", |(_, rest)| rest);
        } else if let Some(address) = rest.strip_prefix("0x") {
            rest = address.trim_start_matches(|letter: char| letter.is_ascii_hexdigit());
            plain.push_str("0x…");
        } else {
            plain.push('0');
            rest = &rest[1..];
        }
    }
    plain + rest
}

/// Names and verdicts that a process printed.
fn verdicts(stdout: &str) -> BTreeMap<String, Verdict> {
    let mut found = BTreeMap::new();
    for line in stdout.lines() {
        let Some((head, said)) = line.trim().split_once("): ") else { continue };
        // What was measured stands before the name of a case that differs.
        let (measured, name) = head.rsplit_once("  ").unwrap_or(("", head));
        let verdict = if said.ends_with("OK") {
            Verdict::Passed
        } else if said.ends_with("FAIL") {
            Verdict::Differs(measured.trim().to_string())
        } else if said == "not supported [CPU]" {
            Verdict::NotCompared
        } else {
            Verdict::Ended(said.to_string())
        };
        found.insert(format!("{name})"), verdict);
    }
    found
}

/// Why a process ended.
fn ending(stderr: &str, status: &std::process::ExitStatus) -> String {
    if status.code() == Some(LATE) {
        return format!("no end after {LIMIT} seconds");
    }
    let said = stderr.lines().find_map(|line| Some(line.split_once("CANN error: ")?.1));
    said.map_or_else(|| format!("{status}: {}", stderr.lines().last().unwrap_or_default()), str::to_string)
}

/// What a process did.
struct Process {
    /// What it printed of each case.
    found: BTreeMap<String, Verdict>,
    /// The message where it ended before its end.
    message: Option<String>,
    /// Whether its time was over.
    late: bool,
}

/// Runs one process.
fn process(place: &Place, names: &[String], pool: Pool) -> Result<Process, String> {
    let test = place.program("test-backend-ops");
    let mut command = Command::new("timeout");
    command.arg(LIMIT).arg(test.get_program());
    command.envs(test.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if matches!(pool, Pool::Single) {
        command.env("GGML_CANN_MEM_POOL", "leg");
    }
    command.args(["test", "-b", "CANN0", "-o", &names.join(",")]);
    let output = command.output().map_err(|error| format!("cannot start the tests: {error}"))?;
    let found = verdicts(&plain(&String::from_utf8_lossy(&output.stdout)));
    // 1 says that a case differed.
    let message = (!matches!(output.status.code(), Some(0 | 1)))
        .then(|| plain(&ending(&String::from_utf8_lossy(&output.stderr), &output.status)));
    Ok(Process { found, message, late: output.status.code() == Some(LATE) })
}

/// Runs cases in as few processes as it takes. They are given in the order of the client's list, which is that in which
/// it runs them.
fn through(place: &Place, cases: &[Case], pool: Pool) -> Result<Vec<Outcome>, String> {
    let mut outcomes = Vec::new();
    let mut left: VecDeque<&Case> = cases.iter().collect();
    while !left.is_empty() {
        let mut bytes = 0;
        let fits = |case: &&&Case| {
            bytes += case.name().len() + 1;
            bytes <= BYTES_MAX
        };
        let count = left.iter().take(CASES_MAX).take_while(fits).count().max(1);
        let chunk: Vec<&Case> = left.drain(..count).collect();
        let names: Vec<String> = chunk.iter().map(|case| case.name()).collect();
        let Process { found, message, late } = process(place, &names, pool)?;
        let any = names.iter().any(|name| found.contains_key(name));
        let (mut ended, mut again) = (message.clone(), Vec::new());
        for (case, name) in chunk.into_iter().zip(&names) {
            let verdict = match (found.get(name), &message) {
                (Some(verdict), _) => verdict.clone(),
                (None, None) => Verdict::Ended("the client's tests said nothing about it".into()),
                // The first one without a verdict is the one that ended the process; where the time was used up by
                // those before it, it is tried again.
                (None, Some(_)) => match ended.take_if(|_| !late || !any) {
                    Some(why) => Verdict::Ended(why),
                    None => {
                        again.push(case);
                        continue;
                    }
                },
            };
            outcomes.push(Outcome { case: case.clone(), verdict });
        }
        // It ended after its last case.
        if let (Some(why), true, Some(last)) = (ended, again.is_empty(), outcomes.last_mut()) {
            last.verdict = Verdict::Ended(why);
        }
        again.into_iter().rev().for_each(|case| left.push_front(case));
    }
    Ok(outcomes)
}

/// Runs cases in one process from single allocations; the message that it ended with, if it did.
pub fn end(place: &Place, names: &[&str]) -> Result<Option<String>, String> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_string()).collect();
    Ok(process(place, &names, Pool::Single)?.message)
}

/// Runs all of them; those that ended their process again, alone, and then from the client's own pool.
pub fn run(place: &Place, cases: &[Case]) -> Result<Vec<Outcome>, String> {
    let mut outcomes = through(place, cases, Pool::Single)?;
    for outcome in &mut outcomes {
        let Verdict::Ended(message) = &outcome.verdict else { continue };
        let passes = |pool| -> Result<bool, String> {
            let again = through(place, std::slice::from_ref(&outcome.case), pool)?;
            Ok(again.iter().all(|again| again.verdict == Verdict::Passed))
        };
        outcome.verdict = if passes(Pool::Single)? {
            Verdict::PassedAlone(message.clone())
        } else if passes(Pool::Own)? {
            Verdict::PassedInPool(message.clone())
        } else {
            continue;
        };
    }
    Ok(outcomes)
}

/// Cases of a kind.
#[derive(Default, Clone, Copy)]
pub struct Count {
    pub run: usize,
    /// With the bounds of each allocation looked at.
    pub passed: usize,
    /// Only from the client's own pool.
    pub in_pool: usize,
    /// That the client's CPU backend has nothing to compare with; not among those that were run.
    pub not_compared: usize,
}

impl Count {
    fn wholly(self) -> bool {
        self.run > 0 && self.passed + self.in_pool == self.run
    }
}

/// What passed, by kind of operator, and what was not run.
#[derive(Default)]
pub struct Table {
    /// Of each kind.
    pub kinds: BTreeMap<String, Count>,
    /// Cases in other types that the client's backend takes.
    pub other_types: BTreeMap<String, usize>,
    /// Kinds that the client's backend takes in no case.
    pub refused: BTreeSet<String>,
    /// Cases that did not simply pass, and why.
    pub remarks: Vec<(String, String)>,
    /// Whether all were run.
    pub all: bool,
}

impl Table {
    /// Counts.
    pub fn new(listed: &[Case], outcomes: &[Outcome], all: bool) -> Table {
        let mut table = Table { all, ..Table::default() };
        for outcome in outcomes {
            let count = table.kinds.entry(outcome.case.operator.clone()).or_default();
            count.run += 1;
            let said = match &outcome.verdict {
                Verdict::NotCompared => {
                    count.run -= 1;
                    count.not_compared += 1;
                    continue;
                }
                Verdict::Passed => {
                    count.passed += 1;
                    continue;
                }
                Verdict::PassedAlone(why) => {
                    count.passed += 1;
                    format!("passes alone; after others: {why}")
                }
                Verdict::PassedInPool(why) => {
                    count.in_pool += 1;
                    format!("passes from the client's own pool; from single allocations: {why}")
                }
                Verdict::Differs(why) => format!("differs from the CPU's: {why}"),
                Verdict::Ended(why) => why.clone(),
            };
            table.remarks.push((outcome.case.name(), said));
        }
        let taken: BTreeSet<&str> =
            listed.iter().filter(|case| case.supported).map(|case| case.operator.as_str()).collect();
        for case in listed {
            if !taken.contains(case.operator.as_str()) {
                table.refused.insert(case.operator.clone());
            } else if case.supported && !case.plain() {
                *table.other_types.entry(case.operator.clone()).or_default() += 1;
            }
        }
        table
    }

    /// Kinds of which every case passed.
    pub fn kinds_passed(&self) -> usize {
        self.kinds.values().filter(|count| count.wholly()).count()
    }

    /// All cases.
    pub fn cases(&self) -> Count {
        self.kinds.values().fold(Count::default(), |sum, count| Count {
            run: sum.run + count.run,
            passed: sum.passed + count.passed,
            in_pool: sum.in_pool + count.in_pool,
            not_compared: sum.not_compared + count.not_compared,
        })
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, Count { run, passed, in_pool, .. }) in &self.kinds {
            let pool =
                if *in_pool > 0 { format!(" + {in_pool} from the client's own pool") } else { String::new() };
            let _ = writeln!(text, "{name:<22} {passed:>5} of {run:>5}{pool}");
        }
        for (name, why) in &self.remarks {
            let _ = writeln!(text, "  {name}: {why}");
        }
        let Count { run, passed, in_pool, not_compared } = self.cases();
        let what = if self.all { "all cases" } else { "a sample of the cases" };
        let _ = writeln!(
            text,
            "{} of {} kinds passed wholly; {passed} + {in_pool} of {run} cases ({what} in f32 and f16; emulated)",
            self.kinds_passed(),
            self.kinds.len()
        );
        let _ =
            writeln!(text, "not run, nothing to compare with on the client's CPU backend: {not_compared}");
        let others: Vec<String> = self.other_types.iter().map(|(name, n)| format!("{name} {n}")).collect();
        let _ = writeln!(text, "not run, bf16 or quantised: {}", others.join(", "));
        let refused: Vec<&str> = self.refused.iter().map(String::as_str).collect();
        let _ = writeln!(text, "not taken by the client's CANN backend: {}", refused.join(", "));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_from_what_the_client_prints() {
        let text = "Testing 2 devices\n  ADD(type=f32,ne=[1,2]): \u{1b}[1;32mOK\u{1b}[0m\n\
                    [MUL] ERR = 0.5 > 0.1   MUL(a=(1)): \u{1b}[1;31mFAIL\u{1b}[0m\n  \
                    SUB(x=1): not supported [CANN0]\n  DIV(x=1): not supported [CPU]\n\nFailing tests:\n  MUL(a=(1))\n";
        let found = verdicts(&plain(text));
        assert_eq!(found["ADD(type=f32,ne=[1,2])"], Verdict::Passed);
        assert_eq!(found["MUL(a=(1))"], Verdict::Differs("[MUL] ERR = 0.5 > 0.1".into()));
        assert_eq!(found["SUB(x=1)"], Verdict::Ended("not supported [CANN0]".into()));
        assert_eq!(found["DIV(x=1)"], Verdict::NotCompared);
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn addresses_are_taken_out() {
        assert_eq!(plain("128 bytes at 0x6fab0 reach 0 past"), "128 bytes at 0x… reach 0 past");
    }
}
