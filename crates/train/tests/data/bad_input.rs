//! Each wrong file or key gives one error that names the file, the place and the mend.

use crate::support::{all_of, folder, says, write};
use toprope_train::data::{
    BatchShape, Batches, Corpus, DataConfig, DataError, Document, Format, Source, Tokens,
};
use toprope_train::tokenizer::Tokenizer;

fn refused(config: &DataConfig) -> DataError {
    Corpus::load(config, 2).unwrap_err()
}

#[test]
fn keys_that_cannot_be() {
    let good = || DataConfig { paths: vec!["a".into()], ..DataConfig::default() };
    let cases: [(&str, DataConfig); 15] = [
        ("data.paths` is empty", DataConfig::default()),
        ("data.paths` must be empty", DataConfig { source: Source::CargoRegistry, ..good() }),
        (
            "data.validation_documents` does not go",
            DataConfig {
                source: Source::CargoRegistry,
                validation_documents: Some(3),
                ..DataConfig::default()
            },
        ),
        (
            "data.validation_paths` must be empty",
            DataConfig {
                source: Source::CargoRegistry,
                validation_paths: vec!["b".into()],
                ..DataConfig::default()
            },
        ),
        ("data.cargo_home` goes with", DataConfig { cargo_home: Some("x".into()), ..good() }),
        ("data.field` is empty", DataConfig { field: String::new(), ..good() }),
        ("`.rs` is not an extension", DataConfig { extensions: vec![".rs".into()], ..good() }),
        (
            "data.document_separator` is empty",
            DataConfig { document_separator: Some(String::new()), ..good() },
        ),
        ("data.max_bytes` is 0", DataConfig { max_bytes: 0, ..good() }),
        ("data.validation_max_bytes` is 0", DataConfig { validation_max_bytes: 0, ..good() }),
        ("data.validation_fraction` is 1", DataConfig { validation_fraction: Some(1.0), ..good() }),
        ("data.validation_fraction` is NaN", DataConfig { validation_fraction: Some(f64::NAN), ..good() }),
        ("data.near_duplicate_threshold` is -0.5", DataConfig { near_duplicate_threshold: -0.5, ..good() }),
        (
            "data.validation_documents` does not go",
            DataConfig { validation_documents: Some(1), validation_fraction: Some(0.1), ..good() },
        ),
        (
            "data.validation_paths` does not go",
            DataConfig { validation_paths: vec!["b".into()], validation_documents: Some(1), ..good() },
        ),
    ];
    for (part, config) in cases {
        says(refused(&config), &["recipe key `data.", part]);
    }
}

