//! The committed corpus, and every prefix of some of it, through every way in.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use toprope_fuzz::TARGETS;

#[test]
fn no_input_of_the_corpus_panics() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    assert_eq!(std::fs::read_dir(&corpus).unwrap().count(), TARGETS.len());
    for target in &TARGETS {
        let folder = corpus.join(target.name);
        let mut inputs = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            // What fails is told by the panic; this line tells with what.
            println!("{}", path.display());
            (target.entry)(&bytes);
            for end in (0..bytes.len()).step_by(bytes.len() / 32 + 1) {
                (target.entry)(&bytes[..end]);
            }
            inputs += 1;
        }
        assert!(inputs >= 3, "{} has a corpus of {inputs}", target.name);
    }
}
