use crate::support::{FOLDER, at_step, identity, newest, newest_step, read, snapshot, sorted, world_with};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use toprope_train::checkpoint::{CheckpointError, Defect, FORMAT_VERSION, Identity, newest_intact, open};
use toprope_world::World;
use toprope_world::testing::{Faults, MemoryWorld};

const FILES: [&str; 2] = ["state.safetensors", "manifest.json"];

fn file(name: &str) -> PathBuf {
    at_step(20).join(name)
}

/// Steps 10 and 20, the latter with one file changed.
fn changed(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> MemoryWorld {
    let world = world_with(&[10, 20]);
    world.memory_files().corrupt(&file(name), change).unwrap();
    world
}

/// The older one is found, and the newer one is named with this reason.
fn reason(world: &dyn World) -> Defect {
    let (loaded, mut skipped) = newest(world);
    assert_eq!(loaded.unwrap().manifest().header.step, 10);
    assert_eq!(skipped.len(), 1);
    let skipped = skipped.remove(0);
    assert_eq!(skipped.path, at_step(20));
    assert!(skipped.to_string().contains("step-00000020"), "{skipped}");
    skipped.reason
}

/// The manifest's own hash, made right again after an edit, so that a test reaches what is behind it.
fn rehash(bytes: &mut Vec<u8>) {
    const LINE: &str = ",\n  \"manifest_hash\": \"";
    let text = String::from_utf8(std::mem::take(bytes)).unwrap();
    let body = &text[..text.rfind(LINE).unwrap()];
    *bytes = format!("{body}{LINE}{}\"\n}}\n", blake3::hash(body.as_bytes()).to_hex()).into_bytes();
}

fn edited_manifest(from: &str, to: &str) -> MemoryWorld {
    changed("manifest.json", |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        *bytes = text.replacen(from, to, 1).into_bytes();
        rehash(bytes);
    })
}

#[test]
fn rehashing_an_unchanged_manifest_changes_nothing() {
    let world = edited_manifest("\"step\": 20", "\"step\": 20");
    assert_eq!(newest_step(&world), Some(20));
}

#[test]
fn every_flipped_byte_is_found() {
    for name in FILES {
        let length = read(&world_with(&[20]), &file(name)).len();
        assert!(length > 1000, "{length}");
        for (count, at) in (0..length).step_by(97).chain([length - 1]).enumerate() {
            let world = changed(name, |bytes| bytes[at] ^= 1 << (count % 8));
            let defect = reason(&world);
            let named = match (name, &defect) {
                ("manifest.json", Defect::ManifestHash) => true,
                ("state.safetensors", Defect::Header { offset }) => *offset == at as u64,
                ("state.safetensors", Defect::Tensor { start, end, .. }) => {
                    (*start..*end).contains(&(at as u64))
                }
                _ => false,
            };
            assert!(named, "{name} at {at}: {defect}");
        }
    }
}

#[test]
fn every_truncation_and_every_tail_is_found() {
    for name in FILES {
        let length = read(&world_with(&[20]), &file(name)).len();
        for keep in (0..length).step_by(97).chain([length - 1]) {
            reason(&changed(name, |bytes| bytes.truncate(keep)));
        }
        reason(&changed(name, |bytes| bytes.push(0)));
        reason(&changed(name, |bytes| bytes.extend_from_slice(&[0; 5000])));
    }
    let defect = reason(&changed("state.safetensors", |bytes| bytes.truncate(100)));
    assert!(matches!(defect, Defect::Length { found: 100, .. }), "{defect}");
}

#[test]
fn missing_files_and_strange_ones_are_named() {
    for name in FILES {
        let world = world_with(&[10, 20]);
        world.files().remove_file(&file(name)).unwrap();
        let defect = reason(&world);
        assert!(matches!(defect, Defect::Missing { file } if file == name), "{defect}");

        let world = world_with(&[10, 20]);
        world.files().remove_file(&file(name)).unwrap();
        world.files().create_folder(&file(name)).unwrap();
        reason(&world);
    }
    let world = world_with(&[10, 20]);
    world.files().remove_folder(&at_step(20)).unwrap();
    world.files().create(&at_step(20)).unwrap();
    reason(&world);
}

#[test]
fn names_that_are_not_checkpoints_are_none() {
    let world = world_with(&[10]);
    for name in [
        ".tmp-step-00000020",
        ".delete-step-00000020",
        "step-20",
        "step-000000020",
        "step-",
        "step-x",
        "note",
    ] {
        world.files().create_folder(&Path::new(FOLDER).join(name)).unwrap();
    }
    let (loaded, skipped) = newest(&world);
    assert_eq!(loaded.unwrap().manifest().header.step, 10);
    assert!(skipped.is_empty(), "{skipped:?}");
}

#[test]
fn a_moved_checkpoint_is_found_out() {
    let world = world_with(&[10, 15]);
    world.files().rename(&at_step(15), &at_step(20)).unwrap();
    assert!(matches!(reason(&world), Defect::OtherStep { found: 15 }));
}

