//! A rule: which defect, where and when. `NAME@KEY=VALUE,…`, several behind each other with `;` or a line each.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::code;
use crate::defect::active::random;
use crate::defect::table;
use crate::runtime::device::Device;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Wrong numbers.
    Arithmetic(&'static str),
    /// A code of the runtime.
    Fault(i32),
    /// No end.
    Hang,
}

/// When a fault shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum At {
    Launch,
    Synchronise,
    Never,
}

/// What a kernel may ask about its defect.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub factor: f64,
    pub bit: Option<u64>,
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    pub kind: Kind,
    operators: &'static [&'static str],
    op: Vec<String>,
    call: Option<(u64, u64)>,
    every: Option<u64>,
    rate: Option<f64>,
    times: Option<u64>,
    shape: Option<Vec<usize>>,
    temperature: Option<f64>,
    device: Option<i32>,
    pub at: At,
    pub sticky: Option<bool>,
    pub delay: u64,
    pub address: Option<usize>,
    /// The device is gone for good.
    pub vanishes: bool,
    /// Only while this file is there.
    within: Option<PathBuf>,
    /// Each time it shows, it takes this file away; without the file it rests.
    token: Option<PathBuf>,
    options: Options,
    calls: AtomicU64,
    fired: AtomicU64,
}

/// Keys of a rule, for messages and `list`.
pub const KEYS: &[(&str, &str)] = &[
    (
        "op",
        "only this operator (Matmul) or runtime function (aclrtMalloc); * at the end stands for anything; + between several",
    ),
    ("call", "only the Nth matching call, or calls N..M, from 1 on"),
    ("every", "each Nth matching call"),
    ("rate", "with this probability at each matching call"),
    ("times", "at most so often"),
    ("seed", "for rates and random places"),
    ("shape", "only where a tensor has this shape, such as 64x64"),
    ("temperature", "only from this simulated temperature on, in °C (45 at first, nearing 95 under load)"),
    ("device", "only on this device"),
    ("at", "of a fault: launch, synchronise (the default), never (it hangs)"),
    ("sticky", "of a fault: yes or no; without it as the code usually is"),
    ("delay", "of a fault: shown so many tasks later, on a later operator"),
    ("address", "of a memory error: the bad address"),
    ("while", "only while this file is there: a defect that comes and goes, in every process at once"),
    (
        "token",
        "shows where this file is there and takes it away: once for all processes, whenever the file is put there",
    ),
    ("factor", "of any.slow: how many times slower"),
    ("bit", "of any.bit_flip: which bit"),
];

/// Reads rules, or the file that holds them.
pub fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let path = std::path::Path::new(text.trim());
    if !text.contains('@') && path.is_file() {
        let file = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut rules = Vec::new();
        for (number, line) in file.lines().enumerate() {
            let line = line.split('#').next().unwrap_or(line);
            let place = |why| format!("{}:{}: {why}", path.display(), number + 1);
            rules.extend(several(line).map_err(place)?);
        }
        return Ok(rules);
    }
    several(text)
}

fn several(text: &str) -> Result<Vec<Rule>, String> {
    text.split(';').map(str::trim).filter(|rule| !rule.is_empty()).map(rule).collect()
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{key}={value} is not understood: a number is needed"))
}

/// The closest of some names, as a sentence's end.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> String {
    let best =
        names.max_by(|a, b| strsim::jaro_winkler(wanted, a).total_cmp(&strsim::jaro_winkler(wanted, b)));
    best.map_or_else(String::new, |best| format!("; is {best} meant? `list` prints all"))
}

fn kind(name: &str) -> Result<(Kind, &'static [&'static str], bool), String> {
    if let Some(found) = table::ARITHMETIC.iter().find(|defect| defect.name == name) {
        return Ok((Kind::Arithmetic(found.name), found.operators, false));
    }
    match name {
        "runtime.hang" => return Ok((Kind::Hang, &[], false)),
        "runtime.device_lost" => return Ok((Kind::Fault(507010), &[], true)),
        _ => {}
    }
    let fault = name.strip_prefix("runtime.").and_then(|fault| {
        code::RUNTIME.iter().find(|code| {
            code.name.eq_ignore_ascii_case(fault)
                || fault.parse().is_ok_and(|number: i32| number == code.number)
        })
    });
    match fault {
        Some(code) => Ok((Kind::Fault(code.number), &[], false)),
        None => {
            let names = table::names();
            Err(format!("no defect is called {name}{}", nearest(name, names.iter().map(String::as_str))))
        }
    }
}

