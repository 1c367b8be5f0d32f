//! The run's state in memory that outlives workers: two halves with the same layout as on a device, or one where the
//! state is in place. Where the state lives on the device, the halves are two slots for snapshots of it.

use super::chain::{Group, digest_of, fold, groups, told};
use crate::decide::Digest;
use std::collections::HashMap;
use std::sync::Arc;
use toprope_program::shape::{elements, sizes};
use toprope_program::{
    DType, HostRegion, Location, MemoryPlan, Outputs, StateLayout, Validated, ValueId, Width,
};
use toprope_world::{SharedMemoryError, SharedRegion, World};

/// A value of the state.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its value in the program.
    pub id: ValueId,
    /// Its element type.
    pub dtype: DType,
    /// Where it lies in a half.
    pub location: Location,
    /// Bytes without padding.
    pub bytes: usize,
    /// Whether no update writes it: it lies in every half.
    pub frozen: bool,
}

/// The committed state where it lies. Nothing is computed as long as somebody holds this.
#[derive(Clone, Copy)]
pub struct CommittedState<'a> {
    state: &'a SharedState,
    half: usize,
}

impl<'a> CommittedState<'a> {
    /// Each value's name and bytes.
    pub fn values(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let Self { state, half } = self;
        state.tensors.iter().map(move |tensor| (tensor.name.as_str(), state.value(half, tensor)))
    }
}

/// The state's halves.
pub struct SharedState {
    halves: Vec<Arc<SharedRegion>>,
    tensors: Vec<Tensor>,
    groups: Vec<Group>,
    /// Digests of frozen values as they were stored: no update tells of them, and bytes that changed since must show.
    frozen: HashMap<ValueId, u64>,
    current: usize,
    /// Committed steps that each half is of; none while it is being written.
    steps: Vec<Option<u64>>,
}

impl SharedState {
    /// Halves of zeros for a program's state: one where the plan is in place, and `slots` says otherwise.
    ///
    /// # Errors
    /// The system has no memory for them.
    pub fn new(
        world: &dyn World,
        program: &Validated,
        plan: &MemoryPlan,
        slots: bool,
    ) -> Result<SharedState, SharedMemoryError> {
        let count = if slots || plan.layout == StateLayout::Double { 2 } else { 1 };
        let make =
            |half| world.shared_memory().create(&format!("toprope-state-{half}"), plan.state_bytes.max(64));
        let halves = (0..count).map(make).collect::<Result<Vec<_>, _>>()?;
        let tensors = program.program().state().filter_map(|(id, value)| {
            let location = plan.place(id)?;
            let bytes = elements(&sizes(&value.shape, &[])) * value.dtype.size_bytes(Width::Native);
            let frozen = program.program().is_frozen(id);
            Some(Tensor { name: value.name.clone(), id, dtype: value.dtype, location, bytes, frozen })
        });
        let (tensors, groups, steps) = (tensors.collect(), groups(program), vec![None; halves.len()]);
        Ok(SharedState { halves, tensors, groups, frozen: HashMap::new(), current: 0, steps })
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

    /// Committed steps that a half is of; none where it is not whole.
    pub fn steps(&self, half: usize) -> Option<u64> {
        self.steps[half]
    }

    /// A half is about to be written.
    pub fn open(&mut self, half: usize) {
        self.steps[half] = None;
    }

    /// A half is whole, of this many committed steps, and the current one from now on.
    pub fn close(&mut self, half: usize, steps: u64) {
        self.steps[half] = Some(steps);
        self.current = half;
    }

    /// The half that is of this many committed steps; the current one where both are.
    pub fn find(&self, steps: u64) -> Option<usize> {
        [self.current, self.other()].into_iter().find(|half| self.steps[*half] == Some(steps))
    }

    /// Halves of later steps are of a future that did not come.
    pub fn forget_after(&mut self, steps: u64) {
        for label in &mut self.steps {
            *label = label.filter(|label| *label <= steps);
        }
    }

    /// Makes a half the current one.
    pub fn choose(&mut self, half: usize) {
        self.current = half;
    }

    /// A half as a device adopts it, or copies to.
    pub fn home(&self, half: usize) -> HostRegion {
        let region = &self.halves[half];
        // SAFETY: the region is mapped while this lives, longer than any worker; the protocol lets one worker at a time
        // write it, and this side only while nothing is queued.
        unsafe { HostRegion::new(region.as_ptr(), region.len()) }
    }

    /// The bytes of a half, which nobody may be writing.
    pub fn half(&self, half: usize) -> &[u8] {
        let region = &self.halves[half];
        // SAFETY: mapped while `self` lives; the caller looks only while nothing is queued that writes it.
        unsafe { std::slice::from_raw_parts(region.as_ptr(), region.len()) }
    }

    /// A value's bytes in a half, which nobody may be writing.
    pub fn value(&self, half: usize, tensor: &Tensor) -> &[u8] {
        let start = tensor.location.offset_bytes;
        self.half(half).get(start..start + tensor.bytes).unwrap_or_default()
    }

    /// A half that holds the committed state.
    pub fn committed(&self, half: usize) -> CommittedState<'_> {
        CommittedState { state: self, half }
    }

