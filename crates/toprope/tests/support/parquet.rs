//! A Parquet file by hand: one required column `text` of UTF-8, one page, plain and uncompressed
//! (<https://parquet.apache.org/docs/file-format/>), so that tests need no writer.

/// A value of Thrift's compact protocol.
enum Thrift {
    I32(i64),
    I64(i64),
    Text(&'static str),
    List(Vec<Thrift>),
    /// Fields by number, in order.
    Struct(Vec<(u8, Thrift)>),
}

use Thrift::{I32, I64, List, Struct, Text};

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Thrift {
    fn kind(&self) -> u8 {
        match self {
            I32(_) => 5,
            I64(_) => 6,
            Text(_) => 8,
            List(_) => 9,
            Struct(_) => 12,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            I32(value) | I64(value) => varint(((value << 1) ^ (value >> 63)) as u64, out),
            Text(text) => {
                varint(text.len() as u64, out);
                out.extend(text.as_bytes());
            }
            List(values) => {
                out.push((values.len() as u8) << 4 | values[0].kind());
                values.iter().for_each(|value| value.write(out));
            }
            Struct(fields) => {
                let mut last = 0;
                for (number, value) in fields {
                    out.push((number - last) << 4 | value.kind());
                    value.write(out);
                    last = *number;
                }
                out.push(0);
            }
        }
    }
}

/// The file's bytes.
pub fn file(rows: &[String]) -> Vec<u8> {
    let (count, byte_array, plain, rle) = (rows.len() as i64, 6, 0, 3);
    let mut values = Vec::new();
    for row in rows {
        values.extend((row.len() as u32).to_le_bytes());
        values.extend(row.as_bytes());
    }
    let page = Struct(vec![(1, I32(count)), (2, I32(plain)), (3, I32(rle)), (4, I32(rle))]);
    let (size, start) = (values.len() as i64, 4);
    let mut bytes = b"PAR1".to_vec();
    Struct(vec![(1, I32(0)), (2, I32(size)), (3, I32(size)), (5, page)]).write(&mut bytes);
    bytes.extend(values);
    let chunk_bytes = bytes.len() as i64 - start;
    let column = Struct(vec![
        (1, I32(byte_array)),
        (2, List(vec![I32(plain)])),
        (3, List(vec![Text("text")])),
        (4, I32(0)),
        (5, I64(count)),
        (6, I64(chunk_bytes)),
        (7, I64(chunk_bytes)),
        (9, I64(start)),
    ]);
    let chunk = Struct(vec![(2, I64(start)), (3, column)]);
    let group = Struct(vec![(1, List(vec![chunk])), (2, I64(chunk_bytes)), (3, I64(count))]);
    let text = Struct(vec![(1, I32(byte_array)), (3, I32(0)), (4, Text("text")), (6, I32(0))]);
    let root = Struct(vec![(4, Text("schema")), (5, I32(1))]);
    let footer = bytes.len();
    let schema = List(vec![root, text]);
    Struct(vec![(1, I32(1)), (2, schema), (3, I64(count)), (4, List(vec![group]))]).write(&mut bytes);
    let footer_bytes = (bytes.len() - footer) as u32;
    bytes.extend(footer_bytes.to_le_bytes());
    bytes.extend(b"PAR1");
    bytes
}
