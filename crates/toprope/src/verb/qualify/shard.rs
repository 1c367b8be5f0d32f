//! The shapes of one rank's share of a model: how heads, widths, experts and layers divide.

use crate::exit::{Exit, Failure, OrExit};
use toprope_model::{DeepseekV3Config, LlamaConfig, ModelConfig, TrainingOptions, deepseek_v3};
use toprope_program::Program;
use toprope_program::cost::instruction_cost;
use toprope_qualify::shapes::Need;

/// How a model is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Tensor-parallel ranks.
    pub tp: usize,
    /// Pipeline stages.
    pub pp: usize,
    /// Expert-parallel ranks.
    pub ep: usize,
}

/// A size in so many equal parts.
fn divided(file: &str, flag: &str, key: &str, size: usize, ranks: usize) -> Result<usize, Failure> {
    if ranks > 0 && size.is_multiple_of(ranks) {
        return Ok(size / ranks);
    }
    let fitting: Vec<String> = (1..=size.min(4096))
        .filter(|ranks| size.is_multiple_of(*ranks))
        .take(12)
        .map(|n| n.to_string())
        .collect();
    Err(Failure::new(
        Exit::Recipe,
        format!(
            "{file}: {flag} {ranks} does not divide `{key}` = {size}\nhint: choose {flag} among {}",
            fitting.join(", ")
        ),
    ))
}

impl Shard {
    /// One rank's share, with one layer of each kind: all layers of a kind have the same shapes.
    pub fn of(&self, file: &str, config: &ModelConfig) -> Result<ModelConfig, Failure> {
        let layers = layers(config);
        if !(1..=layers).contains(&self.pp) {
            return Err(Failure::new(
                Exit::Recipe,
                format!(
                    "{file}: --pp {} leaves stages without a layer: `num_hidden_layers` = {layers}\nhint: choose --pp from 1 to {layers}",
                    self.pp
                ),
            ));
        }
        let share = match one_of_each(config) {
            ModelConfig::DeepseekV3(one) => self.of_experts(file, one)?.into(),
            ModelConfig::Llama(one) => self.of_dense(file, one)?.into(),
        };
        let valid = toprope_model::Architecture::from(&share).validate();
        valid.map_err(|error| {
            Failure::new(Exit::Recipe, format!("{file}: one rank's share is no model: {error}"))
        })?;
        Ok(share)
    }

    fn of_experts(&self, file: &str, mut share: DeepseekV3Config) -> Result<DeepseekV3Config, Failure> {
        let config = share.clone();
        let tp = |key, size| divided(file, "--tp", key, size, self.tp);
        share.num_attention_heads = tp("num_attention_heads", config.num_attention_heads)?;
        if let Some(heads) = config.num_key_value_heads {
            share.num_key_value_heads = Some(tp("num_key_value_heads", heads)?);
        }
        share.intermediate_size = tp("intermediate_size", config.intermediate_size)?;
        share.vocab_size = tp("vocab_size", config.vocab_size)?;
        if config.experts() > 0 {
            let experts = divided(file, "--ep", "n_routed_experts", config.experts(), self.ep)?;
            share.n_routed_experts = Some(experts);
            // Whole experts lie on a rank where they are divided among ranks; otherwise their inner width is divided.
            if self.ep == 1 {
                share.moe_intermediate_size = tp("moe_intermediate_size", config.moe_intermediate_size)?;
            }
            // A rank's experts are no longer in groups, and a token chooses among them at most all.
            (share.n_group, share.topk_group) = (1, 1);
            share.num_experts_per_tok = config.num_experts_per_tok.min(experts);
        } else {
            self.without_experts(file)?;
        }
        Ok(share)
    }

    fn of_dense(&self, file: &str, mut share: LlamaConfig) -> Result<LlamaConfig, Failure> {
        self.without_experts(file)?;
        let tp = |key, size| divided(file, "--tp", key, size, self.tp);
        // A head keeps its columns.
        share.head_dim = Some(share.head_size());
        share.num_key_value_heads = Some(tp("num_key_value_heads", share.key_value_heads())?);
        share.num_attention_heads = tp("num_attention_heads", share.num_attention_heads)?;
        share.intermediate_size = tp("intermediate_size", share.intermediate_size)?;
        share.vocab_size = tp("vocab_size", share.vocab_size)?;
        Ok(share)
    }

