//! Parquet: rows, null, other types, and damage at every place.

use crate::support::{all_of, folder, says};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::path::Path;
use std::sync::Arc;
use toprope_train::data::{Corpus, DataConfig, DataError};

/// A file of the columns `id` and `text`, in groups of two rows.
fn file(rows: &[Option<&[u8]>], compression: Compression) -> Vec<u8> {
    let schema = "message m { required int64 id; optional binary text (UTF8); repeated binary tags (UTF8); \
                  optional binary raw; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
    for (number, group) in rows.chunks(2).enumerate() {
        let mut columns = writer.next_row_group().unwrap();
        let mut column = columns.next_column().unwrap().unwrap();
        let ids: Vec<i64> = (0..group.len()).map(|row| (number * 2 + row) as i64).collect();
        column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let present: Vec<i16> = group.iter().map(|row| i16::from(row.is_some())).collect();
        let values: Vec<ByteArray> =
            group.iter().flatten().map(|row| ByteArray::from(row.to_vec())).collect();
        let mut column = columns.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&present), None).unwrap();
        column.close().unwrap();
        let absent = vec![0; group.len()];
        let mut column = columns.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&absent), Some(&absent)).unwrap();
        column.close().unwrap();
        let mut column = columns.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&present), None).unwrap();
        column.close().unwrap();
        columns.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

const ROWS: [Option<&[u8]>; 5] =
    [Some(b"first"), Some(b""), Some("zwölf".as_bytes()), Some(b"fourth"), Some(b"fifth")];

fn config(at: &Path) -> DataConfig {
    all_of(at, &["d.parquet"])
}

fn refused(bytes: &[u8], change: impl Fn(&mut DataConfig)) -> DataError {
    let here = folder(&[("d.parquet", bytes)]);
    let mut config = config(here.path());
    change(&mut config);
    Corpus::load(&config, 1).unwrap_err()
}

#[test]
fn rows_are_documents_in_each_compression() {
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())]
    {
        let here = folder(&[("d.parquet", &file(&ROWS, compression))]);
        let corpus = Corpus::load(&config(here.path()), 1).unwrap();
        let texts: Vec<&str> = corpus.training.iter().map(|document| document.text.as_str()).collect();
        assert_eq!(texts, ["first", "zwölf", "fourth", "fifth"]);
        assert!(corpus.training[1].name.ends_with("d.parquet:3"));
        let mut limited = config(here.path());
        limited.max_bytes = 8;
        let corpus = Corpus::load(&limited, 1).unwrap();
        assert_eq!(corpus.training[1].text, "zw");
        assert!(corpus.counts.limit_reached);
        let mut raw = config(here.path());
        raw.field = "raw".into();
        assert_eq!(Corpus::load(&raw, 1).unwrap().training.len(), 4);
    }
}

#[test]
fn rows_without_text() {
    let null = file(&[Some(b"a"), None, Some(b"b")], Compression::SNAPPY);
    says(refused(&null, |_| ()), &["d.parquet: row 2: column `text` is null", "skip_bad_lines"]);
    let latin = file(&[Some(b"a"), Some(b"b"), Some(b"c\xE9")], Compression::SNAPPY);
    says(refused(&latin, |_| ()), &["d.parquet: row 3: column `text` is not UTF-8 at its byte 1"]);
    let here = folder(&[("d.parquet", &null)]);
    let mut skipping = config(here.path());
    skipping.skip_bad_lines = true;
    let corpus = Corpus::load(&skipping, 1).unwrap();
    assert_eq!((corpus.training.len(), corpus.counts.lines_skipped), (2, 1));
    let nothing = file(&[None, None], Compression::SNAPPY);
    says(refused(&nothing, |c| c.skip_bad_lines = true), &["d.parquet: all 2 lines or rows are bad"]);
    says(refused(&file(&[], Compression::SNAPPY), |_| ()), &["d.parquet: the file is empty"]);
}

#[test]
fn columns_that_do_not_fit() {
    let bytes = file(&ROWS, Compression::SNAPPY);
    let field = |name: &'static str| move |config: &mut DataConfig| config.field = name.into();
    says(
        refused(&bytes, field("txt")),
        &["d.parquet: no column `txt` (there are id, text, tags, raw)", "data.field"],
    );
    says(refused(&bytes, field("id")), &["column `id` does not hold text but values of type INT64"]);
    says(refused(&bytes, field("tags")), &["column `tags` does not hold text but lists"]);
}

#[test]
fn a_file_cut_off_anywhere_is_named() {
    let bytes = file(&ROWS, Compression::UNCOMPRESSED);
    says(refused(b"", |_| ()), &["d.parquet: the file is empty"]);
    for end in 1..bytes.len() {
        says(
            refused(&bytes[..end], |_| ()),
            &["d.parquet: not an intact Parquet file: ", "fetch or write it again"],
        );
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_other_text_and_never_a_panic() {
    let bytes = file(&ROWS, Compression::SNAPPY);
    let here = folder(&[]);
    let path = here.path().join("d.parquet");
    let mut refused = 0;
    for place in 0..bytes.len() {
        for bit in [0, 3, 7] {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << bit;
            std::fs::write(&path, &damaged).unwrap();
            if let Err(error) = Corpus::load(&config(here.path()), 1) {
                refused += 1;
                assert!(error.to_string().contains("d.parquet"), "{error}");
            }
        }
    }
    assert!(refused > bytes.len() / 4, "{refused} of {}", 3 * bytes.len());
}
