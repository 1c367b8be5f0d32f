//! Folders with files, and recipes that name them.

use std::path::Path;
use tempfile::TempDir;
use toprope_train::data::{DataConfig, DataError};

/// A folder with files; names may have folders in them.
pub fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        write(folder.path(), name, bytes);
    }
    folder
}

pub fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Trains on the named files of a folder, and holds nothing out.
pub fn all_of(folder: &Path, names: &[&str]) -> DataConfig {
    DataConfig {
        paths: names.iter().map(|name| folder.join(name).display().to_string()).collect(),
        validation_fraction: Some(0.0),
        ..DataConfig::default()
    }
}

/// The message, which must hold each of `parts`.
#[track_caller]
pub fn says(error: DataError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert_eq!(message.lines().count(), 1, "{message}");
}

/// Words that no other number gives.
pub fn words(seed: usize, count: usize) -> String {
    (0..count).map(|word| format!("word{seed}x{word} ")).collect()
}
