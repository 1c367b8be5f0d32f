//! Checkpoints made by hand: shapes of pickles and archives that PyTorch seldom or never writes, none of whose tensors may be
//! lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/forged.rs"]
mod forged;

use forged::*;
use std::path::Path;
use tempfile::TempDir;
use toprope_formats::{Contents, FormatError, find, verify};
use toprope_world::testing::{Faults, MemoryFiles};
use toprope_world::{Files, RealWorld, World};

fn verified(folder: &Path) -> Result<Contents, FormatError> {
    let world = RealWorld::new();
    let found = find(world.files(), folder).unwrap();
    verify(world.files(), &found.checkpoints[0])
}

/// A folder with `pytorch_model.bin`.
fn pickled(bytes: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pytorch_model.bin"), bytes).unwrap();
    folder
}

/// A file of this value with the storages `0`, of ones, and `1`, in which one number is none.
fn file(value: &[u8]) -> Vec<u8> {
    archive(&whole(value), &[("0", floats(&[1.0; 4])), ("1", floats(&[1.0, f32::NAN, 1.0, 1.0]))])
}

fn sound() -> Vec<u8> {
    tensor("0", &[4])
}

fn spoiled() -> Vec<u8> {
    tensor("1", &[4])
}

/// How many tensors there are, and those with a NaN, which each have one in four.
#[track_caller]
fn told(bytes: &[u8]) -> (usize, Vec<String>) {
    let folder = pickled(bytes);
    let contents = verified(folder.path()).unwrap();
    for tensor in &contents.non_finite {
        assert_eq!((tensor.count.nan, tensor.elements), (1, 4), "{tensor:?}");
    }
    (contents.tensors, contents.non_finite.into_iter().map(|tensor| tensor.tensor).collect())
}

