//! What machines read: the last line, and a file for test runners.

use serde_json::{Value, json};
use std::fmt::Write;
use toprope_qualify::Qualification;
use toprope_qualify::dies::Vote;
use toprope_qualify::result::{OperatorResult, Outcome};

/// One JSON object. `opened` is the name that opens the same device again. Dies that voted come with it where several were
/// named.
pub fn json(qualification: &Qualification, opened: &str, vote: Option<&Vote>) -> Value {
    let operators: Vec<Value> = qualification.operators.iter().map(operator).collect();
    let device = &qualification.device;
    let mut object = json!({
        "verdict": qualification.ruling.verdict.name(),
        "device": device.name,
        "opened": opened,
        "emulated": device.emulated,
        "coverage": qualification.coverage,
        "operators": operators,
        "training": qualification.training,
        "inference": qualification.inference,
        "soak": qualification.soak,
        "speed": qualification.speed,
        "expires": {
            "when": "driver, firmware, library or device changes",
            "hardware": device.hardware,
            "level": device.level,
            "versions": device.versions.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        },
    });
    if let (Some(vote), Some(object)) = (vote, object.as_object_mut()) {
        object.insert("dies".into(), json!(vote));
    }
    object
}

fn operator(result: &OperatorResult) -> Value {
    json!({
        "name": result.name,
        "dtype": result.dtype.map(|dtype| dtype.name()),
        "variant": result.variant,
        "shape": result.shape,
        "passed": result.passed,
        "effective_bits": result.effective_bits,
        "control_bits": result.control_bits,
        "worst_error": result.worst_error,
        "tolerance": result.tolerance,
        "defect_guess": result.defect_guess,
        "setting": result.setting,
        "extent": result.extent,
    })
}

/// JUnit's XML: a case for each stage and each result of an operator. What was not run is skipped, never passed.
pub fn junit(qualification: &Qualification) -> String {
    enum State<'a> {
        Passed,
        Failed(&'a str),
        Skipped(&'a str),
    }
    let mut cases: Vec<(String, String, f64, State<'_>)> = Vec::new();
    for stage in &qualification.stages {
        let state = match &stage.outcome {
            Outcome::Passed => State::Passed,
            Outcome::Failed(reason) => State::Failed(reason),
            Outcome::NotRun(reason) => State::Skipped(reason),
        };
        cases.push(("stage".into(), stage.name.into(), stage.seconds, state));
    }
    for result in &qualification.operators {
        let dtype = result.dtype.map_or("-", |dtype| dtype.name());
        let finding = result.finding.as_deref().unwrap_or_default();
        let state = match (result.passed, &result.setting) {
            (Some(true), _) => State::Passed,
            (Some(false), Some(setting)) => State::Skipped(setting),
            (Some(false), None) => State::Failed(finding),
            (None, _) => State::Skipped(finding),
        };
        let source = serde_json::to_value(result.source).ok();
        let source = source.as_ref().and_then(Value::as_str).unwrap_or_default().to_string();
        let part = result.extent.as_ref().filter(|extent| !extent.whole);
        let part = part.map(|extent| format!(", in part: {}", extent.told)).unwrap_or_default();
        let name = format!("{dtype} {} ({source}{part})", result.shape);
        cases.push((format!("operator.{}", result.name), name, 0.0, state));
    }
    let count = |which: fn(&State<'_>) -> bool| cases.iter().filter(|(.., state)| which(state)).count();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a String cannot fail.
    let _ = writeln!(
        xml,
        "<testsuite name=\"toprope qualify {}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{:.3}\">",
        escaped(&qualification.device.name),
        cases.len(),
        count(|state| matches!(state, State::Failed(_))),
        count(|state| matches!(state, State::Skipped(_))),
        qualification.seconds
    );
    let _ = writeln!(
        xml,
        "  <properties><property name=\"verdict\" value=\"{}\"/></properties>",
        qualification.ruling.verdict.name()
    );
    for (class, name, seconds, state) in &cases {
        let head = format!(
            "  <testcase classname=\"{}\" name=\"{}\" time=\"{seconds:.3}\"",
            escaped(class),
            escaped(name)
        );
        let _ = match state {
            State::Passed => writeln!(xml, "{head}/>"),
            State::Failed(reason) => {
                writeln!(xml, "{head}><failure message=\"{}\"/></testcase>", escaped(reason))
            }
            State::Skipped(reason) => {
                writeln!(xml, "{head}><skipped message=\"{}\"/></testcase>", escaped(reason))
            }
        };
    }
    xml.push_str("</testsuite>\n");
    xml
}

/// Text as an attribute of XML 1.0, which has no control characters.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' | '\t' => safe.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_of_a_text_becomes_markup() {
        assert_eq!(super::escaped("<a b=\"c\">&\u{1b}\n"), "&lt;a b=&quot;c&quot;&gt;&amp;\u{fffd} ");
    }
}
