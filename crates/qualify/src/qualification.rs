//! All stages in order, and what they come to.

mod explained; // what a setting excuses
mod remedies; // what could be done

use crate::bench::{Bench, Opener, retried};
use crate::budget::{Clock, Deadline, Tier};
use crate::cases::{self, Findings, QualifyError, ROUNDS};
use crate::datasheet::Datasheet;
use crate::dies::Standing;
use crate::goodput::{self, Goodput};
use crate::inference::{self, InferenceCase, InferenceProof, Weights};
use crate::memory;
use crate::reset;
use crate::result::{OperatorResult, Outcome, Source, Stage};
use crate::setting::{NoAnswer, Setting, settings};
use crate::shapes::{self, Need, Shape, Skipped, for_speed};
use crate::soak::{Soak, rate_bound, soak};
use crate::speed::{self, Speed};
use crate::training::{self, Trainee, TrainingCase, TrainingProof, trained};
use crate::verdict::{Change, Evidence, Ruling, rule};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use toprope_conformance::Verdict;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_diagnose::guess::{Effort, Kind, guess};
use toprope_program::{DType, Description, Device, FaultKind, Tensor};

/// Another variant of the device, to be tried where an operator is wrong.
pub struct Alternative<'a> {
    /// The name that opens it.
    pub name: String,
    /// Opens it.
    pub open: Opener<'a>,
}

/// What is asked.
pub struct Request<'a> {
    /// How much is tried.
    pub tier: Tier,
    /// The user's shapes; empty where none were named.
    pub shapes: Vec<Shape>,
    /// What of the user's list is not in the contract.
    pub skipped: Vec<Skipped>,
    /// Steps beside the trusted device. The first is the one that alternatives are timed on.
    pub training: Vec<TrainingCase>,
    /// Inference on weights that its training case has behind a few steps.
    pub inference: Vec<(InferenceCase, Option<TrainingCase>)>,
    /// Operators that inference takes, where no shapes are named.
    pub for_inference: BTreeSet<String>,
    /// Operators that only a guard's checks take.
    pub for_checks: BTreeSet<String>,
    /// Whether products that keep all bits of their operands were asked for by the device's name: then fewer are no setting,
    /// and are judged as any wrong result is.
    pub exact_products: bool,
    /// The device with a setting changed, where its name can say so: what is wrong and right without it, the setting explains.
    pub without: &'a dyn Fn(Setting) -> Option<Result<Box<dyn Device>, String>>,
    /// Variants to be tried.
    pub alternatives: Vec<Alternative<'a>>,
    /// The device on another stream than its default one, where it has streams.
    pub on_stream: Option<Opener<'a>>,
    /// Shapes that speed is measured on, where none of the user's are named.
    pub timed: Vec<Shape>,
    /// Whether the trusted device is one whose speed is worth a comparison.
    pub beside_trusted: bool,
    /// What the vendor promises, where that was given.
    pub datasheet: Option<Datasheet>,
    /// What was timed of it beside its sisters.
    pub beside_sisters: Option<Speed>,
    /// How the device stood among its sisters, where it stood apart.
    pub apart: Option<Standing>,
    /// Bytes of memory that may be filled.
    pub memory_bytes_max: u64,
    /// The soak takes what the other stages leave of the tier's time, at most this.
    pub soak_max: Duration,
    /// Hears of each stage as it ends.
    pub tell: &'a mut dyn FnMut(&Stage),
}

/// What was tried and what not.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Coverage {
    /// Results that passed or failed.
    pub run: u64,
    /// Results that were not run or refused.
    pub not_run: u64,
    /// Results of which nothing could be compared.
    pub incomparable: u64,
    /// Of the user's shapes: those that the device ran whole.
    pub shapes_whole: u64,
    /// Those of which it ran a part.
    pub shapes_in_part: u64,
    /// Those of which it ran nothing, among them calls that are not the contract's.
    pub shapes_not_run: u64,
}

impl Coverage {
    /// How much of the user's list was run, in words; none where all of it was.
    fn told(&self, unknown: usize) -> Option<String> {
        let all = self.shapes_whole + self.shapes_in_part + self.shapes_not_run;
        if self.shapes_in_part + self.shapes_not_run == 0 {
            return None;
        }
        let mut told = format!(
            "of your {all} shapes {} were run whole, {} in part and {} not at all: what shows only at their full size is not excluded",
            self.shapes_whole, self.shapes_in_part, self.shapes_not_run
        );
        if unknown > 0 {
            told.push_str(&format!(
                "; {unknown} are no operators of the contract: `python -m toprope cases FILE` runs them"
            ));
        }
        Some(told)
    }
}

