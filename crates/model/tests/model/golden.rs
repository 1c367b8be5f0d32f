//! The golden record: what plain PyTorch computes for a step and for ten AdamW steps (`tests/golden/README.md`).
//!
//! Bounds follow from the record alone. Wide mode computes in f64, as the record's f64 half does: 1e-9 of the largest value.
//! f32 is judged against the f64 half by the noise of PyTorch's own f32 run, which the record holds for each tensor:
//! two f32 computations differ by less than a few times that.

use crate::run::{Run, gradients};
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;
use toprope_model::checkpoint::{fuse, split};
use toprope_model::deepseek_v3::build_train;
use toprope_model::{AdamwOptions, DeepseekV3Config, TrainingOptions};
use toprope_program::recompute::Recompute;
use toprope_program::{DType, Range, Tensor, Width};

/// An f32 result may be this many times as far from f64 as PyTorch's was: both are draws of the same noise.
const NOISE_FACTOR: f64 = 8.0;
/// Relative to the largest value, where both compute in f64.
const WIDE: f64 = 1e-9;
/// One rounding to f32.
const ROUNDING: f64 = 5.960_464_477_539_063e-8;

struct Record {
    name: &'static str,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, Value>,
    config: DeepseekV3Config,
    options: TrainingOptions,
    rows: usize,
}

impl Record {
    fn read(name: &'static str) -> Record {
        let path = format!("{}/../../tests/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let parse = |(key, text): (&String, &String)| {
            (key.clone(), serde_json::from_str(text).unwrap_or(Value::String(text.clone())))
        };
        let metadata: BTreeMap<String, Value> =
            header.metadata().as_ref().unwrap().iter().map(parse).collect();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter().map(|(name, view)| (name.to_string(), tensor(&view))).collect();
        let mut keys = metadata["config"].as_object().unwrap().clone();
        let muon = keys.remove("muon").map(|muon| serde_json::from_value(muon).unwrap());
        let mut take = |key: &str| keys.remove(key).unwrap_or_else(|| panic!("{key} is not in the record"));
        // The choices that the record makes where the report leaves them open are the ones that are built here.
        assert_eq!(take("mtp_hidden_states_first"), Value::Bool(false));
        assert_eq!(take("mtp_chain_post_norm"), Value::Bool(true));
        assert_eq!(take("balance_counts"), Value::String("affinity".into()));
        let mut number = |key: &str| take(key).as_f64().unwrap();
        let rows = number("batch_size") as usize;
        let options = TrainingOptions {
            adapter: None,
            sequence: number("sequence_length") as usize,
            micro_batch_sequences: rows,
            dtype: DType::F32,
            mtp_weight: number("mtp_loss_lambda"),
            balance_alpha: number("aux_loss_alpha"),
            bias_update_rate: number("bias_update_speed"),
            clip: number("clip_norm"),
            adamw: AdamwOptions {
                beta1: number("adam_beta1"),
                beta2: number("adam_beta2"),
                epsilon: number("adam_epsilon"),
                weight_decay: number("weight_decay"),
            },
            muon,
            recompute: Recompute::Nothing,
            depth_scaled_init: false,
        };
        for key in ["learning_rates", "initial_bias_range"] {
            take(key);
        }
        // What is left are Hugging Face's keys and nothing else, or the parser refuses them.
        let config = DeepseekV3Config::from_json(&Value::Object(keys).to_string()).unwrap();
        Record { name, tensors, metadata, config, options, rows }
    }

    fn run(&self, width: Width) -> Run {
        let program = build_train(&self.config, &self.options, self.name).unwrap();
        let mut run = Run::new(program, width, vec![self.rows]);
        for (name, tensor) in fuse(&self.config, &self.tensors).unwrap() {
            run.write(&name, &tensor.data);
        }
        run
    }

