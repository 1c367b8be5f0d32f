//! Configurations and options that do not fit: each error names its key and the mend.

use crate::support::{dense, experts, options};
use toprope_model::deepseek_v3::{build_logits, build_train};
use toprope_model::{DeepseekV3Config, ModelError, TrainingOptions};
use toprope_program::DType;

fn changed(key: &str, value: serde_json::Value) -> Result<DeepseekV3Config, ModelError> {
    let mut json = serde_json::to_value(experts()).unwrap();
    match key.split_once('.') {
        Some((outer, inner)) => json[outer][inner] = value,
        None => json[key] = value,
    }
    DeepseekV3Config::from_json(&json.to_string())
}

#[test]
fn keys_that_do_not_fit_are_named() {
    for (key, value) in [
        ("vocab_size", 0.into()),
        ("vocab_size", (1u64 << 40).into()),
        ("hidden_size", 0.into()),
        ("num_hidden_layers", 0.into()),
        ("num_hidden_layers", 1_000_000.into()),
        ("num_nextn_predict_layers", 1_000_000.into()),
        ("num_attention_heads", 0.into()),
        ("num_key_value_heads", 1.into()),
        ("head_dim", 3.into()),
        ("qk_head_dim", 3.into()),
        ("q_lora_rank", 0.into()),
        ("qk_rope_head_dim", 3.into()),
        ("intermediate_size", 0.into()),
        ("moe_intermediate_size", 0.into()),
        ("num_experts_per_tok", 5.into()),
        ("num_experts_per_tok", 0.into()),
        ("n_group", 3.into()),
        ("n_group", 0.into()),
        ("topk_group", 5.into()),
        ("topk_group", 0.into()),
        ("first_k_dense_replace", 3.into()),
        ("moe_layer_freq", 2.into()),
        ("scoring_func", "softmax".into()),
        ("topk_method", "greedy".into()),
        ("hidden_act", "gelu".into()),
        ("model_type", "llama".into()),
        ("tie_word_embeddings", true.into()),
        ("attention_bias", true.into()),
        ("attention_dropout", 0.1.into()),
        ("rms_norm_eps", 0.into()),
        ("rope_theta", 1.into()),
        ("routed_scaling_factor", (-1).into()),
        ("initializer_range", 0.into()),
        ("rope_scaling.type", "dynamic".into()),
        ("rope_scaling.factor", 0.5.into()),
        ("rope_scaling.beta_fast", 0.5.into()),
        ("rope_scaling.mscale", (-1).into()),
        ("rope_scaling.original_max_position_embeddings", 0.into()),
    ] {
        let asked = format!("{key} = {value}");
        let error = changed(key, value).expect_err(&asked);
        assert!(matches!(&error, ModelError::Key { key: named, .. } if *named == key), "{asked}: {error}");
    }
}

#[test]
fn overflowing_products_of_sizes_are_refused() {
    for key in
        ["hidden_size", "kv_lora_rank", "moe_intermediate_size", "n_shared_experts", "qk_nope_head_dim"]
    {
        for value in [1u64 << 24, u64::from(u32::MAX), u64::MAX] {
            // Any answer but a panic; what is let through can be counted.
            if let Ok(config) = changed(key, value.into()) {
                toprope_model::totals::totals(&config).unwrap();
            }
        }
    }
    let mut json = serde_json::to_value(experts()).unwrap();
    (json["vocab_size"], json["hidden_size"]) = ((1 << 24).into(), (1 << 24).into());
    let error = DeepseekV3Config::from_json(&json.to_string()).unwrap_err();
    assert!(error.to_string().contains("`vocab_size` makes `model.embed_tokens.weight` hold"), "{error}");
    let error = changed("n_shared_experts", u64::MAX.into()).unwrap_err();
    assert!(error.to_string().contains("`n_shared_experts`"), "{error}");
}

#[test]
fn unknown_keys_and_wrong_types_are_named_with_their_place() {
    let error = changed("sliding_window", 4096.into()).unwrap_err().to_string();
    assert!(error.contains("unknown field `sliding_window`") && error.contains("line 1"), "{error}");
    let error = changed("rope_scaling.short_factor", 1.into()).unwrap_err().to_string();
    assert!(error.contains("unknown field `short_factor`"), "{error}");
    let error = changed("hidden_size", "wide".into()).unwrap_err().to_string();
    assert!(error.contains("string \"wide\""), "{error}");
    let error = DeepseekV3Config::from_json("{}").unwrap_err().to_string();
    assert!(error.contains("missing field `vocab_size`"), "{error}");
    // Harmless ones pass.
    changed("quantization_config", serde_json::json!({"fmt": "e4m3"})).unwrap();
    changed("transformers_version", "4.33.1".into()).unwrap();
}

#[test]
fn a_configuration_is_written_as_it_is_read() {
    let config = experts();
    let again = DeepseekV3Config::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
}

#[test]
fn options_that_do_not_fit_are_named() {
    type Change = fn(&mut TrainingOptions);
    let change: [(&str, Change); 11] = [
        ("sequence", |o| o.sequence = 0),
        ("sequence", |o| o.sequence = 65),
        ("micro_batch_sequences", |o| o.micro_batch_sequences = 0),
        ("micro_batch_sequences", |o| o.micro_batch_sequences = usize::MAX),
        ("mtp_weight", |o| o.mtp_weight = 0.0),
        ("balance_alpha", |o| o.balance_alpha = -1.0),
        ("bias_update_rate", |o| o.bias_update_rate = f64::NAN),
        ("clip", |o| o.clip = f64::INFINITY),
        ("adamw.beta1", |o| o.adamw.beta1 = 1.0),
        ("adamw.epsilon", |o| o.adamw.epsilon = 0.0),
        ("dtype", |o| o.dtype = DType::I32),
    ];
    for (key, change) in change {
        let mut options = options(DType::F32);
        change(&mut options);
        let error = build_train(&experts(), &options, "tiny").unwrap_err();
        assert!(matches!(&error, ModelError::Key { key: named, .. } if *named == key), "{key}: {error}");
    }
    let error = build_train(&dense(), &options(DType::F32), "a \"name\"").unwrap_err();
    assert!(error.to_string().contains("`name`"), "{error}");
    assert!(build_logits(&dense(), DType::F32, 65, "tiny").is_err());
}

#[test]
fn published_tensors_that_do_not_fit_are_named() {
    use std::collections::BTreeMap;
    use toprope_model::checkpoint::{fuse, pieces, split};
    use toprope_program::Tensor;
    let config = experts();
    let all: BTreeMap<String, Tensor> =
        pieces(&config).into_iter().map(|p| (p.name, Tensor::zeros(DType::F32, &p.shape))).collect();
    assert_eq!(split(&config, &fuse(&config, &all).unwrap()).unwrap(), all);
    let name = "model.layers.1.mlp.experts.3.up_proj.weight";
    let mut missing = all.clone();
    missing.remove(name);
    let error = fuse(&config, &missing).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("is missing"), "{error}");
    let mut other = all.clone();
    other.insert(name.into(), Tensor::zeros(DType::F32, &[6, 15]));
    let error = fuse(&config, &other).unwrap_err().to_string();
    assert!(error.contains("[6, 15]") && error.contains("[6, 16]"), "{error}");
    let mut mixed = all;
    mixed.insert(name.into(), Tensor::zeros(DType::Bf16, &[6, 16]));
    assert!(fuse(&config, &mixed).unwrap_err().to_string().contains("bf16"));
}
