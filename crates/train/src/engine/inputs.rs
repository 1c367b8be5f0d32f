//! A batch's numbers into a session, and what is computed from batches without training: the same for all engines.

use super::BatchAt;
use crate::batch::{MicroBatch, StepBatch};
use std::sync::Arc;
use toprope_program::{Device, Dim, Fault, Range, Session, Validated};

/// Writes the integers of a micro-batch and binds the program to its size.
pub(super) fn write_micro_batch(
    device: &mut dyn Device,
    session: &mut Session,
    inputs: &MicroBatch,
) -> Result<(), Fault> {
    session.bind(inputs.sequences);
    for (name, numbers) in &inputs.integers {
        if session.has(name) {
            session.write_i32(device, name, numbers)?;
        }
    }
    Ok(())
}

/// Writes the scalars of a step.
pub(super) fn write_scalars(
    device: &mut dyn Device,
    session: &Session,
    batch: &StepBatch,
) -> Result<(), Fault> {
    for (name, numbers) in &batch.scalars {
        if session.has(name) {
            session.write_f32(device, name, numbers)?;
        }
    }
    Ok(())
}

/// Sum of losses and number of targets over batches, on the committed parameters of `train`.
pub(super) fn evaluate(
    device: &mut dyn Device,
    train: &Session,
    program: Arc<Validated>,
    batches: &BatchAt<'_>,
) -> Result<(f64, u64), Fault> {
    let mut session = train.open_over(device, program)?;
    let (mut total, mut targets) = (0.0, 0);
    for batch in (0..).map_while(batches) {
        write_scalars(device, &session, &batch)?;
        for micro in &batch.micro {
            write_micro_batch(device, &mut session, micro)?;
            session.run(device, Range::Accumulate)?;
            total += f64::from(session.read_scalar(device, "loss_sum")?);
            targets += micro.targets;
        }
    }
    session.close(device)?;
    Ok((total, targets))
}

/// Logits of the last row of a window of tokens.
pub(super) fn logits(
    device: &mut dyn Device,
    session: &mut Session,
    window: &[i32],
) -> Result<Vec<f32>, Fault> {
    let used = window.len().min(session.bound()).max(1);
    let window = &window[window.len().saturating_sub(used)..];
    session.bind(used);
    session.write_i32(device, "tokens", window)?;
    session.write_i32(device, "segment_start", &vec![0; used])?;
    session.write_i32(device, "positions", &(0..used as i32).collect::<Vec<_>>())?;
    session.run(device, Range::Accumulate)?;
    let program = session.program().program();
    let vocabulary =
        program.find("logits").map(|id| program.value(id).shape.last().copied().and_then(Dim::constant));
    let mut row = vec![0; vocabulary.flatten().unwrap_or_default() * size_of::<f32>()];
    session.read_part(device, "logits", (used - 1) * row.len(), &mut row)?;
    Ok(row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
