//! Models as programs: a training step, its evaluation, logits of a window of tokens, and prefill and decode with
//! caches, of DeepSeek-V3 (arXiv 2412.19437), Llama (arXiv 2302.13971) and Qwen2 (arXiv 2407.10671).
//!
//! The main path is [`build_train`]: the forward pass from the parts, the losses, gradients by `autodiff`, the optimizer.
//! All programs of one configuration declare their state in one order, parameters first: the state of
//! [`build_evaluate`] and [`build_logits`] is a prefix of the training step's, at the same places, so that they can be
//! bound to a training run's state buffer as it is.
//!
//! Inputs (T tokens = `sequence` x `sequences`): `tokens`, `targets`, `positions`, `segment_start` i32\[T\];
//! `loss_scale` f32\[1\], one over the valid targets of the whole step; for each depth d of prediction `mtp_tokens.d`,
//! `mtp_targets.d` i32\[T\] and `mtp_scale.d` f32\[1\]; `balance_scale` f32\[1\], one over the sequences of the whole
//! step, where the balance loss is weighed; `rates` f32\[3\] of the update: learning rate, 1 - β1^t, 1 - β2^t.
//! A target of -1 has no loss; an `mtp_tokens` of -1 is embedded as zeros.
//!
//! With adapters ([`crate::adapter`]) the model's own parameters are state without a next one: no gradient, no moments.
//! The adapters' parameters stand behind them, before everything else, and are what is trained.
//!
//! Carried: `gradient.<parameter>`; `loss`, `loss_main`, and where the model has them `loss_mtp`, `loss_balance`, each
//! f32\[1\] and as it enters `loss`; `counts.<layer>` i32\[experts\] for each layer with experts.
//! Outputs of the update: `gradient_norm` (before clipping) and `clip_factor`, f32\[1\].

use crate::adapter::AdapterOptions;
use crate::architecture::Architecture;
use crate::cost::SEQUENCES;
use crate::error::{ModelError, key};
use crate::parameters::parameters;
use crate::parts::network::Network;
use crate::parts::{losses, optimizer};
use crate::training_options::TrainingOptions;
use toprope_program::autodiff::differentiate;
use toprope_program::{DType, Dim, Phase, Program, Range};

/// The training step. Its update writes every parameter, moment and bias, and `step`.
pub fn build_train<'a>(
    architecture: impl Into<Architecture<'a>>,
    options: &TrainingOptions,
    name: &str,
) -> Result<Program, ModelError> {
    let architecture = architecture.into();
    architecture.validate()?;
    options.validate(architecture)?;
    let mut network = network(architecture, name, Phase::Train, options.dtype, &Rows::sequences(options))?;
    network.declare_parameters(options.depth_scaled_init);
    let adapters = network.declare_adapters(options.adapter.as_ref());
    let trunk = network.trunk()?;
    let losses = losses::training(&mut network, options, &trunk)?;

    let trained: Vec<_> = match options.adapter {
        Some(_) => adapters,
        None => parameters(architecture).into_iter().filter(|parameter| parameter.is_trained()).collect(),
    };
    let values = network.values_of(&trained)?;
    let gradients = differentiate(&mut network.builder, losses.total, &values, options.recompute)?;
    network.compute_lengths()?;
    losses::carry(&mut network, &losses)?;
    if options.adapter.is_some() {
        // The selection biases are frozen with the rest.
        network.routed.clear();
    }
    let sums = optimizer::carry_gradients(&mut network, &trained, gradients)?;
    network.builder.set_range(Range::Update);
    optimizer::update(&mut network, options, &trained, &sums)?;

    let mut program = network.builder.finish();
    optimizer::accumulate_early(&mut program);
    Ok(program)
}

