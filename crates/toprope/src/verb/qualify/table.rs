//! What a terminal shows, in 80 columns.

use super::remedy;
use crate::progress::duration;
use std::collections::BTreeMap;
use std::fmt::Write;
use toprope_qualify::Qualification;
use toprope_qualify::result::{OperatorResult, Outcome, Stage};
use toprope_qualify::sisters::Pace;

/// The width of a line.
const WIDTH: usize = 80;

/// A stage as it ends.
pub fn stage(stage: &Stage) -> String {
    let (mark, text) = match &stage.outcome {
        Outcome::Passed => ("ok", stage.told.clone()),
        Outcome::Failed(reason) => ("WRONG", reason.clone()),
        Outcome::NotRun(reason) => ("not run", reason.clone()),
    };
    let head = format!("{:<16} {mark:<8}{:>5.1} s  ", stage.name, stage.seconds);
    wrapped(&head, &text)
}

/// How fast a die is among its sisters.
pub fn pace(pace: &Pace) -> String {
    if let Some(reason) = &pace.speed.not_run {
        return format!("its speed was not measured: {reason}");
    }
    let own = format!(
        "{:.0} GFLOP/s in f32, {:.0} in bf16, {:.1} GB/s",
        pace.speed.f32_flops_per_second / 1e9,
        pace.speed.bf16_flops_per_second / 1e9,
        pace.speed.bytes_per_second / 1e9
    );
    match (&pace.slow, pace.times_sisters) {
        (Some(slow), _) => format!("{own}; SLOW: {slow}"),
        (None, Some(times)) => format!("{own}; {times:.2} times its sisters' time"),
        (None, None) => own,
    }
}

/// Text behind a head in lines of 80 columns, its further lines as far in as its first.
pub fn wrapped(head: &str, text: &str) -> String {
    let indent = " ".repeat(head.chars().count());
    let mut lines = String::from(head);
    let mut column = indent.len();
    for (index, word) in text.split_whitespace().enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > WIDTH {
            lines.push('\n');
            lines.push_str(&indent);
            column = indent.len();
        } else if index > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines.trim_end().to_string()
}

/// Results of one operator and dtype together.
#[derive(Default)]
struct Row {
    cases: u64,
    failures: u64,
    run: bool,
    wrong: bool,
    setting: bool,
    bits: Option<f64>,
    control: Option<f64>,
    trusted: Option<f64>,
    worst: f64,
}

fn rows(operators: &[OperatorResult]) -> BTreeMap<(String, &'static str), Row> {
    let mut rows: BTreeMap<(String, &'static str), Row> = BTreeMap::new();
    for result in operators {
        let dtype = result.dtype.map_or("-", |dtype| dtype.name());
        let row = rows.entry((result.name.clone(), dtype)).or_default();
        row.cases += result.cases;
        row.failures += result.failures;
        row.run |= result.passed.is_some();
        row.wrong |= result.passed == Some(false) && result.setting.is_none();
        row.setting |= result.setting.is_some();
        // The class that loses most beside its control: a mean would hide it.
        let lost = |bits: Option<f64>, control: Option<f64>| control.unwrap_or(0.0) - bits.unwrap_or(0.0);
        if let Some(bits) = result.effective_bits
            && (row.bits.is_none() || lost(Some(bits), result.control_bits) > lost(row.bits, row.control))
        {
            (row.bits, row.control, row.trusted) = (Some(bits), result.control_bits, result.trusted_bits);
        }
        if let (Some(error), Some(bound)) = (result.worst_error, result.tolerance)
            && bound > 0.0
        {
            row.worst = row.worst.max(error / bound);
        }
    }
    rows
}

/// The operators, one line for each and each dtype.
pub fn operators(qualification: &Qualification) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{:<29} {:<4} {:>6} {:>5} {:>7} {:>7} {:>6}  verdict",
        "operator", "type", "cases", "bits", "control", "trusted", "bound"
    );
    for ((name, dtype), row) in rows(&qualification.operators) {
        let bits = |bits: Option<f64>| bits.map_or("-".into(), |bits| format!("{bits:.1}"));
        let verdict = match (row.wrong, row.setting, row.run) {
            (true, ..) => "WRONG",
            (_, true, _) => "setting",
            (.., true) => "ok",
            _ => "not run",
        };
        let worst = if row.worst > 999.0 { ">999".into() } else { format!("{:.2}", row.worst) };
        let name: String = name.chars().take(29).collect();
        let _ = writeln!(
            text,
            "{name:<29} {dtype:<4} {:>6} {:>5} {:>7} {:>7} {worst:>6}  {verdict}",
            row.cases,
            bits(row.bits),
            bits(row.control),
            bits(row.trusted)
        );
    }
    text
}

