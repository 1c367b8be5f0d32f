//! Prefill and decode with caches say what the whole window says.

use crate::run::Run;
use crate::support::{dense, experts};
use toprope_model::deepseek_v3::{build_decode, build_logits, build_prefill};
use toprope_program::{DType, Program, Range, Role, Width};

const CAPACITY: usize = 12;

fn caches(program: &Program) -> Vec<String> {
    let cache = |value: &&toprope_program::Value| value.role == Role::Cache;
    program.values.iter().filter(cache).map(|value| value.name.clone()).collect()
}

fn window(run: &mut Run, tokens: &[f64], from: usize) {
    run.bind(vec![tokens.len()]);
    run.write("tokens", tokens);
    run.write("segment_start", &vec![0.0; tokens.len()]);
    run.write("positions", &(from..from + tokens.len()).map(|at| at as f64).collect::<Vec<_>>());
}

fn cached(run: &mut Run, tokens: &[f64], from: usize) -> Vec<f64> {
    window(run, tokens, from);
    run.write("position", &[from as f64]);
    run.write("cache_length", &[(from + tokens.len()) as f64]);
    run.run(Range::Accumulate);
    run.read("logits")
}

#[test]
fn caches_give_the_logits_of_the_whole_window() {
    for config in [dense(), experts()] {
        let prefill = build_prefill(&config, DType::F32, CAPACITY, "prefill").unwrap();
        let decode = build_decode(&config, DType::F32, CAPACITY, "decode").unwrap();
        let names = caches(&prefill);
        assert_eq!(names.len(), 2 * config.num_hidden_layers);
        assert_eq!(names, caches(&decode));
        let tokens: Vec<f64> = (0..CAPACITY).map(|at| ((at * 7 + 3) % config.vocab_size) as f64).collect();

        let logits = build_logits(&config, DType::F32, CAPACITY, "logits").unwrap();
        let mut whole = Run::new(logits, Width::Wide, vec![CAPACITY]);
        window(&mut whole, &tokens, 0);
        whole.run(Range::Accumulate);
        let want = whole.read("logits");

        let mut first = Run::new(prefill, Width::Wide, vec![CAPACITY]);
        let mut got = cached(&mut first, &tokens[..5], 0);
        // A prompt may come in parts.
        got.extend(cached(&mut first, &tokens[5..8], 5));
        let mut next = Run::new(decode, Width::Wide, vec![1]);
        for name in &names {
            next.write(name, &first.read(name));
        }
        for at in 8..CAPACITY {
            got.extend(cached(&mut next, &tokens[at..=at], at));
        }
        assert_eq!(got.len(), want.len());
        let distance = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(distance < 1e-12, "{distance:e}");
    }
}
