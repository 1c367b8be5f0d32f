//! What can be asked for.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use toprope_qualify::datasheet::Datasheet;

/// Trains reasoning models on accelerators that are not trusted yet, and checks these operator by operator.
#[derive(Debug, Parser)]
#[command(name = "toprope", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Command {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// The last line of standard output is one JSON object.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Train a model from a recipe; with no recipe, a small one on the Rust sources that cargo has fetched.
    Train(Train),
    /// Train for a minute on an emulated NPU that hangs, computes wrong and is lost, and see that nothing is lost.
    Rehearse(Rehearse),
    /// Find the operator that a device computes wrong: one step in lockstep on two devices, operator by operator.
    Diagnose(Diagnose),
    /// Write the evidence on a wrong operator as one archive that runs without Toprope, to send to whoever can mend it.
    Report(Report),
    /// Show what a recipe, a model configuration or a published model is: operators, FLOPs, parameters, and the memory that
    /// training takes.
    Inspect(Inspect),
    /// What a published model makes of a text or of tokens: loss, perplexity, bits per byte, logits.
    Eval(Eval),
    /// Write a run's model, or a published one, as a folder that transformers opens.
    Export(Export),
    /// Go on from a text in a published model's words.
    Generate(Generate),
    /// Talk with a published model.
    Chat(Chat),
    /// Show how a run stands, live or ended: steps, devices, faults, and the proof that each batch was counted once.
    Status(Status),
    /// Find out whether a device is fit to train or to infer on, and say why. Without arguments: what is there.
    Qualify(Qualify),
    /// Show the devices of this machine.
    Devices {
        /// The interpreter that has torch; default python3, or what TOPROPE_PYTHON names.
        #[arg(long, value_name = "PYTHON")]
        python: Option<PathBuf>,
    },
    /// A device behind two pipes, as `train` starts it (docs/worker-protocol.md).
    #[command(hide = true)]
    Worker {
        /// The interpreter that has torch.
        #[arg(long)]
        python: Option<PathBuf>,
    },
    /// Print pages that are made from the program itself (for `docs/`).
    #[command(hide = true)]
    Docs {
        /// Which page: operators, exit-codes, journal.
        page: String,
    },
}

/// Arguments of `train`.
#[derive(Args, Clone, Debug)]
pub struct Train {
    /// A recipe file, or the name of one in the binary: default, tiny-dense, tiny-moe, small, bench-dense, bench-moe.
    /// Without one it is `default`. With --resume it may be left out.
    pub recipe: Option<String>,
    /// The run's folder; default runs/NAME, or runs/NAME-2 … where that exists.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Go on from the newest intact checkpoint in the run's folder.
    #[arg(long)]
    pub resume: bool,
    /// Begin from a published model, a Hugging Face folder or a GGUF file: model and tokenizer are its own, the rest is the
    /// recipe's. With --resume: where the model of the run is now, should a run without a checkpoint need it again.
    #[arg(long, value_name = "MODEL")]
    pub from: Option<PathBuf>,
    /// Steps of the whole run, instead of the recipe's.
    #[arg(long)]
    pub steps: Option<u64>,
    /// The device that trains: cpu, cpu:avx2, reference, or what your PyTorch runs on, such as pytorch:cuda:0 or
    /// pytorch:cpu+attention=sdpa-math+mode=compile (`toprope devices` lists the variants). Default the recipe's, or cpu.
    #[arg(long)]
    pub device: Option<String>,
    /// Devices to go on with where the first one fails for good, in order, as in cpu:avx2,reference.
    #[arg(long, value_name = "DEVICE,DEVICE", value_delimiter = ',', conflicts_with_all = ["unguarded", "profile"])]
    pub fallback: Vec<String>,
    /// Inject faults, as in "step 5: die in matmul; step 9: flip bit 30 in attention" or @FILE (docs/faults.md).
    #[arg(long, value_name = "SPEC", conflicts_with = "unguarded")]
    pub faults: Option<String>,
    /// Run the device in this process, with nothing to guard it: a fault ends the run.
    #[arg(long)]
    pub unguarded: bool,
    /// Threads of the device; default all cores.
    #[arg(long)]
    pub threads: Option<usize>,
    /// The cpu's dispatch level: amx, avx512bf16, avx512, avx2 or portable; default the best that is there.
    #[arg(long)]
    pub level: Option<String>,
    /// The interpreter that has torch, for pytorch devices; default python3, or what TOPROPE_PYTHON names.
    #[arg(long, value_name = "PYTHON")]
    pub python: Option<PathBuf>,
    /// Change a key of the recipe, as in --set training.batch=4; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// At the end, show where the time went, by operator; the device runs in this process then, unguarded.
    #[arg(long)]
    pub profile: bool,
    /// Answer Prometheus at this address while the run goes, as in --metrics 127.0.0.1:9400.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
}

