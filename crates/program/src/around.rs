//! Devices around other devices: what such a one does not change, it hands on.

use crate::device::{
    Allocation, Bindings, BufferId, Description, Device, HostRegion, PreparedId, Progress, Span, Ticket,
};
use crate::fault::Fault;
use crate::memory::MemoryPlan;
use crate::validate::Validated;
use std::sync::Arc;
use std::time::Duration;

/// A device that does something else than the one inside of it: to injected faults, to mutants, to measurements. It is a
/// [`Device`] by that; memory, copies and waiting are the inner one's.
pub trait Around: Send {
    /// The device inside.
    fn inner(&self) -> &dyn Device;

    /// The same, to be used.
    fn inner_mut(&mut self) -> &mut dyn Device;

    /// As [`Device::describe`].
    fn describes(&self) -> Description {
        self.inner().describe()
    }

    /// As [`Device::prepare`].
    ///
    /// # Errors
    /// The inner device's, unless it is overridden.
    fn prepares(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        self.inner_mut().prepare(program, plan)
    }

    /// As [`Device::run`].
    ///
    /// # Errors
    /// The inner device's, unless it is overridden.
    fn runs(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        self.inner_mut().run(prepared, span, bindings)
    }
}

impl<T: Around> Device for T {
    fn describe(&self) -> Description {
        self.describes()
    }

    fn allocate(&mut self, allocation: Allocation) -> Result<BufferId, Fault> {
        self.inner_mut().allocate(allocation)
    }

    fn write(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.inner_mut().write(buffer, offset_bytes, bytes)
    }

    fn read(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        self.inner_mut().read(buffer, offset_bytes, bytes)
    }

    fn copy_out(
        &mut self,
        buffer: BufferId,
        offset_bytes: usize,
        to: HostRegion,
        after: Ticket,
    ) -> Result<Ticket, Fault> {
        self.inner_mut().copy_out(buffer, offset_bytes, to, after)
    }

    fn prepare(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        self.prepares(program, plan)
    }

    fn run(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        self.runs(prepared, span, bindings)
    }

    fn wait(&mut self, ticket: Ticket, deadline: Duration) -> Result<Progress, Fault> {
        self.inner_mut().wait(ticket, deadline)
    }

    fn release(&mut self, buffer: BufferId) -> Result<(), Fault> {
        self.inner_mut().release(buffer)
    }
}