#[track_caller]
fn refused(folder: &Path, words: &[&str]) {
    let message = verified(folder).unwrap_err().to_string();
    for word in [words, &["hint:"]].concat() {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

#[test]
fn no_tensor_hides_behind_another_of_its_name() {
    // Keys that are neither text nor integer have no name of their own.
    let keys = [(float(1.5), spoiled()), (tuple(&[text("a")]), sound()), (float(2.5), spoiled())];
    assert_eq!(told(&file(&dictionary(&keys))), (3, names(&["?", "? #3"])));
    let keys = [(text("a.b"), spoiled()), (text("a"), fields(&[("b", sound())])), (text("a.b #2"), sound())];
    assert_eq!(told(&file(&dictionary(&keys))), (3, names(&["a.b"])));
    let keys = [(number(1), sound()), (text("1"), spoiled())];
    assert_eq!(told(&file(&dictionary(&keys))), (2, names(&["1 #2"])));
}

#[test]
fn a_tensor_under_two_names_has_both() {
    let tied = [("head", kept(&spoiled(), 7)), ("embedding", recalled(7))];
    assert_eq!(told(&file(&fields(&tied))), (2, names(&["embedding", "head"])));
    let hooks = [class("collections", "OrderedDict"), b")R".to_vec()].concat();
    let parameter = [
        class("torch._utils", "_rebuild_parameter"),
        tuple(&[spoiled(), vec![0x88], hooks.clone()]),
        b"R".to_vec(),
    ]
    .concat();
    let tied = [("head", kept(&parameter, 7)), ("embedding", recalled(7))];
    assert_eq!(told(&file(&fields(&tied))), (2, names(&["embedding", "head"])));
    // A parameter has what was set on it behind it.
    let attributes = fields(&[("main_grad", spoiled())]);
    let parameter = [
        class("torch._utils", "_rebuild_parameter_with_state"),
        tuple(&[sound(), vec![0x88], hooks, attributes]),
        b"R".to_vec(),
    ]
    .concat();
    assert_eq!(told(&file(&fields(&[("a", parameter)]))), (2, names(&["a.main_grad"])));
    // What holds it is followed once.
    let layers = [("a", kept(&list(&[spoiled()]), 7)), ("b", recalled(7))];
    assert_eq!(told(&file(&fields(&layers))), (1, names(&["a.0"])));
}

#[test]
fn what_lies_too_deep_is_refused_and_not_passed_over() {
    let nested = |depth: usize| (0..depth).fold(spoiled(), |inner, _| list(&[inner]));
    assert_eq!(told(&file(&nested(60))), (1, names(&[&vec!["0"; 60].join(".")])));
    refused(pickled(&file(&nested(70))).path(), &["pytorch_model.bin", "deeper than the 64"]);
    // A parameter that is its own attribute: its arguments are a list, to which it is appended.
    let arguments = kept(&list(&[sound(), vec![0x88], tuple(&[])]), 1);
    let made = [class("torch._utils", "_rebuild_parameter_with_state"), arguments, kept(b"R", 2)].concat();
    let circle = [made, recalled(1), recalled(2), b"a0".to_vec()].concat();
    refused(pickled(&file(&circle)).path(), &["deeper than the 64"]);
}

#[test]
fn an_archive_that_lies_is_refused() {
    let pickle = whole(&spoiled());
    let storages = [("1", floats(&[1.0; 4]))];
    assert!(verified(pickled(&archive(&pickle, &storages)).path()).is_ok());
    refused(pickled(&archive_with(&pickle, &storages, 1)).path(), &["`a/again/0`", "overlap"]);
    let whole = archive(&pickle, &storages);
    let end = whole.len() - 22;
    let mut longer = [&whole[..end], &[0; 4], &whole[end..]].concat();
    longer[end + 4 + 12] += 4;
    refused(pickled(&longer).path(), &["the archive's directory", "4 bytes behind its 2 entries"]);
}

/// What is whole and cannot be read here is not called damaged.
#[test]
fn other_forms_are_told_as_such() {
    let entry = b"PK\x01\x02";
    let mut packed = file(&spoiled());
    let at = packed.windows(4).position(|window| window == entry).unwrap();
    packed[at + 10] = 8;
    for (bytes, word) in [
        (packed, "is compressed"),
        (b"\x80\x02}.".to_vec(), "before 1.6"),
        (file(&replaced(spoiled(), "FloatStorage", "device")), "its dtype `device` is not known"),
    ] {
        let folder = pickled(&bytes);
        let error = verified(folder.path()).unwrap_err();
        assert!(matches!(error, FormatError::UnsupportedForm { .. }), "{error}");
        refused(folder.path(), &[word, "says nothing of the numbers"]);
    }
}

fn replaced(bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

fn part(offsets: [u64; 2], sizes: [u64; 2], first: f32) -> Part {
    let mut numbers = vec![1.0; (sizes[0] * sizes[1]) as usize];
    numbers[0] = first;
    Part { offsets: offsets.into(), sizes: sizes.into(), numbers }
}

#[test]
fn parts_of_a_tensor_are_one_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (nan, infinite) = (f32::NAN, f32::INFINITY);
    write_dcp(
        folder.path(),
        &[4, 3],
        &[part([0, 0], [2, 3], 1.0), part([2, 0], [2, 1], nan), part([2, 1], [2, 2], infinite)],
    );
    let contents = verified(folder.path()).unwrap();
    assert_eq!((contents.files, contents.tensors, contents.bytes), (3, 1, 48));
    let [told] = contents.non_finite.as_slice() else { panic!("{:?}", contents.non_finite) };
    assert_eq!((told.tensor.as_str(), told.elements), ("weight", 12));
    assert_eq!((told.count.nan, told.count.infinite), (1, 1));
    assert!(told.file.ends_with("__1_0.distcp"));
    // Twelve elements, of which two are there twice and two are nowhere.
    write_dcp(
        folder.path(),
        &[4, 3],
        &[part([0, 0], [2, 3], 1.0), part([1, 0], [2, 1], 1.0), part([2, 1], [2, 2], 1.0)],
    );
    refused(folder.path(), &[".metadata", "`weight`", "[1, 0]", "overlap"]);
    write_dcp(folder.path(), &[4, 3], &[part([0, 0], [2, 3], 1.0)]);
    refused(folder.path(), &[".metadata", "`weight`", "6 of its 12 elements"]);
}

/// A rank of Megatron's with the arguments of a run.
fn write_rank(folder: &Path, rank: &str, sizes: [u64; 3], with_optimizer: bool) {
    let [tensor, pipeline, expert] = sizes.map(number);
    let arguments = fields(&[
        ("tensor_model_parallel_size", tensor),
        ("pipeline_model_parallel_size", pipeline),
        ("expert_model_parallel_size", expert),
    ]);
    let value = fields(&[("args", object("argparse", "Namespace", &arguments)), ("model", sound())]);
    let rank = folder.join("iter_0000010").join(rank);
    std::fs::create_dir_all(&rank).unwrap();
    std::fs::write(rank.join("model_optim_rng.pt"), file(&value)).unwrap();
    if with_optimizer {
        std::fs::write(rank.join("distrib_optim.pt"), file(&fields(&[("state", sound())]))).unwrap();
    }
}

#[test]
fn ranks_are_those_that_the_run_had() {
    let folder = tempfile::tempdir().unwrap();
    // Experts are parallel, and there is one stage: the second number is the expert's place.
    for (rank, first) in [("mp_rank_00_000", true), ("mp_rank_00_001", false)] {
        write_rank(folder.path(), rank, [1, 1, 2], first);
    }
    assert_eq!(verified(folder.path()).unwrap().files, 3);
    for (rank, first) in [("mp_rank_00_000", true), ("mp_rank_00_001", false)] {
        write_rank(folder.path(), rank, [1, 2, 1], first);
    }
    refused(folder.path(), &["mp_rank_00_001/distrib_optim.pt is missing"]);
    for rank in ["mp_rank_00_000", "mp_rank_00_001"] {
        write_rank(folder.path(), rank, [1, 4, 1], true);
    }
    refused(folder.path(), &["a rank of the 4 by which", "(2 are there) is missing"]);
    for rank in ["mp_rank_00_000", "mp_rank_00_001"] {
        write_rank(folder.path(), rank, [1, 1, 1], true);
    }
    let error = verified(folder.path()).unwrap_err();
    assert!(matches!(error, FormatError::Surplus { .. }), "{error}");
    refused(folder.path(), &["run of 1 ranks, and 2 are there\n", "another run's"]);
}

/// A neighbour that is removed or may not be read, whenever that shows.
#[test]
fn an_unreadable_neighbour_hides_no_checkpoint() {
    let root = Path::new("/run");
    let files = MemoryFiles::new();
    files.create_folder(root).unwrap();
    for name in ["iter_10", "iter_20"] {
        files.create_folder(&root.join(name)).unwrap();
        files.create(&root.join(name).join(".metadata")).unwrap();
    }
    // The folder is looked at and listed, then listed again; then each in it is looked at and listed.
    for step in 4..=7 {
        files.set_faults(Faults { fail_at: Some(step), ..Faults::default() });
        let found = find(&files, root).unwrap();
        let numbers: Vec<Option<u64>> = found.checkpoints.iter().map(|found| found.number).collect();
        // The other one has a name like it, so that it is a checkpoint that cannot be read.
        assert_eq!(numbers, [Some(20), Some(10)], "{step}");
    }
    for step in 1..=3 {
        files.set_faults(Faults { fail_at: Some(step), ..Faults::default() });
        assert!(find(&files, root).is_err(), "{step}");
    }
}
