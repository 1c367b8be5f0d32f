//! What a wrong number looks like, in bits.

use super::select::{draw, select};
use super::spec::{Change, Corruption};
use toprope_program::DType;

/// One element that changed: its place, its bits before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changed {
    pub index: usize,
    pub before: u32,
    pub after: u32,
}

/// Bits of one element of a type.
pub(super) fn width(dtype: DType) -> u32 {
    match dtype {
        DType::Bf16 => 16,
        DType::F32 | DType::I32 | DType::U32 => 32,
    }
}

/// The bits that carries run through: those of the magnitude. Integers have no sign bit of their own.
fn magnitude_bits(dtype: DType) -> u32 {
    if dtype.is_float() { width(dtype) - 1 } else { width(dtype) }
}

/// A number's bits after a change. `random` decides what the change leaves open. Zeroed tiles give 0; a stuck lane needs
/// its neighbours and changes nothing here.
pub fn change_number(bits: u32, dtype: DType, change: Change, random: u64) -> u32 {
    let width = width(dtype);
    let carries = magnitude_bits(dtype);
    let mask = if carries == 32 { u32::MAX } else { (1 << carries) - 1 };
    let any = |bit: Option<u32>, of: u32| bit.unwrap_or((random % u64::from(of)) as u32) % of;
    let flip = |bits: u32, bit: u32| bits ^ (1 << bit);
    let carry = |bits: u32, bit: u32| (bits & !mask) | ((bits & mask).wrapping_add(1 << bit) & mask);
    match change {
        Change::Flip(bit) => flip(bits, any(bit, width)),
        Change::WrongCarry(bit) => carry(bits, any(bit, carries)),
        Change::MissingCarry(bit) => {
            let lost = 1 << any(bit, carries);
            (bits & !mask) | ((bits & mask).wrapping_sub(lost) & mask)
        }
        Change::Compound => {
            let second = ((random >> 32) % u64::from(carries)) as u32;
            carry(flip(bits, any(None, width)), second)
        }
        Change::ZeroTile => 0,
        Change::StuckLane => bits,
        Change::Nan | Change::Infinity => {
            let quiet = u32::from(change == Change::Nan);
            match dtype {
                DType::F32 => 0x7F80_0000 | (quiet << 22),
                DType::Bf16 => 0x7F80 | (quiet << 6),
                DType::I32 | DType::U32 => bits,
            }
        }
    }
}

/// The size of an element, for value bands.
fn size(bits: u32, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::from_bits(bits)).abs(),
        DType::Bf16 => f64::from(f32::from_bits(bits << 16)).abs(),
        DType::I32 => f64::from(bits as i32).abs(),
        DType::U32 => f64::from(bits),
    }
}

/// Changes elements in place; `row` is the number of elements of the innermost dimension. Elements whose bits stay what
/// they were are not in the answer.
pub(super) fn corrupt(
    elements: &mut [u32],
    dtype: DType,
    row: usize,
    corruption: &Corruption,
) -> Vec<Changed> {
    let in_band = |index: usize| {
        corruption.band.is_none_or(|(low, high)| (low..high).contains(&size(elements[index], dtype)))
    };
    let chosen = select(elements.len(), row, corruption, in_band);
    let stuck = stuck_values(elements, &chosen, corruption.change);
    let mut changed = Vec::new();
    for (turn, index) in chosen.into_iter().enumerate() {
        let before = elements[index];
        let after = match stuck.get(turn) {
            Some(value) => *value,
            // Each element has its own draw, so that open bits differ from element to element.
            None => change_number(before, dtype, corruption.change, draw(corruption.seed, 1, turn as u64)),
        };
        if before != after {
            elements[index] = after;
            changed.push(Changed { index, before, after });
        }
    }
    changed
}

/// A stuck lane holds what stood before its first element.
fn stuck_values(elements: &[u32], chosen: &[usize], change: Change) -> Vec<u32> {
    if change != Change::StuckLane {
        return Vec::new();
    }
    let mut values = Vec::with_capacity(chosen.len());
    let mut held = 0;
    for (turn, index) in chosen.iter().enumerate() {
        if turn % 4 == 0 {
            held = elements[(index + elements.len() - 1) % elements.len()];
        }
        values.push(held);
    }
    values
}

/// Stored bytes as one word per element.
pub(super) fn words(bytes: &[u8], dtype: DType) -> Vec<u32> {
    match dtype {
        DType::Bf16 => bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect(),
        _ => bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// Puts one element's stored bits into bytes.
pub(super) fn store(bytes: &mut [u8], dtype: DType, index: usize, bits: u32) {
    let word = bits.to_le_bytes();
    let size = if dtype == DType::Bf16 { 2 } else { 4 };
    bytes[index * size..][..size].copy_from_slice(&word[..size]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32_of(x: f32, change: Change) -> f32 {
        f32::from_bits(change_number(x.to_bits(), DType::F32, change, 0))
    }

    #[test]
    fn each_change_is_what_an_adder_or_a_cell_would_do() {
        assert_eq!(f32_of(1.5, Change::Flip(Some(31))), -1.5);
        assert_eq!(f32_of(1.5, Change::Flip(Some(22))), 1.0);
        // The carry runs out of the significand into the exponent, as it does in an adder.
        assert_eq!(f32_of(1.5, Change::WrongCarry(Some(22))), 2.0);
        assert_eq!(f32_of(-1.5, Change::WrongCarry(Some(22))), -2.0);
        assert_eq!(f32_of(1.5, Change::MissingCarry(Some(22))), 1.0);
        assert_eq!(f32_of(2.0, Change::MissingCarry(Some(22))), 1.5);
        assert_eq!(change_number(7, DType::I32, Change::WrongCarry(Some(0)), 0), 8);
        assert!(f32_of(1.0, Change::Nan).is_nan());
        assert_eq!(f32_of(1.0, Change::Infinity), f32::INFINITY);
        let bf16 = change_number(0x3FC0, DType::Bf16, Change::Nan, 0);
        assert!(f32::from_bits(bf16 << 16).is_nan());
    }

    #[test]
    fn open_bits_come_from_the_draw_and_always_change_the_number() {
        for random in 0..200 {
            for change in [Change::Flip(None), Change::WrongCarry(None), Change::MissingCarry(None)] {
                assert_ne!(change_number(0x3F91, DType::Bf16, change, random), 0x3F91, "{change} {random}");
            }
        }
    }

    #[test]
    fn only_numbers_of_the_band_are_hit() {
        let mut elements: Vec<u32> = (0..64).map(|i| (i as f32).to_bits()).collect();
        let change = Change::Flip(Some(31));
        let corruption = Corruption { count: 64, band: Some((10.0, 20.0)), ..Corruption::one(change) };
        let changed = corrupt(&mut elements, DType::F32, 8, &corruption);
        assert_eq!(changed.iter().map(|c| c.index).collect::<Vec<_>>(), (10..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_stuck_lane_repeats_what_stood_before_it() {
        let mut elements: Vec<u32> = (1000..1256).collect();
        let corruption = Corruption { count: 8, seed: 3, ..Corruption::one(Change::StuckLane) };
        let changed = corrupt(&mut elements, DType::U32, 16, &corruption);
        assert_eq!(changed.len(), 8);
        for lane in changed.chunks(4) {
            assert!(lane.iter().all(|c| c.after == lane[0].after));
            assert_eq!(lane[3].index, lane[0].index + 3);
        }
    }
}
