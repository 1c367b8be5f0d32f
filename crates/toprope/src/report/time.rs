//! Timeline by device, where the time went, histogram of step times, checks and snapshots.

use super::charts::{self, Axis, short};
use super::faults::group;
use super::html::Html;
use crate::progress::duration;
use toprope_guard::journal::{Accounts, DeviceDuty, RunRecord};

const SEGMENTS_MAX: usize = 2_000;
const BINS: usize = 48;

/// What each device was doing when.
pub fn timeline(page: &mut Html, run: &RunRecord) {
    page.raw("<section>\n<h2>Devices over time</h2>\n");
    let began = run.attempts.iter().filter_map(|attempt| attempt.began).min();
    let ended = run.attempts.iter().filter_map(|attempt| attempt.last).max();
    let (Some(began), Some(ended)) = (began, ended) else {
        page.raw("<p class=\"muted\">No line has a time.</p>\n</section>\n");
        return;
    };
    let since = |time: std::time::Duration| time.saturating_sub(began).as_secs_f64();
    let x = Axis::time(since(ended), 6);
    page.raw("<div class=\"lanes\">\n");
    let segments = &run.timeline[run.timeline.len().saturating_sub(SEGMENTS_MAX)..];
    for device in run.devices() {
        page.raw("<div class=\"name\">").text(&device).raw("</div><div class=\"lane\">");
        for segment in segments.iter().filter(|segment| segment.device == device) {
            let (class, words) = match segment.duty {
                DeviceDuty::Serving => ("serving", "serving"),
                DeviceDuty::Quarantined => ("quarantined", "in quarantine"),
            };
            let from = x.percent(since(segment.from));
            let to = x.percent(since(segment.to.unwrap_or(ended)));
            page.raw("<div class=\"").raw(class).raw("\" style=\"left:").number(from, 3).raw("%;width:");
            page.number(to - from, 3).raw("%\" title=\"").raw(words).raw(", attempt ");
            page.text(segment.attempt.to_string()).raw(", rank ").text(segment.rank.to_string());
            page.raw("\"></div>");
        }
        let marks = run.faults.iter().filter(|fault| fault.device == device);
        for (fault, time) in marks.filter_map(|fault| Some((fault, fault.time?))).take(SEGMENTS_MAX) {
            page.raw("<div class=\"mark ").raw(group(fault.class)).raw("\" style=\"left:");
            page.number(x.percent(since(time)), 3)
                .raw("%\" title=\"")
                .text(fault.class.name())
                .raw(", step ");
            page.text(fault.step.to_string()).raw("\"></div>");
        }
        page.raw("</div>\n");
    }
    page.raw("<div class=\"corner\"></div>");
    x.below(page);
    page.raw("</div>\n<ul class=\"key\"><li style=\"--mark:var(--blue)\"><i></i>serving</li>");
    page.raw("<li><i class=\"quarantined\"></i>in quarantine</li>");
    page.raw("<li style=\"--mark:var(--red)\"><i style=\"width:2px\"></i>fault</li></ul>\n</section>\n");
}

/// Goodput, and what took the rest of the time.
pub fn where_it_went(page: &mut Html, accounts: &Accounts) {
    page.raw("<section>\n<h2>Where the time went</h2>\n");
    let Some(goodput) = accounts.goodput else {
        page.raw("<p class=\"muted\">No step was measured yet.</p>\n</section>\n");
        return;
    };
    page.raw("<p>Goodput <b>").number(100.0 * goodput, 1).raw(" %</b> of ");
    page.text(duration(accounts.wall_seconds))
        .raw(": the time that the committed steps take at the primary's ");
    page.raw("clean speed (").text(step_time(accounts.clean_step_seconds.unwrap_or(0.0)));
    page.raw(" a step), over wall time.</p>\n<div class=\"stack\">");
    let share = |seconds: f64| 100.0 * seconds / accounts.wall_seconds;
    for ((_, seconds), class) in accounts.parts().into_iter().zip(PARTS).filter(|((_, s), _)| *s > 0.0) {
        page.raw("<div class=\"")
            .raw(class)
            .raw("\" style=\"width:")
            .number(share(seconds), 3)
            .raw("%\"></div>");
    }
    page.raw("</div>\n<table style=\"margin-top:10px\"><tbody>\n");
    for ((name, seconds), class) in accounts.parts().into_iter().zip(PARTS) {
        page.raw("<tr><td class=\"").raw(class).raw("\"><span class=\"swatch\"></span>").raw(name);
        page.raw("</td><td class=\"n\">").text(duration(seconds)).raw("</td><td class=\"n\">");
        page.number(share(seconds), 2).raw(" %</td></tr>\n");
    }
    page.raw("</tbody></table>\n</section>\n");
}

const PARTS: [&str; 6] = ["part-0", "part-1", "part-2", "part-3", "part-4", "part-5"];