/// All that was found out of one device.
#[derive(Debug)]
pub struct Qualification {
    /// What the device says of itself.
    pub device: Description,
    /// The trusted device beside it.
    pub against: Option<Description>,
    /// What both were judged by.
    pub oracle: Description,
    /// The tier.
    pub tier: Tier,
    /// The seed that repeats it.
    pub seed: u64,
    /// The verdict.
    pub ruling: Ruling,
    /// By operator, dtype and shape, the user's own first.
    pub operators: Vec<OperatorResult>,
    /// What was tried and what not.
    pub coverage: Coverage,
    /// The stages.
    pub stages: Vec<Stage>,
    /// The training proofs.
    pub training: Vec<TrainingProof>,
    /// The inference proofs.
    pub inference: Vec<InferenceProof>,
    /// The soak.
    pub soak: Soak,
    /// Speed.
    pub speed: Speed,
    /// Settings that were found.
    pub settings: Vec<Setting>,
    /// Training through faults, where there were some.
    pub goodput: Option<Goodput>,
    /// Seconds that it took.
    pub seconds: f64,
    /// With 95 % confidence, the share of an operator's runs that are faulty is at most this, by operator: judged runs.
    pub rates: BTreeMap<String, f64>,
}

/// What a proof may take in any case: on a busy machine a minute is over before it, and without it there is no verdict.
const PROOF: Duration = Duration::from_secs(20);

/// Time beyond a quick run's, where an operator is wrong: for other variants, and for the kind of defect.
const CLOSER_LOOK: Duration = Duration::from_secs(20);

/// Steps that weights of an inference proof have behind them.
const TRAINED_STEPS: usize = 4;

/// Side of the soak's products.
const SOAK_SIDE: usize = 256;

/// Qualifies a device.
pub fn qualify<'b>(bench: &mut Bench<'b>, request: &mut Request<'b>) -> Result<Qualification, QualifyError> {
    let began = (bench.clock)();
    let whole = Deadline::within(bench.clock, request.tier.total_on(bench.describe().emulated));
    let mut run = Run { bench, stages: Vec::new(), stage: began };
    let quick = request.tier == Tier::Quick;
    let most = |seconds: u64| Duration::from_secs(seconds);

    let settings = run.settings(request)?;
    let asked = run.asked(request, &whole.part(0.4, most(if quick { 22 } else { 3600 })))?;
    // The user's own shapes come first, and what they took is not there for others.
    let cases = if quick && !asked.is_empty() {
        14
    } else if quick {
        18
    } else {
        600
    };
    let mut findings = run.conformance(request, &whole.part(0.4, most(cases)))?;
    run.bands(request, &mut findings, &whole.part(0.2, most(if quick { 5 } else { 600 })), quick)?;
    run.reset(request, &whole.part(0.1, most(60)))?;
    if !quick {
        run.beside(request, &whole.part(0.1, most(60)))?;
        run.on_stream(request, &whole.part(0.1, most(60)))?;
    }
    let whole = whole.later(std::mem::take(&mut run.bench.opening));
    run.memory(request, &whole.part(0.1, most(if quick { 3 } else { 120 })));
    let clock = run.bench.clock;
    let proof = |part: Deadline<'b>| match part.left() < PROOF {
        true => Deadline::within(clock, PROOF),
        false => part,
    };
    // A model of the user's own is what was asked about: its time is not the others'.
    let began_own = (run.bench.clock)();
    let own = run.own_models(request, &Deadline::within(clock, request.tier.own_model()));
    let whole = whole.later((run.bench.clock)().saturating_sub(began_own));
    let inference = run.inference(request, own, &proof(whole.part(0.4, most(300))));
    let training = run.training(request, &proof(whole.part(if quick { 0.8 } else { 0.6 }, most(900))));
    let speed = run.speed(request, &asked, &whole.part(0.25, most(if quick { 5 } else { 120 })))?;

    let level = run.bench.describe().level;
    let mut operators: Vec<OperatorResult> = asked.iter().map(|(result, _)| result.clone()).collect();
    operators.extend(findings.results(&level));
    run.explain(request, &settings, &mut operators, &whole.part(0.3, most(300)))?;
    let mut evidence = gathered(&run, request, &findings, &asked, &operators);
    evidence.settings.clone_from(&settings);
    // What is wrong is worth a closer look than a minute leaves.
    let wrong = operators.iter().any(|result| result.passed == Some(false) && result.setting.is_none());
    let whole = if quick && wrong { whole.later(CLOSER_LOOK) } else { whole };
    evidence.remedies = run.remedies(request, &evidence, &operators, &speed, &whole.part(0.6, most(900)))?;
    let whole = whole.later(std::mem::take(&mut run.bench.opening));
    run.guesses(request, &mut operators, &whole.part(0.4, most(600)));
    let goodput = run.goodput(request, &whole.part(0.5, most(60)));
    let soak = run.soak(request, &whole.part(1.0, request.soak_max))?;
    evidence.goodput = goodput;
    weigh(&mut evidence, &run, &soak, &training, &inference);
    if let Some(standing) = &request.apart {
        stand(&mut evidence, standing);
    }

    let rates = rates(&operators);
    let coverage = covered(&operators, &request.skipped);
    evidence.share = coverage.told(request.skipped.len());
    // A list of which the contract has nothing says nothing about it.
    if asked.is_empty() && !request.skipped.is_empty() {
        evidence.missing.push("no call of your list is an operator of the contract".into());
    }
    for skipped in &request.skipped {
        operators.push(not_run(skipped, &level));
    }
    let ruling = rule(&evidence);
    let seconds = (run.bench.clock)().saturating_sub(began).as_secs_f64();
    Ok(Qualification {
        device: run.bench.describe(),
        against: run.bench.trusted.as_deref().map(Device::describe),
        oracle: run.bench.oracle.device.describe(),
        tier: request.tier,
        seed: run.bench.seed,
        ruling,
        operators,
        coverage,
        stages: run.stages,
        training,
        inference,
        soak,
        speed,
        settings,
        goodput,
        seconds,
        rates,
    })
}

