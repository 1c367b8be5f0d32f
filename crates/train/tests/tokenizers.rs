//! Tokenizers of GGUF files beside what transformers makes of the same texts (`tests/golden/tokenizer_records.py`).

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use serde_json::Value;
use std::path::Path;
use toprope_model::Architecture;
use toprope_model::hub::Hub;
use toprope_train::tokenizer::PublishedTokenizer;
use toprope_world::{RealWorld, World};

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

#[test]
fn tokens_of_nasty_texts_are_those_of_transformers() {
    let world = RealWorld::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers");
    for cut in ["deepseek-v3", "gpt-2", "llama-bpe", "qwen2", "smollm"] {
        let hub = Hub::open(world.files(), &folder.join(format!("{cut}.gguf"))).unwrap();
        let (json, origin) = hub.text(world.files()).unwrap().tokenizer.unwrap();
        let vocabulary = Architecture::from(hub.config()).vocab_size();
        let tokenizer = PublishedTokenizer::from_json(&json, &origin, vocabulary).unwrap();
        let record = std::fs::read(folder.join(format!("{cut}.json"))).unwrap();
        let record: Vec<Value> = serde_json::from_slice(&record).unwrap();
        assert!(record.len() >= 20, "{cut}");
        for said in record {
            let hexadecimal = said["bytes"].as_str().unwrap();
            let byte = |at: usize| u8::from_str_radix(&hexadecimal[2 * at..2 * at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..hexadecimal.len() / 2).map(byte).collect();
            let text = String::from_utf8_lossy(&bytes);
            let want = tokens(&said["tokens"]);
            assert_eq!(tokenizer.encode(&text, true).unwrap(), want, "{cut}: {text:?}");
            let bare = tokenizer.encode(&text, false).unwrap();
            assert!(want.ends_with(&bare) && want.len() - bare.len() <= 1, "{cut}: {text:?}");
            // Beginnings of the tokens, characters cut in the middle among them.
            for (part, back) in said["back"].as_array().unwrap().iter().enumerate() {
                assert_eq!(&tokenizer.decode(&bare[..8 * part]), back.as_str().unwrap(), "{cut}: {text:?}");
            }
        }
    }
}
