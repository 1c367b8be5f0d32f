//! Reading a range of a file a few megabytes at a time, so that a large one takes no memory.

use toprope_world::{FileError, FileReader};

/// Read at once.
const CHUNK_BYTES: u64 = 4 << 20;

/// Hands bytes `offset..offset + length` of a file on in order, each time whole blocks of `block_bytes` (but at a ragged end).
pub(crate) fn in_chunks(
    reader: &dyn FileReader,
    offset: u64,
    length: u64,
    block_bytes: u64,
    mut each: impl FnMut(&[u8]),
) -> Result<(), FileError> {
    let block = block_bytes.max(1);
    let chunk = (CHUNK_BYTES / block).max(1).saturating_mul(block);
    let (mut done, mut buffer) = (0, Vec::new());
    while done < length {
        let count = chunk.min(length - done);
        buffer.resize(count as usize, 0);
        reader.read_at(offset + done, &mut buffer)?;
        each(&buffer);
        done += count;
    }
    Ok(())
}
