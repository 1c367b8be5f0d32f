//! What a batch holds: each sequence once an epoch, each token a target once, borders of documents and sequences.

use proptest::prelude::*;
use toprope_train::data::{Batch, BatchShape, Batches, Document, NO_TOKEN, Tokens, ValidationBatches};
use toprope_train::tokenizer::Tokenizer;

const END: i32 = 256;

fn tokens(texts: &[&str]) -> Tokens {
    let documents: Vec<Document> =
        texts.iter().map(|text| Document::new("d".into(), (*text).to_owned())).collect();
    Tokens::of_documents(&documents, &Tokenizer::byte(), 2, "test").unwrap()
}

fn shape(sequence_length: usize, sequences: usize, mtp_depth: usize) -> BatchShape {
    BatchShape { sequence_length, sequences, mtp_depth }
}

#[test]
fn a_small_case_by_hand() {
    // The stream: END a b c END END d END, of two documents; in sequences of three and padding.
    let data = tokens(&["abc", "d"]);
    let [a, b, c, d] = [97, 98, 99, 100];
    let batches = ValidationBatches::new(&data, shape(3, 3, 2), 3).unwrap();
    assert_eq!((batches.len(), batches.targets(), batches.bytes()), (1, 6, 4));
    let batch = batches.batch(0);
    assert_eq!(
        batch,
        Batch {
            sequences: 3,
            sequence_length: 3,
            tokens: vec![END, a, b, c, END, END, d, END, END],
            targets: vec![a, b, c, END, -1, d, END, -1, -1],
            mtp_tokens: vec![
                vec![a, b, c, END, -1, d, END, -1, -1],
                vec![b, c, END, -1, -1, END, -1, -1, -1]
            ],
            mtp_targets: vec![
                vec![b, c, END, -1, -1, END, -1, -1, -1],
                vec![c, END, -1, -1, -1, -1, -1, -1, -1]
            ],
            segment_start: vec![0, 0, 0, 3, 3, 5, 6, 6, 8],
            positions: vec![0, 1, 2, 0, 1, 0, 0, 1, 0],
            target_count: 6,
            mtp_target_counts: vec![4, 2],
        }
    );
}

#[test]
fn each_sequence_once_an_epoch_and_epochs_differ() {
    let data = tokens(&["x".repeat(1000).as_str(), "y".repeat(500).as_str()]);
    // 1,504 tokens: 107 sequences of 14 and a rest of 6.
    let batches = Batches::new(&data, shape(14, 5, 0), 3).unwrap();
    assert_eq!(batches.sequences_per_epoch(), 107);
    let drawn: Vec<u64> = (0..107).flat_map(|step| batches.sequences(step)).collect();
    let epochs: Vec<&[u64]> = drawn.chunks(107).collect();
    assert_eq!(epochs.len(), 5);
    for epoch in &epochs {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..107).collect::<Vec<u64>>());
    }
    for pair in epochs.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
    let other = Batches::new(&data, shape(14, 5, 0), 4).unwrap();
    assert_ne!(other.sequences(0), batches.sequences(0));
    assert!((batches.epoch(107) - 5.0).abs() < 1e-12);
}

#[test]
fn the_order_does_not_depend_on_what_was_drawn_before() {
    let data = tokens(&["some text that is long enough for a few sequences of eight"]);
    let batches = Batches::new(&data, shape(8, 3, 1), 11).unwrap();
    let forward: Vec<Batch> = (0..30).map(|step| batches.batch(step)).collect();
    let again = Batches::new(&data, shape(8, 3, 1), 11).unwrap();
    for step in (0..30).rev() {
        assert_eq!(again.batch(step), forward[step as usize]);
    }
    assert_eq!(batches.batch(u64::MAX).tokens.len(), 24, "a far step is no overflow");
}

#[test]
fn a_batch_of_more_sequences_than_there_are() {
    let data = tokens(&["0123456789"]);
    let batches = Batches::new(&data, shape(5, 7, 0), 0).unwrap();
    let sequences = batches.sequences(0);
    assert_eq!(sequences.len(), 7);
    assert_eq!(sequences[..2].iter().sum::<u64>(), 1);
    assert_eq!(sequences[2..4].iter().sum::<u64>(), 1);
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-z]{1,40}", 1..12)
}

/// Appends one batch to another.
fn append(whole: &mut Batch, part: Batch) {
    let before = whole.tokens.len() as i32;
    whole.sequences += part.sequences;
    whole.target_count += part.target_count;
    whole.tokens.extend(part.tokens);
    whole.targets.extend(part.targets);
    whole.positions.extend(part.positions);
    whole.segment_start.extend(part.segment_start.iter().map(|start| start + before));
    for depth in 0..whole.mtp_tokens.len() {
        whole.mtp_tokens[depth].extend(&part.mtp_tokens[depth]);
        whole.mtp_targets[depth].extend(&part.mtp_targets[depth]);
        whole.mtp_target_counts[depth] += part.mtp_target_counts[depth];
    }
}

