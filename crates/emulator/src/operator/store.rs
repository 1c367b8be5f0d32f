//! Storing results: one rounding to the tensor's type, overflow as the device's mode says, and the defects that spoil
//! what any operator writes.

use std::sync::Arc;

use half::{bf16, f16};

use crate::fault::Fault;
use crate::memory::Allocation;
use crate::operator::arguments::Operand;
use crate::operator::run::{Run, lines};
use crate::tensor::DataType;

/// Elements of a tile: what a race or a stale buffer leaves behind.
const TILE: usize = 16;

/// Which elements are left as they were.
fn kept(run: &Run, count: usize) -> Option<std::ops::Range<usize>> {
    if run.has("any.stale_tile") || run.has("any.race") {
        let tiles = count.div_ceil(TILE) as u64;
        let tile = (run.active.random(0x7157) % tiles.max(1)) as usize;
        return Some(tile * TILE..count.min((tile + 1) * TILE));
    }
    None
}

/// # Safety
/// Every element of the window lies in memory that may be written, `base` being that of element 0 from `data` on.
unsafe fn scatter<V: Copy, S>(
    base: *mut u8,
    operand: &Operand,
    values: &[V],
    kept: Option<std::ops::Range<usize>>,
    convert: impl Fn(V) -> S,
) {
    let base = base.cast::<S>();
    let mut next = 0;
    lines(operand, |start, count, stride| {
        for (place, &value) in values[next..next + count].iter().enumerate() {
            if kept.as_ref().is_some_and(|kept| kept.contains(&(next + place))) {
                continue;
            }
            let to = base.wrapping_offset((start + stride * place as i64) as isize);
            // SAFETY: the caller's promise.
            unsafe { to.write_unaligned(convert(value)) };
        }
        next += count;
    });
}

fn target(run: &Run, operand: &Operand, count: usize) -> Result<Option<(Arc<Allocation>, *mut u8)>, Fault> {
    if operand.len() != count {
        return Err(operand.refuse(format!("the emulator has {count} values for it")));
    }
    run.locate(operand)
}

/// The largest number of a float type.
fn largest(dtype: DataType) -> f64 {
    match dtype {
        DataType::F16 => f64::from(f16::MAX),
        DataType::Bf16 => f64::from(bf16::MAX),
        DataType::F32 => f64::from(f32::MAX),
        _ => f64::MAX,
    }
}

fn saturated(value: f64, dtype: DataType) -> f64 {
    let most = largest(dtype);
    if value.is_nan() { 0.0 } else { value.clamp(-most, most) }
}

/// Flips one bit of one element, on the stored type.
fn flip(run: &Run, operand: &Operand, base: *mut u8) {
    let Some(options) = run.active.options("any.bit_flip") else { return };
    let random = run.active.random(0xB17);
    let index = (random >> 8) as usize % operand.len();
    let bits = operand.dtype.size() as u64 * 8;
    let bit = options.bit.unwrap_or(random % bits) % bits;
    let mut seen = 0;
    lines(operand, |start, count, stride| {
        if (seen..seen + count).contains(&index) {
            let element = start + stride * (index - seen) as i64;
            let byte = element as isize * operand.dtype.size() as isize + (bit / 8) as isize;
            // SAFETY: a byte of an element that was just written.
            unsafe { *base.wrapping_offset(byte) ^= 1 << (bit % 8) };
        }
        seen += count;
    });
}

