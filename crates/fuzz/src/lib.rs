//! What is fuzzed: each way in from outside as a function of bytes. It may refuse them, and must neither panic, hang nor ask for
//! memory that they do not fill. `fuzz/` drives these functions guided by coverage; this crate's test runs the corpus that is
//! committed there.

mod published; // safetensors, GGUF, config.json, tokenizer.json
mod recipes; // recipes and program text
mod wire; // the worker protocol

use std::path::Path;
use toprope_world::Files;
use toprope_world::testing::MemoryFiles;

/// A way in.
pub struct Target {
    /// Its name, and its folder of the corpus.
    pub name: &'static str,
    /// Takes any bytes.
    pub entry: fn(&[u8]),
}

/// Every way in.
pub const TARGETS: [Target; 8] = [
    Target { name: "safetensors", entry: published::safetensors },
    Target { name: "gguf", entry: published::gguf },
    Target { name: "config", entry: published::config },
    Target { name: "tokenizer", entry: published::tokenizer },
    Target { name: "checkpoint", entry: published::checkpoint },
    Target { name: "recipe", entry: recipes::recipe },
    Target { name: "program", entry: recipes::program },
    Target { name: "protocol", entry: wire::protocol },
];

/// The way in of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// A file system in memory with these files.
fn files(contents: &[(&Path, &[u8])]) -> Option<MemoryFiles> {
    let files = MemoryFiles::new();
    for (path, bytes) in contents {
        let mut folders: Vec<&Path> = path.ancestors().skip(1).collect();
        folders.reverse();
        for folder in folders {
            if files.inspect(folder).ok()?.is_none() {
                files.create_folder(folder).ok()?;
            }
        }
        files.create(path).ok()?.write(bytes).ok()?;
    }
    Some(files)
}
