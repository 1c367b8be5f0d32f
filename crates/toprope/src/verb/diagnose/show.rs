//! What a person reads of a diagnosis.

use super::{GrowthSummary, Report, SpansSummary};
use std::fmt::Write;
use std::io::IsTerminal;
use toprope_diagnose::Kind;
use toprope_diagnose::row::{Outcome, Row};

/// Rows of the table that are shown.
const ROWS_SHOWN: usize = 12;

/// Parts of the growth that are shown.
const PARTS_SHOWN: usize = 16;

/// A line on standard error that says how far the walk is, on a terminal only.
#[derive(Default)]
pub struct Progress {
    shown: bool,
}

impl Progress {
    /// Tells of a row.
    pub fn row(&mut self, row: &Row, done: usize, all: usize) {
        if std::io::stderr().is_terminal() && (done.is_multiple_of(8) || done == all) {
            eprint!("\r\x1b[K{done} of {all}: {} in {}", row.operator, row.layer);
            self.shown = true;
        }
    }

    /// Clears the line.
    pub fn finish(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// Rows by the subject's error in units of the tolerance, the wrong ones first; the worst of each operator in each layer.
pub fn ranked(rows: &[Row]) -> Vec<Row> {
    let mut sorted: Vec<&Row> = rows.iter().collect();
    let units = |row: &Row| row.subject().units.unwrap_or(0.0);
    sorted.sort_by(|a, b| b.is_wrong().cmp(&a.is_wrong()).then(units(b).total_cmp(&units(a))));
    let mut kept: Vec<Row> = Vec::new();
    for row in sorted {
        let same = |held: &&Row| held.operator == row.operator && held.layer == row.layer;
        if kept.iter().filter(same).count() == 0 {
            kept.push(row.clone());
        }
        if kept.len() >= 4 * ROWS_SHOWN {
            break;
        }
    }
    kept
}

/// The report as text.
pub fn text(source: &str, names: &[String], report: &Report, repeat: u64) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "step {} of {source}: {} against {}, each operator on the same operands, judged by the f64 oracle",
        report.step,
        names[0],
        names[1..].join(" and ")
    );
    for device in &report.devices {
        let versions: Vec<String> =
            device.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let _ =
            writeln!(out, "  {} ({}) {} {}", device.name, device.hardware, device.level, versions.join(", "));
    }
    let _ = writeln!(
        out,
        "{} instructions: {} wrong, {} not run; {} judged by sampled rows, columns or heads\n",
        report.instructions, report.wrong, report.not_run, report.sampled
    );
    let _ = writeln!(
        out,
        "{:>10} {:>6} {:>7} {:>7}  {:<24} {:<28} shape",
        "error", "bits", "control", "trusted", "operator", "layer"
    );
    for row in report.table.iter().take(ROWS_SHOWN) {
        let subject = row.subject();
        let bits = |bits: Option<f64>| bits.map_or("-".into(), |bits| format!("{bits:.1}"));
        let error = match (subject.verdict, subject.units) {
            (Outcome::Failed, _) => "failed".to_string(),
            (Outcome::Refused, _) => "not run".to_string(),
            (_, Some(units)) if units >= 1e6 => format!("{units:.1e}"),
            (_, Some(units)) => format!("{units:.3}"),
            (_, None) => "-".to_string(),
        };
        let _ = writeln!(
            out,
            "{error:>10} {:>6} {:>7} {:>7}  {:<24} {:<28} {}",
            bits(subject.bits),
            bits(subject.control_bits),
            bits(row.trusted().bits),
            row.operator,
            row.layer,
            row.shape
        );
    }
    let _ = writeln!(
        out,
        "(error in units of the tolerance; effective bits of the typical element, beside exact arithmetic rounded once and beside the trusted device)\n"
    );
    match &report.first_wrong {
        None => {
            let _ = writeln!(out, "no operator is wrong: {} agrees with the oracle everywhere", names[0]);
        }
        Some(first) => {
            let row = &first.row;
            let _ = writeln!(
                out,
                "first wrong: {} in {} ({} {}, micro-batch {})\n  {}",
                first.operator,
                first.layer,
                row.range.name(),
                row.index,
                row.micro_batch,
                row.shape
            );
            let _ = writeln!(out, "  {}", row.subject().finding);
            if let Some(worst) = &row.worst {
                let tolerance = worst.tolerance.map_or("0 (exact)".into(), |t| format!("{t:.3e}"));
                let wanted = if first.defect_guess.kind == Kind::DiffersInRange { "alone" } else { "exact" };
                let error = worst.error.map_or("no number".into(), |e| format!("{e:.3e}"));
                let _ = writeln!(
                    out,
                    "  worst at {}{:?}: got {}, {wanted} {}, error {error}, tolerance {tolerance}; {:.2} % of its elements are wrong",
                    worst.output,
                    worst.index,
                    worst.got,
                    worst.want,
                    100.0 * row.wrong_share
                );
            }
            if let Some(sampled) = &row.sampled {
                let _ = writeln!(out, "  judged by {sampled}");
            }
            let guess = &first.defect_guess;
            let _ = writeln!(out, "  defect: {}. {}", guess.kind, guess.sentence);
            for experiment in &guess.experiments {
                let _ = writeln!(out, "    - {}: {}", experiment.ran, experiment.showed);
            }
            match (&first.saved, &first.reproducer) {
                (Some(path), _) => {
                    let _ = writeln!(out, "  reproducer {}", path.display());
                }
                (None, Some(text)) if text.len() <= 2000 => {
                    let _ = writeln!(out, "  reproducer:\n{text}");
                }
                _ => {}
            }
        }
    }
    if let Some(vote) = &report.vote {
        let _ = writeln!(out, "vote: {vote}");
    }
    match &report.spans {
        SpansSummary { same: Some(count), .. } => {
            let _ = writeln!(out, "in spans: {count} results have the same bits as one operator at a time");
        }
        SpansSummary { not_run: Some(reason), .. } => {
            let _ = writeln!(out, "in spans: not run: {reason}");
        }
        SpansSummary { .. } => {}
    }
    if let Some(growth) = &report.growth {
        out.push_str(&grown(growth, names));
    }
    if let Some(found) = &report.not_deterministic {
        let _ = writeln!(
            out,
            "not deterministic: {} in {}: {} of {} runs of the same operands have other bits than the first, all within the tolerance{}",
            found.operator,
            found.layer,
            found.other_bits,
            found.runs,
            if found.promised { "" } else { "; the device does not say that its bits repeat" }
        );
        let _ = writeln!(out, "  {}. {}", found.defect_guess.kind, found.defect_guess.sentence);
        if report.unsteady > 1 {
            let _ = writeln!(out, "  so it is in {} instructions; this is the first", report.unsteady);
        }
    }
    if report.clean_runs > 0 && (repeat > 1 || report.first_wrong.is_none()) {
        let _ = writeln!(
            out,
            "{} clean runs of each operator that is not wrong: a fault in one of them that shows in one of {:.0} of its runs or more often was missed with a probability of at most 5 %",
            report.clean_runs,
            1.0 / report.missed_rate_bound.max(1e-12)
        );
    }
    out
}

fn grown(growth: &GrowthSummary, names: &[String]) -> String {
    let mut out = String::new();
    let Some(first) = &growth.first else {
        return "free run: every value of the step has the same bits on both\n".into();
    };
    let _ = writeln!(
        out,
        "free run of the whole step on {} and {}: relative distance, by part",
        names[0],
        names.last().map_or("", String::as_str)
    );
    let _ = writeln!(out, "  first to differ: {first}");
    let step = growth.parts.len().div_ceil(PARTS_SHOWN).max(1);
    for (part, relative) in growth.parts.iter().step_by(step) {
        let relative = relative.map_or("not finite".into(), |relative| format!("{relative:.1e}"));
        let _ = writeln!(out, "  {relative:>10}  {part}");
    }
    if let Some((ours, theirs)) = growth.loss {
        let _ = writeln!(out, "  loss {ours:.7} and {theirs:.7}: {:.1e} apart", (ours - theirs).abs());
    }
    if let Some(state) = growth.state {
        let _ = writeln!(out, "  next state {state:.1e} apart");
    }
    out
}
