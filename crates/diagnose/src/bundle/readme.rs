//! The one page of a report.

use super::Surroundings;
use super::evidence::{Evidence, Juror};
use crate::row::Outcome;
use std::fmt::Write;

/// The page. Writing to a String cannot fail.
pub fn readme(evidence: &Evidence, surroundings: &Surroundings) -> String {
    let mut out = String::new();
    let operator = evidence.probe.operator();
    let subject = &evidence.jury[0];
    let name = surroundings.told(&subject.standing.device);
    let _ = writeln!(out, "# `{}` is wrong on {name}\n", operator.name());
    let _ = writeln!(out, "Found in {}: {}.\n", surroundings.told(&surroundings.source), evidence.found);
    let _ = writeln!(out, "**What is wrong.** {} (`{}`)\n", evidence.guess.sentence, evidence.guess.kind);
    for experiment in &evidence.guess.experiments {
        let _ = writeln!(out, "- {}: {}", experiment.ran, experiment.showed);
    }
    let _ = writeln!(out, "\n**Smallest failing case.** {}", operands(evidence));
    let attributes = serde_json::to_string(operator).unwrap_or_default();
    let _ = writeln!(out, "`{attributes}`. {}", subject.standing.finding);
    let _ = writeln!(out, "{}\n", numbers(evidence));
    let (wrong, runs) = evidence.before;
    let after = evidence.after.map_or("the device could not be opened anew".into(), |(wrong, runs)| {
        format!("{wrong} of {runs} after a reset (the device opened anew)")
    });
    let _ = writeln!(out, "**How often.** {wrong} of {runs} runs are wrong; {after}.\n");
    let _ = writeln!(out, "**Who agrees.** Each on the same operands, against the f64 result:\n");
    let _ = writeln!(
        out,
        "| device | hardware, versions | verdict | error, units of the tolerance | effective bits | exact arithmetic rounded once |"
    );
    let _ = writeln!(out, "| --- | --- | --- | --- | --- | --- |");
    for juror in &evidence.jury {
        let _ = writeln!(out, "{}", line(juror, surroundings));
    }
    let (median, largest) = condition(evidence);
    let _ = writeln!(
        out,
        "\n**Condition.** The sum of absolute contributions over the result's size: {median:.2} for the median element, {largest:.3e} for the worst. A result is off by at most this times the unit roundoff times the number of roundings; the bounds in `case.json` take it in.\n"
    );
    let _ = writeln!(
        out,
        "**The same in msprobe's figures** (as mindstudio-probe 26.2.0 computes them, its golden result being the f64 one):\n"
    );
    out.push_str(&figures(evidence, surroundings));
    let _ = writeln!(
        out,
        "\n**Run it.** `python3 repro_torch.py --device cpu` computes the operator in your torch on the same operands, prints its error and ends with 1 where it is wrong; it needs torch and `case.json` beside it, and nothing of Toprope. `matrix.csv` has other shapes and dtypes. `reproducer.tp` is the case as a Toprope program.\n"
    );
    for program in &surroundings.programs {
        let _ = writeln!(out, "{}\n", program.told);
    }
    let _ = writeln!(out, "Made by `{}`.", surroundings.told(&surroundings.command));
    out
}

fn operands(evidence: &Evidence) -> String {
    let record = evidence.probe.operator().definition().record();
    let told = |(at, tensor): (usize, &toprope_program::Tensor)| {
        let name = record.operands[at.min(record.operands.len() - 1)].name;
        format!("`{name}` {}{:?}", tensor.dtype, tensor.sizes)
    };
    evidence.probe.operands().iter().enumerate().map(told).collect::<Vec<_>>().join(", ") + "."
}

fn numbers(evidence: &Evidence) -> &'static str {
    match (evidence.own_data, evidence.drawn.iter().any(Option::is_some)) {
        (true, _) => "The operands are numbers of the run, as far as they are left after shrinking.",
        (false, true) => "The operands are drawn from a seed; nothing of the run's data is in this report.",
        (false, false) => {
            "The operands are zeros and ones, or drawn or computed from drawn numbers; nothing of the run's data is in this report."
        }
    }
}

fn line(juror: &Juror, surroundings: &Surroundings) -> String {
    let (standing, description) = (&juror.standing, &juror.description);
    let versions: Vec<String> =
        description.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let bits = |bits: Option<f64>| bits.map_or("-".into(), |bits| format!("{bits:.1}"));
    let units = standing.units.map_or("-".into(), |units| {
        if units >= 1e6 { format!("{units:.1e}") } else { format!("{units:.3}") }
    });
    let verdict = match standing.verdict {
        Outcome::Agree => "agrees",
        Outcome::Differ => "**wrong**",
        Outcome::Incomparable => "incomparable",
        Outcome::Refused => "not run",
        Outcome::Failed => "failed",
    };
    format!(
        "| {} | {} {} {} | {verdict} | {units} | {} | {} |",
        surroundings.told(&standing.device),
        description.hardware,
        description.level,
        versions.join(", "),
        bits(standing.bits),
        bits(standing.control_bits)
    )
}

/// Median and largest of magnitude over size, of the first output with a tolerance.
fn condition(evidence: &Evidence) -> (f64, f64) {
    let exact = &evidence.exact;
    for (want, magnitude) in exact.want.iter().zip(&exact.measured.whole) {
        let mut ratios: Vec<f64> = want
            .data
            .iter()
            .zip(magnitude)
            .filter(|(want, _)| **want != 0.0 && want.is_finite())
            .map(|(want, magnitude)| magnitude / want.abs())
            .filter(|ratio| *ratio > 0.0 && ratio.is_finite())
            .collect();
        if !ratios.is_empty() {
            ratios.sort_by(f64::total_cmp);
            return (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
        }
    }
    (1.0, 1.0)
}

fn figures(evidence: &Evidence, surroundings: &Surroundings) -> String {
    let mut out = String::new();
    let Some(trusted) = evidence.jury.last().and_then(|juror| juror.ratios) else {
        return "The outputs are no floats: msprobe compares them bit for bit.\n".into();
    };
    let _ = writeln!(
        out,
        "| device | cosine | max abs error | within 1/100, 1/1,000, 1/10,000 | RMSE | small-value errors | max relative error | mean relative error | error balance | status |"
    );
    let _ = writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for juror in &evidence.jury {
        let Some(r) = juror.ratios else { continue };
        let _ = writeln!(
            out,
            "| {} | {} | {:.3e} | {:.4}, {:.4}, {:.4} | {:.3e} | {:.4} | {:.3e} | {:.3e} | {:.4} | {} |",
            surroundings.told(&juror.standing.device),
            r.cosine.map_or("-".into(), |cosine| format!("{cosine:.6}")),
            r.max_absolute_error,
            r.within[0],
            r.within[1],
            r.within[2],
            r.rmse,
            r.small_value_errors,
            r.max_relative_error,
            r.mean_relative_error,
            r.error_balance,
            r.status()
        );
    }
    if let Some(subject) = evidence.jury[0].ratios {
        let beside = subject.beside(&trusted, evidence.probe.operator().name());
        let told = beside.map(|(ratio, limit)| {
            let status = if ratio > limit { "error" } else { "pass" };
            format!("{ratio:.3} of {limit} ({status})")
        });
        let _ = writeln!(
            out,
            "\nBeside the trusted device, and msprobe's limit (small-value errors, RMSE, max relative, mean relative): {}.",
            told.join(", ")
        );
    }
    out
}
