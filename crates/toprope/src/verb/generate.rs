//! `toprope generate` and `toprope chat`: text in a published model's words, as it is made.

use crate::command::{Chat, Decoding, Generate};
use crate::exit::{Exit, Failure, OrExit};
use crate::verb::published;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;
use toprope_model::Architecture;
use toprope_model::deepseek_v3::Inference;
use toprope_model::hub::{Hub, Text};
use toprope_program::{Device, Range, Session, philox};
use toprope_train::chat_template::ChatTemplate;
use toprope_train::sample::choose;
use toprope_train::tokenizer::PublishedTokenizer;
use toprope_world::{Clock, RealWorld, World};

/// Tokens of a prompt that go through the model at once.
const WINDOW: usize = 512;
/// Rows of the caches where none are asked for.
const CONTEXT: usize = 2048;

/// Continues a prompt.
pub fn generate(arguments: &Generate, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    let (hub, text) = opened(&world, &arguments.model)?;
    let mut speaker = Speaker::new(&hub, text, &arguments.decoding)?;
    let prompt = speaker.tokenizer.encode(&arguments.prompt, true).or_exit(Exit::Data)?;
    if prompt.is_empty() {
        let hint = "hint: give --prompt some text; the model has no token that begins one";
        return Err(Failure::new(Exit::Usage, format!("the prompt has no tokens\n{hint}")));
    }
    if arguments.warm_up {
        speaker.warm_up(&prompt)?;
    }
    print!("{}", arguments.prompt);
    std::io::stdout().flush().or_exit(Exit::Internal)?;
    let answer = speaker.answer(world.clock(), &prompt)?;
    println!();
    eprintln!("{}", answer.speed());
    if json {
        let text = speaker.tokenizer.decode(&answer.made);
        let device = speaker.device.describe();
        println!(
            "{}",
            serde_json::json!({
                "prompt": prompt, "tokens": answer.made, "text": text,
                "prefill_seconds": answer.prefill.as_secs_f64(), "decode_seconds": answer.decode.as_secs_f64(),
                "device": device.name, "level": device.level, "threads": device.units,
            })
        );
    }
    Ok(Exit::Done)
}

/// Talks: a line is a message.
pub fn chat(arguments: &Chat, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    let (hub, text) = opened(&world, &arguments.model)?;
    let template = ChatTemplate::new(&arguments.model, &text).or_exit(Exit::Recipe)?;
    let said = |role: &str, text: &str| serde_json::json!({ "role": role, "content": text });
    let mut messages: Vec<serde_json::Value> =
        arguments.system.iter().map(|text| said("system", text)).collect();
    // A template that fails does so here, before the weights are read.
    let first = [messages.as_slice(), &[said("user", "hello")]].concat();
    template.render(&first, None, true).or_exit(Exit::Recipe)?;
    let mut speaker = Speaker::new(&hub, text, &arguments.decoding)?;
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        eprintln!("a line is a message; an empty line or Ctrl-D ends");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if terminal {
            eprint!("> ");
        }
        let Some(line) = lines.next().transpose().or_exit(Exit::Data)?.filter(|line| !line.trim().is_empty())
        else {
            break;
        };
        messages.push(said("user", &line));
        let prompt = template.render(&messages, None, true).or_exit(Exit::Recipe)?;
        let prompt = speaker.tokenizer.encode(&prompt, false).or_exit(Exit::Data)?;
        let answer = speaker.answer(world.clock(), &prompt);
        if let (Err(_), true) = (&answer, json) {
            // What was said so far is not lost with it.
            println!("{}", serde_json::json!({ "messages": messages }));
        }
        let answer = answer?;
        println!();
        if terminal {
            eprintln!("({})", answer.speed());
        }
        messages.push(said("assistant", &speaker.tokenizer.decode(&answer.made)));
    }
    if json {
        println!("{}", serde_json::json!({ "messages": messages }));
    }
    Ok(Exit::Done)
}

