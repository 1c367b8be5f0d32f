//! Defects that can be switched on: `CANN_EMULATOR_DEFECTS` holds rules or a file of them. Nothing here knows who calls.

mod active;
mod rule;
mod table;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use active::Active;

use crate::code::{self, After};
use crate::fault::Fault;
use crate::operator::Operator;
use crate::operator::arguments::Arguments;
use crate::runtime::context::current;
use crate::runtime::device::{BadMemory, Device};
use rule::{At, Kind, Rule};

/// The rules, or what is wrong with them.
pub fn settings() -> Result<&'static [Rule], Fault> {
    static RULES: OnceLock<Result<Vec<Rule>, String>> = OnceLock::new();
    let rules = RULES.get_or_init(|| {
        let Ok(text) = std::env::var("CANN_EMULATOR_DEFECTS") else { return Ok(Vec::new()) };
        if text.trim() == "list" {
            eprint!("{}", table::list());
            return Ok(Vec::new());
        }
        rule::parse(&text)
    });
    rules.as_deref().map_err(|why| Fault::new(code::INVALID_PARAM, format!("CANN_EMULATOR_DEFECTS: {why}")))
}

static EXECUTE_TIMEOUT_US: AtomicU64 = AtomicU64::new(547_000_000);

/// How long an operator may run.
pub fn set_execute_timeout(timeout: Duration) {
    EXECUTE_TIMEOUT_US.store(timeout.as_micros() as u64, Ordering::Relaxed);
}

/// How long an operator may run: 547 s where nobody said otherwise.
pub fn execute_timeout() -> Duration {
    Duration::from_micros(EXECUTE_TIMEOUT_US.load(Ordering::Relaxed))
}

/// The fault that a rule gives.
fn fault(rule: &Rule, number: i32, device: Option<&Device>) -> Fault {
    let known = code::find(number);
    let text = known.map_or("no text", |code| code.text);
    let mut fault = Fault::new(number, text);
    if let Some(sticky) = rule.sticky {
        fault.after = if sticky { After::Sticky } else { After::Passing };
    }
    if let Some(device) = device {
        if [code::DEVICE_MEM_ERROR, 507054].contains(&number) {
            let address = rule.address.unwrap_or_else(|| crate::memory::space().some_address(device.index));
            device.spoil(BadMemory { address, length: 64 });
        }
        if rule.vanishes {
            device.vanish();
        }
    }
    fault
}

/// The rules that show in this call. Every one counts it, also behind one that fails the call.
fn firing(rules: impl Iterator<Item = &'static Rule>, device: Option<&Device>) -> Vec<&'static Rule> {
    rules.filter(|rule| rule.fires(device)).collect()
}

/// Faults at calls of the runtime that a rule names.
pub fn at_runtime_call(name: &'static str) -> Result<(), Fault> {
    let mut rules = settings()?.iter().filter(|rule| rule.names_function(name)).peekable();
    if rules.peek().is_none() {
        return Ok(());
    }
    let device = current().ok().map(|context| context.device);
    for rule in firing(rules, device) {
        match rule.kind {
            Kind::Fault(number) if rule.at != At::Never => {
                let fault = fault(rule, number, device);
                if let Some(device) = device {
                    device.suffer(&fault);
                }
                return Err(fault);
            }
            Kind::Fault(_) | Kind::Hang => {
                let born = device.map(Device::generation);
                while device.map(Device::generation) == born {
                    std::thread::sleep(Duration::from_millis(1));
                }
                return Err(Fault::new(code::DEVICE_TASK_ABORT, "the device was stopped or reset meanwhile"));
            }
            Kind::Arithmetic(_) => {}
        }
    }
    Ok(())
}

/// What is wrong with this launch; an error where the launch itself fails.
pub fn at_launch(
    operator: &'static Operator,
    arguments: &Arguments,
    device: &'static Device,
) -> Result<Active, Fault> {
    let launch = device.launched();
    let mut active = Active::new(launch);
    let shapes = arguments.shapes();
    let rules = settings()?.iter().filter(|rule| rule.concerns(operator.name, &shapes));
    for rule in firing(rules, Some(device)) {
        match rule.kind {
            Kind::Arithmetic(name) => active.add(name, rule.options()),
            Kind::Hang => active.hang = true,
            Kind::Fault(number) => match rule.at {
                At::Never => active.hang = true,
                At::Launch => {
                    let fault = fault(rule, number, Some(device));
                    device.suffer(&fault);
                    return Err(fault);
                }
                At::Synchronise if rule.delay > 0 => {
                    // The task itself is the first to run.
                    device.delay(fault(rule, number, Some(device)), rule.delay + 1);
                }
                At::Synchronise => active.fault = Some(fault(rule, number, Some(device))),
            },
        }
    }
    Ok(active)
}
