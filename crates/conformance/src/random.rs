//! A deterministic source of choices: Philox counters, so that a seed alone repeats a case everywhere.

use toprope_program::operator::scramble;
use toprope_program::philox;

/// Draws from one seed and one stream.
#[derive(Clone, Debug)]
pub struct Random {
    key: [u32; 2],
    stream: u64,
    block: u64,
    words: [u32; 4],
    left: usize,
}

impl Random {
    /// The stream `name` of a seed; streams are independent of one another.
    pub fn new(seed: u64, name: &str) -> Random {
        let stream = name.bytes().fold(0u64, |hash, byte| scramble(u64::from(byte) | hash << 32) ^ hash >> 7);
        Random { key: [seed as u32, (seed >> 32) as u32], stream, block: 0, words: [0; 4], left: 0 }
    }

    /// 32 random bits.
    pub fn word(&mut self) -> u32 {
        if self.left == 0 {
            let counter = [
                self.block as u32,
                (self.block >> 32) as u32,
                self.stream as u32,
                (self.stream >> 32) as u32,
            ];
            self.words = philox::block(counter, self.key);
            self.block += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.words[self.left]
    }

    /// A seed for another source.
    pub fn seed(&mut self) -> u64 {
        u64::from(self.word()) << 32 | u64::from(self.word())
    }

    /// A number in `0..count`; 0 where `count` is 0.
    pub fn below(&mut self, count: usize) -> usize {
        ((u64::from(self.word()) * count as u64) >> 32) as usize
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1).max(1) as usize) as i64
    }

    /// A number in `0..1`.
    pub fn unit(&mut self) -> f64 {
        (f64::from(self.word()) + 0.5) / 4_294_967_296.0
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A standard normal number (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (2.0 * std::f64::consts::PI * self.unit()).cos()
    }

    /// One of a list that is not empty.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Brings a list into random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}
