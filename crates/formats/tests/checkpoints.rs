//! Checkpoints as PyTorch and Megatron-LM leave them: whole ones, and one typed error for each way not to be.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/copied.rs"]
mod copies;

use copies::copy;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use toprope_formats::{CheckpointKind, Contents, FormatError, Found, find, verify};
use toprope_world::{RealWorld, World};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/checkpoints").join(name)
}

/// A record's copy, to be damaged.
fn copied(name: &str) -> (TempDir, PathBuf) {
    let room = tempfile::tempdir().unwrap();
    let folder = room.path().join(name.rsplit('/').next().unwrap());
    copy(&golden(name), &folder);
    (room, folder)
}

fn found(folder: &Path) -> Found {
    find(RealWorld::new().files(), folder).unwrap()
}

/// The newest checkpoint of a folder, read in full.
fn verified(folder: &Path) -> Result<Contents, FormatError> {
    verify(RealWorld::new().files(), &found(folder).checkpoints[0])
}

#[track_caller]
fn refused(folder: &Path, words: &[&str]) {
    let message = verified(folder).unwrap_err().to_string();
    for word in [words, &["hint:"]].concat() {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

fn replaced(path: &Path, from: &[u8], to: &[u8]) {
    let bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    std::fs::write(path, [&bytes[..at], to, &bytes[at + from.len()..]].concat()).unwrap();
}

/// The first of these floats in a file becomes another number, and the sum over it is made right again.
fn spoiled(path: &Path, number: f32, with: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(4).position(|window| window == number.to_le_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&with.to_le_bytes());
    mend_sums(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Writes the right CRC32 into every entry of every directory in a file.
fn mend_sums(bytes: &mut [u8]) {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let half = |bytes: &[u8], at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()) as usize;
    let mut start = 0;
    while let Some(end) = (start..bytes.len() - 21).find(|at| bytes[*at..].starts_with(b"PK\x05\x06")) {
        let mut entry = start + word(bytes, end + 16);
        for _ in 0..half(bytes, end + 10) {
            let local = start + word(bytes, entry + 42);
            let data = local + 30 + half(bytes, local + 26) + half(bytes, local + 28);
            let mut sum = flate2::Crc::new();
            sum.update(&bytes[data..data + word(bytes, entry + 24)]);
            bytes[entry + 16..entry + 20].copy_from_slice(&sum.sum().to_le_bytes());
            entry += 46 + half(bytes, entry + 28) + half(bytes, entry + 30) + half(bytes, entry + 32);
        }
        start = end + 22;
    }
}

/// A number that stands in a tensor of a record, as its bits lie in the file.
fn number_of(tensors: &str, path: &Path) -> f32 {
    // The first storage of four-byte floats begins at a multiple of 64 behind its local header.
    let bytes = std::fs::read(path).unwrap();
    let name = tensors.as_bytes();
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let extra = u16::from_le_bytes(bytes[at - 2..at].try_into().unwrap()) as usize;
    let data = at + name.len() + extra;
    f32::from_le_bytes(bytes[data..data + 4].try_into().unwrap())
}

#[test]
fn whole_checkpoints_are_told_as_what_they_are() {
    for (name, kind, files, tensors) in [
        ("dcp", CheckpointKind::Dcp, 2, 5),
        ("megatron", CheckpointKind::Megatron, 2, 16),
        ("pickled", CheckpointKind::HuggingFace, 1, 2),
        ("../hub/llama-default", CheckpointKind::HuggingFace, 4, 21),
    ] {
        let there = found(&golden(name));
        assert_eq!(there.checkpoints.len(), 1, "{name}");
        assert_eq!(there.checkpoints[0].kind, kind, "{name}");
        let contents = verified(&golden(name)).unwrap();
        assert_eq!((contents.files, contents.tensors), (files, tensors), "{name}: {contents:?}");
        assert_eq!(contents.non_finite, [], "{name}");
        assert!(contents.bytes > 0, "{name}");
    }
    let megatron = found(&golden("megatron"));
    assert_eq!((megatron.checkpoints[0].number, megatron.latest.as_deref()), (Some(10), Some("10")));
}

#[test]
fn numbers_that_are_none_are_told_with_their_tensor() {
    let (_room, folder) = copied("megatron");
    let path = folder.join("iter_0000010/mp_rank_01/model_optim_rng.pt");
    let weight = number_of("model_optim_rng/data/1", &path);
    spoiled(&path, weight, f32::NAN);
    let contents = verified(&folder).unwrap();
    let [told] = contents.non_finite.as_slice() else { panic!("{:?}", contents.non_finite) };
    assert_eq!(told.tensor, "model.decoder.layers.0.mlp.linear_fc1.weight");
    assert_eq!((told.count.nan, told.count.infinite, told.elements), (1, 0, 24));
    assert!(told.file.ends_with("mp_rank_01/model_optim_rng.pt"));

    let (_room, folder) = copied("dcp");
    let items = folder.join("__1_0.distcp");
    let bytes = std::fs::read(&items).unwrap();
    // The step of the optimizer is ten, and nothing else is.
    assert!(bytes.windows(4).any(|window| window == 10f32.to_le_bytes()));
    spoiled(&items, 10.0, f32::NEG_INFINITY);
    let contents = verified(&folder).unwrap();
    let [told] = contents.non_finite.as_slice() else { panic!("{:?}", contents.non_finite) };
    assert_eq!(told.tensor, "optimizer.state.embedding.step");
    assert_eq!((told.count.nan, told.count.infinite, told.elements), (0, 1, 1));
}

#[test]
fn what_is_missing_is_told_by_name() {
    let (_room, folder) = copied("dcp");
    std::fs::rename(folder.join("__1_0.distcp"), folder.join("aside")).unwrap();
    refused(&folder, &[".metadata", "__1_0.distcp", "not there"]);
    std::fs::rename(folder.join("aside"), folder.join("__1_0.distcp")).unwrap();
    std::fs::remove_file(folder.join(".metadata")).unwrap();
    refused(&folder, &[".metadata is missing", "did not end"]);

    let (_room, folder) = copied("megatron");
    let rank = folder.join("iter_0000010/mp_rank_00");
    std::fs::rename(rank.join("model_optim_rng.pt"), rank.join("aside")).unwrap();
    refused(&folder, &["mp_rank_00/model_optim_rng.pt is missing"]);
    std::fs::rename(rank.join("aside"), rank.join("model_optim_rng.pt")).unwrap();
    std::fs::write(rank.join("distrib_optim.pt"), b"").unwrap();
    refused(&folder, &["mp_rank_01/distrib_optim.pt is missing"]);
    std::fs::remove_file(rank.join("distrib_optim.pt")).unwrap();
    let second = folder.join("iter_0000010/mp_rank_01");
    std::fs::rename(&second, folder.join("iter_0000010/mp_rank_02")).unwrap();
    refused(&folder, &["mp_rank_01 is missing"]);
    std::fs::remove_dir_all(folder.join("iter_0000010/mp_rank_02")).unwrap();
    refused(&folder, &["a rank of the 2 by which", "(1 are there) is missing"]);

    let (_room, folder) = copied("pickled");
    std::fs::remove_file(folder.join("pytorch_model.bin")).unwrap();
    refused(&folder, &["neither model.safetensors.index.json nor model.safetensors"]);
    let empty = tempfile::tempdir().unwrap();
    let error = find(RealWorld::new().files(), empty.path()).unwrap_err();
    assert!(matches!(error, FormatError::NoCheckpoint { .. }));
}

#[test]
fn damage_is_told_with_its_place() {
    let (_room, folder) = copied("dcp");
    let items = folder.join("__1_0.distcp");
    let whole = std::fs::read(&items).unwrap();
    std::fs::write(&items, &whole[..whole.len() - 1]).unwrap();
    refused(&folder, &["__1_0.distcp", "needs"]);
    let mut flipped = whole.clone();
    let at = whole.windows(4).position(|window| window == 10f32.to_le_bytes()).unwrap();
    flipped[at] ^= 1;
    std::fs::write(&items, flipped).unwrap();
    refused(&folder, &["__1_0.distcp", "CRC32"]);
    std::fs::write(&items, &whole).unwrap();
    let metadata = folder.join(".metadata");
    let said = std::fs::read(&metadata).unwrap();
    for (from, to, words) in [
        (&b"bfloat16"[..], &b"float128"[..], &["`torch.float128`", "nothing was run"][..]),
        (b"model.norm", b"model.worm", &["model."]),
        (b"__1_0.distcp", b"../../secret", &["../../secret", "no file of this folder"]),
        (b"Metadata", b"Netadata", &["Netadata", "nothing was run"]),
    ] {
        std::fs::write(&metadata, &said).unwrap();
        replaced(&metadata, from, to);
        refused(&folder, &[&[".metadata"], words].concat());
    }
    for end in [0, 1, 2, said.len() / 2, said.len() - 1] {
        std::fs::write(&metadata, &said[..end]).unwrap();
        refused(&folder, &[".metadata", "the metadata, byte"]);
    }

    let (_room, folder) = copied("megatron");
    let path = folder.join("iter_0000010/mp_rank_00/model_optim_rng.pt");
    let whole = std::fs::read(&path).unwrap();
    for end in [0, 100, whole.len() - 22, whole.len() - 1] {
        std::fs::write(&path, &whole[..end]).unwrap();
        refused(&folder, &["mp_rank_00/model_optim_rng.pt", "the archive's"]);
    }
    std::fs::write(&path, b"\x80\x02cos\nsystem\n").unwrap();
    refused(&folder, &["mp_rank_00", "before 1.6"]);
    std::fs::write(&path, &whole).unwrap();
    replaced(&path, b"cargparse\nNamespace\n", b"csubprocess\nPopenee\n");
    refused(&folder, &["model_optim_rng.pt", "`subprocess.Popenee`", "nothing was run"]);
}

#[test]
fn a_flipped_bit_is_no_panic_and_most_are_seen() {
    for (name, file) in [
        ("dcp", ".metadata"),
        ("dcp", "__0_0.distcp"),
        ("megatron", "iter_0000010/mp_rank_00/model_optim_rng.pt"),
        ("pickled", "pytorch_model.bin"),
    ] {
        let (_room, folder) = copied(name);
        let path = folder.join(file);
        let whole = std::fs::read(&path).unwrap();
        let step = (whole.len() * 8 / 300).max(1) | 1;
        let (mut seen, mut tried) = (0, 0);
        for bit in (0..whole.len() * 8).step_by(step) {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, flipped).unwrap();
            tried += 1;
            if let Err(error) = verified(&folder) {
                assert!(error.to_string().contains("hint:"), "{error}");
                seen += 1;
            }
        }
        // What is padding, or a word that nothing depends on, may be what it likes.
        assert!(seen > tried / 4, "{name}/{file}: {seen} of {tried} flipped bits were seen");
    }
}

#[test]
fn the_newest_of_several_comes_first() {
    let room = tempfile::tempdir().unwrap();
    let record = golden("megatron/iter_0000010");
    for iteration in ["iter_0000010", "iter_0000020", "iter_0000100"] {
        copy(&record, &room.path().join(iteration));
    }
    std::fs::create_dir(room.path().join("iter_0000110")).unwrap();
    std::fs::create_dir(room.path().join("tensorboard")).unwrap();
    std::fs::write(room.path().join("latest_checkpointed_iteration.txt"), "100\n").unwrap();
    let there = found(room.path());
    let numbers: Vec<Option<u64>> = there.checkpoints.iter().map(|checkpoint| checkpoint.number).collect();
    assert_eq!(numbers, [Some(110), Some(100), Some(20), Some(10)]);
    assert_eq!(there.latest.as_deref(), Some("100"));
    // The last save left an empty folder.
    refused(room.path(), &["iter_0000110", "mp_rank_00 is missing"]);
    assert!(verify(RealWorld::new().files(), &there.checkpoints[1]).is_ok());
}

#[test]
fn pickled_shards_are_followed_from_their_index() {
    let (_room, folder) = copied("pickled");
    std::fs::rename(folder.join("pytorch_model.bin"), folder.join("one.bin")).unwrap();
    let index = |text: &str| std::fs::write(folder.join("pytorch_model.bin.index.json"), text).unwrap();
    index(r#"{"weight_map": {"a.weight": "one.bin", "b.weight": "one.bin"}}"#);
    assert_eq!(verified(&folder).unwrap().tensors, 2);
    index(r#"{"weight_map": {"a.weight": "one.bin", "c.weight": "one.bin"}}"#);
    refused(&folder, &["`c.weight`: is not in one.bin"]);
    index(r#"{"weight_map": {"a.weight": "two.bin"}}"#);
    refused(&folder, &["two.bin", "not there"]);
    index(r#"{"weight_map": {"a.weight": "../one.bin"}}"#);
    refused(&folder, &["../one.bin", "no file's name"]);
}
