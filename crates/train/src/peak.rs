//! The measured peak of a device: what MFU is relative to.

use std::sync::Arc;
use std::time::Duration;
use toprope_program::operator::Matmul;
use toprope_program::{
    Builder, DType, Device, Fault, FaultKind, Initial, Phase, Range, Role, Session, StateLayout, Tensor,
    Type, Width, validate,
};
use toprope_world::Clock;

const SIZE: usize = 512;

/// FLOP/s of the best of several 512³ products in a dtype, through the device's own path.
///
/// # Errors
/// A fault of the device.
pub fn measure_flops(
    device: &mut dyn Device,
    dtype: DType,
    clock: &dyn Clock,
    budget: Duration,
) -> Result<f64, Fault> {
    let mut builder = Builder::new("peak", Phase::Evaluate);
    let a = builder.input("a", dtype, [SIZE, SIZE]);
    let b = builder.input("b", dtype, [SIZE, SIZE]);
    let out = builder.declare("out", Type::new(DType::F32, [SIZE, SIZE]), Role::Output);
    let bug = |reason: String| Fault::new("peak", FaultKind::Driver { code: 0, message: reason });
    builder
        .apply_to(Matmul { output: DType::F32, row_sums: false }, vec![a.into(), b.into()], vec![out])
        .map_err(|error| bug(error.to_string()))?;
    let program = validate(builder.finish()).map_err(|defects| bug(format!("{defects:?}")))?;
    let session = Session::open(device, Arc::new(program), Width::Native, StateLayout::InPlace)?;
    for name in ["a", "b"] {
        let numbers = Initial::Normal { std: 1.0 }.draw(1, name, SIZE * SIZE);
        let tensor = Tensor::rounded(dtype, &[SIZE, SIZE], numbers.into_iter().map(f64::from));
        session.write(device, name, &tensor.to_bytes(Width::Native))?;
    }
    session.run(device, Range::Accumulate)?;
    let (begun, mut best) = (clock.monotonic(), f64::INFINITY);
    while clock.monotonic().saturating_sub(begun) < budget {
        let started = clock.monotonic();
        session.run(device, Range::Accumulate)?;
        best = best.min(clock.monotonic().saturating_sub(started).as_secs_f64());
    }
    session.close(device)?;
    Ok(2.0 * (SIZE as f64).powi(3) / best)
}
