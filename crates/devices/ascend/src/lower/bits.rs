//! Random words, digests, comparisons of bits: 64-bit integers, which wrap as the contract's numbers do.

use crate::call::View;
use crate::emit::{CHUNK_ELEMENTS, Emit, Lowered};
use crate::ffi::abi::Element;
use toprope_program::operator::{DIGEST_BLOCK, DIGEST_KEYS, RandomBits, digest_factor};

const WORD: i64 = 0xFFFF_FFFF;

/// The low 32 bits of i64 numbers, as i64 that is not negative.
fn low(e: &mut Emit<'_>, x: &View) -> Lowered<View> {
    let mask = e.constant_i64([WORD].into_iter());
    e.binary("BitwiseAndTensor", x, &mask)
}

/// 32-bit words, zero-extended to i64.
fn extended(e: &mut Emit<'_>, words: &View) -> Lowered<View> {
    let wide = e.cast(words, Element::I64)?;
    low(e, &wide)
}

/// The stored bits of each element, zero-extended to i64.
fn stored(e: &mut Emit<'_>, x: &View) -> Lowered<View> {
    if x.element == Element::Bf16 {
        let wide = e.cast(&x.bits(Element::I16), Element::I64)?;
        let mask = e.constant_i64([0xFFFF].into_iter());
        return e.binary("BitwiseAndTensor", &wide, &mask);
    }
    extended(e, &x.bits(Element::I32))
}

/// The digest of tensors into two words, which are one i64 in memory: keys of the place in a block and factors of the block
/// are the host's.
pub(super) fn digest(e: &mut Emit<'_>, x: &[View], y: &View) -> Lowered {
    let total =
        View { element: Element::I64, offset: y.offset / 2, sizes: vec![1], strides: vec![1], ..y.clone() };
    let keys = e.constant_i64(DIGEST_KEYS.iter().map(|key| i64::from(*key)));
    let sum = e.temporary(Element::I64, &[1]);
    let mut started = false;
    for x in x {
        let mark = e.mark();
        let flat = e.dense(x)?.flat();
        let step = CHUNK_ELEMENTS / 8 / DIGEST_BLOCK * DIGEST_BLOCK;
        for from in (0..flat.elements()).step_by(step) {
            let inner = e.mark();
            let count = step.min(flat.elements() - from);
            let bits = stored(e, &flat.narrow(0, from, count))?;
            let first = (from / DIGEST_BLOCK) as u64;
            let (blocks, rest) = (count / DIGEST_BLOCK, count % DIGEST_BLOCK);
            if blocks > 0 {
                let factors =
                    e.constant_i64((0..blocks as u64).map(|block| digest_factor(first + block) as i64));
                let whole = bits.narrow(0, 0, blocks * DIGEST_BLOCK).split(0, blocks);
                let keyed = e.binary("Mul", &whole, &keys)?;
                let of_block = e.sum(&keyed, &[1])?;
                let told = e.binary("Mul", &of_block, &factors)?;
                let told = e.sum(&told, &[0])?;
                add(e, &sum, &told, &mut started)?;
            }
            if rest > 0 {
                let factor = e.constant_i64([digest_factor(first + blocks as u64) as i64].into_iter());
                let tail = bits.narrow(0, blocks * DIGEST_BLOCK, rest);
                let keyed = e.binary("Mul", &tail, &keys.narrow(0, 0, rest))?;
                let of_block = e.sum(&keyed, &[0])?;
                let told = e.binary("Mul", &of_block, &factor)?;
                add(e, &sum, &told, &mut started)?;
            }
            e.forget(inner);
        }
        e.forget(mark);
    }
    e.copy(&total, &sum)
}

fn add(e: &mut Emit<'_>, sum: &View, more: &View, started: &mut bool) -> Lowered {
    if std::mem::replace(started, true) { e.binary_into("Add", sum, more, sum) } else { e.copy(sum, more) }
}

/// `a ^ b` of words in i64: `a + b - 2·(a & b)`.
fn xor(e: &mut Emit<'_>, a: &View, b: &View) -> Lowered<View> {
    let both = e.binary("BitwiseAndTensor", a, b)?;
    let sum = e.binary("Add", a, b)?;
    let once = e.binary("Sub", &sum, &both)?;
    e.binary("Sub", &once, &both)
}