    /// Writes a batch and runs the first range, in as many micro-batches as asked.
    fn accumulate(&self, run: &mut Run, step: usize) {
        let batch = step % 2;
        let data = |name: String| self.tensors[&format!("batch.{batch}.{name}")].data.clone();
        let scale = |targets: &[f64]| 1.0 / targets.iter().filter(|target| **target >= 0.0).count() as f64;
        for name in ["tokens", "targets", "positions", "segment_start"] {
            run.write(name, &data(name.into()));
        }
        run.write("loss_scale", &[scale(&data("targets".into()))]);
        for depth in 1..=self.config.num_nextn_predict_layers {
            for name in [format!("mtp_tokens.{depth}"), format!("mtp_targets.{depth}")] {
                run.write(&name, &data(name.clone()));
            }
            run.write(&format!("mtp_scale.{depth}"), &[scale(&data(format!("mtp_targets.{depth}")))]);
        }
        if self.layers_with_experts().next().is_some() {
            run.write("balance_scale", &[1.0 / self.rows as f64]);
        }
        run.run(Range::Accumulate);
    }

    fn update(&self, run: &mut Run, step: usize) {
        let rate = self.metadata["config"]["learning_rates"][step].as_f64().unwrap();
        let correction = |beta: f64| 1.0 - beta.powi(step as i32 + 1);
        let adamw = &self.options.adamw;
        run.write("rates", &[rate, correction(adamw.beta1), correction(adamw.beta2)]);
        run.run(Range::Update);
    }

    fn layers_with_experts(&self) -> impl Iterator<Item = usize> {
        (0..self.config.layers_total()).filter(|layer| self.config.has_experts(*layer))
    }

    fn curve(&self, width: &str, term: &str, step: usize) -> f64 {
        self.metadata["curve"][width][term][step].as_f64().unwrap()
    }

    /// The largest distance of PyTorch's f32 run from its f64 run.
    fn noise(&self, what: &str, name: &str) -> f64 {
        self.metadata["noise"][what][name].as_f64().unwrap()
    }

    /// Published tensors of values that the run holds, one for each parameter.
    fn published(&self, run: &mut Run, value: impl Fn(&str) -> Option<String>) -> BTreeMap<String, Tensor> {
        let mut ours = BTreeMap::new();
        for parameter in toprope_model::parameters::parameters(&self.config) {
            let data = match value(&parameter.name) {
                Some(value) => run.read(&value),
                None => vec![0.0; parameter.elements() as usize],
            };
            ours.insert(parameter.name, Tensor { dtype: DType::F32, sizes: parameter.shape, data });
        }
        split(&self.config, &ours).unwrap()
    }
}

fn tensor(view: &safetensors::tensor::TensorView<'_>) -> Tensor {
    use safetensors::Dtype;
    let (dtype, width) = match view.dtype() {
        Dtype::F32 => (DType::F32, Width::Native),
        Dtype::F64 => (DType::F32, Width::Wide),
        Dtype::I32 => (DType::I32, Width::Native),
        other => panic!("{other:?} in a golden record"),
    };
    Tensor::from_bytes(dtype, view.shape(), width, view.data()).unwrap()
}

fn largest(data: &[f64]) -> f64 {
    data.iter().fold(0.0, |largest, x| x.abs().max(largest))
}

/// The largest distance; infinite where anything is not a number.
fn distance(have: &[f64], want: &[f64]) -> f64 {
    assert_eq!(have.len(), want.len());
    let distances = have.iter().zip(want).map(|(a, b)| (a - b).abs());
    distances.fold(0.0, |largest, x| if x.is_nan() { f64::INFINITY } else { x.max(largest) })
}

const TERMS: [(&str, &str); 4] =
    [("total", "loss"), ("main", "loss_main"), ("mtp", "loss_mtp"), ("balance", "loss_balance")];

