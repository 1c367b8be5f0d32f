//! A fault as people see it: one line on the terminal, one row in the report.

use crate::decide::Entry;
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::Duration;
use toprope_program::{FaultClass, FaultKind};
use toprope_world::utc_timestamp;

/// A fault, what was done about it and what it cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultRecord {
    /// The journal's line; 0 where it was not read from one.
    pub line: u64,
    /// The process that saw it.
    pub attempt: u64,
    /// When, since 1970.
    pub time: Option<Duration>,
    /// The class.
    pub class: FaultClass,
    /// The class's particulars, in words.
    pub detail: String,
    /// The device's index in its attempt's list; none where the line names it.
    pub device_index: Option<u64>,
    /// The device's name.
    pub device: String,
    /// The rank.
    pub rank: u64,
    /// The step under way.
    pub step: u64,
    /// The operator, where known: its range, index, name and part of the model.
    pub place: Option<String>,
    /// What was done.
    pub action: String,
    /// Whether it was injected on purpose.
    pub injected: bool,
    /// What it cost, in seconds; none while it is not over, or where nothing was lost.
    pub cost_seconds: Option<f64>,
    /// Steps that had to be run again.
    pub steps_redone: Option<u64>,
}

impl FaultRecord {
    /// A fault that the guard records, for the terminal. None where the entry is no fault.
    pub fn of_entry(
        entry: &Entry,
        devices: &[String],
        time: Duration,
        injected: bool,
    ) -> Option<FaultRecord> {
        let Entry::Fault { .. } = entry else { return None };
        let Ok(Value::Object(fields)) = serde_json::to_value(entry) else { return None };
        let mut fault = Self::of_fields(&fields).ok()?;
        fault.time = Some(time);
        fault.injected |= injected;
        fault.name_device(devices);
        Some(fault)
    }

    /// A fault from a line's fields.
    ///
    /// # Errors
    /// What is missing, in words.
    pub(super) fn of_fields(fields: &Map<String, Value>) -> Result<FaultRecord, String> {
        let class = fields.get("class").cloned().unwrap_or_default();
        let class: FaultClass = serde_json::from_value(class)
            .map_err(|_| format!("`class` of `fault` is none of {}", classes()))?;
        let count = |name| fields.get(name).and_then(Value::as_u64);
        let text = |name| fields.get(name).and_then(Value::as_str).map(str::to_owned);
        let device_index = count("device");
        let device = text("device").unwrap_or_else(|| match device_index {
            Some(index) => format!("device {index}"),
            None => "an unnamed device".to_owned(),
        });
        Ok(FaultRecord {
            line: 0,
            attempt: 0,
            time: None,
            class,
            detail: detail(fields, class),
            device_index,
            device,
            rank: count("rank").unwrap_or(0),
            step: count("step").ok_or("`step` of `fault` is missing or not a whole number")?,
            place: fields.get("place").and_then(place),
            action: text("action").unwrap_or_default(),
            injected: fields.get("injected").and_then(Value::as_bool).unwrap_or(false),
            cost_seconds: fields.get("cost_seconds").and_then(Value::as_f64),
            steps_redone: count("steps_redone"),
        })
    }

    /// Puts the device's name in place of its index.
    pub(super) fn name_device(&mut self, devices: &[String]) {
        let index = self.device_index.and_then(|index| usize::try_from(index).ok());
        if let Some(name) = index.and_then(|index| devices.get(index)) {
            self.device.clone_from(name);
        }
    }

    /// What it cost, in words.
    pub fn cost(&self) -> String {
        let steps = match self.steps_redone {
            None | Some(0) => String::new(),
            Some(1) => ", 1 step redone".to_owned(),
            Some(count) => format!(", {count} steps redone"),
        };
        match self.cost_seconds {
            Some(seconds) if seconds <= 0.0 && steps.is_empty() => {
                "nothing lost beyond the fault before".to_owned()
            }
            Some(seconds) => format!("{seconds:.2} s lost{steps}"),
            None if steps.is_empty() => "nothing lost".to_owned(),
            None => steps.trim_start_matches(", ").to_owned(),
        }
    }
}

fn classes() -> String {
    FaultClass::ALL.map(FaultClass::name).join(", ")
}

