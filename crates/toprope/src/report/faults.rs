//! The table of faults.

use super::html::Html;
use super::moment;
use std::time::Duration;
use toprope_guard::journal::{FaultRecord, RunRecord};
use toprope_program::FaultClass;

/// Rows of the table; the journal has all.
const ROWS_MAX: usize = 500;

const DAY: Duration = Duration::from_secs(86_400);

/// Groups of classes that look alike: style and words.
pub const GROUPS: [(&str, &str); 4] = [
    ("gone", "gone: lost, hang, driver"),
    ("wrong", "wrong values: mismatch, non-finite"),
    ("memory", "cannot: out of memory, unsupported"),
    ("odd", "odd: spike, slow"),
];

/// The group of a class.
pub fn group(class: FaultClass) -> &'static str {
    match class {
        FaultClass::Lost | FaultClass::Hang | FaultClass::Driver => "gone",
        FaultClass::NonFinite | FaultClass::Mismatch => "wrong",
        FaultClass::OutOfMemory | FaultClass::Unsupported => "memory",
        FaultClass::Spike | FaultClass::Slow => "odd",
    }
}

/// The section.
pub fn section(page: &mut Html, run: &RunRecord) {
    page.raw("<section>\n<h2>Faults</h2>\n");
    if run.faults.is_empty() {
        page.raw("<p class=\"muted\">None.</p>\n</section>\n");
        return;
    }
    if run.faults.len() > ROWS_MAX {
        page.raw("<p class=\"muted\">The last ").text(ROWS_MAX.to_string()).raw(" of ");
        page.text(run.faults.len().to_string()).raw("; the journal has all.</p>\n");
    }
    page.raw(
        "<div class=\"scroll\"><table class=\"cards\">\n<thead><tr><th>when</th><th class=\"n\">step</th>",
    );
    page.raw("<th>device</th><th>class</th><th>what was seen</th><th>operator</th><th>what was done</th>");
    page.raw("<th>what it cost</th></tr></thead>\n<tbody>\n");
    let times = || run.faults.iter().filter_map(|fault| fault.time);
    let long = times().max().zip(times().min()).is_some_and(|(last, first)| last - first > DAY);
    for fault in &run.faults[run.faults.len().saturating_sub(ROWS_MAX)..] {
        row(page, fault, long);
    }
    page.raw("</tbody></table></div>\n</section>\n");
}

/// The particulars without the class's name, which stands beside them.
fn seen(fault: &FaultRecord) -> &str {
    let name = fault.class.name().replace('_', " ");
    let rest = fault.detail.strip_prefix(&name).and_then(|rest| rest.strip_prefix(": "));
    rest.unwrap_or(&fault.detail)
}

fn row(page: &mut Html, fault: &FaultRecord, long: bool) {
    page.raw("<tr><td class=\"when\" data-label=\"when\">");
    // The day stands at the page's head; where all happened within one, the time of day is enough.
    let when = fault.time.map(|time| moment(time)[if long { 5..19 } else { 11..19 }].to_owned());
    page.text(when.unwrap_or_else(|| "–".to_owned())).raw("</td><td class=\"n\" data-label=\"step\">");
    page.text(fault.step.to_string())
        .raw("</td><td class=\"device\" data-label=\"device\">")
        .text(&fault.device);
    if fault.rank > 0 {
        page.raw(", rank ").text(fault.rank.to_string());
    }
    page.raw("</td><td data-label=\"class\"><span><span class=\"class ").raw(group(fault.class)).raw("\">");
    page.text(fault.class.name().replace('_', " ")).raw("</span>");
    if fault.injected {
        page.raw(" <span class=\"tag\">injected</span>");
    }
    page.raw("</span></td><td data-label=\"seen\">").text(seen(fault));
    page.raw(if fault.place.is_some() {
        "</td><td data-label=\"operator\">"
    } else {
        "</td><td class=\"empty\">"
    });
    page.text(fault.place.as_deref().unwrap_or_default()).raw("</td><td data-label=\"done\">");
    page.text(&fault.action).raw("</td><td data-label=\"cost\">").text(fault.cost()).raw("</td></tr>\n");
}
