//! Files of published models and of checkpoints.

use crate::files;
use std::path::Path;
use toprope_formats::{Contents, FormatError, Gguf, Tensors, find, read_file, verify};
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

/// The first byte of a checkpoint that is two ranks of Megatron's.
const RANKS: u8 = 255;

/// What `torch.save` wrote, two ranks of Megatron's that wrote the same, or the metadata of a checkpoint of torch.distributed
/// with a file of items behind it: the first byte says which, and how many KiB the metadata has.
pub(crate) fn checkpoint(bytes: &[u8]) {
    let _ = verified(bytes);
}

/// What was found of each checkpoint there.
fn verified(bytes: &[u8]) -> Option<Vec<Result<Contents, FormatError>>> {
    let (first, rest) = bytes.split_first()?;
    let contents: &[(&Path, &[u8])] = match *first {
        0 => &[(Path::new("/a/pytorch_model.bin"), rest)],
        RANKS => &[
            (Path::new("/a/mp_rank_00/model_optim_rng.pt"), rest),
            (Path::new("/a/mp_rank_01/model_optim_rng.pt"), rest),
        ],
        kibibytes => {
            let (metadata, items) = rest.split_at(rest.len().min(usize::from(kibibytes) << 10));
            &[(Path::new("/a/.metadata"), metadata), (Path::new("/a/__0_0.distcp"), items)]
        }
    };
    let files = files(contents)?;
    let found = find(&files, Path::new("/a")).ok()?;
    Some(found.checkpoints.iter().map(|checkpoint| verify(&files, checkpoint)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::verified;
    use std::path::Path;

    /// Each form has an input that is whole, so that changes to it get behind every check.
    #[test]
    fn the_corpus_has_whole_checkpoints_of_every_form() {
        for (name, tensors) in [("pickled", 2), ("dcp", 3), ("megatron", 16)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/checkpoint").join(name);
            let found = verified(&std::fs::read(path).unwrap()).unwrap();
            let [Ok(contents)] = found.as_slice() else { panic!("{name}: {found:?}") };
            assert_eq!((contents.tensors, contents.non_finite.len()), (tensors, 0), "{name}: {contents:?}");
        }
    }
}
