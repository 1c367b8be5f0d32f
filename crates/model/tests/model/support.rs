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
    TrainingOptions { sequence: 8, micro_batch_sequences: 2, dtype, balance_alpha: 0.01, ..Default::default() }
}
