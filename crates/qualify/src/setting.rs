//! Settings told from defects: a product that keeps fewer bits of its operands, or adds in a narrower type, overflow that
//! ends at the largest number, bits that may differ from run to run: whoever set the library up chose so, and a line of theirs
//! changes it. What the line is knows the caller.

use crate::cases::QualifyError;
use crate::product::Product;
use serde::Serialize;
use toprope_conformance::random::Random;
use toprope_program::tensor::round;
use toprope_program::{DType, Device, Fault};

/// A setting of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Setting {
    /// f32 operands keep so many bits behind the leading one, of 23: 10 are TF32, 11 HF32, 7 bf16.
    OperandBits {
        /// Bits that are kept.
        bits: u32,
    },
    /// Partial sums of bf16 products are rounded to bf16, more of them the longer the sum.
    ReducedSums,
    /// What overflows is the largest number in place of infinity, and NaN is 0.
    Saturates,
    /// The device says that its bits may differ from run to run.
    BitsMayDiffer,
}

impl Setting {
    /// What it is, in words.
    pub fn told(self) -> String {
        match self {
            Setting::OperandBits { bits: 10 } => "f32 products round their operands to TF32".into(),
            Setting::OperandBits { bits: 11 } => "f32 products round their operands to HF32".into(),
            Setting::OperandBits { bits: 7 } => "f32 products round their operands to bf16".into(),
            Setting::OperandBits { bits } => {
                format!("f32 products keep {bits} of 23 bits of their operands")
            }
            Setting::ReducedSums => "bf16 products round partial sums to bf16".into(),
            Setting::Saturates => "what overflows is the largest number, not infinity, and NaN is 0".into(),
            Setting::BitsMayDiffer => {
                "bits may differ from run to run: no replay can be compared by its bits".into()
            }
        }
    }

