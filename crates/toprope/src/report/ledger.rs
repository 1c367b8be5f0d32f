//! The proof, the processes, and lines that were passed over.

use super::html::Html;
use super::moment;
use crate::progress::duration;
use crate::verb::status::proof_line;
use toprope_guard::journal::{Proof, RunRecord};

const LINES_MAX: usize = 50;

/// The ledger's proof.
pub fn section(page: &mut Html, run: &RunRecord, proof: Option<&Proof>) {
    page.raw("<section>\n<h2>Ledger</h2>\n");
    match proof {
        None => {
            page.raw("<p class=\"muted\">The run has no guard, and so keeps no ledger.</p>\n");
        }
        Some(proof) => {
            page.raw(if proof.holds() { "<p class=\"verdict good\">" } else { "<p class=\"verdict bad\">" });
            page.text(proof_line(proof))
                .raw("</p>\n<p class=\"muted\">A step's batch is a function of its number. ");
            page.raw("Each step below the end has exactly one commit that counts, by the rule in docs/journal.md; ");
            page.raw("<code>toprope status RUN --ledger</code> lists them.</p>\n");
        }
    }
    if !run.bad_lines.is_empty() {
        page.raw("<p>Lines that were passed over:</p>\n<table><tbody>\n");
        for line in run.bad_lines.iter().take(LINES_MAX) {
            let name = line.path.file_name().unwrap_or_default().to_string_lossy();
            page.raw("<tr><td class=\"when\">").text(name).raw(" line ").text(line.number.to_string());
            page.raw("</td><td>").text(&line.reason).raw("</td></tr>\n");
        }
        page.raw("</tbody></table>\n");
        if run.bad_lines.len() > LINES_MAX {
            let more = run.bad_lines.len() - LINES_MAX;
            page.raw("<p class=\"muted\">and ").text(more.to_string()).raw(" more.</p>\n");
        }
    }
    page.raw("</section>\n");
}

/// The processes that worked on the run.
pub fn attempts(page: &mut Html, run: &RunRecord) {
    page.raw("<section>\n<h2>Attempts</h2>\n<table class=\"cards\"><thead><tr><th class=\"n\">attempt</th>");
    page.raw(
        "<th>began</th><th class=\"n\">from step</th><th>devices</th><th>lasted</th><th>ended</th></tr>",
    );
    page.raw("</thead><tbody>\n");
    for attempt in &run.attempts[run.attempts.len().saturating_sub(LINES_MAX)..] {
        let lasted = attempt.began.zip(attempt.last).map(|(began, last)| last.saturating_sub(began));
        let ended = match (&attempt.stop_reason, attempt.interrupted, attempt.ended) {
            (_, true, _) => "asked to stop".to_owned(),
            (Some(reason), ..) => reason.replace('_', " "),
            (None, _, true) => "done".to_owned(),
            (None, _, false) => "without a word".to_owned(),
        };
        page.raw("<tr><td class=\"n\" data-label=\"attempt\">").text(attempt.attempt.to_string());
        page.raw("</td><td class=\"when\" data-label=\"began\">")
            .text(attempt.began.map(moment).unwrap_or_default());
        page.raw("</td><td class=\"n\" data-label=\"from step\">");
        page.text(attempt.from.map(|step| step.to_string()).unwrap_or_default());
        page.raw("</td><td data-label=\"devices\">").text(attempt.devices.join(", "));
        page.raw("</td><td data-label=\"lasted\">");
        page.text(lasted.map(|lasted| duration(lasted.as_secs_f64())).unwrap_or_default());
        page.raw("</td><td data-label=\"ended\">").text(ended).raw("</td></tr>\n");
    }
    page.raw("</tbody></table>\n</section>\n");
}
