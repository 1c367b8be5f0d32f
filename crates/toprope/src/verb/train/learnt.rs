//! What a model has learnt, beside what compressors make of the same bytes, and in its own words.

use crate::exit::{Exit, Failure, OrExit};
use crate::progress::bytes;
use crate::verb::prepare::Prepared;
use toprope_train::engine::Engine;
use toprope_train::recipe::Recipe;
use toprope_train::sample;
use toprope_train::trainer::bits_per_byte;

/// What the model learnt, beside compressors.
#[derive(Default)]
pub(super) struct Learnt {
    /// Bits per byte.
    pub(super) model: Option<f64>,
    /// `gzip -9`'s.
    pub(super) gzip: Option<f64>,
    /// `xz -9`'s.
    pub(super) xz: Option<f64>,
}

/// What the engine is asked for, before it is let go.
pub(super) struct Measured {
    /// Bits per byte of the held-out text; none where nothing of it is predicted.
    bits: Option<f64>,
    /// What the model says by itself, behind the prompt.
    words: Option<String>,
}

/// Measures it on the held-out text, and lets it speak. None where nothing is held out.
pub(super) fn measured(
    engine: &mut dyn Engine,
    recipe: &Recipe,
    prepared: &Prepared,
) -> Result<Option<Measured>, Failure> {
    let Prepared { corpus, tokenizer, inputs, .. } = prepared;
    if corpus.validation.is_empty() {
        return Ok(None);
    }
    // By default all of it: the compressors' figures are of the same bytes.
    let bits = bits_per_byte(engine, inputs, recipe.evaluation.final_tokens).or_exit(Exit::Device)?;
    let toprope_train::recipe::Sample { prompt, tokens, temperature } = &recipe.sample;
    let words = match *tokens {
        0 => None,
        tokens => {
            let text = sample::continue_text(engine, tokenizer, prompt, tokens, *temperature, recipe.seed);
            Some(format!("{prompt}{}", text.or_exit(Exit::Device)?))
        }
    };
    Ok(Some(Measured { bits, words }))
}

impl Measured {
    /// Prints it beside what compressors make of the same bytes, which want memory of their own.
    pub(super) fn told(self, recipe: &Recipe, prepared: &Prepared) -> Result<Learnt, Failure> {
        let corpus = &prepared.corpus;
        let told = match self.bits {
            Some(bits) => format!("{bits:.3} bits per byte"),
            None => format!("nothing in the first {} tokens", recipe.evaluation.final_tokens),
        };
        let (mut gzip, mut xz) = (None, None);
        if let Some(chat) = &recipe.data.chat {
            // What a compressor makes of whole conversations is no measure for turns of them.
            println!(
                "held-out conversations ({}): {told} of what {} said",
                corpus.validation.len(),
                chat.roles.join(" and ")
            );
        } else {
            let compressed = corpus.validation_compressed().or_exit(Exit::Data)?;
            let (of_gzip, of_xz) = (compressed.gzip_bits_per_byte(), compressed.xz_bits_per_byte());
            println!(
                "held-out text ({}): model {told}, gzip -9 {of_gzip:.3}, xz -9 {of_xz:.3}",
                bytes(corpus.validation_bytes())
            );
            (gzip, xz) = (Some(of_gzip), Some(of_xz));
        }
        if let Some(words) = self.words {
            println!("in its own words:\n{}", indented(&words));
        }
        Ok(Learnt { model: self.bits, gzip, xz })
    }
}

fn indented(text: &str) -> String {
    // Control characters of an untrained model's bytes must not reach the terminal.
    let visible = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.lines().map(|line| format!("    {}\n", line.chars().map(visible).collect::<String>())).collect()
}