#[test]
fn another_version_is_named_whatever_its_shape() {
    let other = edited_manifest("\"format_version\": 1", "\"format_version\": 2");
    assert!(matches!(reason(&other), Defect::OtherVersion { found: 2 }));
    let other = edited_manifest("\"format_version\": 1", "\"format_version\": 2, \"something\": \"new\"");
    assert!(matches!(reason(&other), Defect::OtherVersion { found: 2 }));
    let other = changed("manifest.json", |bytes| *bytes = b"{\"format_version\": 7}".to_vec());
    let defect = reason(&other);
    assert!(matches!(defect, Defect::OtherVersion { found: 7 }), "{defect}");
    assert!(defect.to_string().contains(&format!("reads version {FORMAT_VERSION}")), "{defect}");
}

#[test]
fn a_manifest_that_lies_about_sizes_is_named_before_memory_is_asked_for() {
    let lies = [
        ("[13,7]", "[7,13]"),
        ("[13,7]", "[13,8]"),
        ("[13,7]", "[13,7,1]"),
        ("[13,7]", "[1152921504606846976,13]"),
        ("[13,7]", "[18446744073709551615]"),
        ("[13,7]", "[4294967296,4294967296]"),
        ("[13,7]", "[-13,7]"),
        ("[13,7]", "[13.0,7]"),
        ("[13,7]", "[]"),
        ("\"dtype\":\"BF16\"", "\"dtype\":\"F64\""),
        ("\"dtype\":\"BF16\"", "\"dtype\":\"F32\""),
        ("\"dtype\":\"I32\"", "\"dtype\":\"U32\""),
        ("\"name\":\"rows\"", "\"name\":\"row2\""),
        ("\"name\":\"rows\"", "\"name\":\"head\""),
        ("\"state_bytes\": ", "\"state_bytes\": 1"),
        ("\"state_hash\": \"", "\"state_hash\": \"0"),
        ("\"hash\":\"", "\"hash\":\"zz"),
        ("\"step\": 20", "\"step\": \"20\""),
        ("\"step\": 20", "\"step\": 20, \"step\": 20"),
        ("\"run_id\"", "\"run_di\""),
        ("\"tensors\": [", "\"tensors\": [ {},"),
    ];
    for (truth, lie) in lies {
        let defect = reason(&edited_manifest(truth, lie));
        assert!(matches!(defect, Defect::Manifest(_)), "{truth} -> {lie}: {defect}");
    }
    let files = world_with(&[20]);
    files.memory_files().corrupt(&file("manifest.json"), |bytes| bytes.resize(65 << 20, b' ')).unwrap();
    let (found, skipped) = newest(&files);
    assert!(found.is_none() && skipped[0].to_string().contains("at most 67108864"), "{}", skipped[0]);
}

#[test]
fn a_header_that_lies_is_named() {
    let lies: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes()),
        |bytes| bytes[..8].fill(0),
        |bytes| {
            let at = bytes.windows(6).position(|window| window == b"[13,7]").unwrap();
            bytes[at..at + 6].copy_from_slice(b"[7,13]");
        },
        |bytes| {
            let at = bytes.windows(4).position(|window| window == b"rows").unwrap();
            bytes[at..at + 4].copy_from_slice(b"row2");
        },
    ];
    for lie in lies {
        let defect = reason(&changed("state.safetensors", lie));
        assert!(matches!(defect, Defect::Header { .. }), "{defect}");
    }
}

#[test]
fn another_run_is_an_error_and_no_skip() {
    let world = world_with(&[10, 20]);
    type Change = fn(&mut Identity);
    let changes: [(&str, Change); 5] = [
        ("model", |identity| identity.model_name.push('x')),
        ("recipe", |identity| identity.recipe_hash.push('x')),
        ("program", |identity| identity.program_hash.push('x')),
        ("tokenizer", |identity| identity.tokenizer_hash.push('x')),
        ("corpus", |identity| identity.corpus_hash.push('x')),
    ];
    for (name, change) in changes {
        let mut other = identity();
        change(&mut other);
        let error = newest_intact(&world, Path::new(FOLDER), &other).unwrap_err();
        match &error {
            CheckpointError::OtherRun { path, field, .. } => assert_eq!((path, *field), (&at_step(20), name)),
            other => panic!("{other}"),
        }
        assert!(error.to_string().contains("--run"), "{error}");
    }
    // Opened by its path it is whatever it is.
    assert_eq!(open(&world, &at_step(20)).unwrap().manifest().header.identity, identity());
}

#[test]
fn all_damaged_is_told_apart_from_none() {
    let (found, skipped) = newest(&world_with(&[]));
    assert!(found.is_none() && skipped.is_empty());
    let (found, skipped) = newest_intact(&MemoryWorld::default(), Path::new("/none"), &identity()).unwrap();
    assert!(found.is_none() && skipped.is_empty());
    let world = world_with(&[10, 20]);
    for step in [10, 20] {
        world
            .memory_files()
            .corrupt(&at_step(step).join("state.safetensors"), |bytes| bytes.clear())
            .unwrap();
    }
    let (found, skipped) = newest(&world);
    assert!(found.is_none());
    assert_eq!(skipped.iter().map(|skipped| skipped.path.clone()).collect::<Vec<_>>(), [20, 10].map(at_step));
    let error = open(&world, &at_step(10)).unwrap_err();
    assert!(matches!(error, CheckpointError::Damaged { defect: Defect::Length { .. }, .. }), "{error}");
}

