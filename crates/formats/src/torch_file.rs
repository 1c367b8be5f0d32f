//! What `torch.save` writes since PyTorch 1.6: an archive with `data.pkl`, which says what there is, and a member for each
//! storage.

use crate::error::FormatError;
use crate::pickle::{Id, Node, Pickle};
use crate::stored::Stored;
use crate::tensors::{TensorRecord, counted};
use crate::zip::{Archive, Part};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// The longest `data.pkl` that is read.
pub(crate) const PICKLE_BYTES_MAX: u64 = 256 << 20;
/// How deep names are followed into dictionaries and lists.
const DEPTH_MAX: usize = 64;
/// The most bytes of names and records that one file may ask for: those of half a million tensors. Names are as long as all keys
/// above them together, so that without this a small pickle could ask for any amount.
const NAMES_BYTES_MAX: usize = 64 << 20;

/// A file, or an item of one, whose archive and pickle were read.
#[derive(Debug)]
pub(crate) struct TorchFile {
    /// The archive.
    pub(crate) archive: Archive,
    /// What it says.
    pub(crate) pickle: Pickle,
    /// Its tensors by their keys from the outside in, joined by dots; a tensor alone has no name.
    pub(crate) tensors: BTreeMap<String, TensorRecord>,
}

impl TorchFile {
    /// Reads archive and pickle, and finds every tensor's place. No element is read.
    ///
    /// # Errors
    /// It is cut off or damaged, asks for what no checkpoint needs, is nested too deep, or a tensor lies outside its storage.
    pub(crate) fn read(part: Part<'_>) -> Result<TorchFile, FormatError> {
        let malformed = |place: &str, reason: &str| FormatError::Malformed {
            path: part.path.to_owned(),
            place: place.into(),
            reason: reason.into(),
        };
        let unsupported = |place: &str, reason: &str| FormatError::UnsupportedForm {
            path: part.path.to_owned(),
            place: place.into(),
            reason: reason.into(),
        };
        let mut first = [0; 4];
        if part.length >= 4 {
            part.reader.read_at(part.start, &mut first)?;
        }
        if first[0] == 0x80 {
            let reason = "is a bare pickle, as PyTorch wrote before 1.6; load it where you trust it, and save it again";
            return Err(unsupported("the file", reason));
        }
        let archive = Archive::read(part)?;
        let read = |name: &str, limit: u64| -> Result<Option<Vec<u8>>, FormatError> {
            let Some(member) = archive.member(name) else { return Ok(None) };
            if member.length > limit {
                let reason = format!("has {} bytes, and at most {limit} are taken", member.length);
                return Err(malformed(&format!("`{name}`"), &reason));
            }
            let mut bytes = vec![0; member.length as usize];
            part.reader.read_at(member.offset, &mut bytes)?;
            Ok(Some(bytes))
        };
        if read("byteorder", 16)?.is_some_and(|order| order != b"little") {
            return Err(unsupported("`byteorder`", "is not little, which alone is supported"));
        }
        let bytes = read("data.pkl", PICKLE_BYTES_MAX)?;
        let bytes = bytes
            .ok_or_else(|| malformed("the archive", "has no `data.pkl`; torch.save did not write it"))?;
        let pickle = Pickle::read(part.path, "`data.pkl`", &bytes)?;
        let mut walk = Walk {
            part,
            archive: &archive,
            pickle: &pickle,
            seen: BTreeSet::new(),
            tensors: BTreeMap::new(),
            repeated: 1,
            names_bytes: 0,
        };
        walk.follow(pickle.root(), "", 0)?;
        let tensors = walk.tensors;
        Ok(TorchFile { archive, pickle, tensors })
    }
}

struct Walk<'a> {
    part: Part<'a>,
    archive: &'a Archive,
    pickle: &'a Pickle,
    /// What holds others and was followed already: a pickle may hold one a thousand times. A tensor is none: it is recorded
    /// under every name that it has.
    seen: BTreeSet<Id>,
    tensors: BTreeMap<String, TensorRecord>,
    /// The last number that was given to a name that stood there before.
    repeated: usize,
    /// Bytes that names and records took so far.
    names_bytes: usize,
}