/// Stores f32 values.
pub fn floats(run: &Run, operand: &Operand, values: &[f32]) -> Result<(), Fault> {
    let Some((_kept, base)) = target(run, operand, values.len())? else { return Ok(()) };
    let saturate = operand.dtype.is_float() && (run.device.saturates() || run.has("any.saturate"));
    let flush = run.has("any.flush_denormals");
    let spoilt: Vec<f32>;
    let values = if saturate || flush {
        let mend = |&value: &f32| {
            let value = if saturate { saturated(f64::from(value), operand.dtype) as f32 } else { value };
            if flush && value.is_subnormal() { 0.0 } else { value }
        };
        spoilt = values.iter().map(mend).collect();
        &spoilt
    } else {
        values
    };
    let kept = kept(run, values.len());
    // SAFETY: `target` looked the whole window up.
    unsafe {
        match operand.dtype {
            DataType::F32 if operand.is_contiguous() && kept.is_none() => {
                let to = base.wrapping_offset(operand.offset as isize * 4);
                std::ptr::copy(values.as_ptr().cast::<u8>(), to, values.len() * 4);
            }
            DataType::F32 => scatter(base, operand, values, kept, |v| v),
            DataType::F16 => scatter(base, operand, values, kept, |v| f16::from_f32(v).to_bits()),
            DataType::Bf16 => scatter(base, operand, values, kept, |v| bf16::from_f32(v).to_bits()),
            DataType::F64 => scatter(base, operand, values, kept, f64::from),
            DataType::I8 => scatter(base, operand, values, kept, |v| v as i8),
            DataType::U8 => scatter(base, operand, values, kept, |v| v as u8),
            DataType::Bool => scatter(base, operand, values, kept, |v| u8::from(v != 0.0)),
            DataType::I16 => scatter(base, operand, values, kept, |v| v as i16),
            DataType::U16 => scatter(base, operand, values, kept, |v| v as u16),
            DataType::I32 => scatter(base, operand, values, kept, |v| v as i32),
            DataType::U32 => scatter(base, operand, values, kept, |v| v as u32),
            DataType::I64 => scatter(base, operand, values, kept, |v| v as i64),
            DataType::U64 => scatter(base, operand, values, kept, |v| v as u64),
            DataType::I4 => return Err(operand.refuse("int4 is not implemented")),
        }
    }
    flip(run, operand, base);
    Ok(())
}

/// Stores f64 values.
pub fn doubles(run: &Run, operand: &Operand, values: &[f64]) -> Result<(), Fault> {
    if operand.dtype != DataType::F64 {
        // Integers beyond f32's 24 bits keep all of theirs.
        if !operand.dtype.is_float() {
            return integers(run, operand, &values.iter().map(|&value| value as i64).collect::<Vec<_>>());
        }
        return floats(run, operand, &values.iter().map(|&value| value as f32).collect::<Vec<_>>());
    }
    let Some((_kept, base)) = target(run, operand, values.len())? else { return Ok(()) };
    let saturate = run.device.saturates() || run.has("any.saturate");
    let convert = |value| if saturate { saturated(value, DataType::F64) } else { value };
    // SAFETY: `target` looked the whole window up.
    unsafe { scatter(base, operand, values, kept(run, values.len()), convert) };
    flip(run, operand, base);
    Ok(())
}

/// Stores integers.
pub fn integers(run: &Run, operand: &Operand, values: &[i64]) -> Result<(), Fault> {
    match operand.dtype {
        DataType::F64 => return doubles(run, operand, &values.iter().map(|&v| v as f64).collect::<Vec<_>>()),
        dtype if dtype.is_float() => {
            return floats(run, operand, &values.iter().map(|&v| v as f32).collect::<Vec<_>>());
        }
        _ => {}
    }
    let Some((_kept, base)) = target(run, operand, values.len())? else { return Ok(()) };
    let kept = kept(run, values.len());
    // SAFETY: `target` looked the whole window up.
    unsafe {
        match operand.dtype {
            DataType::Bool => scatter(base, operand, values, kept, |v| u8::from(v != 0)),
            DataType::I8 | DataType::U8 => scatter(base, operand, values, kept, |v| v as u8),
            DataType::I16 | DataType::U16 => scatter(base, operand, values, kept, |v| v as u16),
            DataType::I32 | DataType::U32 => scatter(base, operand, values, kept, |v| v as u32),
            _ => scatter(base, operand, values, kept, |v| v),
        }
    }
    flip(run, operand, base);
    Ok(())
}
