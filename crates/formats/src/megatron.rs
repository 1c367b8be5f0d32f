//! Checkpoints of Megatron-LM: a folder for each iteration, and in it a folder for each model-parallel rank with what
//! `torch.save` writes (or, in its newer form, a checkpoint of `torch.distributed` beside `common.pt`).

use crate::error::FormatError;
use crate::pickle::Pickle;
use crate::torch_file::TorchFile;
use crate::zip::Part;
use std::cmp::Ordering;
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

/// What the ranks of an iteration have.
pub(crate) struct Ranks {
    /// How many there are.
    pub(crate) count: usize,
    /// Their files, relative to the iteration's folder; each rank's model is before its optimizer.
    pub(crate) files: Vec<String>,
    /// The first optimizer's file that a rank lacks and another has: only where experts are parallel may one rank's be that of
    /// several.
    lacks: Option<String>,
}

fn missing(folder: &Path, what: String) -> FormatError {
    FormatError::Missing {
        path: folder.to_owned(),
        what,
        hint: "the save did not end, or the folder was not copied in full; take an older checkpoint".into(),
    }
}

/// The files of all ranks of an iteration.
///
/// # Errors
/// A rank, or its model, is not there.
pub(crate) fn ranks(files: &dyn Files, folder: &Path) -> Result<Ranks, FormatError> {
    let missing = |what: String| missing(folder, what);
    // A rank's folder names its place along each axis: tensor, then pipeline where there is more than one stage, then expert where
    // experts are parallel.
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
        let is_there = |name: &str| files.is_file(&folder.join(rank).join(name));
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
    let lacks = ranks.values().find(|rank| !with_optimizer.is_empty() && !with_optimizer.contains(rank));
    let lacks = lacks.map(|rank| format!("{rank}/{OPTIMIZER_FILE}"));
    Ok(Ranks { count: ranks.len(), files: names, lacks })
}

impl Ranks {
    /// Compares the ranks with the arguments of the training run, where the file `name` among theirs has them; gives whether it
    /// has.
    ///
    /// # Errors
    /// There are fewer or more than the run had, or one lacks its optimizer's file.
    pub(crate) fn check(&self, folder: &Path, name: &str, pickle: &Pickle) -> Result<bool, FormatError> {
        let Some(arguments) = pickle.entry(pickle.root(), "args") else { return Ok(false) };
        let size = |name: &str| pickle.size(pickle.field(arguments, "Namespace", name)?);
        let Some(tensor) = size("tensor_model_parallel_size") else { return Ok(false) };
        let pipeline = size("pipeline_model_parallel_size").unwrap_or(1);
        let expert = size("expert_model_parallel_size").unwrap_or(1);
        let wanted = u128::from(tensor) * u128::from(pipeline);
        let wanted = wanted.saturating_mul(expert.into());
        let there = self.count;
        match wanted.cmp(&(there as u128)) {
            Ordering::Greater => {
                let what = format!("a rank of the {wanted} by which {name} was written ({there} are there)");
                return Err(missing(folder, what));
            }
            Ordering::Less => {
                let what = format!("{name} was written by a run of {wanted} ranks, and {there} are there");
                return Err(FormatError::Surplus { path: folder.to_owned(), what });
            }
            Ordering::Equal => {}
        }
        if expert <= 1 {
            self.check_optimizers(folder)?;
        }
        Ok(true)
    }

    /// Checks that every rank has its optimizer's file, where one has.
    ///
    /// # Errors
    /// One has none.
    pub(crate) fn check_optimizers(&self, folder: &Path) -> Result<(), FormatError> {
        self.lacks.as_ref().map_or(Ok(()), |file| Err(missing(folder, file.clone())))
    }
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