/// A model with every header checked and no weight in memory, and what its files say of text.
fn opened(world: &dyn World, model: &Path) -> Result<(Hub, Text), Failure> {
    let hub = published::open(world, model)?;
    let text = hub.text(world.files())?;
    Ok((hub, text))
}

/// What a model went on with.
struct Answer {
    /// Tokens, without the one that ends.
    made: Vec<u32>,
    /// Tokens of the prompt that went through the model, and the time until their logits were there.
    read: usize,
    prefill: Duration,
    /// Tokens that went through the model one by one, and their time in all.
    steps: usize,
    decode: Duration,
}

impl Answer {
    /// Tokens and their rates, in words.
    fn speed(&self) -> String {
        let rate = |tokens: usize, time: Duration| match time.is_zero() || tokens == 0 {
            true => String::new(),
            false => format!(
                " in {:.2} s ({:.0} tokens/s)",
                time.as_secs_f64(),
                tokens as f64 / time.as_secs_f64()
            ),
        };
        format!(
            "{} tokens read{}; {} made{}",
            self.read,
            rate(self.read, self.prefill),
            self.made.len(),
            rate(self.steps, self.decode)
        )
    }
}

/// A model that goes on from tokens; what it read before stays in its caches.
struct Speaker {
    device: Box<dyn Device>,
    session: Session,
    tokenizer: PublishedTokenizer,
    text: Text,
    decoding: Decoding,
    capacity: usize,
    /// Tokens whose rows the caches hold.
    read: Vec<u32>,
    /// Tokens that were ever chosen: each draw has numbers of its own.
    drawn: u32,
}

impl Speaker {
    fn new(hub: &Hub, mut text: Text, decoding: &Decoding) -> Result<Speaker, Failure> {
        let config = hub.inference_config();
        let longest = Architecture::from(&config).max_position_embeddings();
        let tokenizer = published::tokenizer(&mut text, &config)?;
        let capacity = decoding.context.unwrap_or(CONTEXT.min(longest));
        let mut device = published::device(&decoding.device, decoding.threads)?;
        let what = Inference::Cached { window: WINDOW };
        let session = published::session(hub, &config, &mut *device, what, decoding.dtype, capacity)?;
        let decoding = decoding.clone();
        Ok(Speaker { device, session, tokenizer, text, decoding, capacity, read: Vec::new(), drawn: 0 })
    }

    /// Goes on from a prompt, printing as it does.
    fn answer(&mut self, clock: &dyn Clock, prompt: &[u32]) -> Result<Answer, Failure> {
        let began = clock.monotonic();
        // What the caches hold of it already need not go through the model again; the last token gives the first logits.
        let shared = self.read.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let shared = shared.min(prompt.len().saturating_sub(1));
        self.read.truncate(shared);
        let mut logits = Vec::new();
        for part in prompt[shared..].chunks(WINDOW) {
            logits = self.step(part)?;
        }
        let prefill = clock.monotonic().saturating_sub(began);
        let (mut made, mut shown, mut steps) = (Vec::new(), 0, 0);
        while made.len() < self.decoding.max_tokens {
            let token = self.chosen(&logits).ok_or_else(|| {
                let hint = "hint: try --dtype f32; where they are none there either, a weight of the model is not finite";
                Failure::new(Exit::Data, format!("the logits are no numbers\n{hint}"))
            })?;
            if self.text.ends.contains(&token) && !self.decoding.ignore_end {
                break;
            }
            made.push(token);
            shown = self.show(&made, shown)?;
            if made.len() == self.decoding.max_tokens {
                break;
            }
            if self.read.len() == self.capacity {
                eprintln!(
                    "\nnote: the context of {} is full; --context asks for a longer one",
                    self.capacity
                );
                break;
            }
            logits = self.step(&[token])?;
            steps += 1;
        }
        let decode = clock.monotonic().saturating_sub(began).saturating_sub(prefill);
        Ok(Answer { made, read: prompt.len() - shared, prefill, steps, decode })
    }

