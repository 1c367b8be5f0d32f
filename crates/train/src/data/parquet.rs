//! Parquet: one row a document, the text in one column of strings.

use super::{DataError, Document};
use ::parquet::basic::{ConvertedType, LogicalType, Type};
use ::parquet::column::reader::ColumnReader;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use std::path::Path;

/// Rows that are read at once.
const ROWS: usize = 1024;

/// Appends the documents of a Parquet file until they hold `limit_bytes` of text; the last is cut at a character.
/// Gives whether the limit cut something off, and the rows without text that were skipped.
pub(super) fn documents(
    path: &Path,
    field: &str,
    skip_bad_rows: bool,
    limit_bytes: u64,
    documents: &mut Vec<Document>,
) -> Result<(bool, u64), DataError> {
    let file = super::text::open(path)?;
    let length =
        file.metadata().map_err(|source| DataError::Unreadable { path: path.to_owned(), source })?.len();
    if length == 0 {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    let mut rows = Vec::new();
    // The decoder of a damaged page may panic; for whoever gave the file that is the same as an error.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        read(path, file, field, skip_bad_rows, limit_bytes, &mut rows)
    }));
    let (cut, skipped) = outcome.unwrap_or_else(|_| {
        Err(DataError::Parquet { path: path.to_owned(), reason: "its pages cannot be decoded".to_owned() })
    })?;
    if rows.is_empty() && !cut {
        return Err(if skipped > 0 {
            let first = format!("without text in the column `{field}`");
            DataError::AllBad { path: path.to_owned(), skipped, first }
        } else {
            DataError::Empty { path: path.to_owned() }
        });
    }
    documents.append(&mut rows);
    Ok((cut, skipped))
}

fn read(
    path: &Path,
    file: std::fs::File,
    field: &str,
    skip_bad_rows: bool,
    limit_bytes: u64,
    documents: &mut Vec<Document>,
) -> Result<(bool, u64), DataError> {
    let broken = |place: &str, error: ParquetError| DataError::Parquet {
        path: path.to_owned(),
        reason: format!("{place}: {error}"),
    };
    let reader = SerializedFileReader::new(file).map_err(|error| broken("footer", error))?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let Some(index) = schema.columns().iter().position(|column| column.path().string() == field) else {
        let found = schema.columns().iter().map(|column| column.path().string()).take(12).collect();
        return Err(DataError::MissingColumn { path: path.to_owned(), field: field.to_owned(), found });
    };
    let column = schema.column(index);
    let text = match column.logical_type_ref() {
        Some(logical) => matches!(logical, LogicalType::String | LogicalType::Json | LogicalType::Enum),
        None => matches!(
            column.converted_type(),
            ConvertedType::UTF8 | ConvertedType::JSON | ConvertedType::ENUM | ConvertedType::NONE
        ),
    };
    if column.physical_type() != Type::BYTE_ARRAY || !text || column.max_rep_level() > 0 {
        let found = if column.max_rep_level() > 0 {
            "lists".to_owned()
        } else {
            format!("values of type {}", column.physical_type())
        };
        return Err(DataError::ColumnType { path: path.to_owned(), field: field.to_owned(), found });
    }
    let present = column.max_def_level();
    let (mut row, mut taken, mut skipped) = (0_u64, 0_u64, 0_u64);
    for group in 0..reader.num_row_groups() {
        let place = format!("row group {group}");
        let pages = reader.get_row_group(group).map_err(|error| broken(&place, error))?;
        let rows_expected = u64::try_from(pages.metadata().num_rows()).unwrap_or(0);
        let mut rows_read = 0_u64;
        let ColumnReader::ByteArrayColumnReader(mut values_reader) =
            pages.get_column_reader(index).map_err(|error| broken(&place, error))?
        else {
            return Err(DataError::ColumnType {
                path: path.to_owned(),
                field: field.to_owned(),
                found: "values of another type".to_owned(),
            });
        };
        loop {
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let (records, _, _) = values_reader
                .read_records(ROWS, (present > 0).then_some(&mut levels), None, &mut values)
                .map_err(|error| broken(&format!("{place}, after row {row}"), error))?;
            if records == 0 {
                break;
            }
            rows_read += records as u64;
            let mut values = values.into_iter();
            for record in 0..records {
                row += 1;
                let value =
                    if present == 0 || levels.get(record) == Some(&present) { values.next() } else { None };
                let text = match value.as_ref().map(|value| std::str::from_utf8(value.data())) {
                    Some(Ok(text)) => text,
                    _ if skip_bad_rows => {
                        skipped += 1;
                        continue;
                    }
                    None => return Err(bad_row(path, row, field, "is null".to_owned())),
                    Some(Err(error)) => {
                        let reason = format!("is not UTF-8 at its byte {}", error.valid_up_to());
                        return Err(bad_row(path, row, field, reason));
                    }
                };
                let left = limit_bytes - taken;
                let name = format!("{}:{row}", path.display());
                if text.len() as u64 > left {
                    let text = &text[..text.floor_char_boundary(left as usize)];
                    if !text.is_empty() {
                        documents.push(Document::new(name, text.to_owned()));
                    }
                    return Ok((true, skipped));
                }
                taken += text.len() as u64;
                if !text.is_empty() {
                    documents.push(Document::new(name, text.to_owned()));
                }
            }
        }
        if rows_read != rows_expected {
            let reason = format!("{place}: it has {rows_read} rows, and its footer says {rows_expected}");
            return Err(DataError::Parquet { path: path.to_owned(), reason });
        }
    }
    Ok((false, skipped))
}

fn bad_row(path: &Path, row: u64, field: &str, reason: String) -> DataError {
    DataError::BadRow { path: path.to_owned(), row, field: field.to_owned(), reason }
}