/// Arguments of `diagnose`.
#[derive(Args, Debug)]
pub struct Diagnose {
    /// A run's folder, or a recipe (file or built-in name) where there is no run yet: its step 0 from fresh weights.
    #[arg(required_unless_present = "script")]
    pub run: Option<String>,
    /// The step that is looked at: the one that begins when this many are committed; default 0. The state comes from the
    /// newest checkpoint before it, replayed on the trusted device. With --script: that of optimizer.step(), default 1.
    #[arg(long)]
    pub step: Option<u64>,
    /// The device that is looked at.
    #[arg(long, value_name = "DEVICE")]
    pub device: String,
    /// The device whose values both are given; of two, as in pytorch:npu:0,cpu, the last is, and the other has a vote.
    #[arg(long, value_name = "DEVICE,DEVICE", value_delimiter = ',', default_value = "cpu")]
    pub against: Vec<String>,
    /// Look for the first step that differs, from this one …
    #[arg(long, value_name = "STEP", requires = "to", conflicts_with = "step")]
    pub from: Option<u64>,
    /// … to this one, by halves: a step that differs must be followed by steps that differ.
    #[arg(long, value_name = "STEP", requires = "from")]
    pub to: Option<u64>,
    /// Run each operator this often, for faults that do not show every time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub repeat: u64,
    /// Look at this operator only; may be given again.
    #[arg(long = "operator", value_name = "OPERATOR")]
    pub operators: Vec<String>,
    /// Threads of the devices; default all cores.
    #[arg(long)]
    pub threads: Option<usize>,
    /// The interpreter that has torch, for pytorch devices and --script; default python3, or what TOPROPE_PYTHON names.
    #[arg(long, value_name = "PYTHON")]
    pub python: Option<PathBuf>,
    /// Change a key of the recipe, as in --set training.batch=4; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Diagnose a training script of your own instead, with the Python package `toprope`; its steps are counted by
    /// optimizer.step(), from 1. What follows `--` is its command line. It is judged in f64 on the CPU, each call once.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["run", "from", "to", "operators", "sets", "against", "repeat", "threads"]
    )]
    pub script: Option<PathBuf>,
    /// With --script: the report as a page.
    #[arg(long, value_name = "FILE", requires = "script")]
    pub html: Option<PathBuf>,
    /// With --script: write the step's calls, without their data, for `toprope qualify --for` or `python -m toprope cases`.
    #[arg(long, value_name = "FILE", requires = "script")]
    pub cases: Option<PathBuf>,
    /// With --script: the script's own command line.
    #[arg(last = true, value_name = "ARGUMENT", requires = "script")]
    pub script_arguments: Vec<std::ffi::OsString>,
}

/// Arguments of `report`.
#[derive(Args, Debug)]
pub struct Report {
    /// A run's folder, or a recipe (file or built-in name).
    pub run: String,
    /// The operator that is wrong, as `toprope diagnose` names it.
    #[arg(long)]
    pub operator: String,
    /// The device that computes it wrong.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// Devices that it is held against; the last one is trusted.
    #[arg(long, value_name = "DEVICE,DEVICE", value_delimiter = ',', default_value = "reference")]
    pub against: Vec<String>,
    /// The step that showed it, counted from 0; default the last one that the run committed.
    #[arg(long)]
    pub step: Option<u64>,
    /// Where the archive goes; default toprope-report-OPERATOR.tar.gz in the run's folder, or here.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Let numbers of the run itself into the archive, where numbers drawn from a seed do not show the fault.
    #[arg(long)]
    pub include_data: bool,
    /// Leave names of hosts and paths out.
    #[arg(long)]
    pub redact: bool,
    /// Runs before and after the device is opened anew.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub repeat: u64,
    /// Threads of the devices; default all cores.
    #[arg(long)]
    pub threads: Option<usize>,
    /// The interpreter that has torch, for pytorch devices; default python3, or what TOPROPE_PYTHON names.
    #[arg(long, value_name = "PYTHON")]
    pub python: Option<PathBuf>,
    /// Change a key of the recipe, as in --set training.batch=4; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

impl Train {
    /// The device that trains.
    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap_or("cpu")
    }
}