/// The loss of the main head without gradients: carried `loss_sum` f32\[1\] over valid targets and their number
/// `target_count` f32\[1\] (exact up to 2^24 in f32). Inputs `tokens`, `targets`, `positions`, `segment_start`.
pub fn build_evaluate<'a>(
    architecture: impl Into<Architecture<'a>>,
    options: &TrainingOptions,
    name: &str,
) -> Result<Program, ModelError> {
    let architecture = architecture.into();
    architecture.validate()?;
    options.validate(architecture)?;
    let mut network = network(architecture, name, Phase::Evaluate, options.dtype, &Rows::sequences(options))?;
    network.declare_parameters(options.depth_scaled_init);
    network.declare_adapters(options.adapter.as_ref());
    let trunk = network.trunk()?;
    losses::evaluation(&mut network, &trunk)?;
    network.compute_lengths()?;
    Ok(network.builder.finish())
}

/// Logits of every token of a window: output `logits` f32\[window, vocabulary\] for inputs `tokens`, `positions`,
/// `segment_start` i32\[window\], with `window` in `1..=sequence`.
pub fn build_logits<'a>(
    architecture: impl Into<Architecture<'a>>,
    dtype: DType,
    sequence: usize,
    name: &str,
) -> Result<Program, ModelError> {
    build_adapted_logits(architecture, dtype, sequence, None, name)
}

/// [`build_logits`] of a model with adapters.
pub fn build_adapted_logits<'a>(
    architecture: impl Into<Architecture<'a>>,
    dtype: DType,
    sequence: usize,
    adapter: Option<&AdapterOptions>,
    name: &str,
) -> Result<Program, ModelError> {
    let architecture = architecture.into();
    architecture.validate()?;
    let options = TrainingOptions {
        sequence,
        micro_batch_sequences: 1,
        dtype,
        mtp_weight: 1.0,
        adapter: adapter.cloned(),
        ..Default::default()
    };
    options.validate(architecture)?;
    let rows = Rows { symbol: "window", bound: sequence, each: 1, positions: sequence };
    let mut network = network(architecture, name, Phase::Prefill, dtype, &rows)?;
    network.declare_parameters(false);
    network.declare_adapters(adapter);
    let trunk = network.trunk()?;
    network.logits("logits", trunk.normed, network.rows)?;
    network.compute_lengths()?;
    Ok(network.builder.finish())
}

/// What inference computes of a window of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inference {
    /// Logits of every token, as [`build_logits`].
    Logits,
    /// The sum of losses and the number of targets, as [`build_evaluate`]; the symbol is `window`.
    Losses,
    /// Logits of one row of a window behind what caches hold, as [`build_prefill`] has those of every row: of a prompt in
    /// parts, or of one more token. Input `row` i32\[1\] says which; output `logits` f32\[1, vocabulary\].
    Cached {
        /// The longest window.
        window: usize,
    },
}

/// A program for a model that is not trained: its matrices are kept in the dtype of activations, so that no run rounds them
/// again. `tokens` is the longest window, and the rows of the caches.
pub fn build_inference<'a>(
    architecture: impl Into<Architecture<'a>>,
    what: Inference,
    dtype: DType,
    tokens: usize,
    name: &str,
) -> Result<Program, ModelError> {
    let architecture = architecture.into();
    architecture.validate()?;
    let options = TrainingOptions {
        sequence: tokens,
        micro_batch_sequences: 1,
        dtype,
        mtp_weight: 1.0,
        ..Default::default()
    };
    options.validate(architecture)?;
    let (phase, bound) = match what {
        Inference::Logits => (Phase::Prefill, tokens),
        Inference::Losses => (Phase::Evaluate, tokens),
        Inference::Cached { window } => (Phase::Prefill, window.clamp(1, tokens)),
    };
    let rows = Rows { symbol: "window", bound, each: 1, positions: tokens };
    let mut network = network(architecture, name, phase, dtype, &rows)?;
    network.kept = dtype;
    if matches!(what, Inference::Cached { .. }) {
        network.cache_rows = Some(tokens);
    }
    network.declare_parameters(false);
    let trunk = network.trunk()?;
    match what {
        Inference::Losses => losses::evaluation(&mut network, &trunk)?,
        Inference::Logits => network.logits("logits", trunk.normed, network.rows)?,
        Inference::Cached { .. } => {
            let row = network.input("row", DType::I32, 1.into());
            let picked = network.picked("picked", trunk.normed, row)?;
            network.logits("logits", picked, 1.into())?;
        }
    }
    Ok(network.builder.finish())
}