#[test]
fn keys_that_there_are_not() {
    let error = toml::from_str::<DataConfig>("paths = [\"a\"]\nfiled = \"text\"").unwrap_err().to_string();
    assert!(error.contains("unknown field `filed`") && error.contains("line 2"), "{error}");
    assert!(toml::from_str::<DataConfig>("format = \"xml\"").is_err());
    let config: DataConfig = toml::from_str("source = \"cargo-registry\"\nmax_bytes = 5").unwrap();
    assert_eq!((config.source, config.max_bytes), (Source::CargoRegistry, 5));
    assert_eq!(toml::from_str::<DataConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
}

#[test]
fn paths_that_lead_nowhere() {
    let here = folder(&[("a.txt", b"x"), ("empty/.hidden", b"x"), ("c/a.rs", b"x")]);
    let at = here.path();
    says(refused(&all_of(at, &["a.txt", "no.txt"])), &["no.txt: there is no such file", "data.paths"]);
    says(refused(&all_of(at, &["*.jsonl"])), &["*.jsonl: no file matches", "data.paths"]);
    says(refused(&all_of(at, &["a**b.txt"])), &["not a pattern, at character", "data.paths"]);
    says(refused(&all_of(at, &["empty"])), &["empty: no file in this folder"]);
    let mut config = all_of(at, &["c"]);
    config.extensions = vec!["txt".into(), "md".into()];
    says(refused(&config), &["c: no file in this folder has one of the extensions txt, md"]);
    let mut config = all_of(at, &["a.txt"]);
    config.validation_fraction = None;
    config.validation_paths = vec![at.join("no").display().to_string()];
    says(refused(&config), &["no: there is no such file", "data.validation_paths"]);
    config.validation_paths = vec![at.join("a.txt").display().to_string()];
    says(refused(&config), &["data.validation_paths` names", "a.txt, which `data.paths` names too"]);
}

#[cfg(target_os = "linux")]
#[test]
fn files_that_cannot_be_read() {
    let socket = folder(&[]);
    let _listener = std::os::unix::net::UnixListener::bind(socket.path().join("s")).unwrap();
    says(refused(&all_of(socket.path(), &["s"])), &["s: not a regular file"]);
    says(refused(&all_of("/".as_ref(), &["proc/self/mem"])), &["/proc/self/mem: cannot be read", "access"]);
    std::os::unix::fs::symlink("nowhere", socket.path().join("link")).unwrap();
    says(refused(&all_of(socket.path(), &["link"])), &["link: there is no such file"]);
}

#[test]
fn text_that_is_none() {
    let here = folder(&[
        ("good.txt", b"good"),
        ("empty.txt", b""),
        ("mark.txt", b"\xEF\xBB\xBF"),
        ("latin.txt", b"caf\xE9 au lait"),
        ("cut.txt", b"caf\xC3"),
    ]);
    let at = here.path();
    says(refused(&all_of(at, &["good.txt", "empty.txt"])), &["empty.txt: the file is empty", "offset 0"]);
    says(refused(&all_of(at, &["mark.txt"])), &["mark.txt: the file is empty"]);
    says(refused(&all_of(at, &["latin.txt"])), &["latin.txt: not UTF-8 at byte offset 3", "UTF-8"]);
    says(refused(&all_of(at, &["cut.txt"])), &["cut.txt: not UTF-8 at byte offset 3"]);
}

#[test]
fn lines_that_are_no_json() {
    let cases: [(&[u8], &[&str]); 9] = [
        (b"{\"text\":\"a\"}\n{\"text\": b}\n", &[":2:10: expected value", "skip_bad_lines"]),
        (b"{\"text\":\"a\"}\n{\"text\":\"b\"", &[":2:11: EOF", "skip_bad_lines"]),
        (b"[1]\n", &[":1:1: invalid type", "a JSON object with the field `text`"]),
        (b"{\"text\":5}\n", &[":1:9: invalid type: integer `5`, expected a string in the field `text`"]),
        (b"{\"text\":\"a\"} x\n", &[":1:14: trailing characters"]),
        (b"{\"text\":\"\\ud800\"}\n", &[":1:16: unexpected end of hex escape"]),
        (b"\n\n{\"body\":\"a\",\"id\":1}\n", &[":3: no field `text` (there are body, id)", "data.field"]),
        (b"{\"text\":\"a\"}\n{\"text\":\"\xFF\"}\n", &["not UTF-8 at byte offset 22 (line 2)"]),
        (b"\n \n", &["the file is empty"]),
    ];
    for (bytes, parts) in cases {
        let here = folder(&[("d.jsonl", bytes)]);
        let error = refused(&all_of(here.path(), &["d.jsonl"]));
        let mut parts = parts.to_vec();
        parts.push("d.jsonl");
        says(error, &parts);
    }
}

#[test]
fn a_file_of_bad_lines_alone() {
    let here = folder(&[("d.jsonl", b"{\"text\":}\nnothing\n")]);
    let mut config = all_of(here.path(), &["d.jsonl"]);
    config.skip_bad_lines = true;
    says(refused(&config), &["d.jsonl: all 2 lines or rows are bad, the first", ":1:9: expected value"]);
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_the_memory() {
    let here = folder(&[]);
    let file = std::fs::File::create(here.path().join("d.jsonl")).unwrap();
    // Sparse: it has no blocks on the disk.
    file.set_len(1 << 40).unwrap();
    says(refused(&all_of(here.path(), &["d.jsonl"])), &["d.jsonl:1:1: the line is longer than 64 MiB"]);
}

#[test]
fn too_little_to_hold_out() {
    let here = folder(&[("a.txt", b"one two three four five six"), ("b.txt", b"seven")]);
    let mut config = all_of(here.path(), &["a.txt"]);
    config.validation_fraction = None;
    says(refused(&config), &["a.txt: only 1 documents", "document_separator", "validation_fraction = 0"]);
    config.validation_documents = Some(1);
    says(refused(&config), &["a.txt: only 1 documents"]);
    config = all_of(here.path(), &["a.txt", "b.txt"]);
    config.validation_fraction = None;
    config.validation_documents = Some(2);
    says(refused(&config), &["data.validation_documents` is 2, and there are 2 documents"]);
}

#[test]
fn held_out_text_that_is_all_trained_on() {
    let text = crate::support::words(1, 200);
    let here = folder(&[("a.txt", text.as_bytes()), ("b.txt", format!("{text}end").as_bytes())]);
    let mut config = all_of(here.path(), &["a.txt", "b.txt"]);
    config.validation_fraction = None;
    config.validation_documents = Some(1);
    says(
        refused(&config),
        &["a.txt and 1 more files: each of the 1 held-out documents", "near_duplicate_threshold"],
    );
    config.near_duplicate_threshold = 1.0;
    assert_eq!(Corpus::load(&config, 1).unwrap().validation.len(), 1);
}

#[test]
fn shorter_than_a_sequence() {
    let documents = [Document::new("d".into(), "0123456789".into())];
    let tokens = Tokens::of_documents(&documents, &Tokenizer::byte(), 1, "some/file.txt").unwrap();
    let shape = |sequence_length, sequences| BatchShape { sequence_length, sequences, mtp_depth: 0 };
    assert!(Batches::new(&tokens, shape(12, 4), 0).is_ok());
    says(
        Batches::new(&tokens, shape(13, 4), 0).unwrap_err(),
        &["some/file.txt: its 12 tokens are fewer than one sequence of 13", "training.sequence"],
    );
    says(Batches::new(&tokens, shape(0, 4), 0).unwrap_err(), &["`training.sequence` is 0"]);
    says(Batches::new(&tokens, shape(4, 0), 0).unwrap_err(), &["`training.batch` is 0"]);
    says(Batches::new(&tokens, shape(1 << 20, 1 << 12), 0).unwrap_err(), &["`training.batch` times"]);
    says(Batches::new(&tokens, shape(1 << 40, 1 << 40), 0).unwrap_err(), &["`training.batch` times"]);
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_without_the_feature() {
    let here = folder(&[("d.parquet", b"PAR1")]);
    says(refused(&all_of(here.path(), &["d.parquet"])), &["d.parquet", "--features parquet"]);
}

#[test]
fn an_asked_for_format_goes_before_the_extension() {
    let here = folder(&[("d.txt", b"{\"text\":\"a\"}\n")]);
    write(here.path(), "e.jsonl", b"not json");
    let mut config = all_of(here.path(), &["d.txt"]);
    config.format = Format::Jsonl;
    assert_eq!(Corpus::load(&config, 1).unwrap().training[0].text, "a");
    config = all_of(here.path(), &["e.jsonl"]);
    config.format = Format::Text;
    assert_eq!(Corpus::load(&config, 1).unwrap().training[0].text, "not json");
}
