//! What a step reads, and which tokens are in it.

use super::{DataError, Permutation, Tokens};
use std::ops::Range;

/// Stands where there is no token to read or to predict.
pub const NO_TOKEN: i32 = -1;

/// Sequences, flattened: entry `sequence · length + place` of each list is one token's. With T tokens all lists have T
/// entries.
///
/// A *part* is the run of one document's tokens within one sequence: attention and positions begin anew at borders of
/// documents and of sequences. What a token has to predict is bounded by its document alone: at a sequence's end it is
/// taken from the tokens that follow in the data, so that each token but a document's first is a target exactly once
/// an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Sequences in it.
    pub sequences: usize,
    /// Tokens of each sequence.
    pub sequence_length: usize,
    /// The tokens; the end-of-document token where there is none.
    pub tokens: Vec<i32>,
    /// The token after, within the same document and where it is learnt; otherwise [`NO_TOKEN`].
    pub targets: Vec<i32>,
    /// For each depth d = 1, 2, …  of multi-token prediction (entry d − 1): the token d after, which its module reads
    /// beside the trunk's output (DeepSeek-V3 report, 2.2); [`NO_TOKEN`] outside the document.
    pub mtp_tokens: Vec<Vec<i32>>,
    /// For each depth d (entry d − 1): the token d + 1 after, which its module predicts; [`NO_TOKEN`] outside the
    /// document.
    pub mtp_targets: Vec<Vec<i32>>,
    /// The entry at which the token's part begins.
    pub segment_start: Vec<i32>,
    /// The token's place in its part, from 0.
    pub positions: Vec<i32>,
    /// Entries of `targets` that are tokens.
    pub target_count: u64,
    /// For each depth, entries of `mtp_targets` that are tokens.
    pub mtp_target_counts: Vec<u64>,
}

/// Sizes of a step's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Sequences of a step.
    pub sequences: usize,
    /// Depths of multi-token prediction; 0 for none.
    pub mtp_depth: usize,
}

impl BatchShape {
    fn check(&self) -> Result<(), DataError> {
        let wrong = |key, reason: &str| Err(DataError::Shape { key, reason: reason.to_owned() });
        if self.sequence_length == 0 {
            return wrong("training.sequence", "is 0; it must be at least 1");
        }
        if self.sequences == 0 {
            return wrong("training.batch", "is 0; it must be at least 1");
        }
        match self.sequence_length.checked_mul(self.sequences) {
            Some(tokens) if i32::try_from(tokens).is_ok() => Ok(()),
            _ => wrong(
                "training.batch",
                "times `training.sequence` is above 2,147,483,647 tokens; lower one of them",
            ),
        }
    }
}

/// The batches of training.
///
/// The documents' tokens are cut into sequences; a rest that fills none is left out. Each epoch visits each sequence
/// once, in an order drawn by seed and epoch, and a step may take the last sequences of one epoch and the first of the
/// next. Nothing here changes: the batch of step n is a function of tokens, shape, seed and n.
#[derive(Clone, Copy, Debug)]
pub struct Batches<'a> {
    tokens: &'a Tokens,
    shape: BatchShape,
    seed: u64,
    sequences: u64,
}

impl<'a> Batches<'a> {
    /// Batches of `tokens`.
    ///
    /// # Errors
    /// A size of 0, a batch that 32 bits cannot index, fewer tokens than one sequence has.
    pub fn new(tokens: &'a Tokens, shape: BatchShape, seed: u64) -> Result<Self, DataError> {
        shape.check()?;
        let sequences = (tokens.len() / shape.sequence_length) as u64;
        if sequences == 0 {
            return Err(DataError::TooShort {
                origin: tokens.origin().to_owned(),
                tokens: tokens.len() as u64,
                sequence_length: shape.sequence_length,
            });
        }
        Ok(Self { tokens, shape, seed, sequences })
    }

    /// Sequences of an epoch.
    pub fn sequences_per_epoch(&self) -> u64 {
        self.sequences
    }

    /// Epochs that are over when `step` begins, as a fraction.
    pub fn epoch(&self, step: u64) -> f64 {
        step as f64 * self.shape.sequences as f64 / self.sequences as f64
    }

    /// Which sequences step `step` reads, in order.
    pub fn sequences(&self, step: u64) -> Vec<u64> {
        self.drawn(step, 0..self.shape.sequences)
    }

    fn drawn(&self, step: u64, range: Range<usize>) -> Vec<u64> {
        let first = u128::from(step) * self.shape.sequences as u128;
        range
            .map(|index| {
                let global = first + index as u128;
                let epoch = (global / u128::from(self.sequences)) as u64;
                let index = (global % u128::from(self.sequences)) as u64;
                Permutation::new(self.sequences, self.seed, epoch).at(index)
            })
            .collect()
    }

    /// The batch of a step.
    pub fn batch(&self, step: u64) -> Batch {
        self.micro_batch(step, 0..self.shape.sequences)
    }

