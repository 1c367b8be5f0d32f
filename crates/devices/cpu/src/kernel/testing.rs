//! What the kernels' tests share: random values, stored floats, and every level with several numbers of threads.

use super::{Context, Floats, FloatsMut};
use crate::level::Level;
use crate::pool::Pool;
use half::bf16;

/// A small generator of test values.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.bits() as usize % bound.max(1)
    }

    /// In -1..1.
    pub(crate) fn value(&mut self) -> f32 {
        self.bits() as f32 / u32::MAX as f32 * 2.0 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// Floats in the dtype that a test asks for.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

pub(crate) fn store(values: &[f32], as_bf16: bool) -> Stored {
    if as_bf16 {
        Stored::Bf16(values.iter().map(|value| bf16::from_f32(*value)).collect())
    } else {
        Stored::F32(values.to_vec())
    }
}

pub(crate) fn read(stored: &Stored) -> Floats<'_> {
    match stored {
        Stored::F32(values) => Floats::F32(values),
        Stored::Bf16(values) => Floats::Bf16(values),
    }
}

impl Stored {
    pub(crate) fn at(&self, index: usize) -> f64 {
        match self {
            Stored::F32(values) => f64::from(values[index]),
            Stored::Bf16(values) => values[index].to_f64(),
        }
    }

    pub(crate) fn to_f32(&self) -> Vec<f32> {
        match self {
            Stored::F32(values) => values.clone(),
            Stored::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
        }
    }

    pub(crate) fn write(&mut self) -> FloatsMut<'_> {
        match self {
            Stored::F32(values) => FloatsMut::F32(values),
            Stored::Bf16(values) => FloatsMut::Bf16(values),
        }
    }
}

/// A level with a pool.
pub(crate) struct Setup {
    pub(crate) name: String,
    pub(crate) pool: Pool,
    level: Level,
}

impl Setup {
    pub(crate) fn context(&self) -> Context<'_> {
        Context { pool: &self.pool, level: self.level }
    }
}

/// The levels that give the same bits and that this machine has, with 1, 2 and 3 threads; says what it leaves out.
pub(crate) fn contexts() -> Vec<Setup> {
    let mut setups = Vec::new();
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        if !level.is_available() {
            println!("not run: this machine has no {level}");
            continue;
        }
        for threads in 1..4 {
            let pool = Pool::new(threads).unwrap();
            setups.push(Setup { name: format!("{level} with {threads} threads"), pool, level });
        }
    }
    setups
}

/// Equal bits, any NaN equal to any other.
pub(crate) fn nan_equal(got: &[f32], want: &[f32]) -> bool {
    let same = |(got, want): (&f32, &f32)| got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
    got.len() == want.len() && got.iter().zip(want).all(same)
}

/// Within `roundings` f32 roundings of `size` and one of the store.
pub(crate) fn assert_close(got: f32, want: f64, size: f64, roundings: usize, bf16: bool, place: &str) {
    let store = if bf16 { 2f64.powi(-8) } else { 2f64.powi(-24) };
    let bound = (roundings as f64 + 2.0) * 2f64.powi(-24) * size + store * want.abs() + 1e-44;
    let error = (f64::from(got) - want).abs();
    let accepted = error <= bound || want.is_nan() && got.is_nan() || f64::from(got) == want;
    assert!(accepted, "{place}: {got:e} instead of {want:e}, {error:e} off, {bound:e} allowed");
}