/// Arguments of `qualify`.
#[derive(Args, Clone, Debug)]
pub struct Qualify {
    /// What is qualified: cpu, cpu:avx2, pytorch:cuda:0 …; several with commas, or pytorch:cuda:all, or the first eight with
    /// pytorch:cuda:all=8, stand side by side and vote, so that the one bad die is named.
    #[arg(long, value_name = "DEVICE,DEVICE", value_delimiter = ',')]
    pub device: Vec<String>,
    /// The trusted device that it stands beside; default cpu, and reference for cpu itself.
    #[arg(long, value_name = "DEVICE")]
    pub against: Option<String>,
    /// What will be run on it: a recipe, a published model (a folder or a GGUF file), a model's config.json, or cases.jsonl. Its
    /// shapes come first; a model's own weights go through prefill and decode beside the trusted device.
    #[arg(long = "for", value_name = "RECIPE|MODEL|CONFIG|CASES")]
    pub target: Option<String>,
    /// The collectives of torch.distributed between this machine's chips instead: payloads bit for bit, bandwidth, and the
    /// rank that never arrives.
    #[arg(long, conflicts_with_all = ["against", "target", "quick", "hours", "junit", "html", "write"])]
    pub collectives: bool,
    /// Ranks of the collectives; default one for each chip, and 4 on the host.
    #[arg(long, value_name = "RANKS", requires = "collectives")]
    pub ranks: Option<usize>,
    /// A minute instead of ten.
    #[arg(long, conflicts_with = "hours")]
    pub quick: bool,
    /// So many hours, nearly all of them soak.
    #[arg(long, value_name = "HOURS")]
    pub hours: Option<f64>,
    /// Tensor-parallel ranks: heads, inner widths and the vocabulary are divided among them.
    #[arg(long, value_name = "RANKS", requires = "target")]
    pub tp: Option<usize>,
    /// Pipeline stages: layers are divided among them.
    #[arg(long, value_name = "RANKS", requires = "target")]
    pub pp: Option<usize>,
    /// Expert-parallel ranks: routed experts are divided among them.
    #[arg(long, value_name = "RANKS", requires = "target")]
    pub ep: Option<usize>,
    /// Tokens of a sequence.
    #[arg(long, value_name = "TOKENS", requires = "target")]
    pub seq: Option<usize>,
    /// Sequences of a micro-batch.
    #[arg(long, value_name = "SEQUENCES", requires = "target")]
    pub micro_batch: Option<usize>,
    /// Exit with 0 where the verdict is at least this one: train, train-with, infer, unfit, inconclusive.
    #[arg(long, value_name = "VERDICT")]
    pub expect: Option<String>,
    /// Write the results for a test runner.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the results as one page that needs no network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Where the recipe goes that the verdict `train with` asks for; default beside you, under the recipe's and the device's
    /// names.
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// What the vendor promises, in operations and bytes a second: bf16=400e12,f32=67e12,bandwidth=3.3e12. Speed is told as a
    /// share of it.
    #[arg(long, value_name = "NAME=NUMBER,…", conflicts_with = "collectives")]
    pub datasheet: Option<Datasheet>,
    /// Whether an earlier verdict still stands: a file with the last line of its --json. Driver, firmware, libraries and device
    /// are compared, and nothing is measured.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["collectives", "target", "quick", "hours"])]
    pub still: Option<PathBuf>,
    /// Repeats everything that is drawn.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds of the soak at most; by default it takes all that the other stages leave.
    #[arg(long, value_name = "SECONDS")]
    pub soak: Option<u64>,
    /// Memory that may be filled, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub memory: u64,
    /// Threads of the device; default all cores.
    #[arg(long)]
    pub threads: Option<usize>,
    /// The interpreter that has torch, for pytorch devices; default python3, or what TOPROPE_PYTHON names.
    #[arg(long, value_name = "PYTHON")]
    pub python: Option<PathBuf>,
}

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct Status {
    /// The run's folder.
    pub run: PathBuf,
    /// Print the ledger: each step with the attempt and the device that committed it.
    #[arg(long)]
    pub ledger: bool,
    /// Write the run's report.html anew.
    #[arg(long)]
    pub html: bool,
}

