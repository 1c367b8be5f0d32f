//! A qualification on one page: the verdict for whoever decides, the evidence for whoever must act on it.

use super::HEAD;
use super::html::Html;
use super::style::CSS;
use crate::progress::duration;
use toprope_qualify::dies::Vote;
use toprope_qualify::result::{OperatorResult, Outcome, Source};
use toprope_qualify::{Qualification, Verdict};

/// The page. `changes` are the verdict's, in words.
pub fn page(qualification: &Qualification, changes: &[String], vote: Option<&Vote>) -> String {
    let mut page = Html::new();
    page.raw(HEAD).raw("<style>").raw(CSS).raw("</style>\n<title>Toprope qualify ");
    page.text(&qualification.device.name);
    page.raw(if qualification.device.emulated { " (emulated)" } else { "" })
        .raw("</title>\n</head>\n<body>\n<main>\n");
    header(&mut page, qualification);
    tiles(&mut page, qualification);
    why(&mut page, qualification, changes);
    if let Some(vote) = vote {
        dies(&mut page, vote);
    }
    stages(&mut page, qualification);
    operators(&mut page, qualification);
    page.raw("<div class=\"pair\">\n");
    proofs(&mut page, qualification);
    soak(&mut page, qualification);
    page.raw("</div>\n");
    speed(&mut page, qualification);
    expiry(&mut page, qualification);
    page.raw("<footer>toprope ").text(env!("CARGO_PKG_VERSION")).raw(" · judged by ");
    page.text(&qualification.oracle.name).raw(" in f64</footer>\n</main>\n</body>\n</html>\n");
    page.finish()
}

fn header(page: &mut Html, q: &Qualification) {
    let class = match q.ruling.verdict {
        Verdict::Train => "good",
        Verdict::TrainWith | Verdict::Infer => "warn",
        Verdict::Unfit => "bad",
        Verdict::Inconclusive => "running",
    };
    page.raw("<header>\n<h1>").text(&q.device.name).raw(" <span class=\"badge ").raw(class).raw("\">");
    page.text(q.ruling.verdict.name()).raw("</span>");
    if q.device.emulated {
        page.raw(" <span class=\"badge warn\">emulated</span>");
    }
    page.raw("</h1>\n<p class=\"muted\">").text(&q.device.hardware);
    page.raw(" · level ").text(&q.device.level).raw(" · ").text(q.tier.name()).raw(" tier, seed ");
    page.text(q.seed.to_string());
    if let Some(against) = &q.against {
        page.raw(" · beside ").text(&against.name);
    }
    page.raw("</p>\n<p>").text(sentence(q.ruling.verdict));
    if q.device.emulated {
        page.raw(" <b>What was judged is an emulation, not the chip that it names.</b>");
    }
    page.raw("</p>\n</header>\n");
}

fn sentence(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Train => "Fit to train and to infer. Nothing spoke against it.",
        Verdict::TrainWith => "Fit to train with the changes below.",
        Verdict::Infer => "Fit to infer on. What only training needs is wrong.",
        Verdict::Unfit => "Unfit: what inference needs is wrong, or the device does not hold still.",
        Verdict::Inconclusive => {
            "Too little was judged to say. What did not run is listed below, and is not passed."
        }
    }
}

fn tiles(page: &mut Html, q: &Qualification) {
    let wrong = q.operators.iter().filter(|r| r.passed == Some(false) && r.setting.is_none()).count();
    let judged: u64 = q.operators.iter().map(|result| result.cases).sum();
    page.raw("<div class=\"tiles\">\n");
    let mut tile = |class: &'static str, value: String, label: &str| {
        page.raw("<div class=\"tile ").raw(class).raw("\"><b>").text(value).raw("</b><span>");
        page.text(label).raw("</span></div>\n");
    };
    tile(if wrong == 0 { "good" } else { "bad" }, wrong.to_string(), "results of operators wrong");
    tile("", q.coverage.run.to_string(), "results judged");
    tile("", format!("{} / {}", q.coverage.not_run, q.coverage.incomparable), "not run / incomparable");
    tile("", judged.to_string(), "instructions compared");
    tile("", format!("{:.1e}", q.soak.rate_per_run), "faulty products at most, 95 %");
    tile("", duration(q.seconds), "taken");
    page.raw("</div>\n");
}