/// How long steps took.
pub fn histogram(page: &mut Html, run: &RunRecord, accounts: &Accounts) {
    page.raw("<section>\n<h2>Step times</h2>\n");
    let mut seconds: Vec<f64> = run.steps.iter().map(|step| step.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize];
    let Some((&low, &slowest)) = seconds.first().zip(seconds.last()) else {
        page.raw("<p class=\"muted\">No step was measured yet.</p>\n</section>\n");
        return;
    };
    // The slowest ones, which faults fell into, would press all others into one bar.
    let high = (at(0.99) * 1.05).max(low * 1.01).max(1e-9);
    let width = (high - low) / BINS as f64;
    let mut bins = [0_u64; BINS];
    let beyond = seconds.iter().filter(|value| **value > high).count();
    for value in seconds.iter().filter(|value| **value <= high) {
        bins[(((value - low) / width) as usize).min(BINS - 1)] += 1;
    }
    let most = bins.iter().max().copied().unwrap_or(1);
    let y = Axis::new(0.0, most as f64, 4, |count| format!("{count:.0}"));
    let x = Axis::new(low, high, 4, |seconds| format!("{} ms", short(seconds * 1e3)));
    page.raw("<div class=\"plot\">\n");
    y.left(page);
    page.raw("<div class=\"area low\">");
    charts::begin(page, "how many steps took how long");
    y.grid(page);
    for (index, count) in bins.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = y.percent(*count as f64);
        let left = 100.0 * index as f64 / BINS as f64;
        page.raw("<rect class=\"bar\" x=\"").number(left + 0.15, 3).raw("\" width=\"");
        page.number(100.0 / BINS as f64 - 0.3, 3).raw("\" y=\"").number(100.0 - height, 3);
        page.raw("\" height=\"").number(height, 3).raw("\"/>");
    }
    if let Some(median) = accounts.clean_step_seconds {
        let at = x.percent(median);
        page.raw("<line class=\"median\" y1=\"0\" y2=\"100\" x1=\"").number(at, 2).raw("\" x2=\"");
        page.number(at, 2).raw("\"/>");
    }
    page.raw("</svg></div>\n");
    x.below(page);
    page.raw("</div>\n<dl style=\"margin-top:12px\">");
    for (name, value) in [
        ("median", at(0.5)),
        ("95 % are faster than", at(0.95)),
        ("99 % are faster than", at(0.99)),
        ("slowest", slowest),
    ] {
        page.raw("<dt>").raw(name).raw("</dt><dd>").text(step_time(value)).raw("</dd>");
    }
    page.raw("</dl>\n");
    if beyond > 0 {
        page.raw("<p class=\"muted\">").text(beyond.to_string());
        page.raw(" slower step(s) lie beyond the right end; faults fell into most such steps.</p>\n");
    }
    page.raw("</section>\n");
}

fn step_time(seconds: f64) -> String {
    if seconds < 10.0 { format!("{} ms", short(seconds * 1e3)) } else { duration(seconds) }
}

/// What the checks cost, and how often snapshots are taken.
pub fn checks(page: &mut Html, run: &RunRecord, accounts: &Accounts) {
    page.raw("<section>\n<h2>Checks</h2>\n<dl>");
    let mut row = |name: &'static str, value: String| {
        page.raw("<dt>").raw(name).raw("</dt><dd>").text(value).raw("</dd>");
    };
    let level = run.attempts.iter().rev().find_map(|attempt| attempt.checks.clone());
    row("level", level.unwrap_or_else(|| "not stated".to_owned()));
    let cost = run.checks;
    if cost.steps > 0 && cost.step_seconds > 0.0 {
        row("checks that fired", cost.checks.to_string());
        row("time that they took", duration(cost.seconds));
        row("share of the measured steps", format!("{:.2} %", 100.0 * cost.seconds / cost.step_seconds));
    } else {
        row("their cost", "not measured in this run".to_owned());
    }
    let judged = |verdict: &str| {
        let told = run.notes.iter().filter(|(_, event, _)| event == "judged");
        told.filter(|(_, _, text)| text.contains(&format!("verdict {verdict}"))).count().to_string()
    };
    row("alarms found transient", judged("transient"));
    row("alarms found persistent", judged("persistent"));
    row("false alarms", judged("false_alarm"));
    row("alarms from the data", judged("data"));
    row("alarms left open", judged("unknown"));
    page.raw("</dl>\n<h2 style=\"margin-top:18px\">Snapshots and checkpoints</h2>\n<dl>");
    let mut row = |name: &'static str, value: String| {
        page.raw("<dt>").raw(name).raw("</dt><dd>").text(value).raw("</dd>");
    };
    row("durable checkpoints", run.checkpoints.len().to_string());
    if let Some((step, _)) = run.checkpoints.last() {
        row("newest of them, step", step.to_string());
    }
    let faults = run.faults.iter().filter(|fault| fault.cost_seconds.is_some()).count();
    let between = (faults > 0).then(|| accounts.wall_seconds / faults as f64);
    row("mean time between costly faults", between.map_or_else(|| "no such fault".to_owned(), duration));
    match run.snapshot_interval {
        Some((steps, snapshot, step, fault)) => {
            let best = (2.0 * snapshot * fault).sqrt();
            row("a snapshot takes", step_time(snapshot));
            row("Young/Daly's best interval", duration(best));
            row("in steps", short(best / step.max(1e-9)));
            row("interval in force, steps", steps.to_string());
            page.raw("</dl>\n<p class=\"muted\">Best interval: √(2 × time of a snapshot × mean time between faults).</p>\n");
        }
        None => {
            row("snapshots to the host", "none needed".to_owned());
            page.raw("</dl>\n<p class=\"muted\">The state lies in memory that outlives a worker, so a death costs no more than the step under way.</p>\n");
        }
    }
    page.raw("</section>\n");
}
