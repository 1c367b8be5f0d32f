//! `toprope eval`: what a published model makes of tokens or of a text.

use crate::command::Eval;
use crate::exit::{Exit, Failure, OrExit};
use crate::progress::Counted;
use crate::verb::published;
use std::path::Path;
use toprope_formats::{FormatError, SafetensorsWriter};
use toprope_model::deepseek_v3::Inference;
use toprope_model::hub::Hub;
use toprope_model::{Architecture, ModelConfig};
use toprope_program::{Device, Range, Session};
use toprope_world::{RealWorld, World};

/// The longest text that is read.
const TEXT_BYTES_MAX: u64 = 1 << 30;
/// Tokens of a window where none are asked for.
const CONTEXT: usize = 512;

/// Evaluates.
pub fn run(arguments: &Eval, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    if let Some(path) = &arguments.logits
        && world.files().inspect(path).or_exit(Exit::Run)?.is_some()
    {
        let hint = "hint: name a file that is not there yet";
        return Err(Failure::new(
            Exit::Run,
            format!("--logits {}: it exists already\n{hint}", path.display()),
        ));
    }
    let hub = published::open(&world, &arguments.model)?;
    let config = hub.inference_config();
    match (&arguments.tokens, &arguments.data) {
        (Some(tokens), _) => of_tokens(&world, &hub, &config, tokens, arguments, json),
        (None, Some(path)) => of_text(&world, &hub, &config, path, arguments, json),
        (None, None) => {
            Err(Failure::new(Exit::Usage, "nothing to evaluate\nhint: give --data FILE, or --tokens 1,2,3"))
        }
    }
}

fn of_tokens(
    world: &RealWorld,
    hub: &Hub,
    config: &ModelConfig,
    tokens: &[i32],
    arguments: &Eval,
    json: bool,
) -> Result<Exit, Failure> {
    let vocabulary = Architecture::from(config).vocab_size();
    if let Some(token) =
        tokens.iter().find(|token| usize::try_from(**token).is_ok_and(|t| t >= vocabulary) || **token < 0)
    {
        let message =
            format!("--tokens: {token} is none of the {vocabulary} tokens of {}", hub.path().display());
        return Err(Failure::new(Exit::Usage, message));
    }
    let mut device = published::device(&arguments.device, arguments.threads)?;
    let mut session =
        published::session(hub, config, &mut *device, Inference::Logits, arguments.dtype, tokens.len())?;
    published::write_window(&mut *device, &mut session, tokens, 0)?;
    session.run(&mut *device, Range::Accumulate).or_exit(Exit::Device)?;
    let logits = session.read_f32(&mut *device, "logits").or_exit(Exit::Device)?;
    if let Some(path) = &arguments.logits {
        write_logits(world, path, &logits, vocabulary).or_exit(Exit::Run)?;
        println!("logits of {} tokens in {}", tokens.len(), path.display());
    }
    let best: Vec<usize> = logits.chunks_exact(vocabulary.max(1)).map(largest).collect();
    let loss = mean_loss(&logits, tokens, vocabulary);
    println!("likeliest next tokens {}", joined(&best));
    if let Some(loss) = loss {
        println!("loss {loss:.6} over {} tokens, perplexity {:.4}", tokens.len() - 1, loss.exp());
    }
    if json {
        println!("{}", serde_json::json!({ "loss": loss, "next": best, "tokens": tokens.len() }));
    }
    Ok(Exit::Done)
}

fn joined(tokens: &[usize]) -> String {
    tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn write_logits(
    world: &RealWorld,
    path: &Path,
    logits: &[f32],
    vocabulary: usize,
) -> Result<(), FormatError> {
    let shape = vec![logits.len() / vocabulary.max(1), vocabulary];
    let mut writer = SafetensorsWriter::create(world.files(), path, &[("logits".into(), shape)])?;
    writer.write(path, "logits", logits)?;
    writer.finish(path)
}

/// The first of the largest numbers.
fn largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, x) in row.iter().enumerate() {
        if *x > row[best] || row[best].is_nan() {
            best = index;
        }
    }
    best
}

