//! `toprope inspect --verify`: from the newest checkpoint of a folder on, whether each is whole and its numbers are numbers, until
//! one is intact.

use crate::exit::{Exit, Failure, OrExit};
use crate::progress::bytes;
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use toprope_formats::{CheckpointFolder, CheckpointKind, Contents, FormatError, NonFiniteTensor, printable};
use toprope_model::hub::{Hub, HubError};
use toprope_train::checkpoint::{self, CHECKPOINTS_FOLDER};
use toprope_world::{EntryKind, Files, RealWorld, World};

/// Tensors with numbers that are none, as many as are told by name.
const NAMED: usize = 8;

/// One checkpoint, by its form.
struct Candidate {
    path: PathBuf,
    form: Form,
}

enum Form {
    /// Another program's.
    Foreign(CheckpointFolder),
    /// A run's of ours.
    Own,
}

impl Form {
    fn name(&self) -> String {
        match self {
            Form::Foreign(folder) => folder.kind.to_string(),
            Form::Own => "Toprope".into(),
        }
    }
}

/// What a checkpoint was found to be.
enum Verdict {
    /// Whole; numbers may not be finite.
    Whole(Contents),
    /// Something is missing, damaged or contradicts.
    Damaged(String),
}

/// Verifies a folder.
pub(super) fn run(folder: &Path, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    let (candidates, latest) = candidates(world.files(), folder)?;
    let mut told = Vec::new();
    let mut intact = None;
    let mut unread = 0;
    let wide = candidates.iter().map(|candidate| shown(folder, &candidate.path).len()).max().unwrap_or(0);
    for candidate in &candidates {
        if intact.is_some() {
            unread += 1;
            continue;
        }
        let name = shown(folder, &candidate.path);
        if std::io::stderr().is_terminal() {
            eprintln!("reading {name} …");
        }
        let verdict = verdict(&world, candidate);
        println!("{name:wide$}  {}", words(&verdict));
        if let Verdict::Whole(contents) = &verdict {
            for tensor in contents.non_finite.iter().take(NAMED) {
                println!("{:wide$}  - {}", "", non_finite(tensor, &candidate.path));
            }
            if contents.non_finite.len() > NAMED {
                println!("{:wide$}  - and {} more tensors", "", contents.non_finite.len() - NAMED);
            }
            if contents.non_finite.is_empty() {
                intact = Some(candidate);
            }
        }
        told.push(record(candidate, &verdict));
    }
    if unread > 0 {
        println!("{unread} older {} not read", if unread == 1 { "one was" } else { "ones were" });
    }
    let newest_is_intact =
        intact.is_some_and(|intact| candidates.first().is_some_and(|newest| newest.path == intact.path));
    match intact {
        Some(intact) => println!("newest intact  {} ({})", intact.path.display(), intact.form.name()),
        None => println!("newest intact  none"),
    }
    if let Some(latest) = latest.as_deref().filter(|latest| !is_named(latest, intact)) {
        let latest = printable(latest);
        println!("note           latest_checkpointed_iteration.txt says {latest}, which is another one");
    }
    if json {
        let intact = intact.map(|intact| intact.path.display().to_string());
        println!(
            "{}",
            json!({ "checkpoints": told, "newest_intact": intact, "unread": unread, "latest": latest })
        );
    }
    Ok(if newest_is_intact { Exit::Done } else { Exit::Run })
}

/// The checkpoints of a folder, newest first, and the iteration that it says is the newest.
fn candidates(files: &dyn Files, folder: &Path) -> Result<(Vec<Candidate>, Option<String>), Failure> {
    let is_folder = |path: &Path| {
        Ok::<_, Failure>(matches!(files.inspect(path).or_exit(Exit::Run)?, Some(EntryKind::Folder)))
    };
    if !is_folder(folder)? {
        let hint = "hint: name the folder of a checkpoint, or of several";
        return Err(Failure::new(Exit::Run, format!("{}: it is no folder\n{hint}", folder.display())));
    }
    let own = |path: PathBuf| Candidate { path, form: Form::Own };
    if checkpoint::is_checkpoint(files, folder).or_exit(Exit::Run)? {
        return Ok((vec![own(folder.to_owned())], None));
    }
    for within in [folder.join(CHECKPOINTS_FOLDER), folder.to_owned()] {
        if is_folder(&within)? {
            let there = checkpoint::newest_first(files, &within).or_exit(Exit::Run)?;
            if !there.is_empty() {
                return Ok((there.into_iter().map(own).collect(), None));
            }
        }
    }
    let found = toprope_formats::find(files, folder).map_err(failure)?;
    let foreign =
        |folder: CheckpointFolder| Candidate { path: folder.path.clone(), form: Form::Foreign(folder) };
    Ok((found.checkpoints.into_iter().map(foreign).collect(), found.latest))
}

