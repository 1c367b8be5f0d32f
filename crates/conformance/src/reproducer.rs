//! A program with all that is needed to run it again, as readable text: the printed form under a head of comments.
//!
//! ```text
//! # device: cpu level: avx2
//! # seed: 17 regime: wide
//! # symbols: 3
//! # micro-batch: later
//! # expected: agree
//! # found: matmul: output 0 element 3: got 1e0, want 2e0
//! # value %x: 1 -0 inf
//! program "…" evaluate
//! ```
//! Values that no line gives are drawn from the seed. Hand-written files may name several devices and seeds; `any` stands
//! for every device.

use crate::lockstep::{Lockstep, Obstacle, Step};
use crate::oracle::Oracle;
use crate::values::{Regime, Values, draw};
use crate::verdict::Verdict;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use toprope_program::shape::{elements, sizes};
use toprope_program::{Defect, Device, Program, Range, Role, Tensor, Validated, text, validate};

/// A program with its binding and values.
#[derive(Clone, Debug, PartialEq)]
pub struct Reproducer {
    /// Devices to run it on; `any` stands for each.
    pub devices: Vec<String>,
    /// The dispatch level that it was found at; empty for any.
    pub level: String,
    /// Seeds that values are drawn from.
    pub seeds: Vec<u64>,
    /// What kind of numbers are drawn.
    pub regime: Regime,
    /// A value for each symbol; empty stands for the bounds.
    pub symbols: Vec<usize>,
    /// Whether `accumulate` writes rather than adds.
    pub first: bool,
    /// What was seen, where it was found by a suite.
    pub found: String,
    /// Values that are given rather than drawn, by name.
    pub values: BTreeMap<String, Vec<f64>>,
    /// The program.
    pub program: Program,
}

/// Why a text is no reproducer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReproducerError {
    /// A line of the head.
    #[error("line {line}: {reason}")]
    Head {
        /// From 1.
        line: usize,
        /// What was expected.
        reason: String,
    },
    /// The program's text.
    #[error(transparent)]
    Program(#[from] text::ParseError),
    /// The program is not valid.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Defect>),
    /// A given value does not fit its program.
    #[error("%{name}: {reason}")]
    Value {
        /// The value's name.
        name: String,
        /// What does not fit.
        reason: String,
    },
}

impl Reproducer {
    /// A program whose values are all drawn.
    pub fn new(program: Program, symbols: Vec<usize>, seed: u64, regime: Regime) -> Reproducer {
        Reproducer {
            devices: vec!["any".into()],
            level: String::new(),
            seeds: vec![seed],
            regime,
            symbols,
            first: true,
            found: String::new(),
            values: BTreeMap::new(),
            program,
        }
    }

    /// Reads the text form.
    pub fn parse(source: &str) -> Result<Reproducer, ReproducerError> {
        let program = text::parse(source)?;
        let mut it = Reproducer::new(program, Vec::new(), 0, Regime::Normal);
        it.seeds.clear();
        for (index, line) in source.lines().enumerate() {
            let Some(comment) = line.strip_prefix('#') else { break };
            let error = |reason: &str| ReproducerError::Head { line: index + 1, reason: reason.into() };
            let Some((key, rest)) = comment.trim().split_once(':') else { continue };
            let words: Vec<&str> = rest.split_whitespace().collect();
            match key {
                "device" | "devices" => {
                    let level = words.iter().position(|word| *word == "level:");
                    let count = level.unwrap_or(words.len());
                    it.devices = words[..count].iter().map(ToString::to_string).collect();
                    it.level = level.and_then(|at| words.get(at + 1)).unwrap_or(&"").to_string();
                }
                "seed" | "seeds" => {
                    let regime = words.iter().position(|word| *word == "regime:");
                    for word in &words[..regime.unwrap_or(words.len())] {
                        it.seeds.push(word.parse().map_err(|_| error("a seed is a number"))?);
                    }
                    if let Some(at) = regime {
                        let name = words.get(at + 1).copied().unwrap_or("");
                        it.regime = Regime::from_name(name).ok_or_else(|| error("no such regime"))?;
                    }
                }
                "symbols" => {
                    let numbers: Result<Vec<usize>, _> = words.iter().map(|word| word.parse()).collect();
                    it.symbols = numbers.map_err(|_| error("symbols are bound to numbers"))?;
                }
                "micro-batch" => it.first = words.first() != Some(&"later"),
                "expected" if words != ["agree"] => return Err(error("only `agree` can be expected")),
                "found" => it.found = rest.trim().to_string(),
                _ => {
                    if let Some(name) = key.strip_prefix("value %") {
                        let numbers: Result<Vec<f64>, _> = words.iter().map(|word| word.parse()).collect();
                        let numbers = numbers.map_err(|_| error("values are numbers"))?;
                        it.values.insert(name.to_string(), numbers);
                    }
                }
            }
        }
        if it.seeds.is_empty() {
            it.seeds.push(0);
        }
        Ok(it)
    }

