//! Zip archives as PyTorch writes them, a whole file or a part of one: members stored as they are, each with its CRC32.

use crate::chunks::in_chunks;
use crate::error::FormatError;
use std::collections::BTreeMap;
use std::path::Path;
use toprope_world::FileReader;

/// The longest directory that is read: a million members.
const DIRECTORY_BYTES_MAX: u64 = 128 << 20;
/// A record of the end with the longest comment.
const END_BYTES_MAX: u64 = 22 + 65_535;

/// A member of an archive.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Its first byte in the file.
    pub(crate) offset: u64,
    /// Its bytes.
    pub(crate) length: u64,
    /// Where its own header begins in the file, before its first byte.
    header: u64,
    crc32: u32,
}

/// An archive whose directory was read.
#[derive(Debug)]
pub(crate) struct Archive {
    members: BTreeMap<String, Member>,
    /// The folder that all members lie in.
    folder: String,
}

/// Bytes of a file that are an archive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// The file's name, for messages.
    pub(crate) path: &'a Path,
    /// The file.
    pub(crate) reader: &'a dyn FileReader,
    /// Where the archive begins.
    pub(crate) start: u64,
    /// Its bytes; they lie within the file.
    pub(crate) length: u64,
}

impl Part<'_> {
    fn malformed(&self, place: &str, reason: &str) -> FormatError {
        FormatError::Malformed { path: self.path.to_owned(), place: place.into(), reason: reason.into() }
    }

    fn unsupported(&self, place: &str, reason: &str) -> FormatError {
        FormatError::UnsupportedForm {
            path: self.path.to_owned(),
            place: place.into(),
            reason: reason.into(),
        }
    }

    /// Bytes from `at`, counted from the archive's start.
    fn bytes(&self, place: &str, at: u64, count: u64) -> Result<Vec<u8>, FormatError> {
        let end = u128::from(at) + u128::from(count);
        if end > u128::from(self.length) {
            return Err(FormatError::Truncated {
                path: self.path.to_owned(),
                place: place.into(),
                needed: u128::from(self.start) + end,
                there: self.start.saturating_add(self.length),
            });
        }
        let mut bytes = vec![0; count as usize];
        self.reader.read_at(self.start + at, &mut bytes)?;
        Ok(bytes)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl Archive {
    /// Reads the directory.
    ///
    /// # Errors
    /// It is cut off, damaged, or holds members that are compressed, encrypted or overlap.
    pub(crate) fn read(part: Part<'_>) -> Result<Archive, FormatError> {
        let end_place = "the archive's end";
        let tail = part.length.min(END_BYTES_MAX);
        let tail_start = part.length - tail;
        let bytes = part.bytes(end_place, tail_start, tail)?;
        let at = bytes
            .windows(4)
            .rposition(|window| window == b"PK\x05\x06")
            .ok_or_else(|| part.malformed(end_place, "there is none; it was cut off, or is no such file"))?;
        let end = &bytes[at..];
        let cut = || part.malformed(end_place, "it is cut off");
        if u16_at(end, 20).map(|comment| 22 + comment) != Some(end.len() as u64) {
            return Err(cut());
        }
        let mut count = u16_at(end, 10).ok_or_else(cut)?;
        let mut size = u32_at(end, 12).ok_or_else(cut)?;
        let mut offset = u32_at(end, 16).ok_or_else(cut)?;
        // Larger numbers stand in a record of their own, which a locator just before this one points to.
        let locator =
            at.checked_sub(20).map(|from| &bytes[from..at]).filter(|bytes| bytes.starts_with(b"PK\x06\x07"));
        if let Some(locator) = locator {
            let at = u64_at(locator, 8).ok_or_else(cut)?;
            let wide = part.bytes(end_place, at, 56)?;
            if !wide.starts_with(b"PK\x06\x06") {
                return Err(part.malformed(end_place, "its wide record is not where it says"));
            }
            count = u64_at(&wide, 32).ok_or_else(cut)?;
            size = u64_at(&wide, 40).ok_or_else(cut)?;
            offset = u64_at(&wide, 48).ok_or_else(cut)?;
        }
        if size > DIRECTORY_BYTES_MAX {
            let reason = format!(
                "its directory of {size} bytes is more than the {DIRECTORY_BYTES_MAX} that are taken"
            );
            return Err(part.malformed(end_place, &reason));
        }
        let directory = part.bytes("the archive's directory", offset, size)?;
        let (mut members, mut folder) = (BTreeMap::new(), None);
        let mut rest = directory.as_slice();
        for index in 0..count {
            let place = format!("entry {index} of the archive's directory");
            let (name, member, left) = entry(part, &place, rest)?;
            if members.contains_key(&name) {
                return Err(part.malformed(&format!("`{name}`"), "stands there twice"));
            }
            if folder.is_none() {
                folder = name.strip_suffix("data.pkl").map(str::to_string);
            }
            members.insert(name, member);
            rest = left;
        }
        if !rest.is_empty() {
            let reason = format!("has {} bytes behind its {count} entries", rest.len());
            return Err(part.malformed("the archive's directory", &reason));
        }
        let archive = Archive { members, folder: folder.unwrap_or_default() };
        // Without this a few bytes could be a thousand members, and be read as often.
        for pair in archive.in_order().windows(2) {
            let ((first, before), (second, behind)) = (pair[0], pair[1]);
            if before.offset + before.length > behind.header {
                return Err(part.malformed(&format!("`{second}`"), &format!("overlaps with `{first}`")));
            }
        }
        Ok(archive)
    }

    /// The member of this name behind the folder that all of an archive's members lie in.
    pub(crate) fn member(&self, name: &str) -> Option<&Member> {
        self.members.get(&format!("{}{name}", self.folder))
    }

    /// The members as they lie in the file.
    fn in_order(&self) -> Vec<(&str, &Member)> {
        let mut members: Vec<(&str, &Member)> =
            self.members.iter().map(|(name, member)| (name.as_str(), member)).collect();
        members.sort_by_key(|(_, member)| member.header);
        members
    }

    /// Compares every member with its CRC32.
    ///
    /// # Errors
    /// One differs, or cannot be read.
    pub(crate) fn check(&self, part: Part<'_>) -> Result<(), FormatError> {
        for (name, member) in self.in_order() {
            let mut sum = flate2::Crc::new();
            in_chunks(part.reader, member.offset, member.length, 1, |bytes| sum.update(bytes))?;
            if sum.sum() != member.crc32 {
                return Err(FormatError::Checksum { path: part.path.to_owned(), member: name.into() });
            }
        }
        Ok(())
    }
}

/// An entry of the directory, its name first, and what follows it.
fn entry<'a>(
    part: Part<'_>,
    place: &str,
    bytes: &'a [u8],
) -> Result<(String, Member, &'a [u8]), FormatError> {
    let cut = || part.malformed(place, "it is cut off");
    if !bytes.starts_with(b"PK\x01\x02") {
        return Err(part.malformed(place, "is none"));
    }
    let number = |at, wide: bool| if wide { u32_at(bytes, at) } else { u16_at(bytes, at) }.ok_or_else(cut);
    let (flags, method) = (number(8, false)?, number(10, false)?);
    let crc32 = number(16, true)? as u32;
    let (mut stored, mut length, mut local) = (number(20, true)?, number(24, true)?, number(42, true)?);
    let (name_bytes, extra_bytes, comment_bytes) =
        (number(28, false)? as usize, number(30, false)? as usize, number(32, false)? as usize);
    let name = bytes.get(46..46 + name_bytes).ok_or_else(cut)?;
    let name = String::from_utf8_lossy(name).into_owned();
    let mut extra = bytes.get(46 + name_bytes..46 + name_bytes + extra_bytes).ok_or_else(cut)?;
    let rest = bytes.get(46 + name_bytes + extra_bytes + comment_bytes..).ok_or_else(cut)?;
    // Of the wide numbers only those stand there that do not fit above, in this order.
    while let (Some(kind), Some(size)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let field = extra.get(4..4 + size as usize).ok_or_else(cut)?;
        if kind == 1 {
            let mut at = 0;
            for narrow in [&mut length, &mut stored, &mut local] {
                if *narrow == u64::from(u32::MAX) {
                    *narrow = u64_at(field, at).ok_or_else(cut)?;
                    at += 8;
                }
            }
        }
        extra = &extra[4 + size as usize..];
    }
    let place = format!("`{name}`");
    if flags & 1 != 0 {
        return Err(part.unsupported(&place, "is encrypted"));
    }
    if method != 0 || stored != length {
        return Err(part.unsupported(&place, "is compressed, and PyTorch stores members as they are"));
    }
    let head = part.bytes(&place, local, 30)?;
    if !head.starts_with(b"PK\x03\x04") {
        return Err(part.malformed(&place, "does not begin where the directory says"));
    }
    let behind = 30 + u16_at(&head, 26).unwrap_or(0) + u16_at(&head, 28).unwrap_or(0);
    let begin = local.saturating_add(behind);
    let end = u128::from(begin) + u128::from(length);
    if end > u128::from(part.length) {
        return Err(FormatError::Truncated {
            path: part.path.to_owned(),
            place,
            needed: u128::from(part.start) + end,
            there: part.start.saturating_add(part.length),
        });
    }
    let member = Member { offset: part.start + begin, length, header: part.start + local, crc32 };
    Ok((name, member, rest))
}