struct Run<'a, 'b> {
    bench: &'a mut Bench<'b>,
    stages: Vec<Stage>,
    /// When the stage under way began.
    stage: Duration,
}

impl<'b> Run<'_, 'b> {
    fn ended(
        &mut self,
        request: &mut Request<'b>,
        name: &'static str,
        outcome: Outcome,
        tried: u64,
        told: String,
    ) {
        let now = (self.bench.clock)();
        let seconds = now.saturating_sub(self.stage).as_secs_f64();
        self.stage = now;
        let stage = Stage { name, outcome, told, tried, seconds };
        (request.tell)(&stage);
        self.stages.push(stage);
    }

    fn settings(&mut self, request: &mut Request<'b>) -> Result<Vec<Setting>, QualifyError> {
        let search = |bench: &mut Bench<'b>| {
            let found = settings(bench.device.as_mut(), bench.seed);
            if let Err(NoAnswer::Fault(fault)) = &found {
                bench.revive(fault);
            }
            found
        };
        let found = match retried(self.bench, search, |_| None) {
            Ok(found) => found,
            Err(NoAnswer::Mistake(error)) => return Err(error),
            Err(NoAnswer::Fault(fault)) => {
                let outcome = match fault.kind {
                    FaultKind::Unsupported { .. } => Outcome::NotRun(fault.to_string()),
                    _ => Outcome::Failed(fault.to_string()),
                };
                self.ended(request, "settings", outcome, 0, String::new());
                return Ok(Vec::new());
            }
        };
        let no_setting =
            |setting: &Setting| request.exact_products && matches!(setting, Setting::OperandBits { .. });
        let (disobeyed, found): (Vec<Setting>, Vec<Setting>) = found.into_iter().partition(no_setting);
        let against =
            disobeyed.iter().map(|setting| format!("{}, though exact ones were asked for", setting.told()));
        let told: Vec<String> = found.iter().map(|setting| setting.told()).chain(against).collect();
        let told = if told.is_empty() {
            "products keep all bits of their operands and sums".into()
        } else {
            told.join("; ")
        };
        self.ended(request, "settings", Outcome::Passed, 6, told);
        Ok(found)
    }

    fn asked(
        &mut self,
        request: &mut Request<'b>,
        deadline: &Deadline<'_>,
    ) -> Result<Vec<(OperatorResult, Need)>, QualifyError> {
        if request.shapes.is_empty() {
            let reason = "none were named; --for names a recipe, a config.json or a list of cases";
            self.ended(request, "your shapes", Outcome::NotRun(reason.into()), 0, String::new());
            return Ok(Vec::new());
        }
        let results = shapes::run(self.bench, &request.shapes, deadline)?;
        let count = |passed: Option<bool>| results.iter().filter(|(r, _)| r.passed == passed).count();
        let (right, wrong, none) = (count(Some(true)), count(Some(false)), count(None));
        let in_part = |result: &OperatorResult| result.extent.as_ref().is_some_and(|extent| !extent.whole);
        let part = results.iter().filter(|(result, _)| in_part(result)).count();
        let told = format!(
            "{right} of {} agree, {part} of them in part, {wrong} differ, {none} not run",
            results.len()
        );
        let first = results.iter().find(|(result, _)| result.passed == Some(false));
        let outcome = match first {
            Some((result, _)) => Outcome::Failed(format!(
                "`{}` {}: {}",
                result.name,
                result.shape,
                result.finding.clone().unwrap_or_default()
            )),
            None if right == 0 => {
                let reason = results.iter().find_map(|(result, _)| result.finding.clone());
                Outcome::NotRun(reason.unwrap_or_else(|| "there was no time".into()))
            }
            None => Outcome::Passed,
        };
        self.ended(request, "your shapes", outcome, (right + wrong) as u64, told);
        Ok(results)
    }

    fn conformance(
        &mut self,
        request: &mut Request<'b>,
        deadline: &Deadline<'_>,
    ) -> Result<Findings, QualifyError> {
        let findings = cases::conformance(self.bench, deadline, ROUNDS)?;
        let told = format!(
            "{} instructions judged in {} of {ROUNDS} rounds, {} random programs",
            findings.judged(),
            findings.rounds,
            findings.programs
        );
        let wrong = findings.results("").into_iter().find(|result| result.passed == Some(false));
        let outcome = match wrong {
            Some(result) => {
                Outcome::Failed(format!("`{}`: {}", result.name, result.finding.unwrap_or_default()))
            }
            None if findings.judged() == 0 => Outcome::NotRun("nothing could be judged".into()),
            None => Outcome::Passed,
        };
        self.ended(request, "conformance", outcome, findings.judged(), told);
        let outcome = match findings.unrepeated.first() {
            Some((_, finding)) => Outcome::Failed(finding.clone()),
            None if findings.repeated == 0 => {
                Outcome::NotRun("the device does not say that its bits repeat".into())
            }
            None => Outcome::Passed,
        };
        let told =
            format!("{} comparisons: twice, in a range and alone, checks on and off", findings.repeated);
        self.ended(request, "determinism", outcome, findings.repeated, told);
        Ok(findings)
    }

    fn bands(
        &mut self,
        request: &mut Request<'b>,
        findings: &mut Findings,
        deadline: &Deadline<'_>,
        quick: bool,
    ) -> Result<(), QualifyError> {
        let done = cases::bands(self.bench, findings, deadline, if quick { 8 } else { 1 })?;
        let wrong = findings
            .results("")
            .into_iter()
            .find(|result| result.source == Source::Swept && result.passed == Some(false));
        let outcome = match wrong {
            Some(result) => {
                Outcome::Failed(format!("`{}`: {}", result.name, result.finding.unwrap_or_default()))
            }
            None if done == 0 => Outcome::NotRun("there was no time".into()),
            None => Outcome::Passed,
        };
        let (low, high) = (cases::BANDS.start(), cases::BANDS.end());
        let told = format!("{done} bands of magnitudes from 2^{low} to 2^{high}, all operators");
        self.ended(request, "magnitudes", outcome, done, told);
        Ok(())
    }

    fn reset(&mut self, request: &mut Request<'b>, deadline: &Deadline<'_>) -> Result<(), QualifyError> {
        let attempt = |bench: &mut Bench<'b>| reset::same_after(bench, 6, deadline);
        let (outcome, compared) = retried(self.bench, attempt, same)?;
        let told = format!("{compared} random programs on a device that was opened afresh");
        self.ended(request, "reset", outcome, compared, told);
        Ok(())
    }

    fn beside(&mut self, request: &mut Request<'b>, deadline: &Deadline<'_>) -> Result<(), QualifyError> {
        let attempt = |bench: &mut Bench<'b>| reset::same_beside(bench, 12, deadline);
        let (outcome, beside) = retried(self.bench, attempt, same)?;
        let told = format!(
            "{} random programs while the chip, opened a second time, computed {} products",
            beside.compared, beside.neighbour
        );
        self.ended(request, "beside itself", outcome, beside.compared, told);
        Ok(())
    }

    fn memory(&mut self, request: &mut Request<'b>, deadline: &Deadline<'_>) {
        let outcome = retried(self.bench, memory::refuses_too_much, |outcome| Some(outcome));
        let told = "too large an allocation is refused as such, and the device serves on".into();
        self.ended(request, "refusals", outcome, 1, told);
        let most = self.memory_bytes_max(request);
        let attempt = |bench: &mut Bench<'b>| memory::fill(bench, most, deadline);
        let filled = retried(self.bench, attempt, |filled| Some(&filled.outcome));
        let told = format!("{} MiB filled, read back, given back and had again", filled.bytes >> 20);
        self.ended(request, "memory", filled.outcome, filled.bytes >> 20, told);
    }

    fn on_stream(&mut self, request: &mut Request<'b>, deadline: &Deadline<'_>) -> Result<(), QualifyError> {
        let (outcome, compared) = match request.on_stream {
            None => (Outcome::NotRun("the device has no streams to choose from".into()), 0),
            Some(open) => {
                let when = "on a stream of its own, beside products on the default one";
                retried(self.bench, |bench| reset::same_as(bench, open, when, 12, deadline), same)?
            }
        };
        let told = format!("{compared} random programs on a side stream, beside products on the default one");
        self.ended(request, "streams", outcome, compared, told);
        Ok(())
    }

    /// Bytes that may be filled: what is asked for, and at most half of what there is.
    fn memory_bytes_max(&self, request: &Request<'b>) -> u64 {
        let half = self.bench.describe().memory_bytes.unwrap_or(u64::MAX) / 2;
        half.min(request.memory_bytes_max)
    }

    fn training(&mut self, request: &mut Request<'b>, deadline: &Deadline<'_>) -> Vec<TrainingProof> {
        let mut proofs = Vec::new();
        let cases = std::mem::take(&mut request.training);
        for (index, case) in cases.iter().enumerate() {
            // In a minute one case goes in lockstep, the others freely.
            let in_lockstep = index == 0 || request.tier != Tier::Quick;
            let attempt = |bench: &mut Bench<'b>| training::prove(bench, case, in_lockstep, deadline);
            proofs.push(retried(self.bench, attempt, |proof| Some(&proof.outcome)));
        }
        request.training = cases;
        let steps: u64 = proofs.iter().map(|proof| proof.steps).sum();
        let worst = proofs.iter().map(|proof| proof.distance / proof.tolerance).fold(0.0, f64::max);
        let told = format!(
            "{} runs, {steps} steps; losses within {:.0} % of what is allowed",
            proofs.len(),
            100.0 * worst
        );
        let outcome = joined(proofs.iter().map(|proof| (&proof.name, proof.dtype, &proof.outcome)));
        self.ended(request, "training proof", outcome, steps, told);
        proofs
    }

    /// The proofs of cases that bring their own weights.
    fn own_models(&mut self, request: &Request<'b>, deadline: &Deadline<'_>) -> Vec<InferenceProof> {
        let own = request.inference.iter().filter(|(_, from)| from.is_none());
        let prove = |(case, _): &(InferenceCase, _)| {
            let attempt = |bench: &mut Bench<'b>| inference::prove(bench, case, deadline);
            retried(self.bench, attempt, |proof| Some(&proof.outcome))
        };
        own.map(prove).collect()
    }

    fn inference(
        &mut self,
        request: &mut Request<'b>,
        own: Vec<InferenceProof>,
        deadline: &Deadline<'_>,
    ) -> Vec<InferenceProof> {
        let mut proofs = own;
        for (case, from) in &request.inference {
            let Some(from) = from else { continue };
            let mut case = case.clone();
            if let Some(trusted) = self.bench.trusted.as_deref_mut()
                && let Ok(weights) = trained(trusted, from, TRAINED_STEPS)
            {
                case.weights = Weights::Stored(weights);
            }
            let attempt = |bench: &mut Bench<'b>| inference::prove(bench, &case, deadline);
            proofs.push(retried(self.bench, attempt, |proof| Some(&proof.outcome)));
        }
        let tokens: u64 = proofs.iter().map(|proof| proof.tokens).sum();
        let each = proofs.iter().filter(|proof| proof.tokens > 0);
        let each: Vec<String> = each
            .map(|proof| format!("{} ({}) {} of {}", proof.name, proof.dtype, proof.agreed, proof.tokens))
            .collect();
        let worst = proofs.iter().map(|proof| proof.distance / proof.tolerance).fold(0.0, f64::max);
        let told = format!(
            "greedy tokens that are the trusted device's, with a cache: {}; logits within {:.0} % of what is allowed",
            each.join(", "),
            100.0 * worst
        );
        let outcome = joined(proofs.iter().map(|proof| (&proof.name, proof.dtype, &proof.outcome)));
        self.ended(request, "inference proof", outcome, tokens, told);
        proofs
    }

    fn speed(
        &mut self,
        request: &mut Request<'b>,
        asked: &[(OperatorResult, Need)],
        deadline: &Deadline<'_>,
    ) -> Result<Speed, QualifyError> {
        let shapes: Vec<Shape> = match asked.is_empty() {
            false => request.shapes.clone(),
            true => request.timed.clone(),
        };
        let (trusted, datasheet) = (request.beside_trusted, request.datasheet);
        let mut speed = speed::measure(self.bench, &for_speed(&shapes), trusted, datasheet, deadline)?;
        for operator in &mut speed.operators {
            let timed = request.beside_sisters.iter().flat_map(|sisters| &sisters.operators);
            let same = |other: &&speed::OperatorSpeed| {
                (&other.name, &other.shape, other.dtype) == (&operator.name, &operator.shape, operator.dtype)
            };
            if let Some(beside) = timed.clone().find(same) {
                operator.beside_sisters = beside.beside_sisters;
                operator.slow = operator.slow.take().or_else(|| beside.slow.clone());
            }
        }
        let slow = speed.operators.iter().filter(|operator| operator.slow.is_some()).count();
        let told = format!(
            "{:.0} GFLOP/s in f32, {:.0} in bf16, {:.1} GB/s; {}; {} operators timed, {slow} slow",
            speed.f32_flops_per_second / 1e9,
            speed.bf16_flops_per_second / 1e9,
            speed.bytes_per_second / 1e9,
            speed.beside_datasheet(),
            speed.operators.len()
        );
        let outcome = match &speed.not_run {
            Some(reason) => Outcome::NotRun(reason.clone()),
            // Slow is told, and is no fault.
            None => Outcome::Passed,
        };
        self.ended(request, "speed", outcome, speed.operators.len() as u64, told);
        Ok(speed)
    }

    fn soak(&mut self, request: &mut Request<'b>, deadline: &Deadline<'_>) -> Result<Soak, QualifyError> {
        let filled = self.memory_bytes_max(request);
        let dtypes = [DType::F32, DType::Bf16];
        let attempt = |bench: &mut Bench<'b>| soak(bench, &dtypes, SOAK_SIDE, filled, deadline);
        // One fault is the loss itself; whatever was found beside it is evidence that no second attempt may cover.
        let found = |soak: &Soak| soak.lost.is_some() || soak.wrong.is_some() || soak.faults > 1;
        let soak = retried(self.bench, attempt, |soak| {
            soak.as_ref().ok().map(|soak| if found(soak) { &Outcome::Passed } else { &soak.outcome })
        })?;
        let told = format!(
            "{} products in {:.0} s: {}; {} MiB held full, a block read back {} times; at most {:.1e} of runs faulty, {:.1e} a byte (95 %)",
            soak.runs,
            soak.seconds,
            soak.duties_told(),
            soak.held_bytes >> 20,
            soak.held_reads,
            soak.rate_per_run,
            soak.rate_per_byte
        );
        self.ended(request, "soak", soak.outcome.clone(), soak.runs, told);
        Ok(soak)
    }

    /// Training through faults, where the device failed and was opened again.
    fn goodput(&mut self, request: &mut Request<'b>, deadline: &Deadline<'_>) -> Option<Goodput> {
        if self.bench.losses.is_empty() || self.bench.is_gone() {
            return None;
        }
        let cases = std::mem::take(&mut request.training);
        let goodput = cases.first().and_then(|case| goodput::measure(self.bench, case, deadline));
        request.training = cases;
        let (outcome, told) = match goodput {
            Some(Goodput { steps, faults, seconds, share }) => (
                Outcome::Passed,
                format!(
                    "{steps} steps in {seconds:.1} s through {faults} faults, the device opened again and the step repeated: {:.0} % of the time for steps that count",
                    100.0 * share
                ),
            ),
            None => {
                (Outcome::NotRun("no step was committed in the time that there was".into()), String::new())
            }
        };
        self.ended(request, "goodput", outcome, goodput.map_or(0, |goodput| goodput.steps), told);
        goodput
    }

    /// What kind of defect each wrong operator has, by experiment, where one tells it from the others.
    fn guesses(
        &mut self,
        request: &mut Request<'b>,
        operators: &mut [OperatorResult],
        deadline: &Deadline<'_>,
    ) {
        let mut guessed: BTreeMap<String, String> = BTreeMap::new();
        let mut tried = 0;
        for result in operators.iter().filter(|r| r.passed == Some(false) && r.setting.is_none()) {
            let Some(probe) = result.probe.as_ref().filter(|_| !guessed.contains_key(&result.name)) else {
                continue;
            };
            if deadline.passed() {
                break;
            }
            tried += 1;
            let effort = Effort { seed: self.bench.seed, ..Effort::default() };
            match guess(self.bench.device.as_mut(), &mut self.bench.oracle, probe, None, effort) {
                Ok(guess) if guess.kind != Kind::Unknown => {
                    guessed.insert(result.name.clone(), guess.kind.name());
                }
                Err(Obstacle::Subject(fault)) => {
                    self.bench.revive(&fault);
                }
                Ok(_) | Err(_) => {}
            }
        }
        if tried == 0 {
            return;
        }
        for result in operators.iter_mut().filter(|r| r.passed == Some(false) && r.setting.is_none()) {
            result.defect_guess = guessed.get(&result.name).cloned();
        }
        let told: Vec<String> = guessed.iter().map(|(name, kind)| format!("`{name}`: {kind}")).collect();
        let told = if told.is_empty() {
            "no experiment tells what kind of defect it is".into()
        } else {
            told.join(", ")
        };
        self.ended(request, "kind of defect", Outcome::Passed, tried, told);
    }
}

