//! Every parameter of a model: the one table that builders, totals and checkpoints work from.
//!
//! Names are Hugging Face's. Matrices are `[outputs, inputs]`. What one product reads is one tensor: gate and up are
//! stacked (`gate_up_proj`, rows of gate first), so are queries, keys and values of grouped-query attention (`qkv_proj`, in
//! this order), and so are the experts of a layer (`experts.gate_up_proj.weight`,
//! `experts.down_proj.weight`). [`crate::checkpoint`] maps them to the published ones.

use crate::architecture::Architecture;
use crate::config::DeepseekV3Config;
use crate::llama::LlamaConfig;

/// What a parameter is to the optimizer and to its initialisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A matrix, or a stack of them: normal, with weight decay.
    Matrix,
    /// A matrix that writes to the residual stream: as `Matrix`, started smaller where asked.
    ResidualMatrix,
    /// A norm's weight: ones, without weight decay.
    Norm,
    /// A linear map's bias: zeros, without weight decay.
    Bias,
    /// The experts' selection bias: zeros, moved by `bias_update` and by no gradient.
    SelectionBias,
}

impl Kind {
    /// Whether it is a norm's weight or a bias, which have no weight decay.
    pub(crate) fn is_vector(self) -> bool {
        matches!(self, Kind::Norm | Kind::Bias)
    }
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: Kind,
    /// The part of the model that it belongs to, such as `layers.3.attention`.
    pub part: String,
    /// The configuration key that its size follows, for errors.
    pub key: &'static str,
}

impl Parameter {
    /// The number of elements. The configuration has been validated, so that it fits.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1u64, |product, size| product.saturating_mul(*size as u64))
    }

    /// Whether it is trained by its gradient.
    pub fn is_trained(&self) -> bool {
        self.kind != Kind::SelectionBias
    }
}

/// The part of a layer: `layers.N` of the main model, `mtp.D` for a prediction module.
pub(crate) fn layer_part(architecture: Architecture<'_>, layer: usize) -> String {
    match layer.checked_sub(architecture.layers()) {
        None => format!("layers.{layer}"),
        Some(depth) => format!("mtp.{}", depth + 1),
    }
}

/// All parameters, in the order in which they are declared: embedding, layers, final norm, head, prediction modules.
pub fn parameters<'a>(architecture: impl Into<Architecture<'a>>) -> Vec<Parameter> {
    let architecture = architecture.into();
    let mut table = Table { architecture, list: Vec::new(), part: "embedding".into() };
    let (width, vocabulary) = (architecture.hidden_size(), architecture.vocab_size());
    let main = architecture.layers();
    table.add("model.embed_tokens.weight", &[vocabulary, width], Kind::Matrix, "vocab_size");
    for layer in 0..main {
        table.layer(layer);
    }
    table.part = "head".into();
    table.add("model.norm.weight", &[width], Kind::Norm, "hidden_size");
    if !architecture.tied() {
        table.add("lm_head.weight", &[vocabulary, width], Kind::Matrix, "vocab_size");
    }
    for layer in main..main.saturating_add(architecture.prediction_layers()) {
        let prefix = format!("model.layers.{layer}");
        let part = layer_part(architecture, layer);
        table.part = format!("{part}.projection");
        table.add(&format!("{prefix}.enorm.weight"), &[width], Kind::Norm, "hidden_size");
        table.add(&format!("{prefix}.hnorm.weight"), &[width], Kind::Norm, "hidden_size");
        let projection = [width, width.saturating_mul(2)];
        table.add(&format!("{prefix}.eh_proj.weight"), &projection, Kind::Matrix, "hidden_size");
        table.layer(layer);
        table.part = format!("{part}.head");
        table.add(&format!("{prefix}.shared_head.norm.weight"), &[width], Kind::Norm, "hidden_size");
    }
    table.list
}

struct Table<'a> {
    architecture: Architecture<'a>,
    list: Vec<Parameter>,
    part: String,
}

