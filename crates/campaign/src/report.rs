//! Tables and JSON.

use crate::clean::Clean;
use crate::cost::Cost;
use crate::draw::{Persistence, Site};
use crate::rules::Rule;
use crate::statistics::{Recall, median};
use crate::trial::{SAMPLED_STEPS_MAX, Trial};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// All that a campaign found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// One for each fault.
    pub trials: Vec<Trial>,
    /// Faults run again with the injector off, and those that were then bit by bit the clean step.
    pub controls: Recall,
    /// Steps without faults.
    pub clean: Vec<Clean>,
    /// Costs, where they were measured.
    pub costs: Vec<Cost>,
}

fn recall<'a>(trials: impl Iterator<Item = &'a Trial>, caught: impl Fn(&Trial) -> bool) -> Recall {
    let mut recall = Recall::default();
    trials.for_each(|trial| recall.count(caught(trial)));
    recall
}

impl Report {
    fn harmful(&self) -> impl Iterator<Item = &Trial> + Clone {
        self.trials.iter().filter(|trial| trial.harmful)
    }

    /// The tables.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let all = self.trials.len();
        let changed = self.trials.iter().filter(|trial| trial.elements > 0).count();
        let _ = writeln!(
            out,
            "{all} faults, seed {}: {changed} changed stored bits, {} did harm. Injector off: {} of {} steps were the clean one.\n",
            self.seed,
            self.harmful().count(),
            self.controls.caught,
            self.controls.of
        );
        self.by_site(&mut out);
        self.by_operator(&mut out);
        self.curves(&mut out);
        self.rules(&mut out);
        self.sampled(&mut out);
        self.clean_steps(&mut out);
        self.misses(&mut out);
        out.push_str(&costs_text(&self.costs));
        out
    }

    fn by_site(&self, out: &mut String) {
        let _ =
            writeln!(out, "harmful faults caught before the commit, with Wilson's 95 % bounds (* promised)");
        let _ = writeln!(out, "{:<22} {:<36} {:<36} shadow", "site", "full", "sampled, in that step");
        let mut row = |name: &str, trials: &[&Trial]| {
            let of = |caught: &dyn Fn(&Trial) -> bool| recall(trials.iter().copied(), caught).text();
            let (full, sampled, shadow) = (of(&|t| t.full), of(&|t| t.sampled), of(&|t| t.shadow));
            let _ = writeln!(out, "{name:<22} {full:<36} {sampled:<36} {shadow}");
        };
        for site in Site::ALL {
            let name = format!("{}{}", site.name(), if site.is_promised() { " *" } else { "" });
            row(&name, &self.harmful().filter(|trial| trial.site == site).collect::<Vec<_>>());
        }
        row("all promised *", &self.harmful().filter(|trial| trial.site.is_promised()).collect::<Vec<_>>());
        for persistence in Persistence::ALL {
            let promised = |t: &&Trial| t.site.is_promised() && t.persistence == persistence;
            row(
                &format!("  of them {}", persistence.name()),
                &self.harmful().filter(promised).collect::<Vec<_>>(),
            );
        }
        row("all", &self.harmful().collect::<Vec<_>>());
        for dtype in ["bf16", "f32"] {
            row(dtype, &self.harmful().filter(|trial| trial.scene.ends_with(dtype)).collect::<Vec<_>>());
        }
        row("forward", &self.harmful().filter(|t| t.site < Site::State && !t.backward).collect::<Vec<_>>());
        row("backward and update", &self.harmful().filter(|trial| trial.backward).collect::<Vec<_>>());
        for persistence in Persistence::ALL {
            row(
                persistence.name(),
                &self.harmful().filter(|trial| trial.persistence == persistence).collect::<Vec<_>>(),
            );
        }
        out.push('\n');
    }

    fn by_operator(&self, out: &mut String) {
        let _ = writeln!(out, "by operator, harmful, full (where anything was missed)");
        let mut operators: BTreeMap<(&str, Site, Persistence), Recall> = BTreeMap::new();
        for trial in self.harmful() {
            operators.entry((&trial.operator, trial.site, trial.persistence)).or_default().count(trial.full);
        }
        for ((operator, _, persistence), recall) in operators.iter().filter(|(_, r)| r.caught < r.of) {
            let persistence = persistence.name();
            let _ = writeln!(out, "  {operator:<32} {persistence:<10} {}", recall.text());
        }
        out.push('\n');
    }

    fn curves(&self, out: &mut String) {
        let compute = || self.harmful().filter(|trial| trial.site < Site::State);
        let _ = writeln!(out, "in compute, harmful, full, by bit of the accumulator (flips and carries)");
        for low in (0..32).step_by(4) {
            let bits = compute().filter(|t| t.bit.is_some_and(|bit| (low..low + 4).contains(&bit)));
            let _ = writeln!(out, "  bits {low:>2} to {:>2}   {}", low + 3, recall(bits, |t| t.full).text());
        }
        let _ = writeln!(out, "by elements");
        for (low, high) in [(1, 1), (2, 10), (11, 100), (101, 1_000), (1_001, 10_000), (10_001, 100_000)] {
            let sized = compute().filter(|t| (low..=high).contains(&t.count));
            let _ = writeln!(out, "  {low:>6} to {high:>6}   {}", recall(sized, |t| t.full).text());
        }
        let _ = writeln!(out, "by change");
        let mut changes: BTreeMap<&str, Recall> = BTreeMap::new();
        for trial in compute() {
            changes.entry(&trial.change).or_default().count(trial.full);
            if trial.band {
                changes.entry("in a value band").or_default().count(trial.full);
            }
        }
        for (change, recall) in &changes {
            let _ = writeln!(out, "  {change:<16} {}", recall.text());
        }
        out.push('\n');
    }

    fn rules(&self, out: &mut String) {
        // Snapshots and checkpoints are no steps: the other rules do not look at them.
        let in_steps = || self.harmful().filter(|trial| trial.site < Site::Snapshot);
        let steps: u64 = self.clean.iter().map(|clean| clean.steps).sum();
        let _ = writeln!(
            out,
            "harmful faults in steps under other rules, and steps falsely accused of {steps} clean ones"
        );
        let _ = writeln!(out, "  {:<30} {:<36} accused", "rule", "caught");
        let alarms: u64 = self.clean.iter().map(|clean| clean.alarms).sum();
        let full = recall(in_steps(), |trial| trial.full).text();
        let _ = writeln!(out, "  {:<30} {full:<36} {alarms}", "ours, full");
        for (index, rule) in Rule::ALL.into_iter().enumerate() {
            let caught = recall(in_steps(), |trial| trial.rules[index]).text();
            let accused: u64 = self.clean.iter().map(|clean| clean.accusations[index]).sum();
            let _ = writeln!(out, "  {:<30} {caught:<36} {accused}", rule.name());
        }
        let repeating = || self.harmful().filter(|trial| trial.persistence == Persistence::Repeating);
        let place = Rule::ALL.iter().position(|rule| *rule == Rule::SameDevice).unwrap_or(0);
        let _ = writeln!(
            out,
            "  repeating faults: ours, full {}; run again on the same device {}\n",
            recall(repeating(), |trial| trial.full).text(),
            recall(repeating(), |trial| trial.rules[place]).text()
        );
    }

    fn sampled(&self, out: &mut String) {
        let tried: Vec<u32> = self.trials.iter().filter_map(|trial| trial.sampled_steps).collect();
        let caught: Vec<f64> =
            tried.iter().filter(|steps| **steps < SAMPLED_STEPS_MAX).map(|steps| f64::from(*steps)).collect();
        let mean = caught.iter().sum::<f64>() / caught.len().max(1) as f64;
        let middle = median(&caught).map_or(f64::NAN, |m| m.median);
        let _ = writeln!(
            out,
            "sampled, lasting harmful faults that full catches, run on step by step: {} of {} caught within {SAMPLED_STEPS_MAX} steps, after {mean:.2} committed steps on average, {middle} in the median\n",
            caught.len(),
            tried.len()
        );
    }

    fn clean_steps(&self, out: &mut String) {
        let _ = writeln!(out, "steps without faults, full");
        for c in &self.clean {
            let _ = writeln!(
                out,
                "  {:<18} {:>6} steps ({} data spikes) {:>9} checks, {} alarms, largest distance {:.3} of its limit; Huawei's checksum flagged {} of {} products",
                c.scene, c.steps, c.spikes, c.checks, c.alarms, c.largest, c.products.1, c.products.0
            );
            for (check, (count, worst)) in &c.alarmed {
                let _ = writeln!(out, "    {check}: {count} times, at most {worst:.3} of its limit");
            }
        }
        let (steps, checks, alarms) = self
            .clean
            .iter()
            .fold((0, 0, 0), |(s, k, a), clean| (s + clean.steps, k + clean.checks, a + clean.alarms));
        let _ = writeln!(out, "  {:<18} {steps:>6} steps {checks:>26} checks, {alarms} alarms\n", "all");
    }

    fn misses(&self, out: &mut String) {
        let missed: Vec<&Trial> = self.harmful().filter(|trial| !trial.full).collect();
        let _ = writeln!(out, "harmful faults that full misses: {}", missed.len());
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        missed.iter().for_each(|trial| *reasons.entry(why(trial)).or_default() += 1);
        for (reason, count) in reasons {
            let _ = writeln!(out, "  {count:>5} {reason}");
        }
        for trial in missed.iter().filter(|trial| trial.site.is_promised()) {
            let harm = format!(
                "loss {:.1e}, update {:.1e} of `{}`",
                trial.harm.loss, trial.harm.update, trial.harm.tensor
            );
            let _ = writeln!(out, "  {} · {} · {harm} · {}", trial.scene, trial.fault, why(trial));
        }
        out.push('\n');
    }
}

