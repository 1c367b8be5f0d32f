//! Checkpoints of Megatron-LM: a folder for each iteration, and in it a folder for each model-parallel rank with what
//! `torch.save` writes (or, in its newer form, a checkpoint of `torch.distributed` beside `common.pt`).

use crate::error::FormatError;
use crate::pickle::Pickle;
use crate::torch_file::TorchFile;
use crate::zip::Part;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toprope_world::{EntryKind, Files};

/// How the names of ranks' folders begin.
pub(crate) const RANK_PREFIX: &str = "mp_rank_";
/// What every rank has, by its newer and its older name.
const MODEL_FILES: [&str; 2] = ["model_optim_rng.pt", "model_rng.pt"];
/// What every rank has where one has it.
const OPTIMIZER_FILE: &str = "distrib_optim.pt";
/// The file of the newer form that is not the model's.
pub(crate) const COMMON_FILE: &str = "common.pt";
/// The file that names the newest iteration.
pub(crate) const LATEST_FILE: &str = "latest_checkpointed_iteration.txt";

/// The files of all ranks of an iteration, relative to its folder.
///
/// # Errors
/// A rank, or a file that the others have, is not there.
pub(crate) fn rank_files(files: &dyn Files, folder: &Path) -> Result<Vec<String>, FormatError> {
    let missing = |what: String| FormatError::Missing {
        path: folder.to_owned(),
        what,
        hint: "the save did not end, or the folder was not copied in full; take an older checkpoint".into(),
    };
    // A rank's folder names its place along each axis: tensor, then pipeline, then expert.
    let mut ranks: BTreeMap<Vec<u64>, String> = BTreeMap::new();
    for entry in files.list(folder)? {
        let Some(places) = entry.name.strip_prefix(RANK_PREFIX) else { continue };
        let places: Option<Vec<u64>> = places.split('_').map(|place| place.parse().ok()).collect();
        if let (Some(places), EntryKind::Folder) = (places, entry.kind) {
            ranks.insert(places, entry.name);
        }
    }
    let axes = ranks.keys().next().map_or(0, Vec::len);
    if axes == 0 {
        return Err(missing(format!("{RANK_PREFIX}00")));
    }
    if ranks.keys().any(|places| places.len() != axes) {
        return Err(FormatError::Malformed {
            path: folder.to_owned(),
            place: "the ranks".into(),
            reason: "have folders of two kinds, with and without a pipeline's stage".into(),
        });
    }
    let ends: Vec<u64> =
        (0..axes).map(|axis| ranks.keys().map(|places| places[axis]).max().unwrap_or(0)).collect();
    // The first place in order that no folder has.
    let mut places = vec![0; axes];
    loop {
        if !ranks.contains_key(&places) {
            let digits = |axis: usize| if axis == 0 { 2 } else { 3 };
            let name: Vec<String> = places
                .iter()
                .enumerate()
                .map(|(axis, place)| format!("{place:0width$}", width = digits(axis)))
                .collect();
            return Err(missing(format!("{RANK_PREFIX}{}", name.join("_"))));
        }
        let Some(axis) = (0..axes).rev().find(|axis| places[*axis] < ends[*axis]) else { break };
        places[axis] += 1;
        places[axis + 1..].fill(0);
    }
    let mut names = Vec::new();
    let mut with_optimizer = BTreeSet::new();
    for rank in ranks.values() {
        let is_there = |name: &str| {
            let kind = files.inspect(&folder.join(rank).join(name))?;
            Ok::<_, FormatError>(matches!(kind, Some(EntryKind::File { .. })))
        };
        let mut model = None;
        for name in MODEL_FILES {
            if model.is_none() && is_there(name)? {
                model = Some(name);
            }
        }
        let model = model.ok_or_else(|| missing(format!("{rank}/{}", MODEL_FILES[0])))?;
        names.push(format!("{rank}/{model}"));
        if is_there(OPTIMIZER_FILE)? {
            with_optimizer.insert(rank);
            names.push(format!("{rank}/{OPTIMIZER_FILE}"));
        }
    }
    // Where there is an expert axis, the optimizer's file may be one replica's alone.
    let lacks = ranks.values().find(|rank| !with_optimizer.contains(rank));
    if let Some(rank) = lacks.filter(|_| !with_optimizer.is_empty() && axes < 3) {
        return Err(missing(format!("{rank}/{OPTIMIZER_FILE}")));
    }
    Ok(names)
}

/// How many ranks the arguments of a training run ask for, where a file has them.
pub(crate) fn ranks_wanted(pickle: &Pickle) -> Option<u64> {
    let arguments = pickle.entry(pickle.root(), "args")?;
    let size = |name: &str| pickle.size(pickle.field(arguments, "Namespace", name)?);
    let tensor = size("tensor_model_parallel_size")?;
    let pipeline = size("pipeline_model_parallel_size").unwrap_or(1);
    let expert = size("expert_model_parallel_size").unwrap_or(1);
    tensor.checked_mul(pipeline)?.checked_mul(expert)
}

/// One file of a rank.
///
/// # Errors
/// It is cut off or damaged.
pub(crate) fn rank_file(part: Part<'_>) -> Result<TorchFile, FormatError> {
    let file = TorchFile::read(part)?;
    file.archive.check(part)?;
    Ok(file)
}