    /// The binding: as given, or the bounds.
    pub fn binding(&self) -> Vec<usize> {
        if self.symbols.is_empty() { self.program.bounds() } else { self.symbols.clone() }
    }

    /// The values for a seed: drawn, with those that are given in their place.
    pub fn values(&self, seed: u64) -> Result<Values, ReproducerError> {
        let symbols = self.binding();
        if symbols.len() != self.program.symbols.len()
            || symbols.iter().zip(&self.program.symbols).any(|(n, s)| *n == 0 || *n > s.bound)
        {
            let reason = "a number within its bound for each symbol is needed".into();
            return Err(ReproducerError::Value { name: "symbols".into(), reason });
        }
        let mut values = draw(&self.program, &symbols, seed, self.regime);
        for (name, data) in &self.values {
            let error = |reason: &str| ReproducerError::Value { name: name.clone(), reason: reason.into() };
            let id = self.program.find(name).ok_or_else(|| error("is not declared"))?;
            let value = self.program.value(id);
            if matches!(value.role, Role::Scratch | Role::Output | Role::Next { .. }) {
                return Err(error("is not written by the host"));
            }
            let sizes = sizes(&value.shape, &symbols);
            if elements(&sizes) != data.len() {
                return Err(error(&format!(
                    "{} numbers are given, {} are needed",
                    data.len(),
                    elements(&sizes)
                )));
            }
            values[id.0 as usize] = Some(Tensor::rounded(value.dtype, &sizes, data.iter().copied()));
        }
        Ok(values)
    }

    /// Validates the program.
    pub fn validated(&self) -> Result<Arc<Validated>, ReproducerError> {
        validate(self.program.clone()).map(Arc::new).map_err(ReproducerError::Invalid)
    }

    /// Runs it in lockstep for one of its seeds.
    pub fn run(
        &self,
        subject: &mut dyn Device,
        oracle: &mut Oracle,
        seed: u64,
    ) -> Result<Vec<Step>, RunError> {
        let program = self.validated()?;
        let symbols = self.binding();
        let mut lockstep = Lockstep::open(subject, oracle, &program, &symbols, self.values(seed)?)?;
        let mut steps = Vec::new();
        for range in Range::ALL {
            steps.extend(lockstep.range(subject, oracle, range, self.first)?);
        }
        lockstep.close(subject, oracle)?;
        Ok(steps)
    }

    /// The first difference of a run: operator and finding.
    pub fn first_difference(&self, subject: &mut dyn Device, oracle: &mut Oracle) -> Option<(Step, String)> {
        let seed = self.seeds.first().copied().unwrap_or(0);
        let steps = self.run(subject, oracle, seed).ok()?;
        steps.into_iter().find_map(|step| match step.judgement.verdict.clone() {
            Verdict::Differ(finding) => Some((step, finding)),
            Verdict::Agree | Verdict::Incomparable(_) => None,
        })
    }
}

/// Why a reproducer could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It is not right in itself.
    #[error(transparent)]
    Reproducer(#[from] ReproducerError),
    /// A device failed.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
}

impl fmt::Display for Reproducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "# device: {}", self.devices.join(" "))?;
        if !self.level.is_empty() {
            write!(f, " level: {}", self.level)?;
        }
        let seeds: Vec<String> = self.seeds.iter().map(ToString::to_string).collect();
        writeln!(f, "\n# seed: {} regime: {}", seeds.join(" "), self.regime.name())?;
        if !self.symbols.is_empty() {
            let symbols: Vec<String> = self.symbols.iter().map(ToString::to_string).collect();
            writeln!(f, "# symbols: {}", symbols.join(" "))?;
        }
        if !self.first {
            writeln!(f, "# micro-batch: later")?;
        }
        writeln!(f, "# expected: agree")?;
        if !self.found.is_empty() {
            writeln!(f, "# found: {}", self.found.replace('\n', " "))?;
        }
        for (name, data) in &self.values {
            write!(f, "# value %{name}:")?;
            for x in data {
                write!(f, " {x:?}")?;
            }
            writeln!(f)?;
        }
        write!(f, "{}", text::print(&self.program))
    }
}