    fn without_experts(&self, file: &str) -> Result<(), Failure> {
        if self.ep == 1 {
            return Ok(());
        }
        Err(Failure::new(
            Exit::Recipe,
            format!("{file}: --ep {} divides nothing: the model has no routed experts", self.ep),
        ))
    }
}

fn layers(config: &ModelConfig) -> usize {
    toprope_model::Architecture::from(config).layers()
}

/// The layers from which on they have experts, and all of them where there are none.
fn border(config: &ModelConfig) -> usize {
    match config {
        ModelConfig::DeepseekV3(config) if config.experts() > 0 => {
            config.first_k_dense_replace.min(config.num_hidden_layers)
        }
        _ => layers(config),
    }
}

/// The model with one layer of each kind.
fn one_of_each(config: &ModelConfig) -> ModelConfig {
    let (layers, border) = (layers(config), border(config));
    let kinds = usize::from(border > 0) + usize::from(border < layers);
    match config {
        ModelConfig::DeepseekV3(config) => {
            let mut one = config.clone();
            one.first_k_dense_replace = config.first_k_dense_replace.min(1);
            one.num_hidden_layers = kinds;
            one.num_nextn_predict_layers = config.num_nextn_predict_layers.min(1);
            one.into()
        }
        ModelConfig::Llama(config) => LlamaConfig { num_hidden_layers: kinds, ..config.clone() }.into(),
    }
}

/// What a pipeline stage holds of the model that has one layer of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stage {
    /// How many of its layers are like each of that model's.
    layers: [usize; 2],
    /// Whether it has the embedding.
    first: bool,
    /// Whether it has the head, the losses and what predicts further tokens.
    last: bool,
}

/// The stages: as many layers each, the first ones one more where they do not divide.
fn stages(config: &ModelConfig, pp: usize) -> Vec<Stage> {
    // Layers before the border are dense, where there are two kinds.
    let (layers, border) = (layers(config), border(config));
    let mut stages = Vec::new();
    let mut from = 0;
    for index in 0..pp {
        let to = from + layers / pp + usize::from(index < layers % pp);
        let before = border.clamp(from, to) - from;
        let kinds = [before, to - from - before];
        // The one layer of a model with one kind is its first.
        let layers = if border == 0 { [kinds[1], 0] } else { kinds };
        stages.push(Stage { layers, first: index == 0, last: index + 1 == pp });
        from = to;
    }
    stages
}

impl Stage {
    /// How often a part of the model lies on it.
    fn holds(&self, part: &str) -> usize {
        match part {
            part if part.starts_with("layers.0.") => self.layers[0],
            part if part.starts_with("layers.1.") => self.layers[1],
            "embedding" => usize::from(self.first),
            "optimizer" => 1,
            _ => usize::from(self.last),
        }
    }

    fn flops(&self, program: &Program) -> u64 {
        let instructions = program.accumulate.iter().chain(&program.update);
        let cost = |instruction| instruction_cost(program, instruction, &program.bounds()).flops;
        let all = instructions.map(|one| cost(one).saturating_mul(self.holds(&one.part) as u64));
        all.fold(0, u64::saturating_add)
    }
}

