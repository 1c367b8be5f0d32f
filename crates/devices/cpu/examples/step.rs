//! Time of one training step of the two recipes that are fixed for comparison, by operator:
//! `cargo run --release -p toprope-cpu --example step -- dense|moe [threads] [steps] [f32|bf16]`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Instant;
use support::Run;
use toprope_cpu::{CpuDevice, Options};
use toprope_model::deepseek_v3::build_train;
use toprope_model::{DeepseekV3Config, TrainingOptions};
use toprope_program::{DType, Range, StateLayout};

const DENSE: &str = r#""vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
    "intermediate_size": 704, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "max_position_embeddings": 256"#;
const EXPERTS: &str = r#", "first_k_dense_replace": 1, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 176, "n_group": 1, "topk_group": 1"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument =
        |index: usize, default: &str| arguments.get(index).map_or(default, String::as_str).to_string();
    let (kind, threads, steps) = (argument(0, "dense"), argument(1, "2"), argument(2, "3"));
    let dtype = DType::from_name(&argument(3, "bf16")).ok_or("the dtype is f32 or bf16")?;
    let config = format!("{{{DENSE}{}}}", if kind == "moe" { EXPERTS } else { "" });
    let config = DeepseekV3Config::from_json(&config)?;
    let options =
        TrainingOptions { sequence: 256, micro_batch_sequences: 16, dtype, ..TrainingOptions::default() };
    let program = build_train(&config, &options, &kind)?;
    let device = Options { threads: Some(threads.parse()?), profile: true, ..Options::default() };
    let device = CpuDevice::new(device)?;
    let mut run = Run::new(device, program, StateLayout::Double);
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "plan {:.0} MiB, workspace {:.0} MiB",
        mib(run.plan.total_bytes()),
        mib(run.device.workspace_bytes())
    );
    run.feed(1, 256, 4096);
    run.all(Range::Accumulate, true);
    run.all(Range::Update, false);
    run.device.take_profile();
    let steps: usize = steps.parse()?;
    let mut seconds = Vec::new();
    for _ in 0..steps {
        let started = Instant::now();
        run.all(Range::Accumulate, true);
        run.all(Range::Update, false);
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[steps / 2];
    println!("{kind} {dtype}: {:.3} s a step, {:.0} tokens/s", median, 4096.0 / median);
    let program = run.program.clone();
    let mut times: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for entry in run.device.take_profile() {
        let instruction = &program.program().range(entry.range)[entry.index];
        let time = times.entry(instruction.operator.name()).or_default();
        time.0 += entry.calls;
        time.1 += entry.nanoseconds;
    }
    let mut times: Vec<_> = times.into_iter().collect();
    times.sort_by_key(|(_, (_, nanoseconds))| std::cmp::Reverse(*nanoseconds));
    for (name, (calls, nanoseconds)) in times {
        let each = nanoseconds as f64 / 1e6 / steps as f64;
        println!("{name:32} {:5} calls {each:9.2} ms a step", calls / steps as u64);
    }
    Ok(())
}
