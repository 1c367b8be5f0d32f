//! The default corpus, from folders that look like Cargo's.

use crate::support::{folder, says, words, write};
use std::collections::BTreeSet;
use std::path::Path;
use tempfile::TempDir;
use toprope_train::data::{Corpus, DataConfig, Source};

fn config(cargo_home: &Path) -> DataConfig {
    DataConfig {
        source: Source::CargoRegistry,
        cargo_home: Some(cargo_home.to_owned()),
        validation_fraction: Some(0.25),
        ..DataConfig::default()
    }
}

/// Twenty crates of three files each, some in two versions, under an index folder of the given name.
fn registry(index: &str) -> TempDir {
    let home = folder(&[]);
    for number in 0..20 {
        for version in ["1.0.0", "2.0.1-beta.3"].iter().take(1 + number % 2) {
            for file in ["src/lib.rs", "src/inner/mod.rs", "tests/all.rs"] {
                let seed = number * 100 + file.len() + version.len() * 10_000;
                let path = format!("registry/src/{index}/crate-{number}-{version}/{file}");
                write(home.path(), &path, words(seed, 60).as_bytes());
            }
        }
    }
    home
}

fn names(documents: &[toprope_train::data::Document]) -> BTreeSet<String> {
    documents
        .iter()
        .map(|document| {
            let (folder, _) = document.name.split_once('/').unwrap();
            folder.rsplitn(2, "-1.0.0").last().unwrap().split("-2.0.1").next().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn whole_crates_are_held_out_in_all_versions() {
    let home = registry("index.example-0123");
    let corpus = Corpus::load(&config(home.path()), 2).unwrap();
    let (training, validation) = (names(&corpus.training), names(&corpus.validation));
    assert_eq!((training.len(), validation.len()), (15, 5), "{training:?} {validation:?}");
    assert!(training.is_disjoint(&validation));
    assert_eq!(corpus.training.len() + corpus.validation.len(), 30 * 3);
    assert!(corpus.training.is_sorted_by(|a, b| a.name < b.name));
    assert!(corpus.training.iter().any(|document| document.name.ends_with("/src/inner/mod.rs")));
}

#[test]
fn neither_the_place_nor_the_index_counts() {
    let first = Corpus::load(&config(registry("index.example-0123").path()), 1).unwrap();
    let second = registry("another-index-ffff");
    // A crate that lies under two indices is taken once.
    write(second.path(), "registry/src/zz/crate-0-1.0.0/src/lib.rs", words(77_777, 60).as_bytes());
    let second = Corpus::load(&config(second.path()), 3).unwrap();
    assert_eq!(first.hash, second.hash);
    assert_eq!(first.training, second.training);
    let mut other = config(registry("x").path());
    let home = registry("x");
    other.cargo_home = Some(home.path().to_owned());
    other.seed = 9;
    assert_ne!(Corpus::load(&other, 1).unwrap().hash, first.hash);
}

#[test]
fn only_sensible_files_and_no_text_twice() {
    let home = registry("i");
    let put = |name: &str, bytes: &[u8]| write(home.path(), &format!("registry/src/i/{name}"), bytes);
    put("extra-1.0.0/tiny.rs", &[b'a'; 255]);
    put("extra-1.0.0/huge.rs", &vec![b'a'; (256 << 10) + 1]);
    put("extra-1.0.0/notes.md", words(5, 100).as_bytes());
    put("extra-1.0.0/latin.rs", &[0xE9; 300]);
    // Of crate-1-1.0.0/src/lib.rs: the one that is drawn later is dropped.
    put("extra-1.0.0/copy.rs", words(10 + 100 + 5 * 10_000, 60).as_bytes());
    put("extra-1.0.0/kept.rs", words(6, 100).as_bytes());
    put("not-a-crate/lib.rs", words(7, 100).as_bytes());
    let mut config = config(home.path());
    config.validation_fraction = Some(0.0);
    let corpus = Corpus::load(&config, 2).unwrap();
    let of_extra: Vec<&str> =
        corpus.training.iter().map(|d| d.name.as_str()).filter(|n| n.starts_with("extra")).collect();
    assert!(of_extra.contains(&"extra-1.0.0/kept.rs"));
    assert!(
        of_extra.iter().all(|name| name.ends_with("kept.rs") || name.ends_with("copy.rs")),
        "{of_extra:?}"
    );
    assert_eq!(corpus.counts.files_skipped, 1);
    assert_eq!(corpus.counts.copies_dropped, 1);
    assert_eq!(corpus.training.len(), 30 * 3 + 1);
}

#[test]
fn near_duplicates_of_training_files_are_not_held_out() {
    let home = registry("i");
    let before = Corpus::load(&config(home.path()), 2).unwrap();
    let held_out = names(&before.validation).into_iter().next().unwrap();
    // A training file's text with two of its sixty words changed, in a crate that is held out.
    let copied: String = before.training[0]
        .text
        .split(' ')
        .enumerate()
        .map(|(index, word)| if index % 30 == 9 { "changed ".to_owned() } else { format!("{word}\n") })
        .collect();
    write(home.path(), &format!("registry/src/i/{held_out}-1.0.0/src/copied.rs"), copied.as_bytes());
    let after = Corpus::load(&config(home.path()), 2).unwrap();
    assert_eq!(after.counts.near_duplicates_dropped, before.counts.near_duplicates_dropped + 1);
    assert_eq!(after.hash, before.hash);
    let mut all = config(home.path());
    all.near_duplicate_threshold = 1.0;
    assert_eq!(Corpus::load(&all, 2).unwrap().validation.len(), before.validation.len() + 1);
}

#[test]
fn limits_choose_whole_files_from_many_crates() {
    let home = registry("i");
    for file in 0..40 {
        let path = format!("registry/src/i/big-1.0.0/src/f{file}.rs");
        write(home.path(), &path, words(50_000 + file, 10_000).as_bytes());
    }
    let mut config = config(home.path());
    config.validation_fraction = Some(0.05);
    config.max_bytes = 8 << 20;
    let corpus = Corpus::load(&config, 2).unwrap();
    let big: u64 = corpus
        .training
        .iter()
        .filter(|document| document.name.starts_with("big"))
        .map(|document| document.text.len() as u64)
        .sum();
    assert!(big > 0 && big <= config.max_bytes / 16, "{big}");
    config.max_bytes = 20_000;
    let corpus = Corpus::load(&config, 2).unwrap();
    assert!(corpus.counts.limit_reached && corpus.training_bytes() <= 20_000);
    assert!(names(&corpus.training).len() > 5);
}

#[test]
fn no_registry_is_said_with_the_mend() {
    let home = folder(&[]);
    let refused = |config: &DataConfig| Corpus::load(config, 1).unwrap_err();
    let parts = ["registry/src: no sources of crates", "cargo fetch", "data.cargo_home", "data.paths"];
    says(refused(&config(home.path())), &parts);
    std::fs::create_dir_all(home.path().join("registry/src/index/not-a-crate")).unwrap();
    says(refused(&config(home.path())), &parts);
    write(home.path(), "registry/src/index/only-1.0.0/src/lib.rs", words(1, 100).as_bytes());
    says(refused(&config(home.path())), &["only 1 crates", "cargo fetch", "validation_fraction = 0"]);
}
