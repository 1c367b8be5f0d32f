//! What a user's shapes are filled with.

use toprope_conformance::random::Random;
use toprope_conformance::values::{Regime, Values, draw};
use toprope_program::tensor::round;
use toprope_program::{DType, Operator, Program, Role, Tensor};

/// The numbers that an operand had in somebody's own run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    /// The least exponent of a number that is not 0: 2^low ≤ |x|.
    pub low: i32,
    /// The greatest: |x| < 2^(high+1).
    pub high: i32,
    /// The share of zeros.
    pub zeros: f64,
    /// The share of negative numbers.
    pub negative: f64,
}

/// What is known of an operand's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Numbers {
    /// Floats in a band.
    Band(Band),
    /// Where each row's document starts: all documents have so many rows.
    Documents(usize),
}

impl Numbers {
    /// What holds for both; none where they are not of one kind.
    pub fn joined(self, other: Numbers) -> Option<Numbers> {
        match (self, other) {
            (Numbers::Band(one), Numbers::Band(two)) => Some(Numbers::Band(one.joined(two))),
            (one, two) => (one == two).then_some(one),
        }
    }
}

impl Band {
    /// A band that holds both.
    fn joined(self, other: Band) -> Band {
        Band {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
            zeros: self.zeros.max(other.zeros),
            negative: (self.negative + other.negative) / 2.0,
        }
    }

    /// One number: its exponent uniformly from the band, as the Python package draws it.
    fn number(&self, dtype: DType, random: &mut Random) -> f64 {
        if random.chance(self.zeros) {
            return 0.0;
        }
        let exponent = random.between(i64::from(self.low), i64::from(self.high.max(self.low)));
        let sign = if random.chance(self.negative) { -1.0 } else { 1.0 };
        round(dtype, sign * (1.0 + random.unit()) * 2f64.powi(exponent as i32))
    }
}

/// Longer tensors repeat their first numbers: a prime, so that no row of a common width begins like another.
const DRAWN_MAX: usize = 262_139;

/// Numbers as the user's run had them, where that is known; else standard normal ones. A head's weights are such that its
/// logits are standard normal, too, however wide it is: a softmax that has one winner everywhere tells nothing.
pub fn drawn(program: &Program, known: &[Option<Numbers>], seed: u64) -> Values {
    let mut values = draw(program, &[], seed, Regime::Normal);
    let Some(instruction) = program.accumulate.first() else { return values };
    for (at, operand) in instruction.operands.iter().enumerate() {
        // What a constant holds is the program's.
        if matches!(program.value(operand.value).role, Role::Constant { .. }) {
            continue;
        }
        let Some(tensor) = values.get_mut(operand.value.0 as usize).and_then(Option::as_mut) else {
            continue;
        };
        match (known.get(at).copied().flatten(), &instruction.operator) {
            (Some(Numbers::Band(band)), _) if tensor.dtype.is_float() => {
                let mut random = Random::new(seed, &format!("band {at}"));
                let numbers = tensor.data.len().min(DRAWN_MAX);
                let numbers: Vec<f64> =
                    (0..numbers).map(|_| band.number(tensor.dtype, &mut random)).collect();
                let repeated = numbers.iter().cycle();
                tensor.data.iter_mut().zip(repeated).for_each(|(x, number)| *x = *number);
            }
            (Some(Numbers::Documents(rows)), _) if tensor.dtype == DType::I32 => {
                let starts = (0..).map(|row| row / rows.max(1) * rows.max(1));
                tensor.data.iter_mut().zip(starts).for_each(|(x, start)| *x = start as f64);
            }
            (None, Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_)) if at == 1 => {
                let scale = (tensor.sizes.last().copied().unwrap_or(1).max(1) as f64).powf(-0.5);
                tensor.data.iter_mut().for_each(|x| *x = round(tensor.dtype, *x * scale));
            }
            (_, Operator::Attention(_)) if at == 3 => documents(tensor, seed),
            (_, Operator::AttentionGradient(_)) if at == 6 => documents(tensor, seed),
            _ => {}
        }
    }
    values
}

/// Fewer rows than these are divided as any test's are.
const ROWS_MIN: usize = 256;

/// One long document, as a run has them, and shorter ones behind it.
fn documents(starts: &mut Tensor, seed: u64) {
    let rows = starts.data.len();
    if rows < ROWS_MIN {
        return;
    }
    let mut random = Random::new(seed, "documents");
    let mut start = 0;
    let mut end = rows / 2;
    for row in 0..rows {
        if row == end {
            start = row;
            end = row + 1 + random.below(rows / 8);
        }
        starts.data[row] = start as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use toprope_diagnose::Probe;
    use toprope_program::Type;
    use toprope_program::operator::Matmul;

    #[test]
    fn an_operand_keeps_its_band_and_its_share_of_zeros() {
        let types = [Type::new(DType::F32, [64, 64]), Type::new(DType::F32, [64, 8])];
        let matmul = Matmul { output: DType::F32, row_sums: false }.into();
        let probe = Probe::of(&matmul, &types, 1, Regime::Normal, true).unwrap();
        let band = Band { low: -9, high: -3, zeros: 0.25, negative: 0.0 };
        let values = drawn(probe.program().program(), &[Some(Numbers::Band(band)), None], 7);
        let data = &values[0].as_ref().unwrap().data;
        let zeros = data.iter().filter(|x| **x == 0.0).count();
        assert!((800..1250).contains(&zeros), "{zeros} of 4096");
        assert!(data.iter().all(|x| *x == 0.0 || (2f64.powi(-9)..=2f64.powi(-2)).contains(x)));
        assert!(values[1].as_ref().unwrap().data.iter().any(|x| *x < -0.5));
    }
}
