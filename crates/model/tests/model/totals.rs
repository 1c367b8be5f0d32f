//! Published totals, from the published configuration.

use toprope_model::DeepseekV3Config;
use toprope_model::checkpoint::pieces;
use toprope_model::deepseek_v3::build_train;
use toprope_model::inspect::summarize;
use toprope_model::totals::totals;
use toprope_program::{StateLayout, validate};

fn published() -> DeepseekV3Config {
    DeepseekV3Config::from_json(include_str!("../deepseek-v3-671b.json")).unwrap()
}

#[test]
fn deepseek_v3_has_its_published_totals() {
    let totals = totals(&published()).unwrap();
    // The same sum by hand, tensor by tensor of the published files, to the parameter.
    let (width, vocabulary) = (7168u64, 129_280u64);
    let attention = 1536 * width
        + 1536
        + 128 * 192 * 1536
        + (512 + 64) * width
        + 512
        + 128 * (128 + 128) * 512
        + width * 128 * 128;
    let dense = 3 * width * 18_432;
    let expert = 3 * width * 2048;
    let layer = attention + 2 * width;
    let router = 256 * width + 256;
    let main = 2 * vocabulary * width + width + 61 * layer + 3 * dense + 58 * (router + 257 * expert);
    assert_eq!(main, 671_026_419_200);
    assert_eq!(totals.main, main);
    let activated = vocabulary * width + width + 61 * layer + 3 * dense + 58 * (router + 9 * expert);
    assert_eq!(totals.activated, activated);
    assert_eq!((activated + 500_000_000) / 1_000_000_000, 37);
    let mtp = 3 * width + 2 * width * width + layer + router + 257 * expert;
    assert_eq!(totals.mtp, mtp);
    assert_eq!(totals.mtp_published, mtp + 2 * vocabulary * width);
    assert_eq!(totals.parts.iter().map(|part| part.parameters).sum::<u64>(), main + mtp);
    let text = totals.to_string();
    assert!(text.contains("671.03 B in all, 36.63 B activated"), "{text}");
    assert!(text.contains("11.61 B of prediction modules (13.46 B"), "{text}");
}

#[test]
fn published_tensors_are_all_there() {
    let config = published();
    let pieces = pieces(&config);
    let count: u64 = pieces.iter().map(|piece| piece.elements() as u64).sum();
    let totals = totals(&config).unwrap();
    assert_eq!(count, totals.main + totals.mtp);
    let shape = |name: &str| pieces.iter().find(|piece| piece.name == name).map(|piece| piece.shape.clone());
    assert_eq!(shape("model.layers.60.mlp.experts.255.up_proj.weight"), Some(vec![2048, 7168]));
    assert_eq!(shape("model.layers.0.mlp.down_proj.weight"), Some(vec![7168, 18_432]));
    assert_eq!(shape("model.layers.61.eh_proj.weight"), Some(vec![7168, 14_336]));
    assert_eq!(shape("model.layers.61.shared_head.norm.weight"), Some(vec![7168]));
    assert_eq!(shape("model.layers.3.mlp.gate.e_score_correction_bias"), Some(vec![256]));
}

#[test]
fn its_training_step_is_built_and_summed_without_its_memory() {
    let config = published();
    let options =
        toprope_model::TrainingOptions { sequence: 4096, micro_batch_sequences: 1, ..Default::default() };
    let program = validate(build_train(&config, &options, "deepseek-v3").unwrap()).unwrap();
    let summary = summarize(&config, &program, StateLayout::Double).unwrap();
    // Parameters and two moments, one half, in f32; biases have no moments.
    let biases = 59 * 256u64;
    let state = 4 * (3 * (summary.totals.main + summary.totals.mtp - biases) + biases);
    assert!(
        summary.memory.state_bytes as u64 >= state && summary.memory.state_bytes as u64 <= state + (1 << 20)
    );
    let text = summary.to_string();
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    println!("{text}");
    // Three products for each of a token's parameters: 6 FLOPs, and attention beside them (Kaplan et al., section 2.1).
    let accumulate = summary.ranges[0].flops as f64;
    let products = 6.0 * 4096.0 * (summary.totals.activated as f64);
    assert!(accumulate > products && accumulate < 1.5 * products, "{accumulate:e} {products:e}");
    assert!(serde_json::to_string(&summary).unwrap().contains("\"total_bytes\""));
}
