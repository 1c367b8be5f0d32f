//! `config.json` to a configuration. Every key is either read, known not to change the computation, or refused by name.

use crate::architecture::ModelConfig;
use crate::config::DeepseekV3Config;
use crate::error::{ModelError, key, unknown};
use crate::llama::LlamaConfig;
use serde_json::{Map, Value};

/// What a `config.json` says.
#[derive(Clone, Debug)]
pub struct Published {
    /// The model.
    pub config: ModelConfig,
    /// Rows and columns that share a scale in weights of eight bits, where there are such.
    pub fp8_block: Option<[usize; 2]>,
}

/// Architectures that are supported, with their `model_type`.
const ARCHITECTURES: [(&str, &str); 3] =
    [("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2"), ("DeepseekV3ForCausalLM", "deepseek_v3")];

/// Keys that do not change what is computed.
const IGNORED: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "aux_loss_alpha",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "ep_size",
    "id2label",
    "is_llama_config",
    "label2id",
    "max_window_layers",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "seq_aux",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Keys that must have this value where they are given: any other would change the computation.
const FIXED: &[(&str, &[&str])] = &[
    ("add_cross_attention", &["false"]),
    ("is_decoder", &["false", "true"]),
    ("is_encoder_decoder", &["false"]),
    ("logit_softcapping", &["null"]),
    ("partial_rotary_factor", &["1.0", "1", "null"]),
    ("rope_interleaved", &["false"]),
    ("router_jitter_noise", &["0.0", "0", "null"]),
    ("use_sliding_window", &["false"]),
];

const LLAMA_KEYS: &[&str] = &[
    "attention_bias",
    "attention_dropout",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
];

const DEEPSEEK_KEYS: &[&str] = &[
    "attention_bias",
    "attention_dropout",
    "first_k_dense_replace",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "kv_lora_rank",
    "max_position_embeddings",
    "model_type",
    "moe_intermediate_size",
    "moe_layer_freq",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_nextn_predict_layers",
    "q_lora_rank",
    "qk_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rms_norm_eps",
    "rope_interleave",
    "routed_scaling_factor",
    "scoring_func",
    "tie_word_embeddings",
    "topk_group",
    "topk_method",
    "v_head_dim",
    "vocab_size",
];

/// Keys whose default in transformers is the size of one published model, and not of the model at hand.
const DEEPSEEK_NEEDED: &[&str] = &[
    "first_k_dense_replace",
    "moe_intermediate_size",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "q_lora_rank",
    "routed_scaling_factor",
    "topk_group",
];

/// Reads a `config.json`.
///
/// # Errors
/// It is none; a key is missing, unknown, or has a value that is not supported.
pub fn parse(bytes: &[u8]) -> Result<Published, ModelError> {
    let syntax = |error: serde_json::Error| ModelError::Syntax { reason: error.to_string() };
    let mut keys: Map<String, Value> = serde_json::from_slice(bytes).map_err(syntax)?;
    let kind = kind(&mut keys)?;
    for (old, new) in
        [("num_mtp_layers", "num_nextn_predict_layers"), ("num_local_experts", "n_routed_experts")]
    {
        if let Some(value) = keys.remove(old)
            && *keys.entry(new).or_insert_with(|| value.clone()) != value
        {
            return Err(unknown(old, format!("contradicts {new}"), "remove one of them"));
        }
    }
    let deepseek = kind == "deepseek_v3";
    let fp8_block = fp8_block(&mut keys, deepseek)?;
    fixed(&mut keys, kind)?;
    for name in IGNORED {
        keys.remove(*name);
    }
    rope(&mut keys)?;
    keys.insert("model_type".into(), kind.into());
    let (known, needed) = match kind {
        "deepseek_v3" => (DEEPSEEK_KEYS, DEEPSEEK_NEEDED),
        "qwen2" => (LLAMA_KEYS, &["num_key_value_heads"][..]),
        _ => (LLAMA_KEYS, &[][..]),
    };
    for name in keys.keys() {
        if !known.contains(&name.as_str()) && !["rope_theta", "rope_scaling"].contains(&name.as_str()) {
            let mend = "it may change the computation; remove it where it does not";
            return Err(unknown(name, "is not supported".into(), mend));
        }
    }
    for name in needed {
        if !keys.contains_key(*name) {
            let mend = "transformers would take another model's value; write the one of this model";
            return Err(unknown(name, "is missing".into(), mend));
        }
    }
    // transformers writes null for what is not there.
    keys.retain(|_, value| !value.is_null());
    let value = Value::Object(keys);
    let config = match deepseek {
        true => ModelConfig::DeepseekV3(serde_json::from_value::<DeepseekV3Config>(value).map_err(syntax)?),
        false => ModelConfig::Llama(serde_json::from_value::<LlamaConfig>(value).map_err(syntax)?),
    };
    crate::Architecture::from(&config).validate()?;
    Ok(Published { config, fp8_block })
}