fn failure(error: FormatError) -> Failure {
    Failure::new(Exit::Run, error)
}

fn verdict(world: &dyn World, candidate: &Candidate) -> Verdict {
    let verified = match &candidate.form {
        Form::Foreign(folder) => toprope_formats::verify(world.files(), folder),
        Form::Own => match checkpoint::open(world, &candidate.path) {
            // Every hash holds; what is left are the numbers.
            Ok(loaded) => toprope_formats::verify_file(world.files(), &loaded.state_path()),
            Err(error) => return Verdict::Damaged(error.to_string()),
        },
    };
    let contradicted = || match &candidate.form {
        Form::Foreign(folder) if folder.kind == CheckpointKind::HuggingFace => {
            contradiction(world.files(), &folder.path)
        }
        _ => None,
    };
    match verified {
        Ok(contents) => contradicted().map_or(Verdict::Whole(contents), Verdict::Damaged),
        Err(error) => Verdict::Damaged(error.to_string()),
    }
}

/// The tensor that `config.json` asks for and the files do not have, or the other way round. A model that is not known here
/// may still be whole.
fn contradiction(files: &dyn Files, folder: &Path) -> Option<String> {
    match Hub::open(files, folder) {
        Err(error @ HubError::Tensor { .. }) => Some(error.to_string()),
        _ => None,
    }
}

fn words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Damaged(reason) => format!("not intact: {}", reason.replace('\n', "\n    ")),
        Verdict::Whole(contents) => {
            let held = format!(
                "{} tensors in {} file{}, {}",
                contents.tensors,
                contents.files,
                if contents.files == 1 { "" } else { "s" },
                bytes(contents.bytes)
            );
            match contents.non_finite.len() {
                0 => format!("intact: {held}, all numbers finite"),
                1 => format!("complete, and one tensor has numbers that are not finite ({held})"),
                count => format!("complete, and {count} tensors have numbers that are not finite ({held})"),
            }
        }
    }
}

fn non_finite(tensor: &NonFiniteTensor, folder: &Path) -> String {
    let file = tensor.file.strip_prefix(folder).unwrap_or(&tensor.file);
    format!(
        "{}: {} NaN and {} infinite of {} ({})",
        printable(&tensor.tensor),
        tensor.count.nan,
        tensor.count.infinite,
        tensor.elements,
        printable(&file.to_string_lossy())
    )
}

/// A checkpoint's place within the folder that was named.
fn shown(folder: &Path, path: &Path) -> String {
    match path.strip_prefix(folder) {
        Ok(rest) if !rest.as_os_str().is_empty() => printable(&rest.to_string_lossy()).into_owned(),
        _ => path.display().to_string(),
    }
}

fn is_named(latest: &str, intact: Option<&Candidate>) -> bool {
    match intact.map(|intact| &intact.form) {
        Some(Form::Foreign(folder)) => {
            latest.parse::<u64>().is_ok_and(|latest| folder.number == Some(latest))
                || folder.path.file_name().is_some_and(|name| name.to_string_lossy() == latest)
        }
        _ => false,
    }
}

fn record(candidate: &Candidate, verdict: &Verdict) -> serde_json::Value {
    let path = candidate.path.display().to_string();
    match verdict {
        Verdict::Damaged(reason) => {
            json!({ "path": path, "form": candidate.form.name(), "complete": false, "reason": reason })
        }
        Verdict::Whole(contents) => {
            let tensors: Vec<serde_json::Value> = contents
                .non_finite
                .iter()
                .map(|tensor| {
                    json!({
                        "tensor": tensor.tensor, "file": tensor.file.display().to_string(), "nan": tensor.count.nan,
                        "infinite": tensor.count.infinite, "elements": tensor.elements,
                    })
                })
                .collect();
            json!({
                "path": path, "form": candidate.form.name(), "complete": true, "tensors": contents.tensors,
                "files": contents.files, "bytes": contents.bytes, "non_finite": tensors,
            })
        }
    }
}