/// How a comparison of bits ended.
fn same<T, E>(compared: &Result<(Outcome, T), E>) -> Option<&Outcome> {
    compared.as_ref().ok().map(|(outcome, _)| outcome)
}

/// How several proofs ended, together.
fn joined<'c>(proofs: impl Iterator<Item = (&'c String, DType, &'c Outcome)>) -> Outcome {
    let mut joined = None;
    for (name, dtype, outcome) in proofs {
        match outcome {
            Outcome::Failed(reason) => return Outcome::Failed(format!("{name} in {dtype}: {reason}")),
            Outcome::NotRun(reason) => joined = Some(Outcome::NotRun(format!("{name} in {dtype}: {reason}"))),
            Outcome::Passed => joined = joined.or(Some(Outcome::Passed)),
        }
    }
    joined.unwrap_or_else(|| Outcome::NotRun("no program was given".into()))
}

/// The operators that multiply matrices.
const PRODUCTS: [&str; 7] = [
    "matmul",
    "grouped_matmul",
    "grouped_outer",
    "attention",
    "attention_gradient",
    "linear_cross_entropy",
    "linear_cross_entropy_gradient",
];

/// What is wrong and for what it is needed, and what was not judged.
fn gathered(
    run: &Run<'_, '_>,
    request: &Request<'_>,
    findings: &Findings,
    asked: &[(OperatorResult, Need)],
    operators: &[OperatorResult],
) -> Evidence {
    let mut evidence = Evidence::default();
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    for result in operators.iter().filter(|result| result.passed == Some(false) && result.setting.is_none()) {
        let finding = result.finding.clone().unwrap_or_default();
        wrong.entry(result.name.clone()).or_insert(finding);
    }
    for (name, finding) in &findings.unrepeated {
        wrong.entry(name.clone()).or_insert_with(|| finding.clone());
    }
    // What a device refuses it lacks, whatever it is right in.
    for (name, reason) in &findings.refused {
        wrong.entry(name.clone()).or_insert_with(|| reason.clone());
    }
    let named = !asked.is_empty();
    let needs = |name: &str| -> Need {
        match named {
            true => asked.iter().filter(|(result, _)| result.name == name).fold(
                Need::default(),
                |need, (_, own)| Need {
                    training: need.training | own.training,
                    inference: need.inference | own.inference,
                },
            ),
            false => Need {
                training: !request.for_checks.contains(name),
                inference: request.for_inference.contains(name),
            },
        }
    };
    for (name, finding) in wrong {
        let need = needs(&name);
        let list = if need.inference {
            &mut evidence.wrong_for_inference
        } else if need.training {
            &mut evidence.wrong_for_training
        } else if request.for_checks.contains(&name) {
            &mut evidence.wrong_in_checks
        } else {
            &mut evidence.wrong_beside
        };
        list.push((name, finding));
    }
    let judged = |name: &str| operators.iter().any(|result| result.name == name && result.passed.is_some());
    let all: BTreeSet<String> = match named {
        true => asked.iter().map(|(result, _)| result.name.clone()).collect(),
        false => toprope_program::OPERATORS.iter().map(|record| record.name.to_string()).collect(),
    };
    evidence.unjudged =
        all.into_iter().filter(|name| !judged(name) && !findings.refused.contains_key(name)).collect();
    // A shape of which nothing was run is a gap, unless the user's own shapes show the operator in that dtype at another size:
    // then the verdict tells how much was run.
    let shown = |one: &OperatorResult| {
        let same = |other: &OperatorResult| other.name == one.name && other.dtype == one.dtype;
        asked.iter().any(|(other, _)| other.passed.is_some() && same(other))
    };
    // One that the device refuses is a gap whatever else it can do.
    let gap = |result: &OperatorResult| result.passed.is_none() && (result.refused || !shown(result));
    let gaps = asked.iter().filter(|(result, _)| gap(result));
    evidence.missing.extend(gaps.map(|(result, _)| {
        format!("`{}` {}: {}", result.name, result.shape, result.finding.clone().unwrap_or_default())
    }));
    for stage in &run.stages {
        let needed = matches!(stage.name, "reset" | "beside itself" | "streams" | "refusals" | "memory");
        match &stage.outcome {
            Outcome::Failed(reason) if needed => evidence.failed.push(format!("{}: {reason}", stage.name)),
            Outcome::NotRun(reason) if matches!(stage.name, "conformance" | "memory" | "refusals") => {
                evidence.missing.push(format!("{}: {reason}", stage.name));
            }
            _ => {}
        }
    }
    evidence
}

