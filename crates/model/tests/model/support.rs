//! Tiny configurations.

use toprope_model::{DeepseekV3Config, TrainingOptions};
use toprope_program::DType;

/// MLA without query compression, dense layers only.
pub fn dense() -> DeepseekV3Config {
    DeepseekV3Config::from_json(
        r#"{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
            "v_head_dim": 6, "max_position_embeddings": 64}"#,
    )
    .unwrap()
}

/// Query compression, YaRN, groups, a shared expert, one leading dense layer, one prediction depth.
pub fn experts() -> DeepseekV3Config {
    DeepseekV3Config::from_json(
        r#"{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "q_lora_rank": 10, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4, "v_head_dim": 6, "moe_intermediate_size": 6, "n_routed_experts": 8,
            "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2,
            "first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
            "max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0}}"#,
    )
    .unwrap()
}

/// Short sequences, every term on.
pub fn options(dtype: DType) -> TrainingOptions {
    TrainingOptions {
        sequence: 8,
        micro_batch_sequences: 2,
        dtype,
        balance_alpha: 0.01,
        ..Default::default()
    }
}

/// Uniform numbers below `bound`, the same in every run (Knuth's MMIX generator).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// The inputs of an `accumulate`, by name.
pub type Batch = std::collections::BTreeMap<String, Vec<f64>>;

/// Rows of random documents, scaled as a whole step.
pub fn batch(config: &DeepseekV3Config, options: &TrainingOptions, rows: usize, seed: u64) -> Batch {
    let (mut numbers, length) = (Numbers(seed), options.sequence);
    let mut batch = Batch::new();
    for row in 0..rows {
        let window: Vec<usize> = (0..=length).map(|_| numbers.below(config.vocab_size)).collect();
        let mut starts = vec![0];
        while starts[starts.len() - 1] <= length {
            starts.push(starts[starts.len() - 1] + 1 + numbers.below(length));
        }
        for i in 0..length {
            let document = starts.iter().filter(|start| **start <= i).count();
            let (start, end) = (starts[document - 1], starts[document].min(length + 1));
            let token = |offset: usize| if i + offset < end { window[i + offset] as f64 } else { -1.0 };
            let mut push = |name: String, x: f64| batch.entry(name).or_default().push(x);
            push("tokens".into(), window[i] as f64);
            push("targets".into(), token(1));
            push("positions".into(), (i - start) as f64);
            push("segment_start".into(), (row * length + start) as f64);
            for depth in 1..=config.num_nextn_predict_layers {
                push(format!("mtp_tokens.{depth}"), token(depth));
                push(format!("mtp_targets.{depth}"), token(depth + 1));
            }
        }
    }
    let count = |targets: &[f64]| targets.iter().filter(|target| **target >= 0.0).count() as f64;
    let scale = 1.0 / count(&batch["targets"]);
    batch.insert("loss_scale".into(), vec![scale]);
    for depth in 1..=config.num_nextn_predict_layers {
        let scale = 1.0 / count(&batch[&format!("mtp_targets.{depth}")]);
        batch.insert(format!("mtp_scale.{depth}"), vec![scale]);
    }
    if config.experts() > 0 {
        batch.insert("balance_scale".into(), vec![1.0 / rows as f64]);
    }
    batch
}
