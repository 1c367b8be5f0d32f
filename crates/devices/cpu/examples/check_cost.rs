//! What checks cost: steps of the recipes that are fixed for comparison, with checks off, sampled and full, interleaved in
//! one process: `cargo run --release -p toprope-cpu --example check_cost -- dense|moe [threads] [rounds] [f32|bf16]`.
//! Prints the median of the rounds' ratios with its 95 % interval (`inserted`: none of the checks fires), the share of each
//! kind, what the checked operators themselves take longer, the checks judged and the
//! largest results seen in units of their limits.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;
use support::Run;
use toprope_cpu::{CpuDevice, Options};
use toprope_model::deepseek_v3::build_train;
use toprope_model::{DeepseekV3Config, TrainingOptions};
use toprope_program::check::{self, CheckLevel, CheckPlan};
use toprope_program::{DType, Range, StateLayout, Tensor, ValueId};

const DENSE: &str = r#""vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
    "intermediate_size": 704, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "max_position_embeddings": 256"#;
const EXPERTS: &str = r#", "first_k_dense_replace": 1, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 176, "n_group": 1, "topk_group": 1"#;

/// The median and the bounds of its 95 % interval (order statistics of the sign test).
fn median(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let (count, half) = (values.len(), 0.98 * (values.len() as f64).sqrt());
    let at = |place: f64| values[(place.max(0.0) as usize).min(count - 1)];
    [at(count as f64 / 2.0), at(count as f64 / 2.0 - half), at(count as f64 / 2.0 + half)]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument =
        |index: usize, default: &str| arguments.get(index).map_or(default, String::as_str).to_string();
    let (kind, threads, rounds) = (argument(0, "dense"), argument(1, "2"), argument(2, "9"));
    let dtype = DType::from_name(&argument(3, "bf16")).ok_or("the dtype is f32 or bf16")?;
    let config = format!("{{{DENSE}{}}}", if kind == "moe" { EXPERTS } else { "" });
    let config = DeepseekV3Config::from_json(&config)?;
    let options =
        TrainingOptions { sequence: 256, micro_batch_sequences: 16, dtype, ..TrainingOptions::default() };
    let plain = build_train(&config, &options, &kind)?;
    let mut checked = plain.clone();
    let sites = check::insert(&mut checked, &CheckPlan { level: CheckLevel::Full });
    let device = || {
        let threads = Some(threads.parse().unwrap_or(2));
        CpuDevice::new(Options { threads, profile: true, ..Options::default() })
    };
    let mut off = Run::new(device()?, plain, StateLayout::Double);
    let mut on = Run::new(device()?, checked, StateLayout::Double);
    println!(
        "{kind} {dtype}: {} checks, estimated {:.1} % of a step",
        sites.len(),
        100.0 * sites.iter().map(|site| site.cost_share).sum::<f64>()
    );
    let rounds: usize = rounds.parse()?;
    let mut ratios = [Vec::new(), Vec::new(), Vec::new()];
    let mut seconds_off = Vec::new();
    let mut worst: BTreeMap<(check::CheckKind, String), (u64, f64, u64)> = BTreeMap::new();
    let mut chain: HashMap<u16, Vec<Tensor>> = HashMap::new();
    let mut mismatches = 0u64;
    let mut step = 0u64;
    let mut one = |run: &mut Run<CpuDevice>, level: CheckLevel, step: u64| {
        run.checks = check::mask(&sites, level, step, 1);
        run.feed(step, 256, 4096);
        let started = Instant::now();
        run.all(Range::Accumulate, true);
        run.all(Range::Update, false);
        let seconds = started.elapsed().as_secs_f64();
        let mask = run.checks.clone();
        let read = |run: &mut Run<CpuDevice>, ids: &[ValueId]| {
            ids.iter().map(|id| run.tensor(*id)).collect::<Vec<_>>()
        };
        for site in sites.iter().filter(|site| level != CheckLevel::Off && mask.fires(site.bit)) {
            let mut results = read(run, &site.results);
            if site.kind == check::CheckKind::State {
                let Some(before) = chain.get(&site.bit) else { continue };
                results.extend(before.iter().cloned());
            } else {
                results.extend(read(run, &site.against));
            }
            let entry = worst.entry((site.kind, site.checked.operator.clone())).or_default();
            entry.0 += 1;
            if let Some(mismatch) = check::judge(site, &results) {
                mismatches += 1;
                entry.2 += 1;
                println!("mismatch at {:?}: {mismatch:?}", site.checked);
            }
            if site.limit > 0.0 {
                entry.1 = entry.1.max(results[0].data[0] / site.limit);
            }
        }
        if level == CheckLevel::Off && run.program.program().update.iter().any(|i| i.check.is_some()) {
            chain.clear();
        } else if level != CheckLevel::Off {
            for site in sites.iter().filter(|site| site.kind == check::CheckKind::State) {
                chain.insert(site.bit, read(run, &site.against));
            }
        }
        run.flip();
        seconds
    };
    one(&mut off, CheckLevel::Off, 0);
    one(&mut on, CheckLevel::Full, 0);
    on.device.take_profile();
    let (mut shares, mut full_steps) = (BTreeMap::<String, f64>::new(), 0.0);
    let mut unchecked = BTreeMap::<String, [f64; 3]>::new();
    for _ in 0..rounds {
        for (ratios, level) in ratios.iter_mut().zip([CheckLevel::Off, CheckLevel::Sampled, CheckLevel::Full])
        {
            step += 1;
            off.device.take_profile();
            let before = one(&mut off, CheckLevel::Off, step);
            let program = off.program.clone();
            for entry in off.device.take_profile() {
                let name = program.program().range(entry.range)[entry.index].operator.name();
                unchecked.entry(name.into()).or_default()[0] += entry.nanoseconds as f64 / 3e6;
            }
            on.device.take_profile();
            let checked = one(&mut on, level, step);
            seconds_off.push(before);
            ratios.push(checked / before - 1.0);
            full_steps += f64::from(u8::from(level == CheckLevel::Full));
            let (program, profile) = (on.program.clone(), on.device.take_profile());
            let column = match level {
                CheckLevel::Off => 1,
                CheckLevel::Sampled => continue,
                CheckLevel::Full => 2,
            };
            for entry in profile {
                let instruction = &program.program().range(entry.range)[entry.index];
                if instruction.check.is_none() {
                    let name = instruction.operator.name();
                    unchecked.entry(name.into()).or_default()[column] += entry.nanoseconds as f64 / 1e6;
                }
                if let Some(bit) = instruction.check.filter(|_| level == CheckLevel::Full) {
                    let name = format!(
                        "{:?} of {}",
                        sites[usize::from(bit)].kind,
                        sites[usize::from(bit)].checked.operator
                    );
                    *shares.entry(name).or_default() += entry.nanoseconds as f64 / 1e6;
                }
            }
        }
    }
    let [middle, ..] = median(seconds_off);
    println!("off: {middle:.3} s a step");
    for (name, ratios) in ["inserted", "sampled", "full"].iter().zip(ratios) {
        let [middle, low, high] = median(ratios).map(|ratio| 100.0 * ratio);
        println!("{name:8} {middle:+6.2} % of a step, 95 % interval {low:+.2} to {high:+.2}");
    }
    for (name, milliseconds) in &shares {
        let each = milliseconds / full_steps;
        println!("{name:60} {each:8.2} ms a step, {:5.2} %", 0.1 * each / middle);
    }
    for (name, times) in &unchecked {
        let [off, inserted, full] = times.map(|sum| sum / full_steps);
        let share = |on: f64| 0.1 * (on - off) / middle;
        println!(
            "{name:40} itself {off:8.2} ms; inserted {:+5.2} %, full {:+5.2} % of a step",
            share(inserted),
            share(full)
        );
    }
    for ((kind, operator), (count, largest, wrong)) in &worst {
        println!(
            "{kind:?} of {operator}: {count} judged, {wrong} mismatches, largest {largest:.3} of the limit"
        );
    }
    println!("{} checks judged, {mismatches} mismatches", worst.values().map(|entry| entry.0).sum::<u64>());
    Ok(())
}