/// The `model_type`, by itself or through `architectures`; both must agree.
fn kind(keys: &mut Map<String, Value>) -> Result<&'static str, ModelError> {
    let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
    let supported = format!("supported are {}", names.join(", "));
    let named = match keys.remove("architectures") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let name = value.get(0).and_then(Value::as_str).unwrap_or_default().to_string();
            let found = ARCHITECTURES.iter().find(|(known, _)| *known == name);
            let found =
                found.ok_or_else(|| key("architectures", format!("names {value}"), supported.clone()))?;
            Some(found.1)
        }
    };
    let typed = match keys.remove("model_type") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let found = ARCHITECTURES.iter().find(|(_, kind)| value.as_str() == Some(*kind));
            let found = found.ok_or_else(|| key("model_type", format!("is {value}"), supported.clone()))?;
            Some(found.1)
        }
    };
    match (named, typed) {
        (Some(named), Some(typed)) if named != typed => {
            Err(key("model_type", format!("is \"{typed}\""), format!("architectures asks for \"{named}\"")))
        }
        (Some(kind), _) | (None, Some(kind)) => Ok(kind),
        (None, None) => Err(key("architectures", "is missing", supported)),
    }
}

/// Blocks of DeepSeek's eight-bit weights; any other way to quantise is refused.
fn fp8_block(keys: &mut Map<String, Value>, deepseek: bool) -> Result<Option<[usize; 2]>, ModelError> {
    let Some(Value::Object(mut said)) = keys.remove("quantization_config") else { return Ok(None) };
    let method = said.remove("quant_method").unwrap_or(Value::Null);
    let mend = "only DeepSeek's \"fp8\" with weight_block_size is supported; take unquantised weights";
    if method.as_str() != Some("fp8") || !deepseek {
        return Err(key("quantization_config.quant_method", format!("is {method}"), mend));
    }
    match said.remove("fmt") {
        Some(Value::String(format)) if format != "e4m3" => {
            return Err(key(
                "quantization_config.fmt",
                format!("is \"{format}\""),
                "only \"e4m3\" is supported",
            ));
        }
        _ => {}
    }
    let block = said.remove("weight_block_size").unwrap_or(Value::Null);
    let sizes: Option<Vec<usize>> = serde_json::from_value(block.clone()).ok();
    match sizes.as_deref() {
        Some([rows, columns]) if *rows > 0 && *columns > 0 => Ok(Some([*rows, *columns])),
        _ => Err(key("quantization_config.weight_block_size", format!("is {block}"), mend)),
    }
}

/// Keys that have one supported value.
fn fixed(keys: &mut Map<String, Value>, kind: &str) -> Result<(), ModelError> {
    for (name, values) in FIXED {
        if let Some(value) = keys.remove(*name)
            && !values.contains(&value.to_string().as_str())
        {
            return Err(unknown(name, format!("is {value}"), &format!("only {} is supported", values[0])));
        }
    }
    // Qwen2 writes the window that it would have; it is off, or it was refused above.
    if let Some(window) = keys.remove("sliding_window")
        && kind != "qwen2"
        && !window.is_null()
    {
        return Err(unknown(
            "sliding_window",
            format!("is {window}"),
            "only attention to all tokens is supported",
        ));
    }
    if let Some(types) = keys.remove("layer_types") {
        let full = |value: &Value| value.as_str() == Some("full_attention");
        if !types.is_null() && !types.as_array().is_some_and(|types| types.iter().all(full)) {
            return Err(unknown(
                "layer_types",
                format!("is {types}"),
                "only \"full_attention\" is supported",
            ));
        }
    }
    Ok(())
}

/// Both spellings of RoPE to the older one: `rope_theta` beside `rope_scaling`.
fn rope(keys: &mut Map<String, Value>) -> Result<(), ModelError> {
    let both =
        ["rope_scaling", "rope_parameters"].map(|name| keys.remove(name).filter(|value| !value.is_null()));
    let said = match both {
        [Some(old), Some(new)] if old != new => {
            return Err(key("rope_scaling", "contradicts rope_parameters", "remove one of them"));
        }
        [old, new] => old.or(new).unwrap_or_else(|| Value::Object(Map::new())),
    };
    let Value::Object(mut said) = said else {
        return Err(key("rope_scaling", format!("is {said}"), "it must be a table of keys"));
    };
    said.retain(|_, value| !value.is_null());
    let theta = said.remove("rope_theta");
    if let Some(theta) = theta {
        let outside = keys.entry("rope_theta").or_insert_with(|| theta.clone());
        if outside.as_f64() != theta.as_f64() {
            let reason = format!("is {outside}, and {theta} in rope_parameters");
            return Err(key("rope_theta", reason, "remove one of them"));
        }
    }
    let kinds = ["rope_type", "type"].map(|name| said.remove(name));
    let kind = match kinds {
        [Some(new), Some(old)] if new != old => {
            return Err(key(
                "rope_scaling.rope_type",
                format!("is {new}, and type is {old}"),
                "remove one of them",
            ));
        }
        [new, old] => new.or(old).unwrap_or_else(|| "default".into()),
    };
    match said.remove("partial_rotary_factor") {
        Some(value) if value.as_f64() != Some(1.0) => {
            let mend = "only rotating all columns is supported";
            return Err(key("rope_scaling.partial_rotary_factor", format!("is {value}"), mend));
        }
        _ => {}
    }
    if kind.as_str() == Some("default") {
        if let Some(name) = said.keys().next() {
            let reason = "is given, and the kind is \"default\"".into();
            return Err(unknown(&format!("rope_scaling.{name}"), reason, "name the kind, or remove the key"));
        }
        return Ok(());
    }
    let longest = keys.get("max_position_embeddings").cloned();
    if ["llama3", "yarn"].contains(&kind.as_str().unwrap_or_default())
        && let Some(longest) = longest
    {
        said.entry("original_max_position_embeddings").or_insert(longest);
    }
    said.insert("type".into(), kind);
    keys.insert("rope_scaling".into(), Value::Object(said));
    Ok(())
}
