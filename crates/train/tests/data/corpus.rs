//! Formats, limits, the split and the hash.

use crate::support::{all_of, folder, words, write};
use toprope_train::data::{Corpus, DataConfig};

fn load(config: &DataConfig) -> Corpus {
    Corpus::load(config, 2).unwrap()
}

fn texts(documents: &[toprope_train::data::Document]) -> Vec<&str> {
    documents.iter().map(|document| document.text.as_str()).collect()
}

/// Sixty documents that share nothing.
fn many() -> tempfile::TempDir {
    let here = folder(&[]);
    for index in 0..60 {
        write(here.path(), &format!("f{index:02}.txt"), words(index, 50).as_bytes());
    }
    here
}

#[test]
fn folders_are_sorted_patterns_match_and_nothing_is_read_twice() {
    let here = folder(&[
        ("b/z.txt", b"bz"),
        ("b/a.md", b"ba"),
        ("a.txt", b"a"),
        ("c/d/e.txt", b"cde"),
        (".git/config.txt", b"hidden"),
        ("b/.swp.txt", b"hidden"),
    ]);
    let at = here.path();
    assert_eq!(texts(&load(&all_of(at, &[""])).training), ["a", "ba", "bz", "cde"]);
    assert_eq!(
        texts(&load(&all_of(at, &["c", "a.txt", "b", "c/d/e.txt"])).training),
        ["cde", "a", "ba", "bz"]
    );
    assert_eq!(texts(&load(&all_of(at, &["?/*.txt"])).training), ["bz"]);
    assert_eq!(texts(&load(&all_of(at, &["c/**/*.txt", "b/*"])).training)[..1], ["cde"]);
    let mut config = all_of(at, &[""]);
    config.extensions = vec!["TXT".into()];
    let corpus = load(&config);
    assert_eq!(texts(&corpus.training), ["a", "bz", "cde"]);
    assert_eq!(corpus.counts.files, 3);
    assert_eq!(corpus.training[0].name, at.join("a.txt").display().to_string());
    write(at, "q[1].txt", b"literal");
    assert_eq!(texts(&load(&all_of(at, &["q[1].txt"])).training), ["literal"]);
}

#[test]
fn text_loses_its_mark_and_is_cut_at_separators() {
    let here = folder(&[("a.txt", "\u{feff}one\n---\ntwo\n---\n\n---\n".as_bytes())]);
    let mut config = all_of(here.path(), &["a.txt"]);
    assert_eq!(texts(&load(&config).training), ["one\n---\ntwo\n---\n\n---\n"]);
    config.document_separator = Some("---\n".into());
    assert_eq!(texts(&load(&config).training), ["one\n", "two\n", "\n"]);
}

#[test]
fn jsonl_takes_the_field_and_skips_what_it_is_told_to() {
    let lines = "\u{feff}{\"id\":{\"text\":\"inner\"},\"text\":\"a\\n\\u00e9\"}\r\n\r\n{\"text\":\"\"}\n\
                 {\"t\\u0065xt\":\"b\",\"body\":\"B\"}\n{\"body\":\"C\"}\nnot json\n{\"text\":\"d\"}";
    let here = folder(&[("d.jsonl", lines.as_bytes())]);
    let mut config = all_of(here.path(), &["d.jsonl"]);
    config.skip_bad_lines = true;
    let corpus = load(&config);
    assert_eq!(texts(&corpus.training), ["a\né", "b", "d"]);
    assert_eq!(corpus.counts.lines_skipped, 2);
    assert!(corpus.training[1].name.ends_with("d.jsonl:4"), "{}", corpus.training[1].name);
    config.field = "body".into();
    let corpus = load(&config);
    assert_eq!(texts(&corpus.training), ["B", "C"]);
    assert_eq!(corpus.counts.lines_skipped, 4);
}

#[test]
fn limits_take_the_first_bytes_and_cut_at_a_character() {
    let here = folder(&[("a.txt", b"abcd"), ("b.txt", "ééé".as_bytes()), ("c.txt", b"never")]);
    let take = |limit| {
        let mut config = all_of(here.path(), &["a.txt", "b.txt", "c.txt"]);
        config.max_bytes = limit;
        let corpus = load(&config);
        assert!(corpus.training_bytes() <= limit);
        (corpus.training.iter().map(|d| d.text.clone()).collect::<Vec<_>>(), corpus.counts.limit_reached)
    };
    assert_eq!(take(3), (vec!["abc".to_owned()], true));
    assert_eq!(take(4), (vec!["abcd".to_owned()], true));
    assert_eq!(take(5), (vec!["abcd".to_owned()], true));
    assert_eq!(take(7), (vec!["abcd".to_owned(), "é".to_owned()], true));
    assert_eq!(take(15), (vec!["abcd".to_owned(), "ééé".to_owned(), "never".to_owned()], false));
    let here = folder(&[("d.jsonl", "{\"text\":\"ab\"}\n{\"text\":\"éé\"}\n{\"text\":5}\n".as_bytes())]);
    let mut config = all_of(here.path(), &["d.jsonl"]);
    config.max_bytes = 5;
    assert_eq!(texts(&load(&config).training), ["ab", "é"]);
}

