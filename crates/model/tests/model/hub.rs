//! The golden records of published folders: logits, loss and every gradient of what transformers computes
//! (`tests/golden/hub.py`).

use crate::run::Run;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::PathBuf;
use toprope_model::checkpoint::pieces;
use toprope_model::deepseek_v3::{Inference, build_inference, build_train};
use toprope_model::hub::{Hub, HubError, save};
use toprope_model::{Architecture, ModelConfig, TrainingOptions};
use toprope_program::{DType, Program, Range, Width};
use toprope_world::{RealWorld, World};

/// Of the largest logit, and of the largest gradient of a tensor.
const BOUND: f64 = 1e-4;

/// Every record there is.
const RECORDS: [&str; 10] = [
    "deepseek-default",
    "deepseek-fp8",
    "deepseek-mscale",
    "deepseek-yarn",
    "llama-default",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "qwen2-default",
    "qwen2-yarn",
];

/// GGUF files, and the record whose model each of them is.
const GGUF: [(&str, &str); 4] = [
    ("deepseek2", "deepseek-fp8"),
    ("deepseek2-split", "deepseek-fp8"),
    ("llama", "llama-default"),
    ("qwen2", "qwen2-default"),
];

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn folder(name: &str) -> PathBuf {
    golden("hub").join(name)
}

fn expected(name: &str) -> BTreeMap<String, Vec<f64>> {
    let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let words = view.data().chunks_exact(4).map(|word| <[u8; 4]>::try_from(word).unwrap());
        let numbers = match view.dtype() {
            safetensors::Dtype::I32 => words.map(|word| f64::from(i32::from_le_bytes(word))).collect(),
            safetensors::Dtype::F32 => words.map(|word| f64::from(f32::from_le_bytes(word))).collect(),
            other => panic!("{other:?} in a record"),
        };
        (name.to_string(), numbers)
    };
    file.iter().map(numbers).collect()
}

/// A program of a published model with its weights.
fn run(hub: &Hub, config: &ModelConfig, program: Program, symbols: Vec<usize>) -> Run {
    let mut run = Run::new(program, Width::Native, symbols);
    let mut whole: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    hub.each(Architecture::from(config), |piece, numbers| {
        let parameter = whole.entry(piece.parameter.clone()).or_default();
        assert_eq!(parameter.len(), piece.offset_elements);
        parameter.extend(numbers.iter().map(|x| f64::from(*x)));
        Ok::<(), HubError>(())
    })
    .unwrap();
    for (name, numbers) in whole {
        run.write(&name, &numbers);
    }
    run
}

