//! What a setting explains of what is wrong, and what it does not.

use super::remedies::Again;
use super::*;

impl<'b> Run<'_, 'b> {
    /// Which settings explain what, written to the results; a setting that explains nothing was found all the same.
    pub(super) fn explain(
        &mut self,
        request: &Request<'b>,
        settings: &[Setting],
        operators: &mut [OperatorResult],
        whole: &Deadline<'_>,
    ) -> Result<(), QualifyError> {
        let wrong = |r: &OperatorResult| r.passed == Some(false) && r.setting.is_none();
        // What is as wrong with a setting changed, that setting does not explain.
        let mut stubborn: Vec<(Setting, String, Option<DType>)> = Vec::new();
        for setting in settings {
            let names = names(operators.iter().filter(|r| wrong(r)));
            let part = whole.part(0.5, Duration::MAX);
            let Some(again) = self.changed(*setting, &names, request, &part)? else { continue };
            for result in operators.iter_mut().filter(|r| wrong(r)) {
                let same = |r: &OperatorResult| r.name == result.name && r.dtype == result.dtype;
                if again.is_sound && again.agrees(same) && again.shows(result) {
                    result.setting = Some(setting.told());
                } else if again.differs(same) {
                    stubborn.push((*setting, result.name.clone(), result.dtype));
                }
            }
        }
        for setting in settings {
            let Some((dtype, allowance)) = setting.allowance() else { continue };
            let concerned = |r: &OperatorResult| {
                wrong(r)
                    && r.dtype == Some(dtype)
                    && PRODUCTS.contains(&r.name.as_str())
                    && !stubborn.contains(&(*setting, r.name.clone(), r.dtype))
            };
            let names = names(operators.iter().filter(|r| concerned(r)));
            // Everything once more with room for the setting's own errors: what is wrong even so, it does not explain.
            self.bench.oracle.allowance = allowance;
            let again = self.allowed(&names, request, whole, operators, &concerned);
            self.bench.oracle.allowance = 0.0;
            let (again, swept) = again?;
            for (index, result) in operators.iter_mut().enumerate().filter(|(_, r)| concerned(r)) {
                let same = |r: &OperatorResult| r.name == result.name && r.dtype == Some(dtype);
                let held = result.source != Source::Swept || swept.contains(&index);
                if again.agrees(same) && again.shows(result) && held {
                    result.setting = Some(setting.told());
                }
            }
        }
        if settings.contains(&Setting::Saturates) {
            let wrong = |r: &&mut OperatorResult| r.passed == Some(false) && r.setting.is_none();
            for result in operators.iter_mut().filter(wrong) {
                if self.only_beyond_range(result)? {
                    result.setting = Some(Setting::Saturates.told());
                }
            }
        }
        Ok(())
    }

    /// These operators once more on the device with a setting changed; nothing where its name cannot say so, or where that
    /// device was lost on the way.
    fn changed(
        &mut self,
        setting: Setting,
        names: &BTreeSet<String>,
        request: &Request<'b>,
        whole: &Deadline<'_>,
    ) -> Result<Option<Again>, QualifyError> {
        if names.is_empty() {
            return Ok(None);
        }
        let began = (self.bench.clock)();
        let changed = (request.without)(setting);
        self.bench.opening += (self.bench.clock)().saturating_sub(began);
        let Some(Ok(changed)) = changed else { return Ok(None) };
        // It stands on the bench in the device's place for a while. Its losses are its own.
        let device = std::mem::replace(&mut self.bench.device, changed);
        let losses = std::mem::take(&mut self.bench.losses);
        let in_a_row = std::mem::take(&mut self.bench.losses_in_a_row);
        let again = self.again(&names.iter().map(String::as_str).collect(), request, whole);
        let held = self.bench.losses.is_empty();
        self.bench.device = device;
        (self.bench.losses, self.bench.losses_in_a_row) = (losses, in_a_row);
        again.map(|again| held.then_some(again))
    }

    /// These operators once more with what the oracle lets through now, and which of the swept results are right so.
    fn allowed(
        &mut self,
        names: &BTreeSet<String>,
        request: &Request<'b>,
        whole: &Deadline<'_>,
        operators: &[OperatorResult],
        concerned: &dyn Fn(&OperatorResult) -> bool,
    ) -> Result<(Again, BTreeSet<usize>), QualifyError> {
        let again = self.again(&names.iter().map(String::as_str).collect(), request, whole)?;
        let mut swept = BTreeSet::new();
        let of_bands = |r: &OperatorResult| r.source == Source::Swept && concerned(r);
        for (index, result) in operators.iter().enumerate().filter(|(_, r)| of_bands(r)) {
            let Some(probe) = &result.probe else { continue };
            match probe.check(self.bench.device.as_mut(), &mut self.bench.oracle) {
                Ok(judgement) if !matches!(judgement.verdict, Verdict::Differ(_)) => {
                    swept.insert(index);
                }
                Err(Obstacle::Oracle(fault)) => return Err(QualifyError::Oracle(fault)),
                Err(Obstacle::Subject(fault)) => {
                    self.bench.revive(&fault);
                }
                _ => {}
            }
        }
        Ok((again, swept))
    }

    /// Whether a wrong result is one of infinities and NaN alone: the failing case holds some, and the same operator is right
    /// wherever numbers are ordinary.
    fn only_beyond_range(&mut self, result: &OperatorResult) -> Result<bool, QualifyError> {
        const DRAWS: u64 = 4;
        let Some(probe) = &result.probe else { return Ok(false) };
        let oracle = &mut self.bench.oracle;
        let exact = match probe.exact(oracle) {
            Ok(exact) => exact,
            Err(Obstacle::Oracle(fault)) => return Err(QualifyError::Oracle(fault)),
            Err(_) => return Ok(false),
        };
        let beyond = |tensor: &Tensor| {
            let largest = if tensor.dtype.is_float() { f64::from(f32::MAX) } else { f64::INFINITY };
            tensor.data.iter().any(|x| !x.is_finite() || x.abs() > largest)
        };
        if !probe.operands().iter().chain(&exact.want).any(beyond) {
            return Ok(false);
        }
        for draw in 0..DRAWS {
            let seed = self.bench.seed.wrapping_add(draw);
            let Ok(redrawn) = probe.redrawn_consistently(seed, Regime::Normal, oracle) else {
                return Ok(false);
            };
            let exact = match redrawn.exact(oracle) {
                Ok(exact) => exact,
                Err(Obstacle::Oracle(fault)) => return Err(QualifyError::Oracle(fault)),
                Err(_) => return Ok(false),
            };
            let judgement = match redrawn.run(self.bench.device.as_mut()) {
                Ok(outcome) => redrawn.judge(&exact, &outcome),
                Err(Obstacle::Subject(fault)) => {
                    self.bench.revive(&fault);
                    return Ok(false);
                }
                Err(_) => return Ok(false),
            };
            // A row that sees nothing has a logarithm of -∞ whatever is drawn.
            let finite = |(output, element): &(usize, usize)| exact.want[*output].data[*element].is_finite();
            let all_told = judgement.wrong_count as usize <= judgement.wrong.len();
            let differs = matches!(judgement.verdict, Verdict::Differ(_));
            if differs && (judgement.wrong.iter().any(finite) || !all_told || judgement.wrong.is_empty()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn names<'r>(results: impl Iterator<Item = &'r OperatorResult>) -> BTreeSet<String> {
    results.map(|result| result.name.clone()).collect()
}
