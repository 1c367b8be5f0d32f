//! Where CANN is looked for: the folder that was named, then what CANN's own scripts set, then the loader's path; last the
//! emulator beside the binary.

use crate::ffi::library::Libraries;
use std::fmt;
use std::path::{Path, PathBuf};

/// What CANN's `set_env.sh` sets, in the order in which its clients read them.
pub const VARIABLES: [&str; 2] = ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"];

/// One place that was tried, and why it did not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Who named the place.
    pub source: String,
    /// The folder; none for the loader's own search.
    pub folder: Option<PathBuf>,
    /// What was wrong with it.
    pub reason: String,
}

/// No place has a usable CANN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct NotFound {
    /// Every place, in order.
    pub tried: Vec<Tried>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no CANN found (libascendcl.so, libnnopbase.so, libopapi.so or its parts)")?;
        for tried in &self.tried {
            write!(f, "; {}", tried.source)?;
            if let Some(folder) = &tried.folder {
                write!(f, " {}", folder.display())?;
            }
            write!(f, ": {}", tried.reason)?;
        }
        f.write_str(
            "; source CANN's set_env.sh, or name the folder of its libraries as in ascend:0+library=DIR; without an NPU, \
             build the emulator (cargo build --release -p cann-emulator) and name its folder",
        )
    }
}

/// Loads the first CANN that serves.
pub(crate) fn load(
    named: Option<&Path>,
    variable: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Libraries, NotFound> {
    let places = places(named, variable);
    let mut tried = Vec::new();
    for (source, folder) in places {
        let attempt = match &folder {
            Place::Unset => Err("is not set".to_string()),
            Place::Folder(folder) => Libraries::load(Some(folder)),
            Place::Loader => Libraries::load(None),
            Place::Emulator(folder) => Libraries::load(Some(folder)).and_then(|libraries| {
                let is_emulator = libraries.emulator().is_some();
                is_emulator.then_some(libraries).ok_or_else(|| "is not the emulator".to_string())
            }),
        };
        match attempt {
            Ok(libraries) => return Ok(libraries),
            Err(reason) => {
                let folder = match folder {
                    Place::Folder(folder) | Place::Emulator(folder) => Some(folder),
                    Place::Unset | Place::Loader => None,
                };
                tried.push(Tried { source, folder, reason });
            }
        }
    }
    Err(NotFound { tried })
}

/// A place to look at.
enum Place {
    /// A variable that is not set.
    Unset,
    /// A folder.
    Folder(PathBuf),
    /// Where the loader looks by itself.
    Loader,
    /// A folder in which only the emulator serves.
    Emulator(PathBuf),
}

fn places(named: Option<&Path>, variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<(String, Place)> {
    if let Some(named) = named {
        // A folder that was named is meant: nothing else is taken in its place.
        return ["", "lib64"].map(|part| ("+library".into(), Place::Folder(named.join(part)))).into();
    }
    let mut places: Vec<(String, Place)> = VARIABLES
        .iter()
        .map(|name| {
            let place = variable(name).map_or(Place::Unset, |home| Place::Folder(home.join("lib64")));
            (name.to_string(), place)
        })
        .collect();
    places.push(("the loader's path".into(), Place::Loader));
    // In a checkout the emulator is built beside the binary; a CANN that is installed comes before it.
    let beside = std::env::current_exe().ok().and_then(|file| Some(file.parent()?.to_path_buf()));
    places.extend(beside.map(|folder| ("the emulator beside this binary".into(), Place::Emulator(folder))));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_tried_in_order() {
        let set = |name: &str| (name == VARIABLES[1]).then(|| PathBuf::from("/nowhere/cann"));
        let places = places(None, set);
        let sources: Vec<&str> = places.iter().map(|(source, _)| source.as_str()).collect();
        assert_eq!(
            sources,
            [
                "ASCEND_HOME_PATH",
                "ASCEND_TOOLKIT_HOME",
                "the loader's path",
                "the emulator beside this binary"
            ]
        );
        assert!(matches!(places[0].1, Place::Unset) && matches!(places[2].1, Place::Loader));
        assert!(matches!(&places[1].1, Place::Folder(folder) if folder.ends_with("cann/lib64")));
    }

    #[test]
    fn a_named_folder_is_the_only_place_and_is_told_with_what_was_wrong() {
        let error = load(Some(Path::new("/nowhere")), |_| Some("/elsewhere".into())).unwrap_err();
        assert!(error.tried.iter().all(|tried| tried.source == "+library"), "{error}");
        let text = error.to_string();
        assert!(text.contains("/nowhere/lib64/libascendcl.so: cannot open"), "{text}");
        assert!(text.contains("ascend:0+library=DIR"), "{text}");
    }
}
