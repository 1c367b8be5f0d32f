//! The tokens of texts, for `tests/golden/tokenizer_records.py`, which compares them with other programs':
//! `cargo run --release -p toprope-train --example tokens -- MODEL|tokenizer.json < TEXTS`. A line of the input is a text's
//! bytes in hexadecimal; a line of the output is its tokens, markers around it included, and the text that they give back.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use toprope_model::Architecture;
use toprope_model::hub::Hub;
use toprope_train::tokenizer::PublishedTokenizer;
use toprope_world::{RealWorld, World};

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).ok_or("name a model, or a tokenizer.json")?;
    let (path, world) = (Path::new(&model), RealWorld::new());
    let (json, origin, vocabulary) = if model.ends_with(".json") {
        (std::fs::read(path)?, path.to_owned(), usize::MAX)
    } else {
        let hub = Hub::open(world.files(), path)?;
        let text = hub.text(world.files())?;
        let (json, origin) = text.tokenizer.ok_or_else(|| text.no_tokenizer.unwrap_or_default())?;
        (json, origin, Architecture::from(hub.config()).vocab_size())
    };
    let tokenizer = PublishedTokenizer::from_json(&json, &origin, vocabulary)?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let bytes: Result<Vec<u8>, _> =
            (0..line.len() / 2).map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16)).collect();
        let tokens = tokenizer.encode(&String::from_utf8_lossy(&bytes?), true)?;
        let said = serde_json::json!({ "tokens": tokens, "text": tokenizer.decode(&tokens) });
        writeln!(out, "{said}")?;
    }
    Ok(())
}