impl Walk<'_> {
    fn follow(&mut self, id: Id, name: &str, depth: usize) -> Result<(), FormatError> {
        let pickle = self.pickle;
        if depth > DEPTH_MAX {
            let reason = format!("lies deeper than the {DEPTH_MAX} dictionaries and lists that are followed");
            return Err(self.malformed(name, reason));
        }
        if let Some(record) = self.tensor(id, name)? {
            self.record(name, record)?;
            // What was set on a parameter or a subclass's tensor stands behind it, and may be a tensor too.
            return match pickle.made(id) {
                Some((
                    "_rebuild_parameter_with_state" | "_rebuild_from_type_v2",
                    [_, _, _, attributes, ..],
                )) if self.holds(*attributes) => self.follow(*attributes, name, depth + 1),
                _ => Ok(()),
            };
        }
        if !self.seen.insert(id) {
            return Ok(());
        }
        match pickle.node(id) {
            Node::Items(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.below(*item, name, || Cow::Owned(at.to_string()), depth)?;
                }
            }
            Node::Pairs(pairs) => self.entries(pairs, name, depth)?,
            Node::Object { arguments, state, pairs, .. } => {
                // A subclass of a tensor that is not known may have one among its arguments.
                if let Node::Items(items) = pickle.node(*arguments) {
                    for item in items {
                        if self.holds(*item) {
                            self.follow(*item, name, depth + 1)?;
                        }
                    }
                }
                if let Some(state) = state.filter(|state| self.holds(*state)) {
                    self.follow(state, name, depth + 1)?;
                }
                self.entries(pairs, name, depth)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn entries(&mut self, pairs: &[(Id, Id)], name: &str, depth: usize) -> Result<(), FormatError> {
        let pickle = self.pickle;
        for (key, value) in pairs {
            let key = || match pickle.node(*key) {
                Node::Text(text) => Cow::Borrowed(text.as_str()),
                Node::Integer(number) => Cow::Owned(number.to_string()),
                _ => Cow::Borrowed("?"),
            };
            self.below(*value, name, key, depth)?;
        }
        Ok(())
    }

    /// Whether a value may hold tensors or be one; others need no name.
    fn holds(&self, id: Id) -> bool {
        matches!(self.pickle.node(id), Node::Items(_) | Node::Pairs(_) | Node::Object { .. })
    }

    /// Follows the value under a key.
    fn below<'k>(
        &mut self,
        id: Id,
        name: &str,
        key: impl FnOnce() -> Cow<'k, str>,
        depth: usize,
    ) -> Result<(), FormatError> {
        if !self.holds(id) {
            return Ok(());
        }
        let key = key();
        self.take(name, name.len() + key.len() + 1)?;
        let name = if name.is_empty() { key.into_owned() } else { format!("{name}.{key}") };
        self.follow(id, &name, depth + 1)
    }

    /// Keeps a tensor; one whose name stands there already, as names of keys that are no text may, gets a number behind it.
    fn record(&mut self, name: &str, record: TensorRecord) -> Result<(), FormatError> {
        self.take(name, size_of::<TensorRecord>() + size_of_val(record.shape.as_slice()))?;
        let mut unique = name.to_string();
        while self.tensors.contains_key(&unique) {
            self.repeated += 1;
            unique = format!("{name} #{}", self.repeated);
        }
        self.tensors.insert(unique, record);
        Ok(())
    }

    /// Counts bytes for names and records.
    fn take(&mut self, name: &str, bytes: usize) -> Result<(), FormatError> {
        self.names_bytes = self.names_bytes.saturating_add(bytes);
        if self.names_bytes > NAMES_BYTES_MAX {
            let reason =
                format!("names up to here take more than the {NAMES_BYTES_MAX} bytes that are taken");
            return Err(self.malformed(name, reason));
        }
        Ok(())
    }

    fn malformed(&self, name: &str, reason: String) -> FormatError {
        FormatError::Malformed { path: self.part.path.to_owned(), place: place(name), reason }
    }

    /// The record of a tensor, where this is one: its elements where they lie together, or else the part of its storage that
    /// they lie in.
    fn tensor(&self, id: Id, name: &str) -> Result<Option<TensorRecord>, FormatError> {
        // A parameter has its tensor as its first argument.
        let id = match self.pickle.made(id) {
            Some(("_rebuild_parameter" | "_rebuild_parameter_with_state", [data, ..])) => *data,
            _ => id,
        };
        let Some((mut function, mut arguments)) = self.pickle.made(id) else { return Ok(None) };
        if function == "_rebuild_from_type_v2" {
            // (function, class, arguments, state) of a tensor's subclass
            let inner = arguments.first().and_then(|of| self.pickle.global(*of));
            let items = arguments.get(2).and_then(|of| self.pickle.items(*of));
            let (Some((_, inner)), Some(items)) = (inner, items) else { return Ok(None) };
            (function, arguments) = (inner, items);
        }
        if !matches!(function, "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") {
            return Ok(None);
        }
        let malformed = |reason: String| self.malformed(name, reason);
        let parts = (|| {
            let [storage, first, shape, strides, ..] = arguments else { return None };
            let Node::Outside(storage) = self.pickle.node(*storage) else { return None };
            let [kind, class, key, ..] = self.pickle.items(*storage)? else { return None };
            if self.pickle.text(*kind)? != "storage" {
                return None;
            }
            // The third way to rebuild says the dtype apart from the storage.
            let dtype = if function == "_rebuild_tensor_v3" { arguments.get(6)? } else { class };
            let (_, dtype) = self.pickle.global(*dtype)?;
            let (first, key) = (self.pickle.size(*first)?, self.pickle.text(*key)?);
            Some((dtype, key, first, self.pickle.sizes(*shape)?, self.pickle.sizes(*strides)?))
        })();
        let (dtype, key, first, shape, strides) =
            parts.ok_or_else(|| malformed("is described in a way that is not known".into()))?;
        let stored = stored(dtype).ok_or_else(|| FormatError::UnsupportedForm {
            path: self.part.path.to_owned(),
            place: place(name),
            reason: format!("its dtype `{dtype}` is not known"),
        })?;
        if shape.len() != strides.len() {
            return Err(malformed(format!("has shape {shape:?} and strides {strides:?}")));
        }
        let member = self.archive.member(&format!("data/{key}"));
        let member = member.ok_or_else(|| malformed(format!("its storage `data/{key}` is not there")))?;
        let elements = counted(&shape)
            .ok_or_else(|| malformed(format!("its shape {shape:?} has more elements than can be counted")))?;
        // Elements between the first and the last one, these included.
        let span = if elements == 0 {
            Some(0)
        } else {
            shape
                .iter()
                .zip(&strides)
                .try_fold(1u64, |span, (size, stride)| span.checked_add((size - 1).checked_mul(*stride)?))
        };
        let size = stored.block().1 as u64;
        let end = span.and_then(|span| span.checked_add(first)?.checked_mul(size));
        let (span, end) = match (span, end) {
            (Some(span), Some(end)) if end <= member.length => (span, end),
            _ => {
                return Err(malformed(format!(
                    "of shape {shape:?} lies outside its storage of {} bytes",
                    member.length
                )));
            }
        };
        let bytes = span * size;
        let shape = shape.iter().map(|size| *size as usize).collect();
        let offset = member.offset + (end - bytes);
        Ok(Some(TensorRecord { shape, stored, bytes, offset, file: 0 }))
    }
}