#[test]
fn the_split_is_by_text_and_not_by_place_order_or_threads() {
    let here = many();
    let elsewhere = folder(&[]);
    for index in 0..60 {
        write(elsewhere.path(), &format!("deep/{:02}.txt", 59 - index), words(index, 50).as_bytes());
    }
    let mut config = all_of(here.path(), &[""]);
    config.validation_fraction = Some(0.2);
    let first = load(&config);
    assert_eq!((first.training.len(), first.validation.len()), (48, 12));
    assert_eq!(first.hash, Corpus::load(&config, 5).unwrap().hash);
    let mut moved = all_of(elsewhere.path(), &[""]);
    moved.validation_fraction = Some(0.2);
    let moved = load(&moved);
    let sorted = |corpus: &Corpus| {
        let mut texts: Vec<String> = corpus.validation.iter().map(|d| d.text.clone()).collect();
        texts.sort();
        texts
    };
    assert_eq!(sorted(&first), sorted(&moved));
    assert_ne!(first.hash, moved.hash, "the order of documents is part of the corpus");
    config.seed = 1;
    let other = load(&config);
    assert_ne!(sorted(&first), sorted(&other));
    assert_ne!(first.hash, other.hash);
    config.validation_fraction = None;
    config.validation_documents = Some(7);
    assert_eq!(load(&config).validation.len(), 7);
}

#[test]
fn the_hash_is_of_the_text() {
    let here = folder(&[("a.txt", b"ab"), ("b.txt", b"c")]);
    let config = all_of(here.path(), &["a.txt", "b.txt"]);
    let hash = load(&config).hash;
    let copy = folder(&[("x/a", b"ab"), ("x/b", b"c")]);
    assert_eq!(load(&all_of(copy.path(), &["x"])).hash, hash);
    write(here.path(), "a.txt", b"a");
    write(here.path(), "b.txt", b"bc");
    assert_ne!(load(&config).hash, hash, "borders of documents count");
    assert_eq!(hash.len(), 64);
}

#[test]
fn held_out_files_of_their_own() {
    let here = many();
    write(here.path(), "held/x.txt", words(900, 50).as_bytes());
    write(here.path(), "held/y.txt", words(3, 50).as_bytes());
    let mut config = all_of(here.path(), &["*.txt"]);
    config.validation_fraction = None;
    config.validation_paths = vec![here.path().join("held").display().to_string()];
    let corpus = load(&config);
    assert_eq!(corpus.training.len(), 60);
    // The other repeats f03.txt.
    assert_eq!(texts(&corpus.validation), [words(900, 50)]);
    assert_eq!(corpus.counts.near_duplicates_dropped, 1);
}

#[test]
fn held_out_text_is_trimmed_to_whole_documents() {
    let here = many();
    let mut config = all_of(here.path(), &[""]);
    config.validation_fraction = Some(0.5);
    let all = load(&config);
    assert!(!all.counts.limit_reached);
    config.validation_max_bytes = all.validation_bytes() / 3;
    let some = load(&config);
    assert!(some.counts.limit_reached);
    assert!(some.validation_bytes() <= config.validation_max_bytes);
    assert!(some.validation.len() >= 8, "{}", some.validation.len());
    let mut rest = all.validation.iter();
    assert!(some.validation.iter().all(|document| rest.any(|other| other == document)), "in order");
    assert_eq!(some.training, all.training);
    config.validation_max_bytes = 10;
    assert_eq!(load(&config).validation_bytes(), 10);
}

#[test]
fn compressors_see_the_held_out_bytes_as_one_stream() {
    let here = many();
    let mut config = all_of(here.path(), &[""]);
    config.validation_fraction = Some(0.5);
    let corpus = load(&config);
    let sizes = corpus.validation_compressed().unwrap();
    assert_eq!(sizes.plain, corpus.validation_bytes());
    assert!(sizes.gzip < sizes.plain / 2 && sizes.xz < sizes.gzip, "{sizes:?}");
}
