//! Scratch memory that the caller provides.

/// Bytes of alignment of every part: a cache line, and a vector of the widest level.
pub const WORKSPACE_ALIGNMENT: usize = 64;

/// Hands out aligned parts of one piece of memory.
pub(crate) struct Workspace<'a> {
    rest: &'a mut [u8],
}

impl<'a> Workspace<'a> {
    pub(crate) fn new(memory: &'a mut [u8]) -> Self {
        let skip = memory.as_ptr().align_offset(WORKSPACE_ALIGNMENT).min(memory.len());
        Workspace { rest: &mut memory[skip..] }
    }

    /// `count` f32 values of arbitrary content.
    ///
    /// # Panics
    /// When the workspace is smaller than its kernel's `…_workspace_bytes` says.
    pub(crate) fn take(&mut self, count: usize) -> &'a mut [f32] {
        let bytes = part_bytes(count);
        assert!(bytes <= self.rest.len(), "the workspace is {} bytes short", bytes - self.rest.len());
        let (part, rest) = std::mem::take(&mut self.rest).split_at_mut(bytes);
        self.rest = rest;
        // SAFETY: aligned to 64, long enough, exclusively borrowed, and any bits are an f32.
        unsafe { std::slice::from_raw_parts_mut(part.as_mut_ptr().cast::<f32>(), count) }
    }
}

/// Bytes that a part of `count` f32 values takes.
pub(crate) fn part_bytes(count: usize) -> usize {
    count.saturating_mul(4).div_ceil(WORKSPACE_ALIGNMENT).saturating_mul(WORKSPACE_ALIGNMENT)
}

/// Bytes of a workspace with parts of these many f32 values: their sum and what alignment may cost.
pub(crate) fn workspace_bytes(parts: &[usize]) -> usize {
    parts.iter().fold(WORKSPACE_ALIGNMENT, |sum, count| sum.saturating_add(part_bytes(*count)))
}