impl Table<'_> {
    fn add(&mut self, name: &str, shape: &[usize], kind: Kind, key: &'static str) {
        let (name, shape, part) = (name.into(), shape.to_vec(), self.part.clone());
        self.list.push(Parameter { name, shape, kind, part, key });
    }

    fn layer(&mut self, layer: usize) {
        let (width, prefix) = (self.architecture.hidden_size(), format!("model.layers.{layer}"));
        let part = layer_part(self.architecture, layer);
        self.part = format!("{part}.attention");
        self.add(&format!("{prefix}.input_layernorm.weight"), &[width], Kind::Norm, "hidden_size");
        let attention = format!("{prefix}.self_attn");
        match self.architecture {
            Architecture::DeepseekV3(config) => self.latent_attention(config, &attention),
            Architecture::Llama(config) => self.grouped_attention(config, &attention),
        }
        let norm = format!("{prefix}.post_attention_layernorm.weight");
        let mlp = format!("{prefix}.mlp");
        match self.architecture {
            Architecture::DeepseekV3(config) if config.has_experts(layer) => {
                self.experts(config, &part, &norm, &mlp);
            }
            Architecture::DeepseekV3(DeepseekV3Config { intermediate_size, .. })
            | Architecture::Llama(LlamaConfig { intermediate_size, .. }) => {
                self.part = format!("{part}.mlp");
                self.add(&norm, &[width], Kind::Norm, "hidden_size");
                self.gated(&mlp, *intermediate_size, "intermediate_size");
            }
        }
    }

    fn experts(&mut self, config: &DeepseekV3Config, part: &str, norm: &str, mlp: &str) {
        let (width, experts, inner) = (config.hidden_size, config.experts(), config.moe_intermediate_size);
        self.part = format!("{part}.router");
        self.add(norm, &[width], Kind::Norm, "hidden_size");
        self.add(&format!("{mlp}.gate.weight"), &[experts, width], Kind::Matrix, "n_routed_experts");
        let bias = format!("{mlp}.gate.e_score_correction_bias");
        self.add(&bias, &[experts], Kind::SelectionBias, "n_routed_experts");
        self.part = format!("{part}.experts");
        let up = [experts, inner.saturating_mul(2), width];
        self.add(&format!("{mlp}.experts.gate_up_proj.weight"), &up, Kind::Matrix, "n_routed_experts");
        let down = [experts, width, inner];
        let name = format!("{mlp}.experts.down_proj.weight");
        self.add(&name, &down, Kind::ResidualMatrix, "n_routed_experts");
        if config.shared_width() > 0 {
            self.part = format!("{part}.shared_experts");
            self.gated(&format!("{mlp}.shared_experts"), config.shared_width(), "n_shared_experts");
        }
    }

    fn gated(&mut self, prefix: &str, inner: usize, key: &'static str) {
        let width = self.architecture.hidden_size();
        let up = [inner.saturating_mul(2), width];
        self.add(&format!("{prefix}.gate_up_proj.weight"), &up, Kind::Matrix, key);
        self.add(&format!("{prefix}.down_proj.weight"), &[width, inner], Kind::ResidualMatrix, key);
        if matches!(self.architecture, Architecture::Llama(config) if config.mlp_bias) {
            self.add(&format!("{prefix}.gate_up_proj.bias"), &up[..1], Kind::Bias, key);
            self.add(&format!("{prefix}.down_proj.bias"), &[width], Kind::Bias, key);
        }
    }

    fn grouped_attention(&mut self, config: &LlamaConfig, prefix: &str) {
        let (width, key) = (config.hidden_size, "num_attention_heads");
        let [queries, keys, values] = config.projection_rows();
        let rows = queries.saturating_add(keys).saturating_add(values);
        self.add(&format!("{prefix}.qkv_proj.weight"), &[rows, width], Kind::Matrix, key);
        if config.projection_bias() {
            self.add(&format!("{prefix}.qkv_proj.bias"), &[rows], Kind::Bias, key);
        }
        self.add(&format!("{prefix}.o_proj.weight"), &[width, queries], Kind::ResidualMatrix, key);
        if config.attention_bias {
            self.add(&format!("{prefix}.o_proj.bias"), &[width], Kind::Bias, key);
        }
    }

    fn latent_attention(&mut self, config: &DeepseekV3Config, prefix: &str) {
        let (width, heads, rank) = (config.hidden_size, config.num_attention_heads, config.kv_lora_rank);
        let query = heads.saturating_mul(config.query_head_size());
        match config.q_lora_rank {
            None => self.add(
                &format!("{prefix}.q_proj.weight"),
                &[query, width],
                Kind::Matrix,
                "num_attention_heads",
            ),
            Some(rank) => {
                self.add(&format!("{prefix}.q_a_proj.weight"), &[rank, width], Kind::Matrix, "q_lora_rank");
                self.add(&format!("{prefix}.q_a_layernorm.weight"), &[rank], Kind::Norm, "q_lora_rank");
                self.add(&format!("{prefix}.q_b_proj.weight"), &[query, rank], Kind::Matrix, "q_lora_rank");
            }
        }
        let latent = [rank.saturating_add(config.qk_rope_head_dim), width];
        self.add(&format!("{prefix}.kv_a_proj_with_mqa.weight"), &latent, Kind::Matrix, "kv_lora_rank");
        self.add(&format!("{prefix}.kv_a_layernorm.weight"), &[rank], Kind::Norm, "kv_lora_rank");
        let columns = config.qk_nope_head_dim.saturating_add(config.v_head_dim);
        let expanded = [heads.saturating_mul(columns), rank];
        self.add(&format!("{prefix}.kv_b_proj.weight"), &expanded, Kind::Matrix, "num_attention_heads");
        let output = [width, heads.saturating_mul(config.v_head_dim)];
        self.add(&format!("{prefix}.o_proj.weight"), &output, Kind::ResidualMatrix, "num_attention_heads");
    }
}
