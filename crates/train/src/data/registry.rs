//! The default corpus: the Rust sources of the crates in Cargo's registry folder.
//!
//! What is taken depends on names, sizes and texts alone, not on the folder's place, nor on the hash in the index's
//! folder name, nor on the order in which the system lists files. Another set of crates makes another corpus; its hash
//! tells.

use super::corpus::{CorpusCounts, Document};
use super::paths::files_below;
use super::split::draw;
use super::{DataConfig, DataError, text};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Smaller files say little; they are lists of modules.
const FILE_BYTES_MIN: u64 = 256;
/// Larger files are made by programs: tables and bindings.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// No crate makes more than this part of what is trained on, so that a few of bindings do not rule.
const CRATE_SHARE: u64 = 16;
/// The same for what is held out, which comes from fewer crates.
const CRATE_SHARE_HELD_OUT: u64 = 4;

struct Source {
    /// Crate, version and path, with `/`: the document's name.
    name: String,
    path: PathBuf,
    bytes: u64,
}

/// Training and held-out documents, each sorted by crate, version and path.
pub(super) fn documents(
    config: &DataConfig,
    counts: &mut CorpusCounts,
) -> Result<(Vec<Document>, Vec<Document>), DataError> {
    let folder = cargo_home(config)?.join("registry").join("src");
    let crates = crates(&folder)?;
    let held_out = held_out_names(&crates, config, &folder)?;
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for ((name, version), path) in &crates {
        let side = if held_out.contains(name) { &mut validation } else { &mut training };
        side.push((format!("{name}-{version}"), sources(name, version, path)?));
    }
    let mut texts = BTreeSet::new();
    let training = select(training, config.max_bytes, CRATE_SHARE, config.seed, &mut texts, counts)?;
    let validation = select(
        validation,
        config.validation_max_bytes,
        CRATE_SHARE_HELD_OUT,
        config.seed,
        &mut texts,
        counts,
    )?;
    if training.is_empty() {
        return Err(DataError::NoRegistry { path: folder });
    }
    Ok((training, validation))
}