    /// Writes a value into a half. Gives false where the bytes are not as many as the value has.
    pub fn write(&mut self, half: usize, name: &str, bytes: &[u8]) -> bool {
        let Some(tensor) = self.tensors.iter().find(|tensor| tensor.name == name) else { return false };
        if tensor.bytes != bytes.len() {
            return false;
        }
        let to = self.halves[half].as_ptr().wrapping_add(tensor.location.offset_bytes);
        // SAFETY: the plan keeps the value inside the half; nothing is queued that uses it (`home`).
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// Stores a value of a state that comes from elsewhere; a frozen one in every half.
    pub fn store(&mut self, half: usize, name: &str, bytes: &[u8]) -> bool {
        if !self.write(half, name, bytes) {
            return false;
        }
        let frozen = self.tensors.iter().find(|tensor| tensor.name == name && tensor.frozen);
        if let Some((id, dtype)) = frozen.map(|tensor| (tensor.id, tensor.dtype)) {
            self.frozen.insert(id, digest_of(dtype, bytes));
            for other in (0..self.halves.len()).filter(|other| *other != half) {
                self.write(other, name, bytes);
            }
        }
        true
    }

    /// Fills a half with the bytes of a device's state buffer.
    pub fn fill(&mut self, half: usize, bytes: &[u8]) {
        let count = bytes.len().min(self.halves[half].len());
        // SAFETY: as in `write`; the count is at most the half's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.halves[half].as_ptr(), count) };
    }

    /// The digest of a half, from its bytes.
    pub fn digest(&self, half: usize) -> Digest {
        fold(self.groups.iter().map(|group| self.group(half, group)))
    }

    fn group(&self, half: usize, group: &Group) -> u64 {
        let members = self.tensors.iter().filter(|tensor| group.members.contains(&tensor.id));
        members
            .fold(0, |sum: u64, tensor| sum.wrapping_add(digest_of(tensor.dtype, self.value(half, tensor))))
    }

    /// What is known of a group without its bytes.
    fn told(&self, group: &Group, outputs: &Outputs) -> Option<u64> {
        match (group.told, group.members.as_slice()) {
            (Some(id), _) => told(outputs, id),
            (None, [only]) => self.frozen.get(only).copied(),
            (None, _) => None,
        }
    }

    /// The digest of a half that an update has just written, from what the update told; the rest from `half`'s bytes.
    pub fn digest_told(&self, half: usize, outputs: &Outputs) -> Digest {
        fold(self.groups.iter().map(|group| {
            let told = self.told(group, outputs);
            told.unwrap_or_else(|| self.group(half, group))
        }))
    }

    /// The same for a state on the device: values that the update does not tell of are read with `read`.
    ///
    /// # Errors
    /// What `read` gave.
    pub fn digest_read<E>(
        &self,
        outputs: &Outputs,
        mut read: impl FnMut(&Tensor) -> Result<Vec<u8>, E>,
    ) -> Result<Digest, E> {
        let mut digests = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let mut sum = self.told(group, outputs);
            if sum.is_none() {
                let mut own = 0u64;
                for tensor in self.tensors.iter().filter(|tensor| group.members.contains(&tensor.id)) {
                    own = own.wrapping_add(digest_of(tensor.dtype, &read(tensor)?));
                }
                sum = Some(own);
            }
            digests.push(sum.unwrap_or_default());
        }
        Ok(fold(digests.into_iter()))
    }
}
