//! The user's own Python.

use std::path::{Path, PathBuf};

/// Names the interpreter where the command line does not.
pub const VARIABLE: &str = "TOPROPE_PYTHON";

/// What is started where nobody says which.
const DEFAULT: &str = "python3";

/// No interpreter is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no Python interpreter `{}`{}; name the one that has torch with --python or TOPROPE_PYTHON",
    asked.display(),
    if *searched { " in PATH" } else { "" }
)]
pub struct NoInterpreter {
    /// What was looked for.
    pub asked: PathBuf,
    /// Whether it was looked for in PATH.
    pub searched: bool,
}

/// The interpreter: the one that was asked for, else the one of `TOPROPE_PYTHON`, else `python3`. A name without a folder
/// is looked up in PATH.
///
/// # Errors
/// There is none.
pub fn find(asked: Option<&Path>) -> Result<PathBuf, NoInterpreter> {
    let told = std::env::var_os(VARIABLE).filter(|told| !told.is_empty()).map(PathBuf::from);
    let asked = asked.map(Path::to_path_buf).or(told).unwrap_or_else(|| DEFAULT.into());
    let searched = asked.components().count() == 1 && !asked.is_absolute();
    if !searched {
        return if asked.is_file() { Ok(asked) } else { Err(NoInterpreter { asked, searched }) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(&asked)).find(|path| path.is_file());
    found.ok_or(NoInterpreter { asked, searched })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_mend() {
        let error = find(Some(Path::new("/nowhere/python"))).unwrap_err().to_string();
        assert!(error.contains("`/nowhere/python`;") && error.contains("--python"), "{error}");
        let error = find(Some(Path::new("python-of-nobody"))).unwrap_err().to_string();
        assert!(error.contains("in PATH"), "{error}");
    }
}