    /// Reads a prompt and forgets it.
    fn warm_up(&mut self, prompt: &[u32]) -> Result<(), Failure> {
        for part in prompt.chunks(WINDOW) {
            self.step(part)?;
        }
        self.read.clear();
        Ok(())
    }

    /// The logits behind some more tokens.
    fn step(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Failure> {
        let from = self.read.len();
        if from + tokens.len() > self.capacity {
            let message = format!(
                "{} tokens do not fit the context of {}\nhint: --context asks for a longer one",
                from + tokens.len(),
                self.capacity
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        let (device, session) = (&mut *self.device, &mut self.session);
        let numbers: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
        published::write_window(device, session, &numbers, from)?;
        let row = tokens.len().saturating_sub(1);
        let place = [("position", from), ("cache_length", from + tokens.len()), ("row", row)];
        for (name, value) in place {
            session.write_i32(device, name, &[value as i32]).or_exit(Exit::Device)?;
        }
        session.run(device, Range::Accumulate).or_exit(Exit::Device)?;
        let logits = session.read_f32(device, "logits").or_exit(Exit::Device)?;
        self.read.extend_from_slice(tokens);
        Ok(logits)
    }

    fn chosen(&mut self, logits: &[f32]) -> Option<u32> {
        let seed = self.decoding.seed;
        let bits = philox::block([self.drawn, 0, 0, 0x6E5], [seed as u32, (seed >> 32) as u32]);
        self.drawn = self.drawn.wrapping_add(1);
        let uniform = (f64::from(bits[0]) + 0.5) / 4_294_967_296.0;
        let kept = nucleus(logits, self.decoding.temperature, self.decoding.top_p);
        choose(&kept, self.decoding.temperature, uniform).map(|token| token as u32)
    }

    /// Prints what is new; a character that is not whole yet waits for its other bytes.
    fn show(&self, made: &[u32], shown: usize) -> Result<usize, Failure> {
        let text = self.tokenizer.decode(made);
        if text.ends_with('\u{fffd}') {
            return Ok(shown);
        }
        let mut out = std::io::stdout().lock();
        let written =
            out.write_all(text.get(shown..).unwrap_or_default().as_bytes()).and_then(|()| out.flush());
        written.or_exit(Exit::Internal)?;
        Ok(text.len())
    }
}

/// Logits with all but the likeliest tokens, which together have the probability `top_p`, ruled out (nucleus sampling,
/// arXiv 1904.09751).
fn nucleus(logits: &[f32], temperature: f64, top_p: f64) -> Vec<f32> {
    let mut kept = logits.to_vec();
    if temperature <= 0.0 || top_p >= 1.0 {
        return kept;
    }
    let mut order: Vec<usize> = (0..logits.len()).filter(|at| logits[*at].is_finite()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let Some(most) = order.first().map(|at| logits[*at]) else { return kept };
    let weight = |at: usize| (f64::from(logits[at] - most) / temperature).exp();
    let total: f64 = order.iter().map(|at| weight(*at)).sum();
    let mut sum = 0.0;
    for at in order {
        if sum >= top_p * total {
            kept[at] = f32::NEG_INFINITY;
        }
        sum += weight(at);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::nucleus;

    #[test]
    fn only_the_likeliest_are_kept() {
        let logits = [0.0f32, 2.0, 1.0, -9.0];
        let kept = nucleus(&logits, 1.0, 0.7);
        assert_eq!(kept, [f32::NEG_INFINITY, 2.0, 1.0, f32::NEG_INFINITY]);
        assert_eq!(nucleus(&logits, 1.0, 1e-9)[1], 2.0);
        assert_eq!(nucleus(&logits, 0.0, 0.1), logits);
    }
}