/// Why `full` does not see a fault.
fn why(trial: &Trial) -> &'static str {
    match (trial.site, trial.persistence) {
        (Site::Activation, _) => {
            "bits of an activation at rest: nothing watches them between producer and consumer"
        }
        (Site::Elementwise, Persistence::Repeating) => {
            "elementwise, repeats: a replay on the same chip agrees with it"
        }
        (Site::Elementwise, _) => "elementwise: no check watches this operator",
        (Site::Head, _) => "head: the identities do not see it",
        (Site::State | Site::Carried, _) => "at rest: no digest covers it",
        (Site::Snapshot | Site::Checkpoint, _) => "the digest is the same",
        (_, Persistence::Repeating) => "repeats on its own chip: the replay agrees with it",
        (Site::Product, _) => "below the bound of the product's checksum, or no checksum watches it",
        _ => "no check watches this result",
    }
}

/// The table of costs.
pub fn costs_text(costs: &[Cost]) -> String {
    let mut out = String::new();
    if costs.is_empty() {
        return out;
    }
    let _ = writeln!(out, "cost when nothing fails: median of pairs, 95 % interval");
    for cost in costs {
        let percent = |x: f64| format!("{:+.2} %", 100.0 * x);
        let o = cost.overhead;
        let _ = writeln!(
            out,
            "  {:<18} {:<20} {} [{}, {}] of {:.1} ms, {} pairs, {} checks",
            cost.scene,
            cost.level,
            percent(o.median),
            percent(o.low),
            percent(o.high),
            1e3 * cost.step_seconds.median,
            o.samples,
            cost.checks
        );
    }
    out
}
