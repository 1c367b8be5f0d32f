//! The loss of a run beside that of one that nobody disturbed.

use toprope_guard::journal::RunRecord;

/// Losses of the first steps lie this close, relatively: the curve tolerance of bf16.
const CURVE_TOLERANCE: f64 = 2e-3;

/// How many they are; later ones are held together, so many at a time.
const FIRST: usize = 20;

/// Steps after which curves of other devices are held to twice the clean spread only (DESIGN, "Numerics"); a rehearsal
/// is short, so a tenth is far outside of it. That goes for means: by then two right runs differ by more in a batch that fits
/// neither.
const LATE_TOLERANCE: f64 = 0.1;

/// Where a curve leaves that of the undisturbed run.
pub(super) fn leaves(run: &RunRecord, clean: &RunRecord) -> Option<String> {
    let pairs: Vec<Pair> =
        run.steps.iter().zip(&clean.steps).map(|(got, want)| (got.step, got.loss, want.loss)).collect();
    leaving(&pairs)
}

/// A step, its loss and the undisturbed one.
type Pair = (u64, Option<f64>, Option<f64>);

fn leaving(pairs: &[Pair]) -> Option<String> {
    let mut losses = Vec::with_capacity(pairs.len());
    for (step, got, want) in pairs {
        let (Some(got), Some(want)) = (got, want) else {
            return Some(format!("the loss of step {step} is not finite"));
        };
        losses.push((*step, *got, *want));
    }
    let (first, late) = losses.split_at(losses.len().min(FIRST));
    let outside = |got: f64, want: f64, tolerance: f64| {
        let distance = (got - want).abs() / want.abs();
        distance.is_nan() || distance > tolerance
    };
    let single = first.iter().find(|(_, got, want)| outside(*got, *want, CURVE_TOLERANCE));
    if let Some((step, got, want)) = single {
        return Some(format!("the loss of step {step} is {got:.5}, undisturbed {want:.5}"));
    }
    late.chunks(FIRST).find_map(|chunk| {
        let mean = |of: fn(&(u64, f64, f64)) -> f64| chunk.iter().map(of).sum::<f64>() / chunk.len() as f64;
        let (got, want) = (mean(|loss| loss.1), mean(|loss| loss.2));
        let (from, to) = (chunk.first()?.0, chunk.last()?.0);
        outside(got, want, LATE_TOLERANCE)
            .then(|| format!("the mean loss of steps {from} to {to} is {got:.5}, undisturbed {want:.5}"))
    })
}

/// The mean loss of the last steps of a run, at most `count`; none where there is none.
pub(super) fn last_mean(run: &RunRecord, count: usize) -> Option<f64> {
    let losses: Vec<f64> = run.steps.iter().rev().take(count).filter_map(|step| step.loss).collect();
    (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(wrong: impl Fn(u64) -> f64) -> Vec<Pair> {
        (0..95).map(|step| (step, Some(4.0 * wrong(step)), Some(4.0))).collect()
    }

    #[test]
    fn a_curve_that_leaves_is_told_where_it_does() {
        assert_eq!(leaving(&curve(|_| 1.001)), None);
        assert_eq!(leaving(&curve(|step| if step == 60 { 1.3 } else { 1.001 })), None, "one batch");
        let early = leaving(&curve(|step| if step == 7 { 1.01 } else { 1.0 }));
        assert_eq!(early.as_deref(), Some("the loss of step 7 is 4.04000, undisturbed 4.00000"));
        let late = leaving(&curve(|step| if step >= 40 { 1.2 } else { 1.0 }));
        assert_eq!(late.as_deref(), Some("the mean loss of steps 40 to 59 is 4.80000, undisturbed 4.00000"));
        let mut torn = curve(|_| 1.0);
        torn[90].1 = None;
        assert_eq!(leaving(&torn).as_deref(), Some("the loss of step 90 is not finite"));
        let nan = leaving(&curve(|step| if step == 94 { f64::NAN } else { 1.0 }));
        assert!(nan.is_some());
    }
}