/// Training, prefill and decode of one rank, of the stage that has most to do. Routers see every expert of the model, so their
/// programs are the whole model's; experts see what all ranks of their group send them.
pub fn programs(
    file: &str,
    config: &ModelConfig,
    options: &TrainingOptions,
    shard: Shard,
) -> Result<Vec<(Program, Need)>, Failure> {
    let share = shard.of(file, config)?;
    let whole = one_of_each(config);
    let training = Need { training: true, inference: false };
    let inference = Need { training: true, inference: true };
    // Tokens of so many ranks.
    let built = |config: &ModelConfig, times: usize| -> Result<Vec<(Program, Need)>, Failure> {
        let (dtype, sequence) = (options.dtype, options.sequence);
        let longest = toprope_model::Architecture::from(config).max_position_embeddings();
        let capacity = sequence.saturating_mul(times).min(longest.max(sequence));
        let options = TrainingOptions {
            micro_batch_sequences: options.micro_batch_sequences.saturating_mul(times),
            ..options.clone()
        };
        Ok(vec![
            (deepseek_v3::build_train(config, &options, "shard").or_exit(Exit::Recipe)?, training),
            (deepseek_v3::build_prefill(config, dtype, capacity, "shard").or_exit(Exit::Recipe)?, inference),
            (deepseek_v3::build_decode(config, dtype, capacity, "shard").or_exit(Exit::Recipe)?, inference),
        ])
    };
    let mut programs = built(&share, 1)?;
    let stages = stages(config, shard.pp);
    let flops: Vec<u64> = stages.iter().map(|stage| stage.flops(&programs[0].0)).collect();
    let most = flops.iter().max();
    let heaviest = stages.iter().zip(&flops).find(|(_, flops)| Some(*flops) == most).map(|(stage, _)| *stage);
    if let (ModelConfig::DeepseekV3(config), ModelConfig::DeepseekV3(part)) = (config, &share)
        && config.experts() > 0
    {
        // In balance a rank's experts are sent as many rows as its own tokens choose experts, wherever those lie.
        let times = config.num_experts_per_tok.div_ceil(part.num_experts_per_tok.max(1));
        for (program, _) in &mut programs {
            keep(program, |part| !part.ends_with(".router") && (times == 1 || !part.ends_with(".experts")));
        }
        for (mut program, need) in built(&whole, 1)? {
            keep(&mut program, |part| part.ends_with(".router"));
            programs.push((program, need));
        }
        if times > 1 {
            for (mut program, need) in built(&share, times)? {
                keep(&mut program, |part| part.ends_with(".experts"));
                programs.push((program, need));
            }
        }
    }
    if let Some(stage) = heaviest {
        for (program, _) in &mut programs {
            keep(program, |part| stage.holds(part) > 0);
        }
    }
    Ok(programs)
}