/// The particulars in words; from the bare fields where a number among them is none (JSON has no infinity).
fn detail(fields: &Map<String, Value>, class: FaultClass) -> String {
    if let Ok(kind) = serde_json::from_value::<FaultKind>(Value::Object(fields.clone())) {
        return kind.to_string();
    }
    let particulars =
        ["reason", "message", "code", "operator", "value", "metric", "error", "limit", "factor"];
    let told = particulars.iter().filter_map(|name| Some((name, fields.get(*name)?)));
    let told: Vec<String> = told
        .map(|(name, value)| match value {
            Value::Null => format!("{name} not finite"),
            Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        })
        .collect();
    format!("{}: {}", class.name(), told.join(", "))
}

fn place(value: &Value) -> Option<String> {
    let text = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
    if !value.is_object() {
        return None;
    }
    let part = Some(text("part")).filter(|part| !part.is_empty());
    let index = value.get("index").and_then(Value::as_u64).unwrap_or(0);
    let at = format!("{} {index} `{}`", text("range"), text("operator"));
    Some(match part {
        Some(part) => format!("{at} in {part}"),
        None => at,
    })
}

/// A fault in one line: when, where, what, what was done, what it cost.
pub fn fault_line(fault: &FaultRecord) -> String {
    // The time of day is enough on a terminal; the journal has the date.
    let when =
        fault.time.map_or_else(|| "--:--:--".to_owned(), |time| utc_timestamp(time)[11..19].to_owned());
    let injected = if fault.injected { " (injected)" } else { "" };
    let place = fault.place.as_ref().map(|place| format!(" at {place}")).unwrap_or_default();
    let action = if fault.action.is_empty() { "noted" } else { &fault.action };
    one_line(&format!(
        "{when} step {} {}: {}{injected}{place}; {action}; {}",
        fault.step,
        fault.device,
        fault.detail,
        fault.cost()
    ))
}

/// A text with its control characters replaced, so that no device's message moves the cursor or breaks a line.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{DeviceIndex, Rank};
    use toprope_program::{Place, Range};

    fn entry(kind: FaultKind, place: Option<Place>) -> Entry {
        let action = "the standby took over".to_owned();
        Entry::Fault { kind, device: DeviceIndex(1), rank: Rank(0), step: 118, place, action }
    }

    fn names() -> Vec<String> {
        vec!["cpu".to_owned(), "ascend:0".to_owned()]
    }

    #[test]
    fn one_line_says_when_where_what_and_at_what_cost() {
        let place =
            Place { range: Range::Accumulate, index: 7, operator: "matmul".into(), part: "layer 2".into() };
        let kind = FaultKind::Mismatch { operator: "matmul".into(), error: 0.5, tolerance: 1e-6 };
        let time = Duration::from_secs(1_767_225_600 + 3_723);
        let mut fault =
            FaultRecord::of_entry(&entry(kind, Some(place)), &names(), time, true).expect("a fault");
        fault.cost_seconds = Some(0.214);
        fault.steps_redone = Some(1);
        assert_eq!(
            fault_line(&fault),
            "01:02:03 step 118 ascend:0: mismatch in `matmul`: error 5.000e-1, tolerance 1.000e-6 (injected) at accumulate 7 `matmul` in layer 2; the standby took over; 0.21 s lost, 1 step redone"
        );
        fault.cost_seconds = None;
        fault.steps_redone = None;
        assert!(fault_line(&fault).ends_with("nothing lost"));
    }

    #[test]
    fn numbers_that_are_none_and_messages_with_escapes_stay_one_line() {
        let kind = FaultKind::Spike { metric: "loss".into(), value: f64::INFINITY, limit: 3.0 };
        let fault =
            FaultRecord::of_entry(&entry(kind, None), &names(), Duration::ZERO, false).expect("a fault");
        assert_eq!(fault.class, FaultClass::Spike);
        assert!(fault.detail.contains("value not finite"), "{}", fault.detail);
        let kind = FaultKind::Driver { code: 507_011, message: "bad\n\u{1b}[2Jthings".into() };
        let fault =
            FaultRecord::of_entry(&entry(kind, None), &names(), Duration::ZERO, false).expect("a fault");
        let line = fault_line(&fault);
        assert!(line.contains("507011") && !line.contains(char::is_control), "{line}");
    }

    #[test]
    fn other_entries_are_no_faults() {
        let entry = Entry::BatchSkipped { step: 3, reason: "asked".into() };
        assert!(FaultRecord::of_entry(&entry, &names(), Duration::ZERO, false).is_none());
    }
}
