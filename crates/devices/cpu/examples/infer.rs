//! Time of reading 512 tokens and of making 64, one by one, with a model of SmolLM2-135M's sizes and any weights, by operator:
//! `cargo run --release -p toprope-cpu --example infer -- [threads] [bf16|f32] [rounds]`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use toprope_cpu::{CpuDevice, Options};
use toprope_model::deepseek_v3::{Inference, build_inference};
use toprope_model::hub::parse;
use toprope_program::shape::{elements, sizes};
use toprope_program::tensor::stored;
use toprope_program::{DType, Device, Range, Session, StateLayout, Width, validate};

const CONFIG: &[u8] = br#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": true,
    "hidden_act": "silu"}"#;
const PROMPT: usize = 512;
const MADE: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument =
        |index: usize, default: &str| arguments.get(index).map_or(default, String::as_str).to_string();
    let dtype = DType::from_name(&argument(1, "bf16")).ok_or("the dtype is f32 or bf16")?;
    let options = Options { threads: Some(argument(0, "2").parse()?), profile: true, ..Options::default() };
    let rounds: usize = argument(2, "3").parse()?;
    let mut device = CpuDevice::new(options)?;
    let config = parse(CONFIG)?.config;
    let what = Inference::Cached { window: PROMPT };
    let program = Arc::new(
        validate(build_inference(&config, what, dtype, PROMPT + MADE, "infer")?).map_err(|_| "invalid")?,
    );
    let mut session = Session::open(&mut device, program.clone(), Width::Native, StateLayout::InPlace)?;
    let mut bits = 1u64;
    let values: Vec<_> = program.program().state().map(|(id, value)| (id, value.clone())).collect();
    for (id, value) in values {
        let location = session.plan().place(id).ok_or("a parameter has no place")?;
        let count = elements(&sizes(&value.shape, &[]));
        let mut number = || {
            bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((bits >> 40) as f32 / 8388608.0 - 1.0) * 0.05
        };
        let numbers: Vec<f32> = (0..count).map(|_| number()).collect();
        device.write(
            session.buffer(location),
            location.offset_bytes,
            &stored(value.dtype, Width::Native, &numbers),
        )?;
    }
    for _ in 0..rounds {
        let started = Instant::now();
        step(&mut device, &mut session, 0, PROMPT)?;
        let seconds = started.elapsed().as_secs_f64();
        println!("{PROMPT} tokens read in {:.1} ms: {:.0} tokens/s", 1e3 * seconds, PROMPT as f64 / seconds);
        show(&mut device, &program, 1);
        let started = Instant::now();
        for made in 0..MADE {
            step(&mut device, &mut session, PROMPT + made, 1)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{MADE} tokens made in {:.1} ms each: {:.0} tokens/s",
            1e3 * seconds / MADE as f64,
            MADE as f64 / seconds
        );
        show(&mut device, &program, MADE);
    }
    Ok(())
}

fn step(
    device: &mut CpuDevice,
    session: &mut Session,
    from: usize,
    count: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    session.bind(count);
    let numbers = |begin: usize| -> Vec<i32> { (begin..begin + count).map(|at| at as i32).collect() };
    session.write_i32(device, "tokens", &numbers(from))?;
    session.write_i32(device, "positions", &numbers(from))?;
    session.write_i32(device, "segment_start", &vec![0; count])?;
    for (name, value) in [("position", from), ("cache_length", from + count), ("row", count - 1)] {
        session.write_i32(device, name, &[value as i32])?;
    }
    session.run(device, Range::Accumulate)?;
    session.read_f32(device, "logits")?;
    Ok(())
}

fn show(device: &mut CpuDevice, program: &toprope_program::Validated, steps: usize) {
    let mut times: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for entry in device.take_profile() {
        let instruction = &program.program().range(entry.range)[entry.index];
        let part = instruction.part.rsplit('.').next().unwrap_or_default();
        let output = instruction.outputs.first().map(|id| program.program().value(*id).name.clone());
        let output = output.unwrap_or_default();
        let name = format!(
            "{} {part} {}",
            instruction.operator.name(),
            output.rsplit('.').next().unwrap_or_default()
        );
        let time = times.entry(name).or_default();
        time.0 += entry.calls;
        time.1 += entry.nanoseconds;
    }
    let mut times: Vec<_> = times.into_iter().collect();
    times.sort_by_key(|(_, (_, nanoseconds))| std::cmp::Reverse(*nanoseconds));
    for (name, (calls, nanoseconds)) in times {
        println!(
            "  {name:40} {:5} calls {:9.3} ms",
            calls / steps as u64,
            nanoseconds as f64 / 1e6 / steps as f64
        );
    }
}