/// The mean negative log-likelihood of each token behind the first, in f64.
fn mean_loss(logits: &[f32], tokens: &[i32], vocabulary: usize) -> Option<f64> {
    let rows = logits.chunks_exact(vocabulary.max(1));
    let losses = rows.zip(tokens.get(1..)?).map(|(row, target)| {
        let most = row.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x));
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        f64::from(most) + sum.ln() - f64::from(row[*target as usize])
    });
    let losses: Vec<f64> = losses.collect();
    (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
}

fn of_text(
    world: &RealWorld,
    hub: &Hub,
    config: &ModelConfig,
    path: &Path,
    arguments: &Eval,
    json: bool,
) -> Result<Exit, Failure> {
    let bytes = world.files().read(path, TEXT_BYTES_MAX).or_exit(Exit::Data)?;
    let length = bytes.len();
    let text = String::from_utf8(bytes).unwrap_or_else(|error| {
        let at = error.utf8_error().valid_up_to();
        eprintln!("note: {}: byte {at} is not UTF-8; such bytes are read as U+FFFD", path.display());
        String::from_utf8_lossy(error.as_bytes()).into_owned()
    });
    let tokenizer = published::tokenizer(&mut hub.text(world.files())?, config)?;
    let tokens = tokenizer.encode(&text, true).or_exit(Exit::Data)?;
    let tokens: Vec<i32> = tokens.into_iter().map(|token| token as i32).collect();
    if tokens.len() < 2 {
        return Err(Failure::new(
            Exit::Data,
            format!("{}: too short to predict anything in", path.display()),
        ));
    }
    let longest = Architecture::from(config).max_position_embeddings();
    let context = arguments.context.unwrap_or(CONTEXT.min(longest)).min(tokens.len());
    if context < 2 {
        return Err(Failure::new(Exit::Usage, "--context: a window has at least 2 tokens"));
    }
    let mut device = published::device(&arguments.device, arguments.threads)?;
    let mut session =
        published::session(hub, config, &mut *device, Inference::Losses, arguments.dtype, context)?;
    let progress = Counted::new("tokens", tokens.len() as u64 - 1);
    let (mut sum, mut count, mut begin) = (0.0, 0.0, 0);
    // Windows share one token: the last of one is the first of the next, so that each is predicted once.
    while begin + 1 < tokens.len() {
        let end = (begin + context).min(tokens.len());
        let (loss, targets) = window(&mut *device, &mut session, &tokens[begin..end])?;
        sum += loss;
        count += targets;
        begin = end - 1;
        progress.set(begin as u64, &format!("loss {:.4}", sum / count));
    }
    progress.finish();
    let loss = sum / count;
    let bits = sum / std::f64::consts::LN_2 / length as f64;
    println!(
        "{}: loss {loss:.6}, perplexity {:.4}, {bits:.4} bits per byte ({count} tokens, {} bytes, windows of {context}, {})",
        path.display(),
        loss.exp(),
        length,
        arguments.dtype,
    );
    if json {
        println!(
            "{}",
            serde_json::json!({
                "loss": loss, "perplexity": loss.exp(), "bits_per_byte": bits, "tokens": count,
                "bytes": length, "context": context,
            })
        );
    }
    Ok(Exit::Done)
}

/// The sum of losses of a window's tokens behind the first, and their number.
fn window(device: &mut dyn Device, session: &mut Session, tokens: &[i32]) -> Result<(f64, f64), Failure> {
    published::write_window(device, session, tokens, 0)?;
    let mut targets: Vec<i32> = tokens[1..].to_vec();
    targets.push(-1);
    session.write_i32(device, "targets", &targets).or_exit(Exit::Device)?;
    session.set_first(true);
    session.run(device, Range::Accumulate).or_exit(Exit::Device)?;
    let mut read = |name| session.read_scalar(device, name).or_exit(Exit::Device);
    Ok((f64::from(read("loss_sum")?), f64::from(read("target_count")?)))
}
