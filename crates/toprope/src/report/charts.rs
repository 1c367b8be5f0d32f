//! Axes, curves and bars. What is drawn is stretched to the place that it has; words stand beside it as text, so that
//! they keep their size on any screen.

use super::html::Html;

/// A range of an axis, and its marks.
#[derive(Clone, Debug)]
pub struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From `low` to `high` with about `count` round marks, each shown by `label`. An empty range is widened.
    pub fn new(low: f64, high: f64, count: usize, label: impl Fn(f64) -> String) -> Axis {
        Axis::stepped(low, high, count, round_step, label)
    }

    /// Seconds from 0, with marks at round minutes, hours or days where there are so many.
    pub fn time(high: f64, count: usize) -> Axis {
        Axis::stepped(0.0, high, count, round_time, clock)
    }

    fn stepped(
        low: f64,
        high: f64,
        count: usize,
        step: fn(f64) -> f64,
        label: impl Fn(f64) -> String,
    ) -> Axis {
        let (low, high) = if low.is_finite() && high.is_finite() { (low, high) } else { (0.0, 1.0) };
        let high = if high > low { high } else { low + low.abs().max(1.0) * 1e-3 };
        let step = step((high - low) / count.max(1) as f64);
        let first = (low / step).ceil();
        let ticks = (0..=2 * count).map(|index| (first + index as f64) * step);
        let ticks = ticks.take_while(|tick| *tick <= high + step * 1e-9);
        Axis { low, high, ticks: ticks.map(|tick| (tick, label(tick))).collect() }
    }

    /// Where a value lies, in percent from the low end.
    pub fn percent(&self, value: f64) -> f64 {
        (100.0 * (value - self.low) / (self.high - self.low)).clamp(0.0, 100.0)
    }

    /// Its marks in percent.
    fn places(&self) -> impl Iterator<Item = (f64, &str)> {
        self.ticks.iter().map(|(tick, label)| (self.percent(*tick), label.as_str()))
    }

    /// The words of a vertical axis.
    pub fn left(&self, page: &mut Html) {
        page.raw("<div class=\"axis-y\">");
        for (percent, label) in self.places() {
            page.raw("<span style=\"bottom:").number(percent, 2).raw("%\">").text(label).raw("</span>");
        }
        page.raw("</div>");
    }

    /// The words of a horizontal axis.
    pub fn below(&self, page: &mut Html) {
        page.raw("<div class=\"axis-x\">");
        for (percent, label) in self.places() {
            // Words at the ends stay within the plot.
            let class = match percent {
                p if p < 3.0 => "first",
                p if p > 97.0 => "last",
                _ => "",
            };
            page.raw("<span class=\"").raw(class).raw("\" style=\"left:").number(percent, 2).raw("%\">");
            page.text(label).raw("</span>");
        }
        page.raw("</div>");
    }

    /// Lines across the plot at a vertical axis's marks, in a drawing of 100 × 100.
    pub fn grid(&self, page: &mut Html) {
        for (percent, _) in self.places() {
            let y = 100.0 - percent;
            page.raw("<line class=\"grid\" x1=\"0\" x2=\"100\" y1=\"").number(y, 2).raw("\" y2=\"");
            page.number(y, 2).raw("\"/>");
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(f64::MIN_POSITIVE).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// A step of seconds that people count in, at least `least`.
fn round_time(least: f64) -> f64 {
    const STEPS: [f64; 15] = [
        10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 10_800.0, 21_600.0,
        43_200.0, 86_400.0,
    ];
    if least < 5.0 {
        return round_step(least);
    }
    let days = || round_step(least / 86_400.0).max(1.0) * 86_400.0;
    STEPS.into_iter().find(|step| *step >= least).unwrap_or_else(days)
}

/// Seconds since the start, as a clock shows them.
fn clock(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds == 0.0 => "0".to_owned(),
        0..60 => format!("{} s", short(seconds)),
        60..3_600 => format!("{}:{:02} min", whole / 60, whole % 60),
        3_600..172_800 => format!("{}:{:02} h", whole / 3_600, whole / 60 % 60),
        _ => format!("{} d", short(seconds / 86_400.0)),
    }
}

/// A number with as many digits as tell neighbouring marks apart.
pub fn short(value: f64) -> String {
    let text = match value.abs() {
        v if v >= 1e5 => format!("{value:.1e}"),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        v if v >= 1e-2 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    };
    if text.contains('.') && !text.contains('e') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

/// Begins a drawing of 100 × 100 that is stretched to its place.
pub fn begin(page: &mut Html, what: &str) {
    page.raw("<svg viewBox=\"0 0 100 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"");
    page.text(what).raw("\">");
}

/// A curve through points in percent; `None` breaks it.
pub fn curve(page: &mut Html, points: impl IntoIterator<Item = Option<(f64, f64)>>) {
    page.raw("<path class=\"curve\" d=\"");
    let mut down = false;
    for point in points {
        match point {
            Some((x, y)) => {
                page.raw(if down { "L" } else { "M" }).number(x, 2).raw(" ").number(100.0 - y, 2);
                if !down {
                    // A point alone is seen, too.
                    page.raw("h0.01");
                }
                down = true;
            }
            None => down = false,
        }
    }
    page.raw("\"/>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_within() {
        let axis = Axis::new(0.0, 97.0, 5, short);
        let ticks: Vec<f64> = axis.ticks.iter().map(|(tick, _)| *tick).collect();
        assert_eq!(ticks, [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(axis.percent(48.5), 50.0);
        assert_eq!(axis.percent(1e9), 100.0);
        for (low, high) in [(1.0, 1.0), (0.0, 0.0), (f64::NAN, 1.0), (5.0, -5.0), (0.0, 1e300), (-3.0, 1e-9)]
        {
            let axis = Axis::new(low, high, 5, short);
            assert!(!axis.ticks.is_empty() && axis.ticks.len() <= 11, "{low} {high}: {axis:?}");
            assert!(axis.places().all(|(percent, _)| (0.0..=100.0).contains(&percent)));
        }
    }

    #[test]
    fn times_have_marks_that_people_count_in() {
        let labels = |seconds: f64| -> Vec<String> {
            Axis::time(seconds, 6).ticks.into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(1.2), ["0", "0.2 s", "0.4 s", "0.6 s", "0.8 s", "1 s", "1.2 s"]);
        assert_eq!(labels(460.0), ["0", "2:00 min", "4:00 min", "6:00 min"]);
        assert_eq!(labels(40_000.0), ["0", "2:00 h", "4:00 h", "6:00 h", "8:00 h", "10:00 h"]);
        assert_eq!(labels(1e6), ["0", "2 d", "4 d", "6 d", "8 d", "10 d"]);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.25, 1.0, 12.5, 1234.0, 2e6, 3e-5].map(short);
        assert_eq!(shown, ["0", "0.25", "1", "12.5", "1234", "2.0e6", "3.0e-5"]);
    }
}
