//! Files, folders and patterns to a list of files, in an order that depends on their names alone.

use super::DataError;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The files that `entries` name, without repetition. `key` is the recipe's, for errors.
pub(super) fn expand(
    entries: &[String],
    extensions: &[String],
    key: &'static str,
) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    let mut taken = BTreeSet::new();
    let mut take = |path: PathBuf, files: &mut Vec<PathBuf>| {
        if taken.insert(path.clone()) {
            files.push(path);
        }
    };
    for entry in entries {
        let path = Path::new(entry);
        // What is there under that very name is meant, even if the name looks like a pattern.
        if path.exists() || !entry.contains(['*', '?', '[']) {
            for file in files_at(path, extensions, key)? {
                take(file, &mut files);
            }
            continue;
        }
        let mut matches = 0_usize;
        for path in matching(entry, key)? {
            if path.is_file() {
                matches += 1;
                take(path, &mut files);
            } else if path.is_dir() {
                // `**` yields the folders on its way too, and their files by themselves.
                continue;
            } else {
                return Err(DataError::NotRegular { path });
            }
        }
        if matches == 0 {
            return Err(DataError::NoMatch { pattern: entry.clone(), key });
        }
    }
    Ok(files)
}

fn matching(pattern: &str, key: &'static str) -> Result<Vec<PathBuf>, DataError> {
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let paths = glob::glob_with(pattern, options).map_err(|error| DataError::Pattern {
        pattern: pattern.to_owned(),
        position: error.pos,
        reason: error.msg,
        key,
    })?;
    let mut found = paths
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| DataError::Unreadable { path: error.path().to_owned(), source: error.into() })?;
    found.sort();
    Ok(found)
}

fn files_at(path: &Path, extensions: &[String], key: &'static str) -> Result<Vec<PathBuf>, DataError> {
    let kind = match fs::metadata(path) {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DataError::Missing { path: path.to_owned(), key });
        }
        Err(source) => return Err(DataError::Unreadable { path: path.to_owned(), source }),
    };
    if kind.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    if !kind.is_dir() {
        return Err(DataError::NotRegular { path: path.to_owned() });
    }
    let mut files = files_below(path)?;
    if !extensions.is_empty() {
        files.retain(|file| {
            let extension = file.extension().and_then(|e| e.to_str());
            extension.is_some_and(|e| extensions.iter().any(|taken| taken.eq_ignore_ascii_case(e)))
        });
    }
    if files.is_empty() {
        return Err(DataError::EmptyFolder { path: path.to_owned(), extensions: extensions.to_vec(), key });
    }
    Ok(files)
}

/// All regular files below a folder, sorted by path; hidden files and folders are left out, and links to folders are
/// not followed, so that a circle of links ends.
pub(super) fn files_below(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        let unreadable = |source| DataError::Unreadable { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            if entry.file_name().as_encoded_bytes().first() == Some(&b'.') {
                continue;
            }
            let path = entry.path();
            let kind =
                entry.file_type().map_err(|source| DataError::Unreadable { path: path.clone(), source })?;
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() || (kind.is_symlink() && path.is_file()) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
