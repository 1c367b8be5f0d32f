//! Pickles, archives and checkpoints as PyTorch writes them, made by hand, so that they can say anything.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use std::path::Path;

pub fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn number(number: u64) -> Vec<u8> {
    [&[0x8a, 8][..], &number.to_le_bytes()[..]].concat()
}

pub fn float(number: f64) -> Vec<u8> {
    [&b"G"[..], &number.to_be_bytes()[..]].concat()
}

pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [&b"("[..], items.concat().as_slice(), b"t"].concat()
}

pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    [&b"]("[..], items.concat().as_slice(), b"e"].concat()
}

pub fn sizes(sizes: &[u64]) -> Vec<u8> {
    tuple(&sizes.iter().map(|size| number(*size)).collect::<Vec<_>>())
}

pub fn dictionary(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| [key.as_slice(), value].concat()).collect();
    [&b"}("[..], entries.as_slice(), b"u"].concat()
}

pub fn fields(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    dictionary(&entries.iter().map(|(name, value)| (text(name), value.clone())).collect::<Vec<_>>())
}

pub fn class(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

pub fn object(module: &str, name: &str, state: &[u8]) -> Vec<u8> {
    [class(module, name).as_slice(), b")R", state, b"b"].concat()
}

/// Keeps a value, to be recalled.
pub fn kept(value: &[u8], index: u8) -> Vec<u8> {
    [value, &[b'q', index]].concat()
}

pub fn recalled(index: u8) -> Vec<u8> {
    vec![b'h', index]
}

pub fn whole(value: &[u8]) -> Vec<u8> {
    [&b"\x80\x02"[..], value, b"."].concat()
}

/// A tensor of f32 in the storage `key`.
pub fn tensor(key: &str, shape: &[u64]) -> Vec<u8> {
    let strides: Vec<u64> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
    let elements = number(shape.iter().product());
    let storage = tuple(&[text("storage"), class("torch", "FloatStorage"), text(key), text("cpu"), elements]);
    let arguments = tuple(&[[&storage[..], b"Q"].concat(), number(0), sizes(shape), sizes(&strides)]);
    [class("torch._utils", "_rebuild_tensor_v2"), arguments, b"R".to_vec()].concat()
}

pub fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 },
        )
    })
}

/// An archive as `torch.save` writes it.
pub fn archive(pickle: &[u8], storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    archive_with(pickle, storages, 0)
}

/// An archive whose directory names the last member under so many more names.
pub fn archive_with(pickle: &[u8], storages: &[(&str, Vec<u8>)], more: usize) -> Vec<u8> {
    let mut members = vec![("a/data.pkl".to_string(), pickle)];
    members.extend(storages.iter().map(|(key, bytes)| (format!("a/data/{key}"), bytes.as_slice())));
    let (mut bytes, mut directory, mut count) = (Vec::new(), Vec::new(), 0u16);
    let mut entry = |directory: &mut Vec<u8>, name: &str, content: &[u8], at: usize| {
        let length = (content.len() as u32).to_le_bytes();
        directory.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend([crc32(content).to_le_bytes(), length, length].concat());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend([0; 12]);
        directory.extend((at as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        count += 1;
    };
    let mut last = 0;
    for (name, content) in &members {
        last = bytes.len();
        entry(&mut directory, name, content, last);
        let length = (content.len() as u32).to_le_bytes();
        bytes.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0");
        bytes.extend([crc32(content).to_le_bytes(), length, length].concat());
        bytes.extend([&(name.len() as u16).to_le_bytes()[..], &[0; 2], name.as_bytes(), content].concat());
    }
    for again in 0..more {
        entry(&mut directory, &format!("a/again/{again}"), members[members.len() - 1].1, last);
    }
    let (begin, length) = (bytes.len() as u32, directory.len() as u32);
    bytes.extend(directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    bytes.extend([length.to_le_bytes(), begin.to_le_bytes()].concat());
    bytes.extend([0; 2]);
    bytes
}

/// A part of the tensor `weight`, in a file of its own.
pub struct Part {
    pub offsets: Vec<u64>,
    pub sizes: Vec<u64>,
    pub numbers: Vec<f32>,
}

const DCP: &str = "torch.distributed.checkpoint.metadata";

/// What the metadata says of a tensor: `chunks` is a list of [`chunk`]s.
pub fn described(shape: &[u64], chunks: Vec<u8>) -> Vec<u8> {
    let properties = object(DCP, "TensorProperties", &tuple(&[class("torch", "float32")]));
    let state = fields(&[("properties", properties), ("size", sizes(shape)), ("chunks", chunks)]);
    object(DCP, "TensorStorageMetadata", &state)
}

pub fn chunk(offsets: &[u64], parts: &[u64]) -> Vec<u8> {
    let state = fields(&[("offsets", sizes(offsets)), ("sizes", sizes(parts))]);
    object(DCP, "ChunkStorageMetadata", &state)
}

/// Where a part is stored.
pub fn stored(tensor: &str, offsets: &[u64], file: &str, length: u64) -> (Vec<u8>, Vec<u8>) {
    let index = fields(&[("fqn", text(tensor)), ("offset", sizes(offsets))]);
    let place = fields(&[("relative_path", text(file)), ("offset", number(0)), ("length", number(length))]);
    (
        object(DCP, "MetadataIndex", &index),
        object("torch.distributed.checkpoint.filesystem", "_StorageInfo", &place),
    )
}

pub fn metadata(tensors: Vec<u8>, storage: Vec<u8>) -> Vec<u8> {
    let state = fields(&[("state_dict_metadata", tensors), ("storage_data", storage)]);
    whole(&object(DCP, "Metadata", &state))
}

/// Writes a checkpoint with one tensor, each part in a file of its own.
pub fn write_dcp(folder: &Path, shape: &[u64], parts: &[Part]) {
    std::fs::create_dir_all(folder).unwrap();
    let mut storage = Vec::new();
    for (rank, part) in parts.iter().enumerate() {
        let file = format!("__{rank}_0.distcp");
        let bytes = archive(&whole(&tensor("0", &part.sizes)), &[("0", floats(&part.numbers))]);
        storage.push(stored("weight", &part.offsets, &file, bytes.len() as u64));
        std::fs::write(folder.join(file), bytes).unwrap();
    }
    let chunks: Vec<Vec<u8>> = parts.iter().map(|part| chunk(&part.offsets, &part.sizes)).collect();
    let tensors = fields(&[("weight", described(shape, list(&chunks)))]);
    std::fs::write(folder.join(".metadata"), metadata(tensors, dictionary(&storage))).unwrap();
}