/// Arguments of `rehearse`.
#[derive(Args, Debug)]
pub struct Rehearse {
    /// The recipe to rehearse.
    #[arg(default_value = "tiny-moe")]
    pub recipe: String,
    /// What fails: ascend:0, the emulated NPU with the emulator's defects, in four acts; or cpu, with every class of fault
    /// injected, in eleven scenes.
    #[arg(long, default_value = "ascend:0")]
    pub device: String,
    /// The trusted device of the four acts.
    #[arg(long, default_value = "cpu")]
    pub fallback: String,
    /// Steps of each of the eleven scenes' runs; the faults are injected in the first 40.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(40..))]
    pub steps: u64,
    /// Keep the runs' folders here; the four acts' are kept in any case, in runs/rehearsal.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub struct Inspect {
    /// A recipe (file or built-in name), a Hugging Face folder or config.json, or a GGUF file; with --verify the folder of a
    /// checkpoint, or of several.
    pub what: String,
    /// Read every byte of the checkpoints in a folder (Hugging Face, PyTorch DCP, Megatron, a run's) from the newest on, and
    /// tell whether they are complete, which numbers are not finite, and which is the newest intact one. Nothing in it is run.
    #[arg(long, conflicts_with_all = ["sets", "program"])]
    pub verify: bool,
    /// The published model that the recipe goes on from, as in `train --from`.
    #[arg(long, value_name = "MODEL")]
    pub from: Option<PathBuf>,
    /// Change a key of the recipe, as in --set training.batch=4; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Print the whole training program in its printed form instead.
    #[arg(long)]
    pub program: bool,
}

/// Arguments of `eval`.
#[derive(Args, Clone, Debug)]
pub struct Eval {
    /// A Hugging Face folder, or a GGUF file.
    pub model: PathBuf,
    /// A text, of which loss, perplexity and bits per byte are told.
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    pub data: Option<PathBuf>,
    /// Tokens to evaluate instead of a text, as in 1,2,3.
    #[arg(long, value_name = "TOKEN,TOKEN", value_delimiter = ',')]
    pub tokens: Option<Vec<i32>>,
    /// Write the logits of --tokens as `logits` [tokens, vocabulary] to this safetensors file.
    #[arg(long, value_name = "FILE", requires = "tokens")]
    pub logits: Option<PathBuf>,
    /// f32 or bf16: the dtype of weights and activations.
    #[arg(long, default_value = "f32", value_parser = crate::verb::published::dtype)]
    pub dtype: toprope_program::DType,
    /// Tokens of a window of --data; default 512, or what the model allows.
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// The device that computes.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads of the device; default all cores.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Arguments of `export`.
#[derive(Args, Clone, Debug)]
pub struct Export {
    /// A run's folder, a Hugging Face folder, or a GGUF file.
    pub what: PathBuf,
    /// The folder to write, which must not be there.
    pub to: PathBuf,
    /// Of a run with adapters, which is written in PEFT's format: the whole model with them merged into it instead.
    #[arg(long)]
    pub merge: bool,
}

/// How text is made.
#[derive(Args, Clone, Debug)]
pub struct Decoding {
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 256, value_name = "TOKENS")]
    pub max_tokens: usize,
    /// 0 takes the likeliest token; above it tokens are drawn.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Draw from the likeliest tokens alone that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// What draws follow from.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Go on where the model would end.
    #[arg(long)]
    pub ignore_end: bool,
    /// f32 or bf16: the dtype of weights and activations.
    #[arg(long, default_value = "f32", value_parser = crate::verb::published::dtype)]
    pub dtype: toprope_program::DType,
    /// Tokens of prompt and answer together; default 2048, or what the model allows.
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// The device that computes.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads of the device; default all cores.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Arguments of `generate`.
#[derive(Args, Clone, Debug)]
pub struct Generate {
    /// A Hugging Face folder, or a GGUF file.
    pub model: PathBuf,
    /// The text to go on from.
    #[arg(long)]
    pub prompt: String,
    /// Read the prompt once before the times are taken that are shown: of a device that is warm.
    #[arg(long)]
    pub warm_up: bool,
    /// How text is made.
    #[command(flatten)]
    pub decoding: Decoding,
}

/// Arguments of `chat`.
#[derive(Args, Clone, Debug)]
pub struct Chat {
    /// A Hugging Face folder, or a GGUF file.
    pub model: PathBuf,
    /// What the model is told before the first message.
    #[arg(long)]
    pub system: Option<String>,
    /// How text is made.
    #[command(flatten)]
    pub decoding: Decoding,
}
