//! Whole files and damaged ones: what they hold, and one typed error for each way to be wrong, before memory is asked for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use toprope_formats::{Folder, FormatError, Gguf, SafetensorsWriter, Tensors, read_file};
use toprope_world::{RealWorld, World};

struct Room {
    folder: tempfile::TempDir,
    world: RealWorld,
}

impl Room {
    fn new() -> Room {
        Room { folder: tempfile::tempdir().unwrap(), world: RealWorld::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn safetensors(&self, header: &str, data: usize) -> Result<Tensors, FormatError> {
        let path = self.write("a.safetensors", &safetensors(header, data));
        read_file(self.world.files(), &path)
    }

    fn gguf(&self, bytes: &[u8]) -> Result<Gguf, FormatError> {
        let path = self.write("a.gguf", bytes);
        Gguf::open(self.world.files(), &path)
    }
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data).map(|at| at as u8));
    bytes
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// The error names what was asked and holds these words.
fn refused<T>(result: Result<T, FormatError>, words: &[&str]) -> FormatError {
    let Err(error) = result else { panic!("it was taken; {words:?} was expected") };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    error
}

#[test]
fn every_format_of_blocks_is_read_as_its_makers_do() {
    let file = Gguf::open(RealWorld::new().files(), &golden("gguf/blocks.gguf")).unwrap();
    let mut compared = 0;
    for (name, record) in file.tensors.records() {
        let Some(want) = file.tensors.get(&format!("want.{name}")) else { continue };
        let elements = record.elements();
        assert_eq!(elements, want.elements(), "{name}");
        let have = file.tensors.read_f32(name, 0, elements).unwrap();
        let want = file.tensors.read_f32(&format!("want.{name}"), 0, elements).unwrap();
        for (have, want) in have.iter().zip(&want) {
            // Both compute in f32, in another order perhaps.
            assert!((have - want).abs() <= 1e-6 * want.abs().max(1.0), "{name}: {have} is not {want}");
        }
        // Parts that begin and end within blocks.
        for (first, count) in [(0, 1), (31, 2), (17, elements - 40), (elements - 1, 1), (5, 0)] {
            assert_eq!(
                file.tensors.read_f32(name, first, count).unwrap(),
                have[first..first + count],
                "{name}"
            );
        }
        compared += 1;
    }
    assert_eq!(compared, 10);
}

#[test]
fn what_is_written_is_read() {
    let room = Room::new();
    let path = room.path("w.safetensors");
    let tensors = [("a".to_string(), vec![2, 3]), ("b".to_string(), vec![0, 4])];
    let mut writer = SafetensorsWriter::create(room.world.files(), &path, &tensors).unwrap();
    let numbers = [0.5, -1.0, f32::MAX, 1e-40, 0.0, 3.0];
    writer.write(&path, "a", &numbers).unwrap();
    writer.write(&path, "b", &[]).unwrap();
    writer.finish(&path).unwrap();
    let file = read_file(room.world.files(), &path).unwrap();
    assert_eq!(file.get("a").unwrap().shape, [2, 3]);
    assert_eq!(file.read_f32("a", 0, 6).unwrap(), numbers);
    assert_eq!(file.read_f32("a", 2, 2).unwrap(), numbers[2..4]);
    assert_eq!(file.read_f32("b", 0, 0).unwrap(), [0.0f32; 0]);
    refused(file.read_f32("a", 4, 3), &["w.safetensors", "`a`", "6 elements"]);
    refused(file.read_f32("a", usize::MAX, 2), &["`a`"]);
    refused(file.read_f32("c", 0, 1), &["no tensor `c`"]);
    // Nothing is overwritten, and nothing is left out.
    assert!(SafetensorsWriter::create(room.world.files(), &path, &tensors).is_err());
    let other = room.path("x.safetensors");
    let writer = SafetensorsWriter::create(room.world.files(), &other, &tensors).unwrap();
    refused(writer.finish(&other), &["no tensor `a`"]);
    let other = room.path("y.safetensors");
    let mut writer = SafetensorsWriter::create(room.world.files(), &other, &tensors).unwrap();
    refused(writer.write(&other, "b", &[]), &["`b`", "announced"]);
}

#[test]
fn lies_of_a_safetensors_header() {
    let room = Room::new();
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    assert!(room.safetensors(&entry("F32", "[2]", "[0,8]"), 8).is_ok());
    let cases: [(String, usize, &[&str]); 14] = [
        (entry("F32", "[2]", "[0,8]"), 7, &["tensor `t`", "needs", "has"]),
        (entry("F32", "[2]", "[0,8]"), 9, &["1 bytes belong to no tensor"]),
        (entry("F32", "[2]", "[4,12]"), 12, &["tensor `t`", "4 bytes behind"]),
        (entry("F32", "[3]", "[0,8]"), 8, &["takes 12 bytes", "gives it 8"]),
        (entry("F32", "[2]", "[8,0]"), 8, &["before its begin"]),
        (entry("F32", "[250000000000]", "[0,1000000000000]"), 8, &["tensor `t`", "needs"]),
        (
            entry("F32", "[4294967296,4294967296,4294967296]", "[0,8]"),
            8,
            &["more elements than can be counted"],
        ),
        (entry("F32", "[2]", "[0,18446744073709551615]"), 8, &["takes 8 bytes"]),
        (entry("F32", "[2]", "[18446744073709551608,18446744073709551616]"), 8, &["tensor `t`"]),
        (entry("F32", "[-2]", "[0,8]"), 8, &["tensor `t`"]),
        (entry("F33", "[2]", "[0,8]"), 8, &["`F33` is not known"]),
        (entry("F32", "2", "[0,8]"), 8, &["tensor `t`"]),
        ("[]".into(), 8, &["the header", "a map from names"]),
        (r#"{"t":1}"#.into(), 8, &["tensor `t`"]),
    ];
    for (header, data, words) in cases {
        refused(room.safetensors(&header, data), &[&["a.safetensors", "hint:"], words].concat());
    }
    let two = |first: &str, second: &str, names: [&str; 2]| {
        let entry = |offsets: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
        format!(r#"{{"{}":{},"{}":{}}}"#, names[0], entry(first), names[1], entry(second))
    };
    let overlap =
        refused(room.safetensors(&two("[0,8]", "[4,12]", ["a", "b"]), 12), &["`a` and `b` overlap"]);
    assert!(matches!(overlap, FormatError::Overlap { .. }));
    refused(room.safetensors(&two("[0,8]", "[0,8]", ["a", "b"]), 8), &["overlap"]);
    refused(room.safetensors(&two("[0,8]", "[8,16]", ["a", "a"]), 16), &["`a` stands there twice"]);
}

#[test]
fn a_safetensors_file_cut_anywhere_or_with_any_bit_flipped_in_its_header_is_no_panic() {
    let room = Room::new();
    let whole = safetensors(r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
    for end in 0..whole.len() {
        let path = room.write("cut.safetensors", &whole[..end]);
        refused(read_file(room.world.files(), &path), &["cut.safetensors"]);
    }
    for bit in 0..8 * (whole.len() - 8) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let path = room.write("flip.safetensors", &flipped);
        if let Ok(file) = read_file(room.world.files(), &path) {
            for (name, record) in file.records() {
                let _ = file.read_f32(name, 0, record.elements());
            }
        }
    }
    let path = room.write("long.safetensors", &u64::MAX.to_le_bytes());
    refused(read_file(room.world.files(), &path), &["the header's length", "more than"]);
    let path = room.write("header.safetensors", &1000u64.to_le_bytes());
    let error = refused(read_file(room.world.files(), &path), &["the header needs 1008 bytes"]);
    assert!(matches!(error, FormatError::Truncated { .. }));
}

#[test]
fn lies_of_an_index() {
    let room = Room::new();
    let open = || Folder::open(room.world.files(), room.folder.path());
    refused(open(), &["there is no model here"]);
    let shard = safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
    room.write("one.safetensors", &shard);
    let index = |text: &str| room.write("model.safetensors.index.json", text.as_bytes());
    index(r#"{"weight_map":{"a":"one.safetensors"}}"#);
    assert_eq!(open().unwrap().tensors.records().len(), 1);
    index(r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#);
    let error = refused(open(), &["shard two.safetensors", "not there"]);
    assert!(matches!(error, FormatError::MissingShard { .. }));
    room.write("two.safetensors", &shard);
    refused(open(), &["tensor `b`", "two.safetensors"]);
    for name in ["../one.safetensors", "/x"] {
        index(&format!("{{\"weight_map\":{{\"a\":\"{name}\"}}}}"));
        refused(open(), &[name, "no file's name"]);
    }
    for text in ["", "{}", "[1]", "{\"weight_map\":1}"] {
        index(text);
        refused(open(), &["model.safetensors.index.json", "the index"]);
    }
    let entry =
        |from: usize| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":[{from},{}]}}"#, from + 8);
    room.write("two.safetensors", &safetensors(&format!(r#"{{"b":{},"a":{}}}"#, entry(0), entry(8)), 16));
    index(r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#);
    let error = refused(open(), &["`a` is also in"]);
    assert!(matches!(error, FormatError::Twice { .. }));
}

/// A GGUF file with one tensor of F32, as parts that a test can change.
struct Written {
    version: u32,
    tensors: u64,
    keys: u64,
    alignment: Option<u32>,
    sizes: Vec<u64>,
    kind: u32,
    offset: u64,
    data: usize,
}

impl Written {
    fn new() -> Written {
        Written {
            version: 3,
            tensors: 1,
            keys: 1,
            alignment: Some(64),
            sizes: vec![4, 2],
            kind: 0,
            offset: 0,
            data: 32,
        }
    }

    /// The record of the tensor, under a name of one letter.
    fn record(&self, name: u8) -> Vec<u8> {
        let mut bytes = 1u64.to_le_bytes().to_vec();
        bytes.push(name);
        bytes.extend((self.sizes.len() as u32).to_le_bytes());
        self.sizes.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes
    }

    fn bytes(&self, names: &[u8]) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        if let Some(alignment) = self.alignment {
            let key = b"general.alignment";
            bytes.extend((key.len() as u64).to_le_bytes());
            bytes.extend(key);
            bytes.extend(4u32.to_le_bytes());
            bytes.extend(alignment.to_le_bytes());
        }
        for name in names {
            bytes.extend(self.record(*name));
        }
        let start = bytes.len().next_multiple_of(self.alignment.unwrap_or(32).max(1) as usize);
        bytes.resize(start + self.data, 0);
        bytes
    }
}

#[test]
fn lies_of_a_gguf_header() {
    let room = Room::new();
    let whole = room.gguf(&Written::new().bytes(b"t")).unwrap();
    assert_eq!(whole.tensors.get("t").unwrap().shape, [2, 4]);
    let cases: [(Written, &[&str]); 15] = [
        (Written { version: 1, ..Written::new() }, &["the version", "is 1"]),
        (Written { version: 3u32.swap_bytes(), ..Written::new() }, &["big-endian"]),
        (Written { tensors: u64::MAX, ..Written::new() }, &["the number of tensors", "needs"]),
        (Written { keys: 1 << 40, ..Written::new() }, &["the number of keys", "needs"]),
        (Written { tensors: 4, ..Written::new() }, &["a.gguf"]),
        (Written { alignment: Some(48), ..Written::new() }, &["general.alignment", "power of two"]),
        (Written { sizes: vec![1; 5], ..Written::new() }, &["tensor `t`", "5 dimensions"]),
        (Written { sizes: vec![1_000_000_000_000], ..Written::new() }, &["tensor `t`", "needs"]),
        (Written { sizes: vec![1 << 40, 1 << 40], ..Written::new() }, &["more elements than can be counted"]),
        (Written { sizes: vec![u64::MAX, 2], ..Written::new() }, &["more elements than can be counted"]),
        (Written { kind: 999, ..Written::new() }, &["its format 999"]),
        (Written { kind: 12, ..Written::new() }, &["whole blocks of 256"]),
        (Written { offset: 8, ..Written::new() }, &["no multiple of 64"]),
        (Written { offset: 1 << 62, ..Written::new() }, &["tensor `t`", "needs"]),
        (Written { data: 31, ..Written::new() }, &["tensor `t`", "needs"]),
    ];
    for (written, words) in cases {
        refused(room.gguf(&written.bytes(b"t")), &[&["a.gguf", "hint:"], words].concat());
    }
    refused(room.gguf(b"GGML...."), &["the magic number"]);
    refused(room.gguf(b""), &["the magic number"]);
    let two = Written { tensors: 2, ..Written::new() };
    refused(room.gguf(&two.bytes(b"tt")), &["tensor `t`", "twice"]);
    refused(room.gguf(&two.bytes(b"tu")), &["`t` and `u` overlap"]);
    let twice = Written { keys: 2, tensors: 0, ..Written::new() }.bytes(b"");
    let key = twice[24..57].to_vec();
    refused(room.gguf(&[&twice[..57], &key, &[0; 64]].concat()), &["`general.alignment`", "twice"]);
}

#[test]
fn a_gguf_file_cut_anywhere_or_with_any_bit_flipped_is_no_panic() {
    let room = Room::new();
    let whole = Written::new().bytes(b"t");
    for end in 0..whole.len() {
        refused(room.gguf(&whole[..end]), &["a.gguf"]);
    }
    let real = std::fs::read(golden("gguf/llama.gguf")).unwrap();
    for end in (0..real.len() - 32).step_by(61) {
        refused(room.gguf(&real[..end]), &["a.gguf"]);
    }
    let small = (0..8 * whole.len()).map(|bit| (&whole, bit));
    let large = (0..8 * 3000).step_by(7).map(|bit| (&real, bit));
    for (bytes, bit) in small.chain(large) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(file) = room.gguf(&flipped) {
            for (name, record) in file.tensors.records() {
                let _ = file.tensors.read_f32(name, 0, record.elements());
            }
        }
    }
}