#[test]
fn a_read_that_fails_at_any_operation_is_named_and_never_gives_wrong_bytes() {
    let world = world_with(&[10, 20]);
    world.memory_files().set_faults(Faults::default());
    assert_eq!(newest_step(&world), Some(20));
    for operation in 1..=world.memory_files().operations() {
        world.memory_files().set_faults(Faults { fail_at: Some(operation), ..Faults::default() });
        match newest_intact(&world, Path::new(FOLDER), &identity()) {
            Err(error) => assert!(error.to_string().contains("(injected)"), "{error}"),
            Ok((Some(loaded), skipped)) => {
                let step = loaded.manifest().header.step;
                assert_eq!(skipped.len(), usize::from(step == 10));
                match loaded.read_all() {
                    Ok(all) => assert_eq!(all, sorted(snapshot(step))),
                    Err(error) => assert!(error.to_string().contains("(injected)"), "{error}"),
                }
            }
            Ok((None, skipped)) => panic!("{operation}: {skipped:?}"),
        }
    }
}

#[test]
fn bytes_that_change_after_they_were_verified_are_found_on_reading() {
    let world = world_with(&[20]);
    let loaded = newest(&world).0.unwrap();
    world
        .memory_files()
        .corrupt(&file("state.safetensors"), |bytes| *bytes.last_mut().unwrap() ^= 1)
        .unwrap();
    let error = loaded.read_all().unwrap_err();
    assert!(matches!(error, CheckpointError::Damaged { defect: Defect::Tensor { .. }, .. }), "{error}");
    let error = loaded.read_tensor("rows", &mut [0; 31]).unwrap_err();
    assert!(error.to_string().contains("has 32 bytes, and 31 were asked for"), "{error}");
    let error = loaded.read_tensor("none", &mut []).unwrap_err();
    assert!(error.to_string().contains("is not in this checkpoint"), "{error}");
}

/// A number that someone might write into a manifest to do harm.
fn hostile_number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u64>().prop_map(|number| number.to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:e}")),
        (0_u32..64).prop_map(|shift| (1_u64 << shift).to_string()),
        "[0-9]{1,40}",
    ]
}

proptest! {
    #[test]
    fn random_bytes_for_a_file_are_named(name in prop::sample::select(FILES.to_vec()), random in prop::collection::vec(any::<u8>(), 0..4000)) {
        reason(&changed(name, |bytes| *bytes = random));
    }

    #[test]
    fn random_bytes_within_a_file_are_named(
        name in prop::sample::select(FILES.to_vec()),
        at in any::<prop::sample::Index>(),
        random in prop::collection::vec(any::<u8>(), 1..64),
    ) {
        let mut same = true;
        let world = changed(name, |bytes| {
            let at = at.index(bytes.len());
            let end = bytes.len().min(at + random.len());
            same = bytes[at..end] == random[..end - at];
            bytes[at..end].copy_from_slice(&random[..end - at]);
        });
        if !same {
            reason(&world);
        }
    }

    #[test]
    fn a_manifest_with_hostile_numbers_is_named_or_means_the_same(
        which in any::<prop::sample::Index>(),
        number in hostile_number(),
    ) {
        let mut same = true;
        let world = changed("manifest.json", |bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            let digits = |byte: u8| byte.is_ascii_digit();
            // Numbers stand behind a space, a bracket or a comma; digits elsewhere are of hashes and names.
            let starts: Vec<usize> = (1..text.len())
                .filter(|&at| digits(text.as_bytes()[at]) && b" [,".contains(&text.as_bytes()[at - 1]))
                .collect();
            let start = starts[which.index(starts.len())];
            let end = start + text[start..].bytes().take_while(|&byte| digits(byte)).count();
            same = text[start..end] == number;
            *bytes = format!("{}{number}{}", &text[..start], &text[end..]).into_bytes();
            rehash(bytes);
        });
        // Of all numbers only the cursor's may be another without a contradiction.
        let (loaded, skipped) = newest(&world);
        let loaded = loaded.unwrap();
        if loaded.manifest().header.step == 20 {
            let mut expected = sorted(snapshot(20));
            let all = loaded.read_all().unwrap();
            expected.header.data_cursor = all.header.data_cursor;
            prop_assert_eq!(all, expected);
            prop_assert!(skipped.is_empty());
        } else {
            prop_assert!(!same && skipped.len() == 1);
        }
    }

    #[test]
    fn random_json_for_a_manifest_is_named(text in "\\{(\"[a-z_]{1,12}\": ?[\\[\\]{}0-9eE.,+\"-]{0,40},?\n?){0,8}\\}?") {
        reason(&changed("manifest.json", |bytes| {
            *bytes = format!("{text},\n  \"manifest_hash\": \"").into_bytes();
            rehash(bytes);
        }));
    }
}