/// The verdict with its reasons, what to change, and how sure it is. `opened` is the name that opened the device.
pub fn verdict(qualification: &Qualification, opened: &str) -> String {
    let mut text = String::new();
    let device = &qualification.device;
    let name = qualification.ruling.verdict.name();
    let emulated = if device.emulated { " (emulated)" } else { "" };
    let line = format!("{name}: {}{emulated} {}", device.name, fitness(qualification));
    let _ = writeln!(text, "{}", wrapped("verdict: ", &line));
    for reason in qualification.ruling.reasons.iter().take(8) {
        let _ = writeln!(text, "{}", wrapped("  - ", reason));
    }
    let more = qualification.ruling.reasons.len().saturating_sub(8);
    if more > 0 {
        let _ = writeln!(text, "  - and {more} more (--json, --html)");
    }
    for change in &qualification.ruling.changes {
        let _ = writeln!(text, "{}", wrapped("  with: ", &remedy::told(change, opened)));
    }
    for setting in &qualification.settings {
        let line = format!("{}; {}", setting.told(), remedy::setting_line(*setting, opened));
        let _ = writeln!(text, "{}", wrapped("  setting, not a defect: ", &line));
    }
    let slow = qualification.speed.operators.iter().filter_map(|o| Some((o, o.slow.as_ref()?)));
    for (operator, told) in slow {
        let _ = writeln!(
            text,
            "{}",
            wrapped("  slow: ", &format!("`{}` {}: {told}", operator.name, operator.shape))
        );
    }
    let coverage = &qualification.coverage;
    let line = format!(
        "{} results of operators judged{}, {} not run, {} incomparable; a fault in any one operator's runs is rarer than {:.1e} (95 %, {} products in the soak: {:.1e})",
        coverage.run,
        if coverage.shapes_in_part > 0 {
            format!(", {} of them in part", coverage.shapes_in_part)
        } else {
            String::new()
        },
        coverage.not_run,
        coverage.incomparable,
        qualification.rates.values().copied().fold(0.0, f64::max),
        qualification.soak.runs,
        qualification.soak.rate_per_run
    );
    let _ = writeln!(text, "{}", wrapped("coverage: ", &line));
    let proven: std::collections::BTreeSet<&str> =
        qualification.training.iter().map(|proof| proof.name.as_str()).collect();
    if !proven.is_empty() {
        // What inference has and training has not is the user's own model.
        let own: std::collections::BTreeSet<&str> =
            qualification.inference.iter().map(|proof| proof.name.as_str()).collect();
        let own: Vec<&str> = own.difference(&proven).copied().collect();
        let names = proven.iter().copied().collect::<Vec<_>>().join(" and ");
        let line = match own.as_slice() {
            [] => format!(
                "steps and tokens of {names}, whatever --for names: your model's sizes are in \"your shapes\""
            ),
            own => format!(
                "tokens of {} with its own weights; steps and tokens of {names}, whatever --for names",
                own.join(" and ")
            ),
        };
        let _ = writeln!(text, "{}", wrapped("proofs: ", &line));
    }
    let versions: Vec<String> =
        device.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let line =
        format!("when one of these changes: {}, {}, {}", device.hardware, device.level, versions.join(", "));
    let _ = writeln!(text, "{}", wrapped("expires: ", &line));
    let _ = writeln!(
        text,
        "{} tier, seed {}, {}{}",
        qualification.tier.name(),
        qualification.seed,
        duration(qualification.seconds),
        if device.emulated { "; EMULATED: this is not the chip that it names" } else { "" }
    );
    text
}

fn fitness(qualification: &Qualification) -> &'static str {
    use toprope_qualify::Verdict;
    match qualification.ruling.verdict {
        Verdict::Train => "is fit to train and to infer",
        Verdict::TrainWith => "is fit to train with what is told below",
        Verdict::Infer => "is fit to infer on, not to train on",
        Verdict::Unfit => "is fit for nothing as it is",
        Verdict::Inconclusive => "was judged too little to say",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_keeps_to_eighty_columns() {
        let long = "a word and another ".repeat(20);
        let stage_of =
            |outcome| Stage { name: "inference proof", outcome, told: long.clone(), tried: 1, seconds: 12.3 };
        for outcome in [Outcome::Passed, Outcome::Failed(long.clone()), Outcome::NotRun(long.clone())] {
            let text = stage(&stage_of(outcome));
            assert!(
                text.lines().count() > 3 && text.lines().all(|line| line.chars().count() <= WIDTH),
                "{text}"
            );
        }
    }
}