/// What holds for every batch, from its lists alone.
fn check(batch: &Batch) {
    let length = batch.tokens.len();
    assert_eq!(length, batch.sequences * batch.sequence_length);
    let count = |list: &[i32]| list.iter().filter(|entry| **entry != NO_TOKEN).count() as u64;
    assert_eq!(batch.target_count, count(&batch.targets));
    for (targets, expected) in batch.mtp_targets.iter().zip(&batch.mtp_target_counts) {
        assert_eq!(*expected, count(targets));
    }
    for entry in 0..length {
        let start = batch.segment_start[entry] as usize;
        assert_eq!(batch.positions[entry] as usize, entry - start);
        assert_eq!(start / batch.sequence_length, entry / batch.sequence_length, "parts end with sequences");
        let same_part_follows = entry + 1 < length && batch.segment_start[entry + 1] as usize == start;
        if same_part_follows && batch.targets[entry] != NO_TOKEN {
            assert_eq!(batch.targets[entry], batch.tokens[entry + 1]);
        }
        // What is read ahead is a chain: the tokens of depth d are the targets of depth d - 1.
        let mut ahead = &batch.targets;
        for depth in 0..batch.mtp_tokens.len() {
            assert_eq!(batch.mtp_tokens[depth][entry], ahead[entry]);
            if ahead[entry] == NO_TOKEN {
                assert_eq!(batch.mtp_targets[depth][entry], NO_TOKEN, "nothing is beyond a document's end");
            }
            if same_part_follows {
                assert_eq!(batch.mtp_targets[depth][entry], ahead[entry + 1]);
            }
            ahead = &batch.mtp_targets[depth];
        }
    }
}

proptest! {
    #[test]
    fn every_batch_is_sound_and_slices_make_it_up(
        texts in texts(), length in 1..17_usize, sequences in 1..6_usize, depth in 0..4_usize, cut in 0..6_usize,
        step in 0..9_u64,
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let data = tokens(&texts);
        if let Ok(batches) = Batches::new(&data, shape(length, sequences, depth), 5) {
            let whole = batches.batch(step);
            check(&whole);
            let cut = cut.min(sequences);
            let mut joined = batches.micro_batch(step, 0..cut);
            append(&mut joined, batches.micro_batch(step, cut..sequences));
            prop_assert_eq!(joined, whole);
        }
    }

    #[test]
    fn validation_predicts_each_token_of_each_text_once_in_order(
        texts in texts(), length in 1..17_usize, stride in 1..17_usize, sequences in 1..6_usize,
        depth in 0..3_usize,
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let data = tokens(&texts);
        let stride = stride.min(length);
        let batches = ValidationBatches::new(&data, shape(length, sequences, depth), stride).unwrap();
        let mut predicted = Vec::new();
        let mut count = 0;
        for (index, batch) in batches.iter().enumerate() {
            if stride == length {
                check(&batch);
            }
            for (entry, target) in batch.targets.iter().enumerate() {
                // In each window but the first, what comes before a target is at least the overlap, or its document.
                let (window, place) = (index * sequences + entry / length, entry % length);
                if window > 0 && *target != NO_TOKEN {
                    let before = batch.positions[entry] as usize;
                    prop_assert!(before >= (length - stride).min(place) || batch.tokens[entry - before] == END);
                    prop_assert!(place >= length - stride);
                }
            }
            prop_assert_eq!(batch.sequences, sequences);
            predicted.extend(batch.targets.iter().copied().filter(|target| *target != NO_TOKEN));
            count += batch.target_count;
        }
        let mut expected: Vec<i32> = Vec::new();
        for text in &texts {
            expected.extend(text.bytes().map(i32::from));
            expected.push(END);
        }
        prop_assert_eq!(predicted, expected);
        prop_assert_eq!(count, batches.targets());
        prop_assert_eq!(batches.bytes(), texts.iter().map(|text| text.len() as u64).sum::<u64>());
    }

    #[test]
    fn training_predicts_each_token_of_each_whole_sequence_once_an_epoch(
        texts in texts(), length in 1..9_usize, sequences in 1..4_usize,
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let data = tokens(&texts);
        if let Ok(batches) = Batches::new(&data, shape(length, sequences, 0), 8) {
            let epoch = batches.sequences_per_epoch();
            // As many steps as there are sequences visit each of them `sequences` times.
            let count: u64 = (0..epoch).map(|step| batches.batch(step).target_count).sum();
            let used = epoch as usize * length;
            let validation = ValidationBatches::new(&data, shape(length, 1, 0), length).unwrap();
            let expected: u64 = (0..used / length).map(|index| validation.batch(index).target_count).sum();
            prop_assert_eq!(count, expected * sequences as u64);
        }
    }
}
