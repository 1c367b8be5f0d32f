//! Whole steps on the reference device: finite differences, and programs against one another.

use crate::run::{Run, gradients};
use crate::support::{Batch, Numbers, batch, dense, experts, options};
use toprope_model::deepseek_v3::{build_evaluate, build_logits, build_train};
use toprope_model::parameters::{Kind, parameters};
use toprope_model::{DeepseekV3Config, TrainingOptions};
use toprope_program::recompute::Recompute;
use toprope_program::{DType, Initial, Range, Width};

const ROWS: usize = 2;

/// Parameters far from zero, so that every term shows: matrices N(0, 1/columns), norms near 1, biases that matter.
fn write_parameters(run: &mut Run, config: &DeepseekV3Config) {
    for parameter in parameters(config) {
        let columns = parameter.shape[parameter.shape.len() - 1] as f64;
        let (mean, std) = match parameter.kind {
            Kind::Norm => (1.0, 0.2),
            Kind::Bias => (0.0, 0.2),
            Kind::SelectionBias => (0.0, 0.1),
            Kind::Matrix | Kind::ResidualMatrix => (0.0, columns.powf(-0.5)),
        };
        let drawn = Initial::Normal { std }.draw(7, &parameter.name, parameter.elements() as usize);
        let data: Vec<f64> = drawn.into_iter().map(|x| mean + f64::from(x)).collect();
        run.write(&parameter.name, &data);
    }
}

fn prepared(config: &DeepseekV3Config, options: &TrainingOptions, width: Width, batch: &Batch) -> Run {
    let mut run = Run::new(build_train(config, options, "tiny").unwrap(), width, vec![ROWS]);
    write_parameters(&mut run, config);
    run.write_batch(batch);
    run
}

fn choices(run: &mut Run, config: &DeepseekV3Config) -> Vec<Vec<f64>> {
    let layers = (0..config.layers_total()).filter(|layer| config.has_experts(*layer));
    layers.map(|layer| run.read(&format!("counts.{layer}"))).collect()
}

/// Every parameter's gradient against finite differences of the loss along three random directions, in f64. The fourth-order
/// stencil's own error is about 1e-10 of the change; a choice of experts that flipped would be far outside.
fn gradients_agree_with_finite_differences(config: &DeepseekV3Config) {
    /// A batch that no choice of experts is near a tie with.
    const SEED: u64 = 6;
    const STEP: f64 = 2e-5;
    let options = options(DType::F32);
    let mut run = prepared(config, &options, Width::Wide, &batch(config, &options, ROWS, SEED));
    run.run(Range::Accumulate);
    let chosen = choices(&mut run, config);
    let exact: Vec<Vec<f64>> =
        gradients(config).iter().map(|name| run.read(&format!("gradient.{name}"))).collect();
    let mut checked = 0;
    for (name, gradient) in gradients(config).iter().zip(&exact) {
        let original = run.read(name);
        let norm = gradient.iter().map(|x| x * x).sum::<f64>().sqrt();
        for seed in 0..3 {
            let direction = Initial::Normal { std: 1.0 }.draw(100 + seed, name, original.len());
            let mut loss_at = |step: f64| {
                let moved: Vec<f64> =
                    original.iter().zip(&direction).map(|(x, d)| x + step * f64::from(*d)).collect();
                run.write(name, &moved);
                run.begin();
                run.run(Range::Accumulate);
                assert_eq!(choices(&mut run, config), chosen, "{name}: routing changed");
                run.read("loss")[0]
            };
            let near = loss_at(STEP) - loss_at(-STEP);
            let far = loss_at(2.0 * STEP) - loss_at(-2.0 * STEP);
            let difference = (8.0 * near - far) / (12.0 * STEP);
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * f64::from(*d)).sum();
            let length = direction.iter().map(|d| f64::from(d * d)).sum::<f64>().sqrt();
            let bound = 1e-7 * norm * length + 1e-10;
            assert!(
                (difference - slope).abs() <= bound,
                "{name}: slope {slope:e}, difference {difference:e}, allowed {bound:e}"
            );
            checked += 1;
        }
        run.write(name, &original);
        assert!(norm > 0.0, "{name}: no gradient");
    }
    assert_eq!(checked, 3 * gradients(config).len());
}

#[test]
fn dense_gradients_agree_with_finite_differences() {
    gradients_agree_with_finite_differences(&dense());
}

#[test]
fn expert_gradients_agree_with_finite_differences() {
    gradients_agree_with_finite_differences(&experts());
}

#[test]
fn recomputing_gives_the_same_bits() {
    for (config, dtype) in [(dense(), DType::Bf16), (experts(), DType::Bf16), (experts(), DType::F32)] {
        let mut options = options(dtype);
        let batch = batch(&config, &options, ROWS, 9);
        let mut result = |recompute: Recompute| {
            options.recompute = recompute;
            let mut run = prepared(&config, &options, Width::Native, &batch);
            run.run(Range::Accumulate);
            let mut values = vec![run.read("loss")];
            values.extend(gradients(&config).iter().map(|name| run.read(&format!("gradient.{name}"))));
            values
        };
        let kept = result(Recompute::Nothing);
        assert_eq!(kept, result(Recompute::Elementwise));
        assert_eq!(kept, result(Recompute::Products));
    }
}

