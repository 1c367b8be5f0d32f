//! The loss of a run beside that of one that nobody disturbed.

use toprope_guard::journal::RunRecord;

/// Losses of the first steps lie this close, relatively: the curve tolerance of bf16.
const CURVE_TOLERANCE: f64 = 2e-3;

/// Steps after which curves of other devices are held to twice the clean spread only (DESIGN, "Numerics"); a rehearsal
/// is short, so a tenth is far outside of it.
const LATE_TOLERANCE: f64 = 0.1;

/// Where a curve leaves that of the undisturbed run.
pub(super) fn leaves(run: &RunRecord, clean: &RunRecord) -> Option<String> {
    run.steps.iter().zip(&clean.steps).find_map(|(got, want)| {
        let (Some(got_loss), Some(want_loss)) = (got.loss, want.loss) else {
            return Some(format!("the loss of step {} is not finite", got.step));
        };
        let tolerance = if got.step < 20 { CURVE_TOLERANCE } else { LATE_TOLERANCE };
        let distance = (got_loss - want_loss).abs() / want_loss.abs();
        let outside = distance.is_nan() || distance > tolerance;
        outside.then(|| format!("the loss of step {} is {got_loss:.5}, undisturbed {want_loss:.5}", got.step))
    })
}

/// The mean loss of the last steps of a run, at most `count`; none where there is none.
pub(super) fn last_mean(run: &RunRecord, count: usize) -> Option<f64> {
    let losses: Vec<f64> = run.steps.iter().rev().take(count).filter_map(|step| step.loss).collect();
    (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
}
