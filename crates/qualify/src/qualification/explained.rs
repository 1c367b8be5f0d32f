//! What a setting explains of what is wrong, and what it does not.

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
        for setting in settings {
            let began = (self.bench.clock)();
            let changed = (request.without)(*setting);
            self.bench.opening += (self.bench.clock)().saturating_sub(began);
            let Some(Ok(mut changed)) = changed else { continue };
            let wrong = |r: &&mut OperatorResult| r.passed == Some(false) && r.setting.is_none();
            for result in operators.iter_mut().filter(wrong) {
                let Some(probe) = &result.probe else { continue };
                let fails = |checked: Result<Judgement, Obstacle>| match checked {
                    Ok(judgement) => Ok(Some(matches!(judgement.verdict, Verdict::Differ(_)))),
                    Err(Obstacle::Oracle(fault)) => Err(QualifyError::Oracle(fault)),
                    Err(_) => Ok(None),
                };
                let oracle = &mut self.bench.oracle;
                let with = fails(probe.check(self.bench.device.as_mut(), oracle))?;
                if with == Some(true) && fails(probe.check(changed.as_mut(), oracle))? == Some(false) {
                    result.setting = Some(setting.told());
                }
            }
        }
        for setting in settings {
            let Some((dtype, allowance)) = setting.allowance() else { continue };
            let concerned = |r: &OperatorResult| {
                r.passed == Some(false)
                    && r.setting.is_none()
                    && r.dtype == Some(dtype)
                    && PRODUCTS.contains(&r.name.as_str())
            };
            let names: BTreeSet<String> =
                operators.iter().filter(|r| concerned(r)).map(|r| r.name.clone()).collect();
            // Everything once more with room for the setting's own errors: what is wrong even so, it does not explain.
            let asked = names.iter().map(String::as_str).collect();
            let findings = cases::of_operators(self.bench, &asked, whole, ROUNDS, allowance)?;
            let right = |name: &str| {
                let all: Vec<_> = findings
                    .results("")
                    .into_iter()
                    .filter(|r| r.name == name && r.dtype == Some(dtype))
                    .collect();
                all.iter().any(|r| r.passed == Some(true)) && all.iter().all(|r| r.passed != Some(false))
            };
            let explained: BTreeSet<&str> = asked.iter().copied().filter(|name| right(name)).collect();
            for result in operators.iter_mut().filter(|r| concerned(r)) {
                if explained.contains(result.name.as_str()) {
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