/// Blocks of four words that are made at once.
const BLOCKS_AT_ONCE: usize = 1 << 16;

pub(super) fn random_bits(
    e: &mut Emit<'_>,
    it: &RandomBits,
    sizes: &[usize],
    x: &[View],
    y: &[View],
) -> Lowered {
    let count: usize = sizes.iter().product();
    let (key, counter) = (extended(e, &x[0])?, extended(e, &x[1])?);
    let stream = e.constant_i64([i64::from(it.stream)].into_iter());
    for from in (0..count.div_ceil(4)).step_by(BLOCKS_AT_ONCE) {
        let mark = e.mark();
        let words = (count - 4 * from).min(4 * BLOCKS_AT_ONCE);
        let block = e.constant_i64((from..from + words.div_ceil(4)).map(|block| block as i64 & WORD));
        let made = philox(e, [&block, &counter, &stream], &key)?;
        let flat = y[0].flat().narrow(0, 4 * from, words);
        for (at, word) in made.iter().enumerate().filter(|(at, _)| *at < words) {
            let place = flat.every(0, at, 4);
            e.copy(&place, &word.words(0).narrow(0, 0, place.elements()))?;
        }
        e.forget(mark);
    }
    Ok(())
}

/// Philox4x32-10 on words in i64, for the counters (block, 0, counter, stream): the upper word of a product is that of 64
/// bits that wrapped.
fn philox(e: &mut Emit<'_>, counter: [&View; 3], key: &View) -> Lowered<[View; 4]> {
    let zero = e.constant_i64([0].into_iter());
    let spread = |e: &mut Emit<'_>, word: &View| -> Lowered<View> {
        let all = e.temporary(Element::I64, &counter[0].sizes);
        e.copy(&all, word)?;
        Ok(all)
    };
    let mut c = [counter[0].clone(), spread(e, &zero)?, spread(e, counter[1])?, spread(e, counter[2])?];
    let mut key = [key.narrow(0, 0, 1), key.narrow(0, 1, 1)];
    let mut word = |word: i64| e.constant_i64([word].into_iter());
    let factors = [word(0xD251_1F53), word(0xCD9E_8D57)];
    let steps = [word(0x9E37_79B9), word(0xBB67_AE85)];
    for _ in 0..10 {
        let mut halves = Vec::new();
        for (factor, word) in factors.iter().zip([&c[0], &c[2]]) {
            let product = e.binary("Mul", word, factor)?;
            halves.push((extended(e, &product.words(1))?, low(e, &product)?));
        }
        let first = xor(e, &halves[1].0, &c[1])?;
        let first = xor(e, &first, &key[0])?;
        let third = xor(e, &halves[0].0, &c[3])?;
        let third = xor(e, &third, &key[1])?;
        c = [first, halves[1].1.clone(), third, halves[0].1.clone()];
        for (key, step) in key.iter_mut().zip(&steps) {
            let sum = e.binary("Add", key, step)?;
            *key = low(e, &sum)?;
        }
    }
    Ok(c)
}

/// How many elements differ in their bits, two NaNs counting as the same.
pub(super) fn compare(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (first, second) = x.split_at(x.len() / 2);
    let mut total: Option<View> = None;
    for (a, b) in first.iter().zip(second) {
        let (bits_a, bits_b) = match a.element {
            Element::Bf16 => {
                (e.cast(&a.bits(Element::I16), Element::I32)?, e.cast(&b.bits(Element::I16), Element::I32)?)
            }
            _ => (a.bits(Element::I32), b.bits(Element::I32)),
        };
        let mut differs = e.compare("NeTensor", &bits_a, &bits_b)?;
        if a.element.is_float() {
            let (bad_a, bad_b) = (e.is_nan(a)?, e.is_nan(b)?);
            let both = e.binary("LogicalAnd", &bad_a, &bad_b)?;
            let number = e.unary("LogicalNot", &both)?;
            differs = e.binary("LogicalAnd", &differs, &number)?;
        }
        let differs = e.cast(&differs, Element::I64)?;
        let axes: Vec<usize> = (0..differs.rank()).collect();
        let count = e.sum(&differs, &axes)?;
        total = Some(match total {
            Some(total) => e.binary("Add", &total, &count)?,
            None => count,
        });
    }
    match total {
        Some(total) => e.copy(&y[0], &total),
        None => e.zero(&y[0]),
    }
}
