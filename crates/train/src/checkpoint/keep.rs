//! Which checkpoints are kept, and how the others go.

use super::layout::{ASIDE_PREFIX, DOOMED_PREFIX, checkpoint_name, step_of};
use serde::{Deserialize, Serialize};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use toprope_world::{EntryKind, FileError, Files};

/// The checkpoints that stay: the last ones, and for good those at every so many steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepPolicy {
    /// So many of the newest stay.
    pub last: NonZeroU32,
    /// Those whose step is a multiple of this stay for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<NonZeroU64>,
}

impl Default for KeepPolicy {
    /// The last two, so that one is left when the newest turns out damaged.
    fn default() -> Self {
        Self { last: NonZeroU32::MIN.saturating_add(1), every_steps: None }
    }
}

/// What a policy did.
#[derive(Debug, Default)]
pub struct Kept {
    /// Checkpoints that were removed.
    pub removed: Vec<PathBuf>,
    /// What stopped it, if anything did; the checkpoints that it wanted to remove are there, or go with the next.
    pub error: Option<FileError>,
}

impl Kept {
    /// What somebody should be told.
    pub fn problems(&self) -> impl Iterator<Item = String> + use<'_> {
        self.error.iter().map(|error| format!("an old checkpoint was not removed: {error}"))
    }
}

impl KeepPolicy {
    /// Removes what the policy does not keep, once the checkpoint at `newest_step` is durable. Later steps than that
    /// are of a future that was skipped as damaged; they neither count nor go.
    pub fn apply(&self, files: &dyn Files, folder: &Path, newest_step: u64) -> Kept {
        let mut kept = Kept::default();
        kept.error = self.remove(files, folder, newest_step, &mut kept.removed).err();
        kept
    }

    fn remove(
        &self,
        files: &dyn Files,
        folder: &Path,
        newest_step: u64,
        removed: &mut Vec<PathBuf>,
    ) -> Result<(), FileError> {
        let mut steps: Vec<u64> = files
            .list(folder)?
            .iter()
            .filter(|entry| entry.kind == EntryKind::Folder)
            .filter_map(|entry| step_of(&entry.name))
            .filter(|&step| step <= newest_step)
            .collect();
        steps.sort_unstable_by(|left, right| right.cmp(left));
        let last = usize::try_from(self.last.get()).unwrap_or(usize::MAX);
        for &step in steps.iter().skip(last) {
            if self.every_steps.is_some_and(|every| step % every == 0) {
                continue;
            }
            // Out of sight first: one that is half removed must not look like one that is torn.
            let path = folder.join(checkpoint_name(step));
            let doomed = folder.join(format!("{DOOMED_PREFIX}{}", checkpoint_name(step)));
            files.rename(&path, &doomed)?;
            files.sync_folder(folder)?;
            removed.push(path);
            files.remove_folder(&doomed)?;
        }
        Ok(())
    }
}

/// Removes what a process that died left half written or half removed.
pub(super) fn remove_leftovers(files: &dyn Files, folder: &Path) -> Result<(), FileError> {
    for entry in files.list(folder)? {
        let step = entry.name.strip_prefix(ASIDE_PREFIX).or_else(|| entry.name.strip_prefix(DOOMED_PREFIX));
        if entry.kind == EntryKind::Folder && step.and_then(step_of).is_some() {
            files.remove_folder(&folder.join(&entry.name))?;
        }
    }
    Ok(())
}