fn why(page: &mut Html, q: &Qualification, changes: &[String]) {
    if q.ruling.reasons.is_empty() && changes.is_empty() {
        return;
    }
    page.raw("<section>\n<h2>Why</h2>\n");
    for reason in &q.ruling.reasons {
        page.raw("<p>").text(reason).raw("</p>\n");
    }
    if !changes.is_empty() {
        page.raw("<h2>What to change</h2>\n");
        for change in changes {
            page.raw("<p><code>").text(change).raw("</code></p>\n");
        }
    }
    page.raw("</section>\n");
}

fn dies(page: &mut Html, vote: &Vote) {
    page.raw("<section>\n<h2>Sister dies</h2>\n<p>").text(vote.told()).raw("</p>\n");
    table(page, &["die", "agrees in", "alone in", "outside in", "faults", "what was seen"]);
    for die in &vote.dies {
        page.raw("<tr>");
        cell(page, "die", &die.name);
        for (label, count) in [
            ("agrees in", die.agreed),
            ("alone in", die.alone),
            ("outside in", die.outside),
            ("faults", die.faults),
        ] {
            number(page, label, count.to_string());
        }
        cell(page, "what was seen", die.finding.as_deref().unwrap_or("–"));
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table>\n");
    if !vote.paces.is_empty() {
        table(page, &["die", "GFLOP/s f32", "GFLOP/s bf16", "GB/s", "× sisters", "told"]);
    }
    for pace in &vote.paces {
        page.raw("<tr>");
        cell(page, "die", &pace.name);
        number(page, "GFLOP/s f32", format!("{:.0}", pace.speed.f32_flops_per_second / 1e9));
        number(page, "GFLOP/s bf16", format!("{:.0}", pace.speed.bf16_flops_per_second / 1e9));
        number(page, "GB/s", format!("{:.1}", pace.speed.bytes_per_second / 1e9));
        number(page, "× sisters", pace.times_sisters.map_or("–".into(), |times| format!("{times:.2}")));
        let told = pace.slow.as_ref().or(pace.speed.not_run.as_ref());
        cell(page, "told", told.map_or("–", String::as_str));
        page.raw("</tr>\n");
    }
    if !vote.paces.is_empty() {
        page.raw("</tbody></table>\n");
    }
    page.raw("</section>\n");
}

fn stages(page: &mut Html, q: &Qualification) {
    page.raw("<section>\n<h2>Stages</h2>\n");
    table(page, &["stage", "outcome", "tried", "seconds", "what was seen"]);
    for stage in &q.stages {
        let (class, word, told) = match &stage.outcome {
            Outcome::Passed => ("good", "passed", stage.told.as_str()),
            Outcome::Failed(reason) => ("bad", "wrong", reason.as_str()),
            Outcome::NotRun(reason) => ("", "not run", reason.as_str()),
        };
        page.raw("<tr>");
        cell(page, "stage", stage.name);
        verdict(page, class, word);
        number(page, "tried", stage.tried.to_string());
        number(page, "seconds", format!("{:.1}", stage.seconds));
        cell(page, "what was seen", told);
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table>\n</section>\n");
}

fn operators(page: &mut Html, q: &Qualification) {
    page.raw("<section>\n<h2>Operators</h2>\n<p class=\"muted\">Typical exactness in effective bits, beside exact arithmetic rounded once (control) and beside the trusted device; the worst error in units of the contract's bound.</p>\n<div class=\"scroll\">\n");
    table(
        page,
        &[
            "operator", "type", "shape", "from", "outcome", "cases", "bits", "control", "trusted", "worst",
            "finding",
        ],
    );
    let mut sorted: Vec<&OperatorResult> = q.operators.iter().collect();
    // What is wrong first, then what was not run.
    sorted.sort_by_key(|result| match result.passed {
        Some(false) => 0,
        None => 1,
        Some(true) => 2,
    });
    for result in sorted {
        let (class, word) = match (result.passed, &result.setting) {
            (Some(true), _) => ("good", "agrees"),
            (Some(false), Some(_)) => ("", "setting"),
            (Some(false), None) => ("bad", "wrong"),
            (None, _) => ("", "not run"),
        };
        let bits = |bits: Option<f64>| bits.map_or("–".to_string(), |bits| format!("{bits:.1}"));
        let worst = match (result.worst_error, result.tolerance) {
            (Some(error), Some(bound)) if bound > 0.0 => format!("{:.3}", error / bound),
            (Some(0.0), _) => "0".into(),
            _ => "–".into(),
        };
        page.raw("<tr>");
        cell(page, "operator", &result.name);
        cell(page, "type", result.dtype.map_or("–", |dtype| dtype.name()));
        cell(page, "shape", &result.shape);
        cell(page, "from", source(result.source));
        verdict(page, class, word);
        number(page, "cases", result.cases.to_string());
        number(page, "bits", bits(result.effective_bits));
        number(page, "control", bits(result.control_bits));
        number(page, "trusted", bits(result.trusted_bits));
        number(page, "worst", worst);
        let guess = result.defect_guess.as_ref().map(|guess| format!(" Looks like: {guess}."));
        let extent = result.extent.as_ref().filter(|extent| extent.told != "whole");
        let extent = extent.map(|extent| format!(" Run {}.", extent.told)).unwrap_or_default();
        let told = format!(
            "{}{extent}{}{}",
            result.finding.as_deref().unwrap_or_default(),
            result.setting.as_ref().map(|setting| format!(" {setting}")).unwrap_or_default(),
            guess.unwrap_or_default()
        );
        cell(page, "finding", &told);
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table>\n</div>\n</section>\n");
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Asked => "yours",
        Source::Generated => "cases",
        Source::Swept => "bands",
    }
}

fn proofs(page: &mut Html, q: &Qualification) {
    page.raw("<section>\n<h2>Proofs</h2>\n<p class=\"muted\">Steps and tokens of the small recipes that are named, whatever model ");
    page.raw("was asked for: its sizes are among the operators.</p>\n");
    table(page, &["proof", "type", "outcome", "distance", "allowed", "what was seen"]);
    for proof in &q.training {
        page.raw("<tr>");
        cell(page, "proof", &format!("train {}", proof.name));
        cell(page, "type", proof.dtype.name());
        let (class, word, told) = told(&proof.outcome);
        verdict(page, class, word);
        number(page, "distance", format!("{:.1e}", proof.distance));
        number(page, "allowed", format!("{:.0e}", proof.tolerance));
        let seen = format!(
            "{} operators in lockstep, {} steps freely beside {}. {told}",
            proof.agreed, proof.steps, proof.beside
        );
        cell(page, "what was seen", &seen);
        page.raw("</tr>\n");
    }
    for proof in &q.inference {
        page.raw("<tr>");
        cell(page, "proof", &format!("infer {}", proof.name));
        cell(page, "type", proof.dtype.name());
        let (class, word, told) = told(&proof.outcome);
        verdict(page, class, word);
        number(page, "distance", format!("{:.1e}", proof.distance));
        number(page, "allowed", format!("{:.0e}", proof.tolerance));
        let seen = format!(
            "{} of {} greedy tokens beside {}, {} tied. {told}",
            proof.agreed, proof.tokens, proof.beside, proof.tied
        );
        cell(page, "what was seen", &seen);
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table>\n</section>\n");
}

fn told(outcome: &Outcome) -> (&'static str, &'static str, String) {
    match outcome {
        Outcome::Passed => ("good", "passed", String::new()),
        Outcome::Failed(reason) => ("bad", "wrong", reason.clone()),
        Outcome::NotRun(reason) => ("", "not run", reason.clone()),
    }
}

fn soak(page: &mut Html, q: &Qualification) {
    let soak = &q.soak;
    page.raw("<section>\n<h2>Soak</h2>\n<dl>\n");
    let mut pair = |term: &str, value: String| {
        page.raw("<dt>").text(term).raw("</dt><dd>").text(value).raw("</dd>\n");
    };
    pair("products compared", soak.runs.to_string());
    pair("compared by", if soak.by_bits { "their bits".into() } else { "their bounds".into() });
    pair("faults", soak.faults.to_string());
    pair("operations", format!("{:.2e}", soak.flops));
    pair("bytes", format!("{:.2e}", soak.bytes));
    for duty in &soak.duties {
        pair(
            duty.name,
            format!(
                "{} products, {} faults; {} ms at work, {} ms at rest",
                duty.runs, duty.faults, duty.work_ms, duty.rest_ms
            ),
        );
    }
    pair("memory held full", format!("{} MiB, read back {} times", soak.held_bytes >> 20, soak.held_reads));
    pair("faulty runs at most (95 %)", format!("{:.1e}", soak.rate_per_run));
    pair("a byte", format!("{:.1e}", soak.rate_per_byte));
    page.raw("</dl>\n");
    let rarest = q.rates.iter().max_by(|a, b| a.1.total_cmp(b.1));
    if let Some((name, rate)) = rarest {
        page.raw("<p class=\"muted\">Of single operators the least is known of <code>").text(name);
        page.raw("</code>: at most ").text(format!("{rate:.1e}")).raw(" of its runs are faulty.</p>\n");
    }
    page.raw("</section>\n");
}

fn speed(page: &mut Html, q: &Qualification) {
    let speed = &q.speed;
    page.raw("<section>\n<h2>Speed</h2>\n<p>");
    page.text(match &speed.not_run {
        Some(reason) => format!("not measured: {reason}"),
        None => format!(
            "Its best: {:.0} GFLOP/s in f32, {:.0} GFLOP/s in bf16, {:.1} GB/s; {}.",
            speed.f32_flops_per_second / 1e9,
            speed.bf16_flops_per_second / 1e9,
            speed.bytes_per_second / 1e9,
            speed.beside_datasheet()
        ),
    });
    page.raw("</p>\n<div class=\"scroll\">\n");
    table(
        page,
        &[
            "operator",
            "type",
            "shape",
            "µs",
            "GFLOP/s",
            "GB/s",
            "of its best",
            "of datasheet",
            "× trusted",
            "× sisters",
            "told",
        ],
    );
    for operator in &speed.operators {
        page.raw("<tr>");
        cell(page, "operator", &operator.name);
        cell(page, "type", operator.dtype.map_or("–", |dtype| dtype.name()));
        cell(page, "shape", &operator.shape);
        number(page, "µs", format!("{:.1}", operator.seconds * 1e6));
        number(page, "GFLOP/s", format!("{:.2}", operator.flops_per_second / 1e9));
        number(page, "GB/s", format!("{:.2}", operator.bytes_per_second / 1e9));
        number(page, "of its best", format!("{:.0} %", 100.0 * operator.of_roofline));
        let times = |times: Option<f64>| times.map_or("–".to_string(), |times| format!("{times:.2}"));
        let share =
            |share: Option<f64>| share.map_or("–".to_string(), |share| format!("{:.1} %", 100.0 * share));
        number(page, "of datasheet", share(operator.of_datasheet));
        number(page, "× trusted", times(operator.beside_trusted));
        number(page, "× sisters", times(operator.beside_sisters));
        cell(page, "told", operator.slow.as_deref().unwrap_or("–"));
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table>\n</div>\n</section>\n");
}

fn expiry(page: &mut Html, q: &Qualification) {
    page.raw(
        "<section>\n<h2>Expires</h2>\n<p>When driver, firmware, library or device change from:</p>\n<dl>\n",
    );
    let mut pair = |term: &str, value: &str| {
        page.raw("<dt>").text(term).raw("</dt><dd>").text(value).raw("</dd>\n");
    };
    pair("hardware", &q.device.hardware);
    pair("level", &q.device.level);
    for (name, version) in &q.device.versions {
        pair(name, version);
    }
    page.raw("</dl>\n</section>\n");
}

/// Heads of columns that hold words; numbers stand to the right, and their heads with them.
const WORDS: [&str; 11] = [
    "die",
    "stage",
    "outcome",
    "operator",
    "type",
    "shape",
    "from",
    "finding",
    "proof",
    "told",
    "what was seen",
];

fn table(page: &mut Html, heads: &[&'static str]) {
    page.raw("<table class=\"cards\"><thead><tr>");
    for head in heads {
        let class = if WORDS.contains(head) { "<th>" } else { "<th class=\"n\">" };
        page.raw(class).raw(head).raw("</th>");
    }
    page.raw("</tr></thead><tbody>\n");
}

fn cell(page: &mut Html, label: &'static str, text: &str) {
    let class = match label {
        _ if text.trim().is_empty() => " class=\"empty\"",
        // `bf16` must not be broken.
        "type" | "operator" | "from" | "stage" | "proof" => " class=\"whole\"",
        _ => "",
    };
    page.raw("<td").raw(class).raw(" data-label=\"").raw(label).raw("\">").text(text).raw("</td>");
}

fn number(page: &mut Html, label: &'static str, text: String) {
    page.raw("<td class=\"n\" data-label=\"").raw(label).raw("\">").text(text).raw("</td>");
}

fn verdict(page: &mut Html, class: &'static str, word: &'static str) {
    page.raw("<td data-label=\"outcome\"><span class=\"verdict ").raw(class).raw("\">").raw(word);
    page.raw("</span></td>");
}
