//! What can be wrong with a file.

use std::borrow::Cow;
use std::path::PathBuf;
use toprope_world::FileError;

/// The most characters of a name out of a file that are shown, and of a sentence around such names.
const NAME_CHARS: usize = 200;
const SENTENCE_CHARS: usize = 1000;

/// A name out of a file as it may be shown: its control characters, which could move a terminal's cursor or change its colours,
/// are escaped, and a long one is cut.
pub fn printable(name: &str) -> Cow<'_, str> {
    cut(name, NAME_CHARS)
}

/// A sentence with names out of a file, as [`printable`] shows them.
fn sentence(text: &str) -> Cow<'_, str> {
    cut(text, SENTENCE_CHARS)
}

fn cut(text: &str, most: usize) -> Cow<'_, str> {
    // Beside controls: marks that turn the direction of writing, or cannot be seen.
    let is_plain = |c: char| !c.is_control() && (c.is_ascii() || c.escape_debug().count() == 1);
    if text.len() <= most && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == most {
            shown.push_str(" …");
            break;
        }
        if is_plain(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
    }
    Cow::Owned(shown)
}

/// Why a file is refused. Each message names the file, the place in it and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The system could not read or write it.
    #[error(transparent)]
    File(#[from] FileError),
    /// It ends before something that it announces.
    #[error(
        "{}: {} needs {needed} bytes and the file has {there}\nhint: the file was cut off or is no such file; get it again",
        path.display(),
        printable(place)
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is not whole.
        place: String,
        /// Bytes from the file's start to the end of what is announced.
        needed: u128,
        /// The file's length.
        there: u64,
    },
    /// It is not what its name says.
    #[error(
        "{}: {}: {}\nhint: the file is damaged or of another format; get it again",
        path.display(),
        printable(place),
        sentence(reason)
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// It has a form that is not read here, and may be whole.
    #[error(
        "{}: {}: {}\nhint: this form is not read here, which says nothing of the numbers; save it in another, or check it with \
         the program that wrote it",
        path.display(),
        printable(place),
        sentence(reason)
    )]
    UnsupportedForm {
        /// The file.
        path: PathBuf,
        /// Where.
        place: String,
        /// What is not read.
        reason: String,
    },
    /// Two tensors claim the same bytes.
    #[error(
        "{}: tensors `{}` and `{}` overlap\nhint: the header lies about its offsets; get the file again",
        path.display(),
        printable(first),
        printable(second)
    )]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The one that begins first.
        first: String,
        /// The one that begins before the first ends.
        second: String,
    },
    /// Two files have a tensor of one name.
    #[error(
        "{}: tensor `{}` is also in {}\nhint: remove the shard that is not of this model",
        path.display(),
        printable(name),
        other.display()
    )]
    Twice {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The other file.
        other: PathBuf,
    },
    /// An index names a file that is not there.
    #[error(
        "{}: the index names the shard {}, which is not there\nhint: get the missing file",
        index.display(),
        printable(shard)
    )]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The file's name.
        shard: String,
    },
    /// A folder without weights.
    #[error(
        "{}: there is no model here: neither {} nor {}\nhint: name a folder as published, or a .gguf file",
        path.display(),
        crate::INDEX_FILE,
        crate::SINGLE_FILE
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A tensor is not there.
    #[error("{}: there is no tensor `{}`", path.display(), printable(name))]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is stored in a way that cannot be read.
    #[error(
        "{}: tensor `{}` is stored as {stored}, which is not supported\nhint: supported are {supported}",
        path.display(),
        printable(name)
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// How it is stored.
        stored: String,
        /// What would be read.
        supported: String,
    },
    /// A pickle asks for what no checkpoint needs.
    #[error(
        "{}: {place}: it asks for {}, which is not among what checkpoints of PyTorch need; nothing was run\nhint: a \
         pickle can run anything when it is loaded; load this one only where you trust its maker",
        path.display(),
        printable(what)
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Where.
        place: String,
        /// The class, function or opcode.
        what: String,
    },
    /// A member of an archive changed.
    #[error(
        "{}: `{}` does not match its CRC32\nhint: the file is damaged; get it again (or it was saved under \
         torch.serialization.set_crc32_options(False))",
        path.display(),
        printable(member)
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The member.
        member: String,
    },
    /// A file or folder that belongs to a checkpoint is not there.
    #[error("{}: {what} is missing\nhint: {hint}", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
        /// What is not there.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A folder has more of a checkpoint than belongs to it.
    #[error("{}: {what}\nhint: the rest is another run's, or of a save with other settings; move aside what is older", path.display())]
    Surplus {
        /// The folder.
        path: PathBuf,
        /// What there is, and what belongs to it.
        what: String,
    },
    /// A folder without any checkpoint that is known.
    #[error(
        "{}: there is no checkpoint here\nhint: name the folder of a Hugging Face, PyTorch DCP, Megatron or Toprope \
         checkpoint, or a folder of several",
        path.display()
    )]
    NoCheckpoint {
        /// The folder.
        path: PathBuf,
    },
    /// There is no memory for a tensor.
    #[error("{}: no memory for the {elements} elements of `{}`", path.display(), printable(name))]
    Memory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its elements.
        elements: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn names_out_of_files_do_nothing_to_a_terminal() {
        assert_eq!(printable("model.é.\"a\" 猫"), "model.é.\"a\" 猫");
        assert_eq!(printable("a\u{1b}[2Jb\n\u{202e}"), "a\\u{1b}[2Jb\\n\\u{202e}");
        let long = printable(&"é".repeat(1000)).into_owned();
        assert_eq!(long, format!("{} …", "é".repeat(200)));
    }
}
