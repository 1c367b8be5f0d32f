//! Text in the model's own words: greedy or by temperature, from counter-based random numbers so that it repeats.

use crate::engine::Engine;
use crate::engine::EngineError;
use crate::tokenizer::Tokenizer;
use toprope_program::philox;

/// Continues a prompt by `count` tokens.
///
/// # Errors
/// A fault of the device.
pub fn continue_text(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    prompt: &str,
    count: usize,
    temperature: f64,
    seed: u64,
) -> Result<String, EngineError> {
    let end = tokenizer.end_of_document() as i32;
    // What begins a document comes first, as in training. A prompt that the tokenizer has no tokens for is none.
    let mut tokens = vec![tokenizer.beginning_of_document() as i32];
    tokens.extend(tokenizer.encode(prompt).unwrap_or_default().into_iter().map(|token| token as i32));
    let first = tokens.len();
    for index in 0..count {
        let logits = engine.logits(&tokens)?;
        let bits = philox::block([index as u32, 0, 0, 0x5A3], [seed as u32, (seed >> 32) as u32]);
        let uniform = (f64::from(bits[0]) + 0.5) / 4_294_967_296.0;
        let Some(next) = choose(&logits, temperature, uniform) else { break };
        if next as i32 == end {
            break;
        }
        tokens.push(next as i32);
    }
    let made: Vec<u32> = tokens[first..].iter().map(|token| *token as u32).collect();
    Ok(tokenizer.decode(&made))
}

/// The index that `uniform` in (0, 1) falls on under a softmax at `temperature`; the largest where that is 0.
pub fn choose(logits: &[f32], temperature: f64, uniform: f64) -> Option<usize> {
    let (best, largest) = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| logit.is_finite())
        .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)))?;
    if temperature <= 0.0 {
        return Some(best);
    }
    let weight = |logit: &f32| ((f64::from(*logit) - f64::from(*largest)) / temperature).exp();
    let total: f64 = logits.iter().filter(|logit| logit.is_finite()).map(weight).sum();
    let mut left = uniform * total;
    for (index, logit) in logits.iter().enumerate().filter(|(_, logit)| logit.is_finite()) {
        left -= weight(logit);
        if left <= 0.0 {
            return Some(index);
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn the_likeliest_without_temperature_and_by_weight_with_it() {
        let logits = [0.0, 2.0, f32::NAN, 2.0, -1.0];
        assert_eq!(choose(&logits, 0.0, 0.9), Some(1));
        assert_eq!(choose(&logits, 1.0, 1e-9), Some(0));
        assert_eq!(choose(&logits, 1.0, 1.0 - 1e-9), Some(4));
        assert_eq!(choose(&[f32::NAN], 1.0, 0.5), None);
    }
}