#[test]
fn micro_batches_add_up_to_the_step() {
    let config = experts();
    let options = options(DType::F32);
    let batch = batch(&config, &options, ROWS, 11);
    let mut whole = prepared(&config, &options, Width::Wide, &batch);
    whole.run(Range::Accumulate);
    let mut parts = prepared(&config, &options, Width::Wide, &batch);
    parts.bind(vec![1]);
    for row in 0..ROWS {
        for (name, data) in &batch {
            let length = options.sequence;
            if data.len() == 1 {
                continue;
            }
            let start = if name == "segment_start" { (row * length) as f64 } else { 0.0 };
            let part: Vec<f64> = data[row * length..(row + 1) * length].iter().map(|x| x - start).collect();
            parts.write(name, &part);
        }
        parts.run(Range::Accumulate);
    }
    let names = gradients(&config).into_iter().map(|name| format!("gradient.{name}"));
    let metrics = ["loss", "loss_main", "loss_mtp", "loss_balance", "counts.1", "counts.2"].map(String::from);
    for name in names.chain(metrics) {
        let (have, want) = (parts.read(&name), whole.read(&name));
        let size = want.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
        assert!(have.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-12 * size), "{name}");
    }
}

#[test]
fn evaluation_and_logits_agree_with_training() {
    for config in [dense(), experts()] {
        let options = options(DType::F32);
        let batch = batch(&config, &options, ROWS, 13);
        let mut train = prepared(&config, &options, Width::Wide, &batch);
        train.run(Range::Accumulate);
        let mut evaluate =
            Run::new(build_evaluate(&config, &options, "tiny").unwrap(), Width::Wide, vec![ROWS]);
        write_parameters(&mut evaluate, &config);
        evaluate.write_batch(&batch);
        evaluate.run(Range::Accumulate);
        let count = batch["targets"].iter().filter(|target| **target >= 0.0).count() as f64;
        assert_eq!(evaluate.read("target_count"), [count]);
        let mean = evaluate.read("loss_sum")[0] / count;
        let main = train.read("loss_main")[0];
        assert!((mean - main).abs() <= 1e-12 * main, "{mean} {main}");

        // The first row as a window, and as a window one shorter: the past does not see the future.
        let length = options.sequence;
        let program = build_logits(&config, DType::F32, length, "tiny").unwrap();
        let mut window = Run::new(program, Width::Wide, vec![length]);
        write_parameters(&mut window, &config);
        let mut logits = |length: usize| {
            window.bind(vec![length]);
            for name in ["tokens", "positions", "segment_start"] {
                window.write(name, &batch[name][..length]);
            }
            window.run(Range::Accumulate);
            window.read("logits")
        };
        let (whole, shorter) = (logits(length), logits(length - 1));
        assert_eq!(whole[..shorter.len()], shorter);
        evaluate.bind(vec![1]);
        for name in ["tokens", "targets", "positions", "segment_start"] {
            evaluate.write(name, &batch[name][..length]);
        }
        evaluate.begin();
        evaluate.run(Range::Accumulate);
        let mut sum = 0.0;
        for (row, target) in whole.chunks(config.vocab_size).zip(&batch["targets"]) {
            if *target >= 0.0 {
                sum += row.iter().map(|z| z.exp()).sum::<f64>().ln() - row[*target as usize];
            }
        }
        let loss = evaluate.read("loss_sum")[0];
        assert!((loss - sum).abs() <= 1e-12 * loss, "{loss} {sum}");
    }
}

/// bf16 training must learn and stay near f32: a loss of random tokens falls when the same batch is seen again.
#[test]
fn steps_in_both_dtypes_learn_a_batch() {
    for config in [dense(), experts()] {
        let mut last = Vec::new();
        for dtype in [DType::F32, DType::Bf16] {
            let options = options(dtype);
            let batch = batch(&config, &options, ROWS, Numbers(3).below(1000) as u64);
            let mut run =
                Run::new(build_train(&config, &options, "tiny").unwrap(), Width::Native, vec![ROWS]);
            run.write_batch(&batch);
            let mut curve = Vec::new();
            for step in 1..=30 {
                run.run(Range::Accumulate);
                curve.push(run.read("loss_main")[0]);
                run.write("rates", &[1e-2, 1.0 - 0.9f64.powi(step), 1.0 - 0.95f64.powi(step)]);
                run.run(Range::Update);
            }
            assert!(curve[29] < 0.5 * curve[0], "{curve:?}");
            last.push(curve[0]);
        }
        assert!((last[0] - last[1]).abs() < 2e-3 * last[0], "{last:?}");
    }
}
