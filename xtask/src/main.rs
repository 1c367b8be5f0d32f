//! The project's chores.

mod built; // what chores run
mod docs; // pages made from the program
mod stages; // what CI runs, with minutes
mod tidy; // what a compiler does not see

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Everything that CI runs; prints the minutes of each stage.
    Ci,
    /// What takes longer: everything that CI runs, 10,000 random programs and 25 kills.
    Full,
    /// Random programs on every dispatch level of the cpu device, each operator against the reference device.
    Programs {
        /// How many in all.
        #[arg(default_value_t = 10_000)]
        count: u64,
        /// Repeats them.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Write the generated pages of docs/.
    Docs,
    /// Check what a compiler does not see.
    Tidy,
    /// Kill a training run at random times and resume it: the end state must be the undisturbed one's.
    Kills {
        /// How often.
        #[arg(default_value_t = 20)]
        count: u32,
        /// The recipe.
        #[arg(long, default_value = "tiny-moe")]
        recipe: String,
        /// Its steps.
        #[arg(long, default_value_t = 400)]
        steps: u64,
    },
    /// End the worker of one long run again and again: the end state must be the undisturbed one's.
    WorkerKills {
        /// How many SIGKILLs.
        #[arg(default_value_t = 500)]
        count: u32,
        /// How many other ends: SIGSTOP, SIGSEGV, SIGABRT, a memory limit.
        #[arg(long, default_value_t = 100)]
        others: u32,
        /// The recipe.
        #[arg(long, default_value = "tiny-moe")]
        recipe: String,
    },
    /// Inject faults into training steps and count which are caught: `campaign --quick`, `campaign --faults 5000`,
    /// `campaign cost`; `campaign --help` has the rest.
    #[command(disable_help_flag = true)]
    Campaign {
        /// What `toprope-campaign` takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The guard's decisions through simulated schedules and a simulated day; no promise may break.
    Simulate {
        /// How many schedules, from seed 0 on.
        #[arg(default_value_t = 10_000)]
        count: u64,
    },
    /// Random schedules of faults on pytorch:cpu, each with a failover to cpu and back: nothing lost, nothing doubled.
    PytorchSchedules {
        /// How many.
        #[arg(default_value_t = 50)]
        count: u64,
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// The interpreter that has torch; default python3, or what TOPROPE_PYTHON names.
        #[arg(long)]
        python: Option<String>,
    },
    /// A sample of what `toprope report` sends: a worker of PyTorch with a defect, diagnosed and reported; shows its page.
    SampleReport {
        /// A defect of crates/defects/src/defects.py.
        #[arg(long, default_value = "bf16_accumulation")]
        defect: String,
        /// The interpreter that has torch; default python3, or what TOPROPE_PYTHON names.
        #[arg(long)]
        python: Option<String>,
        /// Where the archive goes.
        #[arg(long, default_value = "target/toprope-report-sample.tar.gz")]
        out: PathBuf,
    },
    /// How long a run stands still when its worker is killed (bench-moe), beside torchrun where --python has torch.
    Recovery {
        /// Kills of each.
        #[arg(default_value_t = 5)]
        kills: usize,
        /// The interpreter that has torch.
        #[arg(long)]
        python: Option<String>,
    },
    /// Fuzz what reads bytes from outside, guided by coverage; a C++ compiler builds the fuzzer's runtime.
    Fuzz {
        /// One of fuzz/corpus; all of them in turn where none is named.
        target: Option<String>,
        /// Minutes of each.
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
    },
    /// llama.cpp's ggml with its CANN backend, fetched and built unchanged, against the CANN emulator: its operator tests.
    Foreign {
        /// Every case in f32 and f16, not a sample of each kind.
        #[arg(long)]
        all: bool,
        /// Greedy decoding of SmolLM2 on the emulated NPU beside the CPU, too.
        #[arg(long)]
        decode: bool,
        /// Write docs/foreign.md, of what was run.
        #[arg(long)]
        write: bool,
    },
    /// The table of BENCHMARKS.md beside PyTorch and llama.cpp, in one run.
    Bench(bench::Asked),
}

mod bench; // beside PyTorch and llama.cpp
mod campaign; // faults injected, caught and missed
mod foreign; // a client of the emulator that we did not write
mod fuzz; // what reads bytes from outside
mod kills; // SIGKILL and resume
mod pytorch_schedules; // failures of a worker in Python
mod recovery; // how long a kill costs
mod sample_report; // what a report looks like
mod simulate; // schedules from seeds
mod worker_kills; // ends of the worker alone

fn main() -> ExitCode {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let result = match Arguments::parse().chore {
        Chore::Ci => stages::ci(&root),
        Chore::Full => stages::full(&root),
        Chore::Docs => docs::write(&root),
        Chore::Tidy => tidy::check(&root),
        Chore::Programs { count, seed } => stages::programs(&root, count, seed),
        Chore::Kills { count, recipe, steps } => kills::run(&root, count, &recipe, steps),
        Chore::WorkerKills { count, others, recipe } => worker_kills::run(&root, count, others, &recipe),
        Chore::Campaign { arguments } => campaign::run(&root, &arguments),
        Chore::Simulate { count } => simulate::run(&root, count),
        Chore::PytorchSchedules { count, seed, python } => {
            pytorch_schedules::run(&root, count, seed, python.as_deref())
        }
        Chore::SampleReport { defect, python, out } => {
            let python = python.or_else(|| std::env::var("TOPROPE_PYTHON").ok());
            sample_report::run(&root, &defect, python.as_deref(), &root.join(out))
        }
        Chore::Fuzz { target, minutes } => fuzz::run(&root, target.as_deref(), minutes),
        Chore::Foreign { all, decode, write } => foreign::run(&root, &foreign::Asked { all, decode, write }),
        Chore::Recovery { kills, python } => recovery::run(&root, kills, python.as_deref()),
        Chore::Bench(asked) => bench::run(&root, &asked),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