fn agree(what: &str, have: &[f64], want: &[f64]) {
    assert_eq!(have.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    for (have, want) in have.iter().zip(want) {
        // Positively: what is no number does not agree.
        assert!(
            (have - want).abs() <= BOUND * largest,
            "{what}: {have} is not {want}, the largest is {largest}"
        );
    }
}

#[test]
fn every_record_is_read() {
    let mut names: Vec<String> = std::fs::read_dir(folder(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, RECORDS);
}

#[test]
fn logits_loss_and_gradients_are_those_of_transformers() {
    let world = RealWorld::new();
    for name in RECORDS {
        let hub = Hub::open(world.files(), &folder(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (config, expected) = (hub.inference_config(), expected(name));
        let tokens = &expected["tokens"];
        let count = tokens.len();
        let positions: Vec<f64> = (0..count).map(|at| at as f64).collect();
        let write = |run: &mut Run| {
            run.write("tokens", tokens);
            run.write("positions", &positions);
            run.write("segment_start", &vec![0.0; count]);
        };

        let program = build_inference(&config, Inference::Logits, DType::F32, count, name).unwrap();
        let mut logits = run(&hub, &config, program, vec![count]);
        write(&mut logits);
        logits.run(Range::Accumulate);
        agree(&format!("{name}: logits"), &logits.read("logits"), &expected["logits"]);

        let options = TrainingOptions {
            sequence: count,
            micro_batch_sequences: 1,
            dtype: DType::F32,
            balance_alpha: 0.0,
            ..Default::default()
        };
        let program = build_train(&config, &options, name).unwrap();
        let mut training = run(&hub, &config, program, vec![1]);
        write(&mut training);
        let targets: Vec<f64> = tokens[1..].iter().copied().chain([-1.0]).collect();
        training.write("targets", &targets);
        training.write("loss_scale", &[1.0 / (count - 1) as f64]);
        training.run(Range::Accumulate);
        agree(&format!("{name}: loss"), &training.read("loss"), &expected["loss"]);
        if !expected.keys().any(|key| key.starts_with("gradient.")) {
            // Eight-bit weights are not trained as such.
            assert_eq!(name, "deepseek-fp8");
            continue;
        }
        let mut compared = 0;
        for piece in pieces(&config) {
            let Some(want) = expected.get(&format!("gradient.{}", piece.name)) else {
                assert!(piece.name.ends_with("e_score_correction_bias"), "{name}: {}", piece.name);
                continue;
            };
            let whole = training.read(&format!("gradient.{}", piece.parameter));
            let have = &whole[piece.offset_elements..][..piece.elements()];
            agree(&format!("{name}: gradient of {}", piece.name), have, want);
            compared += 1;
        }
        let recorded = expected.keys().filter(|key| key.starts_with("gradient.")).count();
        assert_eq!(compared, recorded, "{name}: a gradient of the record was not compared");
    }
}

#[test]
fn a_gguf_file_gives_the_logits_of_the_folder_that_it_was_made_from() {
    let world = RealWorld::new();
    for (name, record) in GGUF {
        let path = golden(&format!("gguf/{name}.gguf"));
        let hub = Hub::open(world.files(), &path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (config, expected) = (hub.inference_config(), expected(record));
        let tokens = &expected["tokens"];
        let count = tokens.len();
        let program = build_inference(&config, Inference::Logits, DType::F32, count, name).unwrap();
        let mut logits = run(&hub, &config, program, vec![count]);
        logits.write("tokens", tokens);
        logits.write("positions", &(0..count).map(|at| at as f64).collect::<Vec<_>>());
        logits.write("segment_start", &vec![0.0; count]);
        logits.run(Range::Accumulate);
        agree(&format!("{name}: logits"), &logits.read("logits"), &expected["logits"]);
    }
}

/// A saved folder is read as the model that it was, to the bit.
#[test]
fn what_is_saved_is_what_was_read() {
    let world = RealWorld::new();
    let room = tempfile::tempdir().unwrap();
    for name in RECORDS {
        let hub = Hub::open(world.files(), &folder(name)).unwrap();
        let to = room.path().join(name);
        save::<HubError>(world.files(), &to, hub.config(), &[], |piece| hub.read(piece)).unwrap();
        let again = Hub::open(world.files(), &to).unwrap_or_else(|error| panic!("{name}: {error}"));
        let same = (Architecture::from(hub.config()).rope(), pieces(hub.config()));
        assert_eq!((Architecture::from(again.config()).rope(), pieces(again.config())), same, "{name}");
        for piece in pieces(hub.config()) {
            assert_eq!(again.read(&piece).unwrap(), hub.read(&piece).unwrap(), "{name}: {}", piece.name);
        }
        let error =
            save::<HubError>(world.files(), &to, hub.config(), &[], |piece| hub.read(piece)).unwrap_err();
        assert!(error.to_string().contains("exists already"), "{error}");
    }
}

/// A process that died left its folder, and another has its number now.
#[test]
fn what_a_dead_process_left_aside_does_not_fail_an_export() {
    let world = RealWorld::new();
    let room = tempfile::tempdir().unwrap();
    let hub = Hub::open(world.files(), &folder(RECORDS[0])).unwrap();
    let left = room.path().join(format!(".tmp-{}-out", std::process::id()));
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("stale.json"), "{}").unwrap();
    let to = room.path().join("out");
    for _ in 0..2 {
        save::<HubError>(world.files(), &to, hub.config(), &[], |piece| hub.read(piece)).unwrap();
        assert!(!left.exists() && !to.join("stale.json").exists());
        std::fs::remove_dir_all(&to).unwrap();
    }
}