/// Drops the instructions of other parts. What is left is a list of shapes, no program that runs.
fn keep(program: &mut Program, wanted: impl Fn(&str) -> bool) {
    program.accumulate.retain(|instruction| wanted(&instruction.part));
    program.update.retain(|instruction| wanted(&instruction.part));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DeepSeek-V3's published sizes.
    const V3: &str = r#"{"vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4,
        "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1, "max_position_embeddings": 163840}"#;

    fn v3() -> ModelConfig {
        DeepseekV3Config::from_json(V3).unwrap().into()
    }

    #[test]
    fn a_rank_of_a_dense_model_has_its_share_of_heads_and_widths() {
        let config: LlamaConfig = serde_json::from_str(
            r#"{"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
                "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                "max_position_embeddings": 32768, "tie_word_embeddings": true}"#,
        )
        .unwrap();
        let config = ModelConfig::from(config);
        let shard = Shard { tp: 2, pp: 3, ep: 1 };
        let ModelConfig::Llama(share) = shard.of("config.json", &config).unwrap() else { panic!() };
        assert_eq!((share.num_attention_heads, share.key_value_heads(), share.head_size()), (7, 1, 64));
        assert_eq!((share.intermediate_size, share.vocab_size, share.num_hidden_layers), (2432, 75968, 1));
        let stages = stages(&config, 3);
        assert!(stages.iter().all(|stage| stage.layers == [8, 0]), "{stages:?}");
        let options = TrainingOptions { sequence: 128, micro_batch_sequences: 1, ..Default::default() };
        let programs = programs("config.json", &config, &options, shard).unwrap();
        let listed: Vec<(&Program, Need)> = programs.iter().map(|(program, need)| (program, *need)).collect();
        let shapes = toprope_qualify::shapes::distinct(&listed);
        let told: Vec<String> =
            shapes.iter().map(|shape| format!("{} {}", shape.operator, shape.told)).collect();
        // Queries, keys and values of a rank come out of one product.
        let wanted = "matmul [128, 896] [896, 576]";
        assert!(told.iter().any(|shape| shape == wanted), "{wanted} is not in\n{}", told.join("\n"));
        for (shard, words) in [
            (Shard { tp: 4, pp: 1, ep: 1 }, "--tp 4 does not divide `num_key_value_heads` = 2"),
            (Shard { tp: 1, pp: 1, ep: 2 }, "--ep 2 divides nothing"),
            (Shard { tp: 1, pp: 25, ep: 1 }, "`num_hidden_layers` = 24"),
        ] {
            let message = shard.of("config.json", &config).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_rank_of_v3_has_its_share_of_heads_widths_and_experts() {
        let config = v3();
        let share = Shard { tp: 8, pp: 1, ep: 64 }.of("config.json", &config).unwrap();
        let ModelConfig::DeepseekV3(share) = share else { panic!() };
        assert_eq!((share.num_attention_heads, share.intermediate_size, share.vocab_size), (16, 2304, 16160));
        assert_eq!((share.experts(), share.moe_intermediate_size, share.num_experts_per_tok), (4, 2048, 4));
        assert_eq!((share.num_hidden_layers, share.hidden_size), (2, 7168));
        let options = TrainingOptions { sequence: 128, micro_batch_sequences: 1, ..Default::default() };
        let programs = programs("config.json", &config, &options, Shard { tp: 8, pp: 1, ep: 64 }).unwrap();
        let listed: Vec<(&Program, Need)> = programs.iter().map(|(program, need)| (program, *need)).collect();
        let shapes = toprope_qualify::shapes::distinct(&listed);
        let told: Vec<String> =
            shapes.iter().map(|shape| format!("{} {}", shape.operator, shape.told)).collect();
        for wanted in [
            "router [128, 256] [256]",
            "attention [128, 16, 192] [128, 16, 192] [128, 16, 128] [128]",
            "matmul [128, 7168] [7168, 4608]",
            "grouped_matmul [1024, 7168] [4, 7168, 4096] [5]",
        ] {
            assert!(told.iter().any(|shape| shape == wanted), "{wanted} is not in\n{}", told.join("\n"));
        }
    }

    #[test]
    fn stages_are_balanced_and_the_heaviest_is_looked_at() {
        let config = v3();
        let stages = stages(&config, 4);
        let layers: Vec<[usize; 2]> = stages.iter().map(|stage| stage.layers).collect();
        assert_eq!(layers, [[3, 13], [0, 15], [0, 15], [0, 15]]);
        let options = TrainingOptions { sequence: 128, micro_batch_sequences: 1, ..Default::default() };
        let parts = |pp: usize| -> std::collections::BTreeSet<String> {
            let programs = programs("config.json", &config, &options, Shard { tp: 8, pp, ep: 64 }).unwrap();
            let all = programs.iter().flat_map(|(program, _)| program.accumulate.iter());
            all.map(|instruction| instruction.part.clone()).collect()
        };
        let (whole, last) = (parts(1), parts(61));
        assert!(whole.contains("embedding") && whole.contains("head"), "{whole:?}");
        // A head and the prediction of a further token are more than any one layer.
        assert!(last.contains("head") && !last.contains("embedding"), "{last:?}");
        assert!(!last.iter().any(|part| part.starts_with("layers.0.")), "{last:?}");
    }

    #[test]
    fn a_share_that_does_not_divide_names_the_key_and_what_would() {
        let config = v3();
        for (shard, words) in [
            (Shard { tp: 3, pp: 1, ep: 1 }, "--tp 3 does not divide `num_attention_heads` = 128"),
            (
                Shard { tp: 1, pp: 62, ep: 1 },
                "--pp 62 leaves stages without a layer: `num_hidden_layers` = 61",
            ),
            (Shard { tp: 1, pp: 1, ep: 100 }, "--ep 100 does not divide `n_routed_experts` = 256"),
            (Shard { tp: 0, pp: 1, ep: 1 }, "--tp 0 does not divide"),
        ] {
            let message = shard.of("config.json", &config).unwrap_err().to_string();
            assert!(message.contains(words) && message.contains("hint: choose"), "{message}");
        }
    }
}