fn rule(text: &str) -> Result<Rule, String> {
    let (name, keys) = text.split_once('@').unwrap_or((text, ""));
    let (kind, operators, vanishes) = kind(name.trim())?;
    let mut rule = Rule {
        kind,
        operators,
        op: Vec::new(),
        call: None,
        every: None,
        rate: None,
        times: None,
        shape: None,
        temperature: None,
        device: None,
        at: At::Synchronise,
        sticky: vanishes.then_some(true),
        delay: 0,
        address: None,
        vanishes,
        within: None,
        token: None,
        options: Options { seed: 1, factor: 4.0, bit: None },
        calls: AtomicU64::new(0),
        fired: AtomicU64::new(0),
    };
    match kind {
        Kind::Arithmetic("any.race") => rule.rate = Some(1e-3),
        Kind::Arithmetic("matmul.late_tile") => rule.rate = Some(0.02),
        Kind::Arithmetic("attention.late_keys") => rule.rate = Some(0.1),
        _ => {}
    }
    for pair in keys.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(format!("{pair} in {text}: KEY=VALUE is needed"));
        };
        rule.set(key.trim(), value.trim())?;
    }
    Ok(rule)
}

impl Rule {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "op" => self.op = value.split('+').map(|op| op.trim().to_string()).collect(),
            "call" => {
                self.call = Some(match value.split_once("..") {
                    Some((from, "")) => (number(key, from)?, u64::MAX),
                    Some((from, to)) => (number(key, from)?, number(key, to)?),
                    None => (number(key, value)?, number(key, value)?),
                });
            }
            "every" => self.every = Some(number::<u64>(key, value)?.max(1)),
            "rate" => self.rate = Some(number(key, value)?),
            "times" => self.times = Some(number(key, value)?),
            "seed" => self.options.seed = number(key, value)?,
            "shape" => {
                self.shape = Some(value.split('x').map(|size| number(key, size)).collect::<Result<_, _>>()?);
            }
            "temperature" => self.temperature = Some(number(key, value)?),
            "device" => self.device = Some(number(key, value)?),
            "at" => {
                self.at = match value {
                    "launch" => At::Launch,
                    "synchronise" | "synchronize" => At::Synchronise,
                    "never" => At::Never,
                    _ => return Err(format!("at={value}: launch, synchronise or never is needed")),
                };
            }
            "sticky" => {
                self.sticky = Some(match value {
                    "yes" => true,
                    "no" => false,
                    _ => return Err(format!("sticky={value}: yes or no is needed")),
                });
            }
            "delay" => self.delay = number(key, value)?,
            "address" => {
                let digits = value.trim_start_matches("0x");
                let address = usize::from_str_radix(digits, 16);
                self.address =
                    Some(address.map_err(|_| format!("address={value}: a hexadecimal number is needed"))?);
            }
            "while" => self.within = Some(value.into()),
            "token" => self.token = Some(value.into()),
            "factor" => self.options.factor = number(key, value)?,
            "bit" => self.options.bit = Some(number(key, value)?),
            _ => {
                let near = nearest(key, KEYS.iter().map(|&(name, _)| name));
                return Err(format!("a rule has no key {key}{near}"));
            }
        }
        Ok(())
    }

    /// What a kernel may ask.
    pub fn options(&self) -> Options {
        self.options.clone()
    }

    fn op_matches(&self, name: &str) -> bool {
        self.op.iter().any(|op| match op.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => op == name,
        })
    }

    /// Whether the rule is about this function of the runtime.
    pub fn names_function(&self, function: &str) -> bool {
        !function.starts_with("aclnn") && self.op_matches(function)
    }

    /// Whether the rule is about calls of this operator with these shapes.
    pub fn concerns(&self, operator: &str, shapes: &[&[usize]]) -> bool {
        let by_name =
            self.op.is_empty() || self.op_matches(operator) || self.op_matches(&format!("aclnn{operator}"));
        let by_kind = self.operators.is_empty() || self.operators.contains(&operator);
        let by_shape = self.shape.as_ref().is_none_or(|shape| shapes.iter().any(|have| have == shape));
        by_name && by_kind && by_shape
    }

    /// Counts a matching call; whether the defect shows in it.
    pub fn fires(&self, device: Option<&Device>) -> bool {
        if self.device.is_some_and(|wanted| device.is_none_or(|device| device.index != wanted)) {
            return false;
        }
        if self.within.as_ref().is_some_and(|file| !file.exists()) {
            return false;
        }
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let chance = |rate: f64| (random(self.options.seed, call) >> 11) as f64 / (1u64 << 53) as f64 <= rate;
        let fires = self.call.is_none_or(|(from, to)| (from..=to).contains(&call))
            && self.every.is_none_or(|every| call.is_multiple_of(every))
            && self.rate.is_none_or(chance)
            && self.temperature.is_none_or(|hot| device.is_some_and(|device| device.temperature() >= hot));
        if !fires {
            return false;
        }
        if self.times.is_some_and(|times| self.fired.load(Ordering::SeqCst) >= times) {
            return false;
        }
        // Of all who meet the file, one takes it away; who meets none has seen nothing.
        if self.token.as_ref().is_some_and(|file| std::fs::remove_file(file).is_err()) {
            return false;
        }
        let before = self.fired.fetch_add(1, Ordering::SeqCst);
        self.times.is_none_or(|times| before < times)
    }
}