/// Logits of a prompt, whose keys and values go into caches: output `logits` f32\[window, vocabulary\] for inputs `tokens`,
/// `positions`, `segment_start` i32\[window\], with `window` in `1..=capacity`; `position` i32\[1\], the row of the caches
/// that the window begins at, and `cache_length` i32\[1\], the rows that count, the window's among them. Caches:
/// `cache.<part>.latent` \[capacity, kv_lora_rank\] and `cache.<part>.key` \[capacity, qk_rope_head_dim\] of each layer of
/// DeepSeek-V3, `cache.<part>.key` and `cache.<part>.value` \[capacity, key heads, head size\] of the others.
pub fn build_prefill<'a>(
    architecture: impl Into<Architecture<'a>>,
    dtype: DType,
    capacity: usize,
    name: &str,
) -> Result<Program, ModelError> {
    let rows = Rows { symbol: "window", bound: capacity, each: 1, positions: capacity };
    cached(architecture.into(), dtype, rows, Phase::Prefill, name)
}

/// Logits of one token behind what the caches hold: [`build_prefill`] with a window of one, and the same caches.
pub fn build_decode<'a>(
    architecture: impl Into<Architecture<'a>>,
    dtype: DType,
    capacity: usize,
    name: &str,
) -> Result<Program, ModelError> {
    let rows = Rows { symbol: "window", bound: 1, each: 1, positions: capacity };
    cached(architecture.into(), dtype, rows, Phase::Decode, name)
}

fn cached(
    architecture: Architecture<'_>,
    dtype: DType,
    rows: Rows,
    phase: Phase,
    name: &str,
) -> Result<Program, ModelError> {
    architecture.validate()?;
    let sequence = rows.positions;
    let options =
        TrainingOptions { sequence, micro_batch_sequences: 1, dtype, mtp_weight: 1.0, ..Default::default() };
    options.validate(architecture)?;
    let mut network = network(architecture, name, phase, dtype, &rows)?;
    network.cache_rows = Some(sequence);
    network.declare_parameters(false);
    let trunk = network.trunk()?;
    network.logits("logits", trunk.normed, network.rows)?;
    Ok(network.builder.finish())
}

/// How many tokens a program is run with: `each` x a symbol, at positions below `positions`.
struct Rows {
    symbol: &'static str,
    bound: usize,
    each: usize,
    positions: usize,
}

impl Rows {
    fn sequences(options: &TrainingOptions) -> Rows {
        let (sequence, bound) = (options.sequence, options.micro_batch_sequences);
        Rows { symbol: SEQUENCES, bound, each: sequence, positions: sequence }
    }
}

fn network<'a>(
    architecture: Architecture<'a>,
    name: &str,
    phase: Phase,
    dtype: DType,
    rows: &Rows,
) -> Result<Network<'a>, ModelError> {
    let printable = |c: char| !c.is_control() && c != '"' && c != '\\';
    if name.is_empty() || !name.chars().all(printable) {
        return Err(key(
            "name",
            format!("is {name:?}"),
            "give the program a name without quotes, backslashes and line ends",
        ));
    }
    let mut builder = toprope_program::Builder::new(name, phase);
    let symbol = builder.symbol(rows.symbol, rows.bound);
    Ok(Network::new(architecture, builder, dtype, Dim::symbolic(symbol, rows.each), rows.positions))
}