/// The last of the evidence: proofs, the soak, and how steady the device is.
fn weigh(
    evidence: &mut Evidence,
    run: &Run<'_, '_>,
    soak: &Soak,
    training: &[TrainingProof],
    inference: &[InferenceProof],
) {
    let ended = |outcomes: Vec<&Outcome>| -> Option<Result<(), String>> {
        for outcome in &outcomes {
            if let Outcome::Failed(reason) = outcome {
                return Some(Err(reason.clone()));
            }
        }
        (!outcomes.is_empty() && outcomes.iter().all(|outcome| outcome.passed())).then_some(Ok(()))
    };
    evidence.training = ended(training.iter().map(|proof| &proof.outcome).collect());
    evidence.inference = ended(inference.iter().map(|proof| &proof.outcome).collect());
    evidence.gone = run.bench.is_gone();
    let mut rate: Option<f64> = None;
    // A setting of products, or an operator that is wrong, explains what its products give.
    let explained = evidence.settings.iter().any(|setting| setting.allowance().is_some())
        || !evidence.wrong_for_inference.is_empty()
        || !evidence.wrong_for_training.is_empty();
    if let Some(wrong) = soak.wrong.as_ref().filter(|_| !explained) {
        evidence.failed.push(format!("soak: {wrong}"));
    }
    if let Some(lost) = &soak.lost {
        evidence.failed.push(format!("soak: memory that was held full: {lost}"));
    }
    if let Outcome::Failed(reason) = &soak.outcome
        && soak.faults > 0
    {
        evidence.unstable.push(format!("soak: {reason}"));
        rate = Some(soak.faults as f64 / soak.runs.max(1) as f64);
    }
    if !run.bench.losses.is_empty() {
        evidence.lost.clone_from(&run.bench.losses);
    }
    evidence.fault_rate = rate;
    if let Outcome::NotRun(reason) = &soak.outcome {
        evidence.missing.push(format!("soak: {reason}"));
    }
}

