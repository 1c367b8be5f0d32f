//! The loss curve with fault marks.

use super::charts::{self, Axis, short};
use super::faults::{GROUPS, group};
use super::html::Html;
use toprope_guard::journal::{FaultRecord, RunRecord, StepRecord};

/// More points than that are not told apart on any screen.
const POINTS_MAX: usize = 800;
/// More marks than that hide the curve.
const MARKS_MAX: usize = 400;

/// The section.
pub fn section(page: &mut Html, run: &RunRecord) {
    page.raw("<section>\n<h2>Loss and faults</h2>\n");
    let finite: Vec<(f64, f64)> =
        run.steps.iter().filter_map(|step| Some((step.step as f64, step.loss?))).collect();
    if finite.is_empty() {
        page.raw("<p class=\"muted\">No step with a finite loss yet.</p>\n</section>\n");
        return;
    }
    let bound =
        |pick: fn(f64, f64) -> f64, start: f64| finite.iter().fold(start, |a, (_, loss)| pick(a, *loss));
    let (low, high) = (bound(f64::min, f64::INFINITY), bound(f64::max, f64::NEG_INFINITY));
    let margin = (high - low) * 0.05;
    let y = Axis::new(low - margin, high + margin, 5, short);
    let last = run.steps.last().map_or(0, |step| step.step);
    let x = Axis::new(0.0, last.max(1) as f64, 6, |step| format!("{step:.0}"));
    page.raw("<div class=\"plot\">\n");
    y.left(page);
    page.raw("<div class=\"area\">");
    charts::begin(page, "loss in nats a token by step");
    y.grid(page);
    let points = thinned(&run.steps);
    let place = |step: &StepRecord| step.loss.map(|loss| (x.percent(step.step as f64), y.percent(loss)));
    charts::curve(page, points.iter().map(|step| place(step)));
    page.raw("</svg>\n");
    for fault in shown(&run.faults) {
        let at = run.steps.partition_point(|step| step.step < fault.step);
        let loss = run.steps.get(at).or(run.steps.last()).and_then(|step| step.loss);
        page.raw("<div class=\"mark ").raw(group(fault.class)).raw("\" style=\"left:");
        page.number(x.percent(fault.step as f64), 2).raw("%\" title=\"step ").text(fault.step.to_string());
        page.raw(": ").text(fault.class.name()).raw(" on ").text(&fault.device).raw("\"><i style=\"bottom:");
        page.number(y.percent(loss.unwrap_or(high)), 2).raw("%\"></i></div>");
    }
    page.raw("</div>\n");
    x.below(page);
    page.raw("</div>\n");
    page.raw("<ul class=\"key\">");
    let mut keys =
        GROUPS.iter().filter(|(class, _)| run.faults.iter().any(|fault| group(fault.class) == *class));
    for (class, words) in &mut keys {
        page.raw("<li class=\"").raw(class).raw("\"><i></i>").raw(words).raw("</li>");
    }
    page.raw("<li style=\"--mark:var(--blue)\"><i></i>loss in nats a token, by step</li></ul>\n");
    if run.faults.len() > MARKS_MAX {
        page.raw("<p class=\"muted\">The last ").text(MARKS_MAX.to_string()).raw(" faults are marked.</p>\n");
    }
    page.raw("</section>\n");
}

fn shown(faults: &[FaultRecord]) -> &[FaultRecord] {
    &faults[faults.len().saturating_sub(MARKS_MAX)..]
}

/// At most [`POINTS_MAX`] steps: of each stretch its lowest and its highest, so that no spike is lost.
fn thinned(steps: &[StepRecord]) -> Vec<&StepRecord> {
    if steps.len() <= POINTS_MAX {
        return steps.iter().collect();
    }
    let stretch = steps.len().div_ceil(POINTS_MAX / 2);
    let mut kept = Vec::with_capacity(POINTS_MAX);
    for stretch in steps.chunks(stretch) {
        let by_loss = |a: &&StepRecord, b: &&StepRecord| {
            a.loss.unwrap_or(f64::INFINITY).total_cmp(&b.loss.unwrap_or(f64::INFINITY))
        };
        let mut ends: Vec<&StepRecord> =
            stretch.iter().min_by(by_loss).into_iter().chain(stretch.iter().max_by(by_loss)).collect();
        ends.sort_by_key(|step| step.step);
        ends.dedup_by_key(|step| step.step);
        kept.extend(ends);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_spikes_and_few_points() {
        let steps: Vec<StepRecord> = (0..100_000_u64)
            .map(|step| StepRecord {
                step,
                attempt: 1,
                time: None,
                loss: Some(if step == 54_321 { 99.0 } else { 3.0 }),
                tokens: 1,
                seconds: 1.0,
            })
            .collect();
        let kept = thinned(&steps);
        assert!(kept.len() <= POINTS_MAX, "{}", kept.len());
        assert!(kept.iter().any(|step| step.loss == Some(99.0)));
        assert!(kept.is_sorted_by_key(|step| step.step));
    }
}