/// A tensor's place in a file, for messages.
fn place(name: &str) -> String {
    if name.is_empty() { "the tensor".into() } else { format!("tensor `{name}`") }
}

/// The format of a dtype or of a storage's class.
pub(crate) fn stored(dtype: &str) -> Option<Stored> {
    let other = |name: &str, bytes| Some(Stored::Other(name.into(), 1, bytes));
    match dtype {
        "float64" | "DoubleStorage" => Some(Stored::F64),
        "float32" | "FloatStorage" => Some(Stored::F32),
        "float16" | "HalfStorage" => Some(Stored::F16),
        "bfloat16" | "BFloat16Storage" => Some(Stored::Bf16),
        "float8_e4m3fn" => Some(Stored::F8E4m3),
        "float8_e5m2" => other("F8_E5M2", 1),
        "float8_e4m3fnuz" => other("F8_E4M3FNUZ", 1),
        "float8_e5m2fnuz" => other("F8_E5M2FNUZ", 1),
        "float8_e8m0fnu" => other("F8_E8M0", 1),
        "complex64" | "ComplexFloatStorage" => other("C64", 8),
        "complex128" | "ComplexDoubleStorage" => other("C128", 16),
        "int64" | "LongStorage" => other("I64", 8),
        "int32" | "IntStorage" => other("I32", 4),
        "int16" | "ShortStorage" => other("I16", 2),
        "int8" | "CharStorage" => other("I8", 1),
        "uint64" => other("U64", 8),
        "uint32" => other("U32", 4),
        "uint16" => other("U16", 2),
        "uint8" | "ByteStorage" => other("U8", 1),
        "bool" | "BoolStorage" => other("BOOL", 1),
        _ => None,
    }
}
