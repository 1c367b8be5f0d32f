//! `report.html`: a run on one page that needs no network, light or dark, on a telephone or a wide screen.
//!
//! A pure function of the [`RunRecord`]. All that comes from outside goes through [`html::Html::text`], which escapes;
//! what does not is a `&'static str`, so that it cannot be forgotten. Scripts there are none, and the page's own policy
//! forbids them and every address.

mod charts; // axes, curves, bars
mod faults; // the table of faults
mod html; // text that is escaped by construction
mod ledger; // the proof, the processes, lines that were passed over
mod loss; // the loss curve with fault marks
pub mod qualification; // whether a device is fit
mod style; // colours and layout
mod time; // timeline by device, where the time went, histogram, checks, snapshots

use crate::progress::duration;
use html::Html;
use std::path::PathBuf;
use toprope_guard::journal::{Accounts, GuardSummary, Proof, RunRecord, RunState};
use toprope_world::{FileError, World, utc_timestamp, write_durably};

/// Writes the report of a run into its folder and gives its path.
///
/// # Errors
/// It cannot be written.
pub fn write(world: &dyn World, run: &RunRecord) -> Result<PathBuf, FileError> {
    let path = run.folder.join("report.html");
    write_durably(world.files(), &path, report(run).as_bytes())?;
    Ok(path)
}

/// The page.
pub fn report(run: &RunRecord) -> String {
    let accounts = Accounts::of(run);
    let summary = GuardSummary::of(run);
    let proof = run.ledger.is_kept().then(|| run.ledger.prove());
    let mut page = Html::new();
    page.raw(HEAD).raw("<style>").raw(style::CSS).raw("</style>\n<title>Toprope run ").text(&run.run_id);
    page.raw("</title>\n</head>\n<body>\n<main>\n");
    header(&mut page, run);
    tiles(&mut page, run, &accounts, &summary, proof.as_ref());
    loss::section(&mut page, run);
    time::timeline(&mut page, run);
    time::where_it_went(&mut page, &accounts);
    faults::section(&mut page, run);
    page.raw("<div class=\"pair\">\n");
    time::histogram(&mut page, run, &accounts);
    time::checks(&mut page, run, &accounts);
    page.raw("</div>\n");
    ledger::section(&mut page, run, proof.as_ref());
    ledger::attempts(&mut page, run);
    page.raw("<footer>toprope ").text(&run.version).raw(" · made from <code>journal.jsonl</code> and ");
    page.raw("<code>metrics.jsonl</code> · <code>toprope status RUN --html</code> makes it anew</footer>\n");
    page.raw("</main>\n</body>\n</html>\n");
    page.finish()
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta name=\"color-scheme\" content=\"light dark\">
<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">
";

fn header(page: &mut Html, run: &RunRecord) {
    let (class, word) = match &run.state {
        RunState::Running { .. } => ("running", "running".to_owned()),
        RunState::Done => ("good", "done".to_owned()),
        RunState::Stopped { reason } => ("warn", format!("stopped: {reason}")),
        RunState::Died => ("bad", "ended without a word".to_owned()),
    };
    page.raw("<header>\n<h1>Run ").text(&run.run_id).raw(" <span class=\"badge ").raw(class).raw("\">");
    page.text(&word).raw("</span></h1>\n<p class=\"muted\">").text(run.folder.to_string_lossy());
    if let Some(began) = run.attempts.first().and_then(|attempt| attempt.began) {
        page.raw(" · began ").text(moment(began));
    }
    page.raw(" · ").text(run.devices().join(", ")).raw("</p>\n</header>\n");
}

/// A time without its fraction of a second.
fn moment(time: std::time::Duration) -> String {
    let text = utc_timestamp(time);
    format!("{} {} UTC", &text[..10], &text[11..19])
}

fn tiles(
    page: &mut Html,
    run: &RunRecord,
    accounts: &Accounts,
    summary: &GuardSummary,
    proof: Option<&Proof>,
) {
    page.raw("<div class=\"tiles\">\n");
    let mut tile = |class: &'static str, value: String, label: &str| {
        page.raw("<div class=\"tile ").raw(class).raw("\"><b>").text(value).raw("</b><span>");
        page.text(label).raw("</span></div>\n");
    };
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let loss = run.steps.last().and_then(|step| step.loss);
    tile("", run.committed_steps().to_string(), "steps committed");
    tile("", or_dash(loss.map(|loss| format!("{loss:.4}"))), "last loss, nats a token");
    tile("", or_dash(accounts.goodput.map(|goodput| format!("{:.1} %", 100.0 * goodput))), "goodput");
    let injected = match summary.faults_injected {
        0 => "faults".to_owned(),
        count => format!("faults, {count} injected"),
    };
    tile("", run.faults.len().to_string(), &injected);
    tile("", duration(summary.seconds_lost), "lost to faults");
    match proof {
        None => tile("", "–".to_owned(), "no ledger: the run has no guard"),
        Some(proof) => {
            let class = if proof.holds() { "good" } else { "bad" };
            let counts = format!("{} / {}", proof.batches_lost, proof.batches_doubled);
            tile(class, counts, "batches lost / doubled");
        }
    }
    page.raw("</div>\n");
}

#[cfg(test)]
mod tests;
