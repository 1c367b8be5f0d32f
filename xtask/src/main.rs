//! The project's chores.

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
    /// What takes longer: everything that CI runs, and 25 kills.
    Full,
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
    /// The guard's decisions through simulated schedules and a simulated day; no promise may break.
    Simulate {
        /// How many schedules, from seed 0 on.
        #[arg(default_value_t = 10_000)]
        count: u64,
    },
    /// Training speed beside PyTorch, in one run.
    Bench {
        /// The interpreter that has torch.
        #[arg(long, default_value = "python3")]
        python: String,
        /// bench-dense, bench-moe or both.
        #[arg(long, default_value = "both")]
        recipe: String,
        /// Pairs of runs.
        #[arg(long, default_value_t = 3)]
        pairs: usize,
    },
}

mod bench; // beside PyTorch
mod kills; // SIGKILL and resume
mod simulate; // schedules from seeds

fn main() -> ExitCode {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let result = match Arguments::parse().chore {
        Chore::Ci => stages::ci(&root),
        Chore::Full => stages::full(&root),
        Chore::Docs => docs::write(&root),
        Chore::Tidy => tidy::check(&root),
        Chore::Kills { count, recipe, steps } => kills::run(&root, count, &recipe, steps),
        Chore::Simulate { count } => simulate::run(&root, count),
        Chore::Bench { python, recipe, pairs } => bench::run(&root, &python, &recipe, pairs),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
