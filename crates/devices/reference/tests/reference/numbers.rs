//! Deterministic numbers.

use toprope_program::{DType, Tensor, philox};

/// A counter-based stream of numbers.
pub struct Numbers {
    key: u32,
    block: u32,
}

impl Numbers {
    pub fn new(key: u32) -> Numbers {
        Numbers { key, block: 0 }
    }

    pub fn bits(&mut self) -> u32 {
        self.block += 1;
        philox::block([self.block, 0, 0, 0], [self.key, 77])[0]
    }

    /// Uniform in -1..1, and no nearer to 0 than 1/16.
    pub fn uniform(&mut self) -> f64 {
        let x = f64::from(self.bits()) / 2f64.powi(31) - 1.0;
        x * 0.9375 + 0.0625 * x.signum()
    }

    pub fn below(&mut self, count: usize) -> usize {
        self.bits() as usize % count
    }

    pub fn tensor(&mut self, dtype: DType, sizes: &[usize]) -> Tensor {
        let count = sizes.iter().product();
        Tensor { dtype, sizes: sizes.to_vec(), data: (0..count).map(|_| self.uniform()).collect() }
    }
}

pub fn floats(sizes: &[usize], data: &[f64]) -> Tensor {
    Tensor { dtype: DType::F32, sizes: sizes.to_vec(), data: data.to_vec() }
}

pub fn integers(sizes: &[usize], data: &[i32]) -> Tensor {
    Tensor { dtype: DType::I32, sizes: sizes.to_vec(), data: data.iter().map(|x| f64::from(*x)).collect() }
}