    /// The sequences `range` of a step's batch: the slices of `0..sequences` make up the whole, and each of them alone
    /// is the same as within it but for `segment_start`, which counts from the slice's own first entry.
    ///
    /// # Panics
    /// Where `range` is not within the shape's sequences, which is a mistake of the caller.
    pub fn micro_batch(&self, step: u64, range: Range<usize>) -> Batch {
        assert!(
            range.end <= self.shape.sequences,
            "sequences {range:?} of a batch of {}",
            self.shape.sequences
        );
        let length = self.shape.sequence_length;
        let mut batch = Batch::with_capacity(&self.shape, range.len());
        for sequence in self.drawn(step, range) {
            let start = sequence as usize * length;
            batch.push(self.tokens, start..start + length, 0);
        }
        batch
    }
}

/// The held-out documents in order, as windows that may overlap; what the last batch lacks is padded with tokens that
/// predict nothing and that no other token attends to. Each token but a document's first is a target exactly once over
/// all batches: a window predicts what no earlier one did, so that with a stride below its length each target has at
/// least `length − stride` tokens before it, as far as its document has them.
#[derive(Clone, Copy, Debug)]
pub struct ValidationBatches<'a> {
    tokens: &'a Tokens,
    shape: BatchShape,
    stride: usize,
}

impl<'a> ValidationBatches<'a> {
    /// Batches of `tokens`; windows begin `stride` tokens apart.
    ///
    /// # Errors
    /// A size of 0, a batch that 32 bits cannot index, a stride of 0 or above a sequence, no tokens.
    pub fn new(tokens: &'a Tokens, shape: BatchShape, stride: usize) -> Result<Self, DataError> {
        shape.check()?;
        if stride == 0 || stride > shape.sequence_length {
            let reason =
                format!("is {stride}; it must be from 1 to `training.sequence` = {}", shape.sequence_length);
            return Err(DataError::Shape { key: "evaluation.stride", reason });
        }
        if tokens.is_empty() {
            return Err(DataError::TooShort {
                origin: tokens.origin().to_owned(),
                tokens: 0,
                sequence_length: shape.sequence_length,
            });
        }
        Ok(Self { tokens, shape, stride })
    }

    /// How many batches there are.
    pub fn len(&self) -> usize {
        let beyond_first = self.tokens.len().saturating_sub(self.shape.sequence_length);
        (1 + beyond_first.div_ceil(self.stride)).div_ceil(self.shape.sequences)
    }

    /// Never: there is at least one token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Targets over all batches.
    pub fn targets(&self) -> u64 {
        self.tokens.targets()
    }

    /// Bytes of text over all batches: what the sum of all targets' bits is divided by.
    pub fn bytes(&self) -> u64 {
        self.tokens.bytes()
    }

    /// The batch at an index below [`len`](Self::len); beyond, padding alone.
    pub fn batch(&self, index: usize) -> Batch {
        let length = self.shape.sequence_length;
        let mut batch = Batch::with_capacity(&self.shape, self.shape.sequences);
        for sequence in 0..self.shape.sequences {
            let window = index * self.shape.sequences + sequence;
            let start = window * self.stride;
            let predicted_before = if window == 0 { 0 } else { start - self.stride + length };
            batch.push(self.tokens, start..start + length, predicted_before);
        }
        batch
    }

    /// All batches in order.
    pub fn iter(&self) -> impl Iterator<Item = Batch> {
        (0..self.len()).map(|index| self.batch(index))
    }
}

impl Batch {
    fn with_capacity(shape: &BatchShape, sequences: usize) -> Self {
        let list = || Vec::with_capacity(sequences * shape.sequence_length);
        Self {
            sequences: 0,
            sequence_length: shape.sequence_length,
            tokens: list(),
            targets: list(),
            mtp_tokens: (0..shape.mtp_depth).map(|_| list()).collect(),
            mtp_targets: (0..shape.mtp_depth).map(|_| list()).collect(),
            segment_start: list(),
            positions: list(),
            target_count: 0,
            mtp_target_counts: vec![0; shape.mtp_depth],
        }
    }

    /// Appends one sequence; places at the end of the data and beyond are padding, and places below `predicted_before`
    /// are read only.
    fn push(&mut self, data: &Tokens, places: Range<usize>, predicted_before: usize) {
        let first_entry = self.tokens.len();
        let mut place = places.start;
        while place < places.end {
            let (padding, document_end) = match place < data.len() {
                true => (false, data.document_around(place).1),
                false => (true, places.end),
            };
            let part = place..document_end.min(places.end);
            let segment_start = first_entry + (part.start - places.start);
            for place in part.clone() {
                let ahead = |count: usize| match place.checked_add(count) {
                    Some(place) if !padding && place < document_end => data.store().at(place),
                    _ => NO_TOKEN,
                };
                let target = |count: usize| match place.checked_add(count) {
                    Some(at) if place >= predicted_before && at < data.len() && data.is_learnt(at) => {
                        ahead(count)
                    }
                    _ => NO_TOKEN,
                };
                self.tokens.push(if padding { data.padding() } else { data.store().at(place) });
                let next = target(1);
                self.target_count += u64::from(next != NO_TOKEN);
                self.targets.push(next);
                for depth in 1..=self.mtp_tokens.len() {
                    self.mtp_tokens[depth - 1].push(ahead(depth));
                    let target = target(depth + 1);
                    self.mtp_targets[depth - 1].push(target);
                    self.mtp_target_counts[depth - 1] += u64::from(target != NO_TOKEN);
                }
                self.segment_start.push(segment_start as i32);
                self.positions.push((place - part.start) as i32);
            }
            place = part.end;
        }
        self.sequences += 1;
    }
}
