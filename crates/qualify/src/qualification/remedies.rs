//! What could be done about what is wrong: another variant of the device, another dtype.

use super::*;

impl<'b> Run<'_, 'b> {
    /// What makes every wrong operator that is needed right: another variant, or another precision.
    pub(super) fn remedies(
        &mut self,
        request: &mut Request<'b>,
        evidence: &Evidence,
        operators: &[OperatorResult],
        speed: &Speed,
        deadline: &Deadline<'_>,
    ) -> Result<Vec<Change>, QualifyError> {
        let needed = evidence.wrong_for_inference.iter().chain(&evidence.wrong_for_training);
        let names: BTreeSet<&str> = needed.map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let listed: Vec<String> = names.iter().map(ToString::to_string).collect();
        let alternatives = std::mem::take(&mut request.alternatives);
        let (mut found, mut tried) = (None, 0);
        for alternative in &alternatives {
            if deadline.passed() {
                break;
            }
            tried += 1;
            if let Some(cost) =
                self.tries(alternative, &names, request, &deadline.part(0.5, Duration::MAX))?
            {
                let (device, operators) = (alternative.name.clone(), listed.clone());
                found = Some(Change::Variant { device, operators, cost });
                break;
            }
        }
        request.alternatives = alternatives;
        // bf16 wrong and f32 right: everything in f32.
        if found.is_none() {
            let wrong =
                operators.iter().filter(|r| r.passed == Some(false) && names.contains(r.name.as_str()));
            // What is right and does not repeat is wrong in no type.
            let all_wrong = names.iter().all(|name| wrong.clone().any(|result| result.name == *name));
            let only_bf16 = all_wrong && wrong.clone().all(|result| result.dtype == Some(DType::Bf16));
            let right_in_f32 = names.iter().all(|name| {
                let all = operators.iter().filter(|r| r.name == *name && r.dtype == Some(DType::F32));
                all.clone().count() > 0
                    && all.clone().all(|r| r.passed != Some(false))
                    && all.clone().any(|r| r.passed == Some(true))
            });
            let repeats = evidence.unstable.is_empty();
            if only_bf16 && right_in_f32 && repeats {
                let ratio = speed.bf16_flops_per_second / speed.f32_flops_per_second;
                let cost = ratio.is_finite().then_some(ratio).filter(|ratio| *ratio > 0.0);
                found = Some(Change::Precision { dtype: DType::F32, operators: listed, cost });
            }
        }
        let told = match &found {
            Some(Change::Variant { device, .. }) => format!("right as {device}"),
            Some(Change::Precision { .. }) => "right in f32".into(),
            _ => format!("{tried} other variants tried, none is right"),
        };
        let outcome = if found.is_some() || tried > 0 {
            Outcome::Passed
        } else {
            Outcome::NotRun("there is no other variant, or no time for it".into())
        };
        self.ended(request, "remedies", outcome, tried, told);
        Ok(found.into_iter().collect())
    }

    /// Whether a variant is right in these operators, and then what a step costs on it beside the device as it is.
    fn tries(
        &mut self,
        alternative: &Alternative<'b>,
        names: &BTreeSet<&str>,
        request: &Request<'b>,
        deadline: &Deadline<'_>,
    ) -> Result<Option<Option<f64>>, QualifyError> {
        let Ok(device) = self.bench.opened(alternative.open) else { return Ok(None) };
        let case = request.training.first();
        let clock = self.bench.clock;
        let before = case.and_then(|case| step_seconds(self.bench.device.as_mut(), case, clock));
        // It stands on the bench in the device's place for a while.
        let device = std::mem::replace(&mut self.bench.device, device);
        let open = std::mem::replace(&mut self.bench.open, alternative.open);
        // Its losses are its own.
        let losses = std::mem::take(&mut self.bench.losses);
        let in_a_row = std::mem::take(&mut self.bench.losses_in_a_row);
        let tried = self.is_right(names, request, deadline);
        let after = case.and_then(|case| step_seconds(self.bench.device.as_mut(), case, clock));
        self.bench.device = device;
        self.bench.open = open;
        (self.bench.losses, self.bench.losses_in_a_row) = (losses, in_a_row);
        let cost = before.zip(after).map(|(before, after)| after / before);
        Ok(tried?.then_some(cost))
    }

    /// Whether the device on the bench is right in these operators, on the contract's cases and on the user's shapes.
    fn is_right(
        &mut self,
        names: &BTreeSet<&str>,
        request: &Request<'b>,
        deadline: &Deadline<'_>,
    ) -> Result<bool, QualifyError> {
        let again = self.again(names, request, deadline)?;
        Ok(again.is_sound && names.iter().all(|name| again.agrees(|r| r.name == *name)))
    }

    /// Runs these operators once more, on the contract's cases and on the user's shapes.
    pub(super) fn again(
        &mut self,
        names: &BTreeSet<&str>,
        request: &Request<'b>,
        deadline: &Deadline<'_>,
    ) -> Result<Again, QualifyError> {
        let findings = cases::of_operators(self.bench, names, deadline, ROUNDS)?;
        let shapes: Vec<Shape> =
            request.shapes.iter().filter(|shape| names.contains(shape.operator)).cloned().collect();
        let asked = shapes::run(self.bench, &shapes, deadline)?;
        let mut results = findings.results("");
        results.extend(asked.into_iter().map(|(result, _)| result));
        let repeats = findings.unrepeated.iter().all(|(name, _)| !names.contains(name.as_str()));
        Ok(Again { results, is_sound: repeats && findings.faults.is_empty() })
    }
}

/// What came of running operators once more.
pub(super) struct Again {
    results: Vec<OperatorResult>,
    /// Bits repeated, and nothing failed.
    pub(super) is_sound: bool,
}

impl Again {
    /// Whether a shape of the user's came right at the size at which it was wrong; other results are no one's in particular.
    pub(super) fn shows(&self, wrong: &OperatorResult) -> bool {
        let is_whole = |r: &OperatorResult| r.extent.as_ref().is_some_and(|extent| extent.whole);
        wrong.source != Source::Asked
            || self.results.iter().any(|r| {
                let same = r.source == Source::Asked
                    && (&r.name, &r.shape, r.dtype) == (&wrong.name, &wrong.shape, wrong.dtype);
                same && r.passed == Some(true) && (is_whole(r) || !is_whole(wrong))
            })
    }

    /// Whether one of these results differs.
    pub(super) fn differs(&self, these: impl Fn(&OperatorResult) -> bool) -> bool {
        self.results.iter().any(|result| these(result) && result.passed == Some(false))
    }

    /// Whether some of these results agree and none differs.
    pub(super) fn agrees(&self, these: impl Fn(&OperatorResult) -> bool) -> bool {
        self.results.iter().any(|result| these(result) && result.passed == Some(true)) && !self.differs(these)
    }
}

/// Seconds of a training step, the fastest of three behind one; none where the device does not run it.
fn step_seconds(device: &mut dyn Device, case: &TrainingCase, clock: Clock<'_>) -> Option<f64> {
    let step = case.steps.first()?;
    let mut trainee = Trainee::open(device, case).ok()?;
    let mut best = f64::INFINITY;
    for turn in 0..4 {
        let began = clock();
        trainee.step(device, step).ok()?;
        if turn > 0 {
            best = best.min(clock().saturating_sub(began).as_secs_f64());
        }
    }
    trainee.close(device).ok()?;
    Some(best.max(1e-9))
}
