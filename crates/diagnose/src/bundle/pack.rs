//! The archive: the same files give the same bytes, whoever packs them and when.

use super::File;
use flate2::Compression;
use flate2::write::GzEncoder;

/// Packs files below one folder into a `.tar.gz`.
///
/// # Errors
/// A name that no archive can hold.
pub fn pack(folder: &str, files: &[File]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(if name.ends_with(".py") { 0o755 } else { 0o644 });
        header.set_mtime(0);
        header.set_cksum();
        archive.append_data(&mut header, format!("{folder}/{name}"), content.as_slice())?;
    }
    archive.into_inner()?.finish()
}