    /// What it adds to the error of a product, as a part of the product's magnitude `Σ|a·b|`, and in which dtype.
    pub fn allowance(self) -> Option<(DType, f64)> {
        match self {
            // Each operand is off by one unit of its last bit at most, where it is cut off.
            Setting::OperandBits { bits } => Some((DType::F32, 2.0 * 2f64.powi(-(bits as i32)))),
            // As many roundings of partial sums to bf16 as `reduced_sums` lets pass for a setting.
            Setting::ReducedSums => Some((DType::Bf16, REDUCED_MOST * 2f64.powi(-9))),
            Setting::Saturates | Setting::BitsMayDiffer => None,
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The device failed or refused.
    Fault(Fault),
    /// The qualification's own mistake.
    Mistake(QualifyError),
}

impl From<Fault> for NoAnswer {
    fn from(fault: Fault) -> NoAnswer {
        NoAnswer::Fault(fault)
    }
}

impl From<QualifyError> for NoAnswer {
    fn from(error: QualifyError) -> NoAnswer {
        NoAnswer::Mistake(error)
    }
}

/// Sizes of the search: as large as the tiles that libraries choose by size.
const SIZES: [usize; 2] = [64, 256];

/// The settings of a device's products.
pub fn settings(device: &mut dyn Device, seed: u64) -> Result<Vec<Setting>, NoAnswer> {
    let mut found = Vec::new();
    for size in SIZES {
        let bits = operand_bits(device, size)?;
        // 7, 10 and 11 are the formats that there are; other losses are no known setting.
        if matches!(bits, 7 | 10 | 11) && adds_wide(device, size)? {
            found.push(Setting::OperandBits { bits });
        }
    }
    if reduced_sums(device, seed)? {
        found.push(Setting::ReducedSums);
    }
    if saturates(device)? {
        found.push(Setting::Saturates);
    }
    if !device.describe().deterministic {
        found.push(Setting::BitsMayDiffer);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// How many bits behind the leading one the operands of an f32 product keep: `1 + 2^-k` times 1 is exact in f32, and 1 (or
/// the next number) where the operand was rounded. Each row holds one such number among zeros.
pub fn operand_bits(device: &mut dyn Device, size: usize) -> Result<u32, NoAnswer> {
    const MOST: u32 = 23;
    let product = Product::new([size, size, size], DType::F32, DType::F32)?;
    let mut kept = MOST;
    // The number stands in a, then in b.
    for swapped in [false, true] {
        let (mut special, mut unit) = (vec![0.0; size * size], vec![0.0; size * size]);
        for k in 1..=MOST as usize {
            let place = if swapped { k * size + k } else { k * size + (k * 5) % size };
            special[place] = 1.0 + 2f64.powi(-(k as i32));
        }
        for row in 0..size {
            for column in 0..size {
                unit[row * size + column] = if swapped { f64::from(u8::from(row == column)) } else { 1.0 };
            }
        }
        let (a, b) = if swapped { (&unit, &special) } else { (&special, &unit) };
        let session = product.open(device, a, b)?;
        let bytes = product.run(device, &session)?;
        session.close(device)?;
        let got = product.numbers(&bytes);
        let exact = (1..=MOST).take_while(|k| {
            let row = *k as usize;
            got.get(row * size + row) == Some(&(1.0 + 2f64.powi(-(*k as i32))))
        });
        kept = kept.min(exact.count() as u32);
    }
    Ok(kept)
}

/// Whether bf16 products lose more, beside one rounding of the exact sum, the longer the sum is.
fn reduced_sums(device: &mut dyn Device, seed: u64) -> Result<bool, NoAnswer> {
    let short = loss(device, 64, seed)?;
    let long = loss(device, 8192, seed)?;
    Ok(long > 2.0 && long > 2.0 * short && long <= REDUCED_MOST)
}

/// The most that rounded partial sums may lose beside one rounding of the exact sum: with `n` of them one after the other
/// `√(n/2)`, so 128 of them. What adds each product in bf16 loses several times as much.
const REDUCED_MOST: f64 = 8.0;

/// Whether sums are kept in more bits than any shortened operand has: 2^20 + 1 is a number, however it came about.
fn adds_wide(device: &mut dyn Device, size: usize) -> Result<bool, NoAnswer> {
    let product = Product::new([size, size, size], DType::F32, DType::F32)?;
    let mut a = vec![0.0; size * size];
    for row in 0..size {
        a[row * size + row % (size - 1)] = f64::from(1 << 20);
        a[row * size + size - 1] = 1.0;
    }
    let session = product.open(device, &a, &vec![1.0; size * size])?;
    let bytes = product.run(device, &session)?;
    session.close(device)?;
    Ok(product.numbers(&bytes).iter().all(|got| *got == f64::from((1 << 20) + 1)))
}

/// Whether twice the largest number of f32 is the largest number again.
fn saturates(device: &mut dyn Device) -> Result<bool, NoAnswer> {
    const SIDE: usize = 16;
    let product = Product::new([SIDE, SIDE, SIDE], DType::F32, DType::F32)?;
    let twice: Vec<f64> = (0..SIDE * SIDE).map(|at| if at % (SIDE + 1) == 0 { 2.0 } else { 0.0 }).collect();
    let session = product.open(device, &twice, &[f64::from(f32::MAX); SIDE * SIDE])?;
    let bytes = product.run(device, &session)?;
    session.close(device)?;
    Ok(product.numbers(&bytes).iter().all(|got| *got == f64::from(f32::MAX)))
}

/// Typical error of a bf16 product with a bf16 result over that of the exact sum rounded once.
fn loss(device: &mut dyn Device, inner: usize, seed: u64) -> Result<f64, NoAnswer> {
    const SIDE: usize = 16;
    let product = Product::new([SIDE, inner, SIDE], DType::Bf16, DType::Bf16)?;
    let mut random = Random::new(seed, "reduced sums");
    let mut draw =
        || -> Vec<f64> { (0..SIDE * inner).map(|_| round(DType::Bf16, random.normal())).collect() };
    let (a, b) = (draw(), draw());
    let session = product.open(device, &a, &b)?;
    let bytes = product.run(device, &session)?;
    session.close(device)?;
    let (mut subject, mut control) = (0.0, 0.0);
    for (index, got) in product.numbers(&bytes).into_iter().enumerate() {
        let (row, column) = (index / SIDE, index % SIDE);
        let want: f64 = (0..inner).map(|k| a[row * inner + k] * b[k * SIDE + column]).sum();
        subject += (got - want).powi(2);
        control += (round(DType::Bf16, want) - want).powi(2);
    }
    Ok((subject / control.max(f64::MIN_POSITIVE)).sqrt())
}
