//! The run's state in memory that outlives workers: two halves with their digests, or one where the state is in place.

use crate::decide::Digest;
use std::sync::Arc;
use toprope_program::operator::digest_mix;
use toprope_program::shape::{elements, sizes};
use toprope_program::{DType, HostRegion, Location, MemoryPlan, StateLayout, Validated, ValueId, Width};
use toprope_world::{SharedMemoryError, SharedRegion, World};

/// A value of the state.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its sizes.
    pub sizes: Vec<usize>,
    /// Where it lies in a half.
    pub location: Location,
    /// Its value in the program.
    pub id: ValueId,
}

impl Tensor {
    /// Bytes without padding.
    pub fn bytes(&self) -> usize {
        elements(&self.sizes) * self.dtype.size_bytes(Width::Native)
    }
}

/// The state's halves.
pub struct SharedState {
    halves: Vec<Arc<SharedRegion>>,
    tensors: Vec<Tensor>,
    current: usize,
}

impl SharedState {
    /// Halves of zeros for a program's state; one where the plan is in place.
    ///
    /// # Errors
    /// The system has no memory for them.
    pub fn new(
        world: &dyn World,
        program: &Validated,
        plan: &MemoryPlan,
    ) -> Result<SharedState, SharedMemoryError> {
        let count = if plan.layout == StateLayout::Double { 2 } else { 1 };
        let make =
            |half| world.shared_memory().create(&format!("toprope-state-{half}"), plan.state_bytes.max(64));
        let halves = (0..count).map(make).collect::<Result<_, _>>()?;
        let tensors = program.program().state().filter_map(|(id, value)| {
            let location = plan.place(id)?;
            let sizes = sizes(&value.shape, &[]);
            Some(Tensor { name: value.name.clone(), dtype: value.dtype, sizes, location, id })
        });
        Ok(SharedState { halves, tensors: tensors.collect(), current: 0 })
    }

    /// The regions, first half first.
    pub fn regions(&self) -> &[Arc<SharedRegion>] {
        &self.halves
    }

    /// The state's values.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Which half is committed.
    pub fn current(&self) -> usize {
        self.current
    }

    /// The other half's number; the same where there is one.
    pub fn other(&self) -> usize {
        (self.current + 1) % self.halves.len()
    }

    /// Makes the other half the committed one.
    pub fn flip(&mut self) {
        self.current = self.other();
    }

    /// A half as a device adopts it.
    pub fn home(&self, half: usize) -> HostRegion {
        let region = &self.halves[half];
        // SAFETY: the region is mapped while this lives, longer than any worker; the protocol lets one worker at a time
        // write it, and this side only while nothing is queued.
        unsafe { HostRegion::new(region.as_ptr(), region.len()) }
    }

    /// Copies a value out of a half.
    pub fn read(&self, half: usize, tensor: &Tensor) -> Vec<u8> {
        let mut bytes = vec![0; tensor.bytes()];
        let from = self.halves[half].as_ptr().wrapping_add(tensor.location.offset_bytes);
        // SAFETY: the plan keeps the value inside the half; nothing is queued that writes it (`home`).
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Writes a value into a half. Gives false where the bytes are not as many as the value has.
    pub fn write(&mut self, half: usize, name: &str, bytes: &[u8]) -> bool {
        let Some(tensor) = self.tensors.iter().find(|tensor| tensor.name == name) else { return false };
        if tensor.bytes() != bytes.len() {
            return false;
        }
        let to = self.halves[half].as_ptr().wrapping_add(tensor.location.offset_bytes);
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// The digest of a half, as of the logical values in their order.
    pub fn digest(&self, half: usize) -> Digest {
        let words = self.tensors.iter().map(|tensor| {
            let from = self.halves[half].as_ptr().wrapping_add(tensor.location.offset_bytes);
            // SAFETY: as in `read`; a value starts at a multiple of 64 bytes.
            let bytes = unsafe { std::slice::from_raw_parts(from, tensor.bytes()) };
            digest_of(tensor.dtype, bytes)
        });
        fold(words)
    }
}

/// The contract's `digest` of a value's bytes.
pub fn digest_of(dtype: DType, bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    match dtype.size_bytes(Width::Native) {
        2 => {
            for (index, pair) in bytes.chunks_exact(2).enumerate() {
                let bits = u16::from_le_bytes([pair[0], pair[1]]);
                sum = sum.wrapping_add(digest_mix(u32::from(bits), index as u64));
            }
        }
        _ => {
            for (index, four) in bytes.chunks_exact(4).enumerate() {
                let bits = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                sum = sum.wrapping_add(digest_mix(bits, index as u64));
            }
        }
    }
    sum
}

/// One digest of many, in their order: a chain over SplitMix64's finalizer.
pub fn fold(digests: impl Iterator<Item = u64>) -> Digest {
    let mut chain = 0u64;
    for digest in digests {
        let mixed = digest_mix(chain as u32, chain >> 32).wrapping_add(digest);
        chain = digest_mix(mixed as u32, mixed >> 32);
    }
    Digest(chain)
}
