//! Keeps what was trained on out of the held-out part.
//!
//! A document is the set of its shingles: each run of five words (w-shingling, Broder, "On the resemblance and
//! containment of documents", 1997), a word being a run of letters, digits and underscores or any other single
//! character that is not white space. A held-out document H nearly repeats a document T that is trained on where its
//! containment |H ∩ T| / |H| is above the threshold. The Jaccard index |H ∩ T| / |H ∪ T| is never larger, so all that
//! are above the threshold by Jaccard go too, and so does a small file that was pasted into a large one.
//!
//! Sets are compared whole, by 64-bit hashes; nothing is sampled.

use super::Document;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Words in a shingle.
const WORDS: usize = 5;

/// Says for each held-out document whether it nearly repeats one that is trained on, or an earlier held-out one that
/// is itself kept.
pub(super) fn find(
    held_out: &[Document],
    training: &[Document],
    threshold: f64,
    threads: usize,
) -> Vec<bool> {
    if threshold >= 1.0 || held_out.is_empty() {
        return vec![false; held_out.len()];
    }
    let sets: Vec<Vec<u64>> = held_out.iter().map(|document| shingles(&document.learnt_text())).collect();
    let mut holders: HashMap<u64, Vec<u32>, BuildHasherDefault<Hashed>> = HashMap::default();
    for (index, set) in sets.iter().enumerate() {
        for shingle in set {
            holders.entry(*shingle).or_default().push(index as u32);
        }
    }
    let repeats = |own: Option<usize>, set: &[u64]| -> Vec<u32> {
        let mut shared: BTreeMap<u32, usize> = BTreeMap::new();
        for shingle in set {
            for holder in holders.get(shingle).into_iter().flatten() {
                *shared.entry(*holder).or_default() += 1;
            }
        }
        let above = |&(holder, count): &(u32, usize)| {
            Some(holder as usize) != own && count as f64 > threshold * sets[holder as usize].len() as f64
        };
        shared.into_iter().filter(above).map(|(holder, _)| holder).collect()
    };

    let next = AtomicUsize::new(0);
    let mut found = vec![false; held_out.len()];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    let mut found = Vec::new();
                    while let Some(document) = training.get(next.fetch_add(1, Ordering::Relaxed)) {
                        found.extend(repeats(None, &shingles(&document.learnt_text())));
                    }
                    found
                })
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(indices) => indices.into_iter().for_each(|index| found[index as usize] = true),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    for index in 0..held_out.len() {
        if !found[index] {
            for later in repeats(Some(index), &sets[index]) {
                found[later as usize] |= later as usize > index;
            }
        }
    }
    found
}

/// The sorted hashes of a text's shingles, each once; a text of fewer words has one, of all of them.
fn shingles(text: &str) -> Vec<u64> {
    let words: Vec<u64> = words(text).map(hash).collect();
    let mut set: Vec<u64> =
        if words.len() < WORDS { vec![combine(&words)] } else { words.windows(WORDS).map(combine).collect() };
    set.sort_unstable();
    set.dedup();
    set
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let within = |c: char| c.is_alphanumeric() || c == '_';
        let end =
            if within(first) { rest.find(|c| !within(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

/// FNV-1a (Fowler, Noll, Vo), then mixed.
fn hash(word: &str) -> u64 {
    let folded = word.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    super::permutation::mix(folded)
}

fn combine(words: &[u64]) -> u64 {
    words.iter().fold(words.len() as u64, |hash, word| super::permutation::mix(hash.rotate_left(7) ^ word))
}

/// Takes a hash for itself.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::{find, shingles, words};
    use crate::data::Document;

    fn document(text: String) -> Document {
        Document::new(String::new(), text)
    }

    /// Words from `first` on, all different.
    fn run(first: usize, count: usize) -> String {
        (first..first + count).map(|word| format!("w{word} ")).collect()
    }

    #[test]
    fn words_are_runs_of_letters_and_single_marks() {
        let found: Vec<&str> = words(" let a_1=é2;\n").collect();
        assert_eq!(found, ["let", "a_1", "=", "é2", ";"]);
    }

    #[test]
    fn as_many_shingles_as_runs_of_five_words() {
        assert_eq!(shingles(&run(0, 104)).len(), 100);
        assert_eq!(shingles("a b a b a b a b").len(), 2);
        assert_eq!(shingles("a b").len(), 1);
        assert_ne!(shingles("a b"), shingles("b a"));
    }

    #[test]
    fn containment_decides_on_either_side_of_the_threshold() {
        // 100 shingles each, of which the training document shares 51, then 50.
        let training = [document(run(0, 104) + &run(5000, 300))];
        let above = document(run(49, 104));
        let below = document(run(50, 104));
        assert_eq!(find(&[above, below], &training, 0.5, 2), [true, false]);
    }

    #[test]
    fn white_space_does_not_hide_a_copy_and_one_threshold_keeps_all() {
        let training = [document(run(0, 100))];
        let copy = document(run(0, 100).replace(' ', "\n\n\t"));
        assert_eq!(find(std::slice::from_ref(&copy), &training, 0.5, 1), [true]);
        assert_eq!(find(&[copy], &training, 1.0, 1), [false]);
    }

    #[test]
    fn of_two_held_out_copies_the_first_stays() {
        let held_out = [document(run(0, 100)), document(run(900, 100)), document(run(0, 100))];
        assert_eq!(find(&held_out, &[], 0.5, 1), [false, false, true]);
    }
}