/// A die that its sisters speak against: outside of the bound it is wrong; inside of it, only not steady.
fn stand(evidence: &mut Evidence, standing: &Standing) {
    let told = format!("among its sisters: {}", standing.finding.clone().unwrap_or_default());
    match standing.outside + standing.faults {
        0 => evidence.unstable.push(told),
        _ => evidence.failed.push(told),
    }
}

/// The bound on the share of faulty runs, by operator, from its clean ones.
fn rates(operators: &[OperatorResult]) -> BTreeMap<String, f64> {
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for result in operators {
        let (failures, cases) = counts.entry(result.name.clone()).or_default();
        *failures += result.failures;
        *cases += result.cases;
    }
    counts.into_iter().map(|(name, (failures, cases))| (name, rate_bound(failures, cases as f64))).collect()
}

fn covered(operators: &[OperatorResult], skipped: &[Skipped]) -> Coverage {
    let skipped = skipped.len() as u64;
    let mut coverage = Coverage { not_run: skipped, shapes_not_run: skipped, ..Coverage::default() };
    for result in operators {
        if result.source == Source::Asked {
            match &result.extent {
                Some(extent) if extent.whole => coverage.shapes_whole += 1,
                Some(_) => coverage.shapes_in_part += 1,
                None => coverage.shapes_not_run += 1,
            }
        }
        match result.passed {
            Some(_) => coverage.run += 1,
            None if result.cases > 0 => coverage.incomparable += 1,
            None => coverage.not_run += 1,
        }
    }
    coverage
}

fn not_run(skipped: &Skipped, level: &str) -> OperatorResult {
    OperatorResult {
        name: skipped.operator.clone(),
        dtype: None,
        variant: level.into(),
        shape: skipped.shape.clone(),
        source: Source::Asked,
        passed: None,
        finding: Some(skipped.reason.clone()),
        refused: false,
        extent: None,
        cases: 0,
        failures: 0,
        elements: 0,
        incomparable: 0,
        effective_bits: None,
        control_bits: None,
        trusted_bits: None,
        worst_error: None,
        tolerance: None,
        defect_guess: None,
        setting: None,
        reproducer: None,
        probe: None,
    }
}