fn cargo_home(config: &DataConfig) -> Result<PathBuf, DataError> {
    if let Some(folder) = &config.cargo_home {
        return Ok(folder.clone());
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CARGO_HOME").or_else(|| Some(set("HOME")?.join(".cargo"))).ok_or(DataError::NoHome)
}

/// Crates by name and version; of one that lies under two indices the first is taken.
fn crates(folder: &Path) -> Result<BTreeMap<(String, String), PathBuf>, DataError> {
    let missing = || DataError::NoRegistry { path: folder.to_owned() };
    let mut found = BTreeMap::new();
    if !folder.is_dir() {
        return Err(missing());
    }
    for index in folders_in(folder)? {
        for path in folders_in(&index)? {
            let Some((name, version)) =
                path.file_name().and_then(|name| name.to_str()).and_then(name_and_version)
            else {
                continue;
            };
            found.entry((name.to_owned(), version.to_owned())).or_insert(path);
        }
    }
    if found.is_empty() {
        return Err(missing());
    }
    Ok(found)
}

fn folders_in(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let unreadable = |source| DataError::Unreadable { path: folder.to_owned(), source };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// Splits `md-5-0.10.6` into `md-5` and `0.10.6`: the version is the first rest that begins with three numbers.
fn name_and_version(folder: &str) -> Option<(&str, &str)> {
    folder.match_indices('-').map(|(at, _)| (&folder[..at], &folder[at + 1..])).find(|(name, version)| {
        let core = version.split(['-', '+']).next().unwrap_or_default();
        let mut numbers = core.split('.');
        let number = |part: Option<&str>| {
            part.is_some_and(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
        };
        !name.is_empty()
            && number(numbers.next())
            && number(numbers.next())
            && number(numbers.next())
            && numbers.next().is_none()
    })
}

/// Whole crates, all versions of one on one side, by the smallest draws over their names.
fn held_out_names(
    crates: &BTreeMap<(String, String), PathBuf>,
    config: &DataConfig,
    folder: &Path,
) -> Result<BTreeSet<String>, DataError> {
    let names: BTreeSet<&String> = crates.keys().map(|(name, _)| name).collect();
    let fraction = config.held_out_fraction();
    if fraction == 0.0 {
        return Ok(BTreeSet::new());
    }
    if names.len() < 2 {
        return Err(DataError::NothingToHoldOut {
            origin: folder.display().to_string(),
            found: names.len() as u64,
            unit: "crates",
            mend: "run `cargo fetch` in a Rust project with more dependencies, or set data.validation_fraction = 0",
        });
    }
    let count = ((names.len() as f64 * fraction).round() as usize).clamp(1, names.len() - 1);
    let mut drawn: Vec<_> =
        names.into_iter().map(|name| (draw("hold out crate", config.seed, name.as_bytes()), name)).collect();
    drawn.sort();
    Ok(drawn.into_iter().take(count).map(|(_, name)| name.clone()).collect())
}

/// A crate's Rust files of a sensible size.
fn sources(name: &str, version: &str, folder: &Path) -> Result<Vec<Source>, DataError> {
    let mut sources = Vec::new();
    for path in files_below(folder)? {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let bytes = std::fs::metadata(&path)
            .map_err(|source| DataError::Unreadable { path: path.clone(), source })?
            .len();
        if !(FILE_BYTES_MIN..=FILE_BYTES_MAX).contains(&bytes) {
            continue;
        }
        let Some(within) = path.strip_prefix(folder).ok().and_then(Path::to_str) else { continue };
        let within = within.replace(std::path::MAIN_SEPARATOR, "/");
        sources.push(Source { name: format!("{name}-{version}/{within}"), path, bytes });
    }
    Ok(sources)
}

/// Whole files by drawn order while they fit, none of a text that was taken before; sorted by name again.
fn select(
    crates: Vec<(String, Vec<Source>)>,
    limit_bytes: u64,
    share: u64,
    seed: u64,
    texts: &mut BTreeSet<[u8; 32]>,
    counts: &mut CorpusCounts,
) -> Result<Vec<Document>, DataError> {
    let mut drawn: Vec<(u64, usize, Source)> = Vec::new();
    for (index, (_, sources)) in crates.into_iter().enumerate() {
        drawn.extend(
            sources.into_iter().map(|source| (draw("select", seed, source.name.as_bytes()), index, source)),
        );
    }
    drawn.sort_by(|a, b| (a.0, &a.2.name).cmp(&(b.0, &b.2.name)));
    // A limit of a few files is not shared.
    let limit_of_crate = (limit_bytes / share).max(FILE_BYTES_MAX.min(limit_bytes));
    let mut of_crate: BTreeMap<usize, u64> = BTreeMap::new();
    let mut total = 0_u64;
    let mut documents = Vec::new();
    for (_, index, source) in drawn {
        let of_crate = of_crate.entry(index).or_default();
        if *of_crate + source.bytes > limit_of_crate {
            continue;
        }
        if total + source.bytes > limit_bytes {
            counts.limit_reached = true;
            continue;
        }
        let text = match text::read(&source.path, FILE_BYTES_MAX) {
            Ok((text, _)) => text,
            Err(DataError::NotUtf8 { .. }) => {
                counts.files_skipped += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        if !texts.insert(*blake3::hash(text.as_bytes()).as_bytes()) {
            counts.copies_dropped += 1;
            continue;
        }
        counts.files += 1;
        *of_crate += text.len() as u64;
        total += text.len() as u64;
        documents.push(Document::new(source.name, text));
    }
    documents.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::name_and_version;

    #[test]
    fn crate_folders_split_at_the_version() {
        for (folder, name, version) in [
            ("libc-0.2.191", "libc", "0.2.191"),
            ("md-5-0.10.6", "md-5", "0.10.6"),
            ("libc-1.0.0-alpha.5", "libc", "1.0.0-alpha.5"),
            ("toml-1.2.1+spec-1.1.0", "toml", "1.2.1+spec-1.1.0"),
            ("zstd-sys-2.0.13+zstd.1.5.6", "zstd-sys", "2.0.13+zstd.1.5.6"),
        ] {
            assert_eq!(name_and_version(folder), Some((name, version)));
        }
        for other in ["", "-1.0.0", "name", "name-1.0", "name-1.0.0.0", "name-x.1.2"] {
            assert_eq!(name_and_version(other), None, "{other}");
        }
    }
}
