//! Files of published models and of checkpoints.

use crate::files;
use std::path::Path;
use toprope_formats::{Gguf, Tensors, find, read_file, verify};
use toprope_model::hub::{Hub, parse};
use toprope_model::{DeepseekV3Config, totals};
use toprope_train::tokenizer::PublishedTokenizer;

/// Elements of a tensor that are read.
const ELEMENTS_MAX: usize = 4096;

fn read(tensors: &Tensors) {
    for (name, record) in tensors.records() {
        let count = record.elements().min(ELEMENTS_MAX);
        if let Ok(numbers) = tensors.read_f32(name, record.elements() - count, count) {
            assert_eq!(numbers.len(), count, "{name}");
        }
        let _ = tensors.non_finite(name);
    }
}

/// A file of tensors.
pub(crate) fn safetensors(bytes: &[u8]) {
    let path = Path::new("/a.safetensors");
    let Some(files) = files(&[(path, bytes)]) else { return };
    if let Ok(tensors) = read_file(&files, path) {
        read(&tensors);
    }
}

/// A file of tensors, then the same as a model with its tokenizer.
pub(crate) fn gguf(bytes: &[u8]) {
    let path = Path::new("/a.gguf");
    let Some(files) = files(&[(path, bytes)]) else { return };
    if let Ok(file) = Gguf::open(&files, path) {
        read(&file.tensors);
    }
    let Ok(hub) = Hub::open(&files, path) else { return };
    let Ok(text) = hub.text(&files) else { return };
    let _ = hub.describe(&text);
    let _ = hub.each(hub.config().into(), |_, _| Ok::<(), toprope_model::hub::HubError>(()));
    if let Some((json, origin)) = text.tokenizer {
        let vocabulary = toprope_model::Architecture::from(hub.config()).vocab_size();
        speak(PublishedTokenizer::from_json(&json, &origin, vocabulary).ok().as_ref());
    }
}

/// A published configuration.
pub(crate) fn config(bytes: &[u8]) {
    if let Ok(published) = parse(bytes) {
        let _ = totals::totals(&published.config);
    }
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    if let Ok(config) = DeepseekV3Config::from_json(text) {
        let _ = totals::totals(&config);
    }
}

/// A published tokenizer, and what it says.
pub(crate) fn tokenizer(bytes: &[u8]) {
    speak(PublishedTokenizer::from_json(bytes, Path::new("tokenizer.json"), 1 << 10).ok().as_ref());
}

fn speak(tokenizer: Option<&PublishedTokenizer>) {
    let Some(tokenizer) = tokenizer else { return };
    for text in ["", "a cat sat 12 times,\n  é 猫 🙂\u{0}", "w1 w2"] {
        if let Ok(tokens) = tokenizer.encode(text, true) {
            let _ = tokenizer.decode(&tokens);
        }
    }
    let _ = tokenizer.decode(&[0, 1, 7, 1023, u32::MAX]);
}

/// What `torch.save` wrote, or the metadata of a checkpoint of torch.distributed with its items behind it: the first byte says
/// which, and how many KiB the metadata has.
pub(crate) fn checkpoint(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let contents: &[(&Path, &[u8])] = if *first == 0 {
        &[(Path::new("/a/pytorch_model.bin"), rest)]
    } else {
        let (metadata, _) = rest.split_at(rest.len().min(usize::from(*first) << 10));
        &[(Path::new("/a/.metadata"), metadata)]
    };
    let Some(files) = files(contents) else { return };
    if let Ok(found) = find(&files, Path::new("/a")) {
        for checkpoint in &found.checkpoints {
            let _ = verify(&files, checkpoint);
        }
    }
}
