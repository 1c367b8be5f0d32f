//! A folder of its own for each test, with a tiny recipe on text that is there on every machine.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

#[path = "../../../formats/tests/support/copied.rs"]
pub mod copied;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

pub struct Case {
    pub folder: TempDir,
}

impl Case {
    pub fn new() -> Case {
        Case { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A tiny recipe on a file of this folder, with lines replaced.
    pub fn recipe(&self, changes: &[(&str, &str)]) -> PathBuf {
        let data = self.path("text.txt");
        if !data.exists() {
            std::fs::write(&data, text(20_000)).unwrap();
        }
        let mut recipe = include_str!("../../../../recipes/tiny-dense.toml").to_string();
        let source = recipe.lines().find(|line| line.starts_with("source = ")).unwrap().to_string();
        let files = format!(
            "source = \"files\"\ndocument_separator = \"\\n\\n\"\npaths = [{:?}]",
            data.display().to_string()
        );
        recipe = recipe.replace(&source, &files);
        for (from, to) in changes {
            assert!(recipe.contains(from), "{from} is not in the recipe");
            recipe = recipe.replacen(from, to, 1);
        }
        self.write("recipe.toml", recipe)
    }

    pub fn toprope(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_toprope"))
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    pub fn train(&self, recipe: &Path, more: &[&str]) -> Output {
        let mut arguments = vec!["train", recipe.to_str().unwrap(), "--run", "run", "--steps", "4"];
        arguments.extend(more);
        self.toprope(&arguments)
    }

    /// A run of four steps that ended well.
    pub fn trained(&self) -> PathBuf {
        let recipe = self.recipe(&[]);
        let output = self.train(&recipe, &["--set", "checkpoint.every=2"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        recipe
    }
}

pub fn text(bytes: usize) -> String {
    (0..bytes / 30).map(|i| format!("line {i} of a text to learn from\n\n")).collect()
}

/// The command failed with this code, its message holds all of `words`, and it did not panic.
#[track_caller]
pub fn fails(output: &Output, code: i32, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
    let errors = message.lines().filter(|line| line.starts_with("error:")).count();
    assert_eq!(errors, 1, "one error: {message}");
}

/// A record that is committed.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

/// A published tokenizer of the words `w0`, `w1` …, each a token; behind them the markers.
pub fn words_tokenizer(words: usize, markers: &[&str]) -> Value {
    let mut vocabulary: serde_json::Map<String, Value> =
        (0..words).map(|word| (format!("w{word}"), word.into())).collect();
    vocabulary.extend(markers.iter().zip(words..).map(|(marker, word)| (marker.to_string(), word.into())));
    let added: Vec<Value> = markers
        .iter()
        .zip(words..)
        .map(|(marker, word)| {
            json!({
                "id": word, "content": marker, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    })
}