/// Losses, loads, biases, the norm and the parameters over ten steps; gradients of the first.
fn agrees(name: &'static str, width: Width) {
    let record = Record::read(name);
    let wide = width == Width::Wide;
    let mut run = record.run(width);
    for step in 0..10 {
        record.accumulate(&mut run, step);
        for (term, value) in TERMS {
            let want = record.curve("f64", term, step);
            if want == 0.0 && value != "loss" {
                continue;
            }
            let noise = (record.curve("f32", term, step) - want).abs();
            let have = run.read(value)[0];
            let bound = if wide { WIDE * want } else { NOISE_FACTOR * noise.max(ROUNDING * want) };
            assert!(
                (have - want).abs() <= bound,
                "{name} step {step} {value}: {have} is not {want} within {bound:e}"
            );
        }
        for layer in record.layers_with_experts() {
            let experts = record.config.experts();
            let loads = &record.tensors[&format!("steps.model.layers.{layer}.mlp.gate.expert_load")].data;
            let want = &loads[step * experts..(step + 1) * experts];
            assert_eq!(run.read(&format!("counts.{layer}")), want, "{name} step {step} layer {layer}");
        }
        if step == 0 {
            let trained = gradients(&record.config);
            let carried = |name: &str| trained.iter().any(|p| p == name).then(|| format!("gradient.{name}"));
            let have = record.published(&mut run, carried);
            let mut compared = 0;
            for (tensor, have) in &have {
                let Some(want) = record.tensors.get(&format!("gradient_f64.{tensor}")) else { continue };
                let size = largest(&want.data);
                let bound = match wide {
                    true => WIDE * size,
                    false => NOISE_FACTOR * record.noise("gradient", tensor).max(ROUNDING * size),
                };
                let far = distance(&have.data, &want.data);
                assert!(far <= bound, "{name} gradient of {tensor}: off by {far:e}, allowed {bound:e}");
                compared += 1;
            }
            let recorded = record.tensors.keys().filter(|key| key.starts_with("gradient_f64.")).count();
            assert_eq!(compared, recorded, "{name}: a gradient of the record was not compared");
        }
        record.update(&mut run, step);
        let (have, want) = (run.read("gradient_norm")[0], record.curve("f64", "gradient_norm", step));
        let noise = (record.curve("f32", "gradient_norm", step) - want).abs();
        let bound = if wide { WIDE * want } else { NOISE_FACTOR * noise.max(ROUNDING * want) };
        assert!(
            (have - want).abs() <= bound,
            "{name} step {step} norm: {have} is not {want} within {bound:e}"
        );
        for layer in record.layers_with_experts() {
            let (experts, bias) =
                (record.config.experts(), format!("model.layers.{layer}.mlp.gate.e_score_correction_bias"));
            let want = &record.tensors[&format!("steps.{bias}")].data[step * experts..(step + 1) * experts];
            let bound = (step + 2) as f64 * ROUNDING * largest(want);
            let far = distance(&run.read(&bias), want);
            assert!(far <= bound, "{name} step {step} {bias}: off by {far:e}, allowed {bound:e}");
        }
        assert_eq!(run.read("step"), [step as f64 + 1.0]);
    }
    let have = record.published(&mut run, |name| Some(name.into()));
    for (tensor, have) in &have {
        // The record's final parameters are f32; its f64 ones lie within the noise of them.
        let want = &record.tensors[&format!("final.{tensor}")];
        let (noise, rounding) = (record.noise("final", tensor), ROUNDING * largest(&want.data));
        let bound = match wide {
            true => noise + rounding,
            false => (1.0 + NOISE_FACTOR) * noise.max(rounding),
        };
        let far = distance(&have.data, &want.data);
        assert!(far <= bound, "{name} final {tensor}: off by {far:e}, allowed {bound:e}");
    }
}

#[test]
fn dense_in_f64() {
    agrees("dense", Width::Wide);
}

#[test]
fn moe_in_f64() {
    agrees("moe", Width::Wide);
}

#[test]
fn full_in_f64() {
    agrees("full", Width::Wide);
}

#[test]
fn single_in_f64() {
    agrees("single", Width::Wide);
}

#[test]
fn muon_in_f64() {
    agrees("muon", Width::Wide);
}

#[test]
fn muon_in_f32() {
    agrees("muon", Width::Native);
}

#[test]
fn dense_in_f32() {
    agrees("dense", Width::Native);
}

#[test]
fn moe_in_f32() {
    agrees("moe", Width::Native);
}

#[test]
fn full_in_f32() {
    agrees("full", Width::Native);
}

#[test]
fn single_in_f32() {
    agrees("single", Width::Native);
}
