//! What stands on the bench while the device is opened again: a device that is lost gives back what it holds, and may reset the
//! chip, before a fresh one may be opened beside it.

use std::sync::Arc;
use std::time::Duration;
use toprope_program::{
    Allocation, Bindings, BufferId, Description, Device, Fault, FaultKind, HostRegion, MemoryPlan,
    PreparedId, Progress, Span, Ticket, Validated,
};

/// A device that is gone.
pub(crate) struct Gone(pub(crate) Description);

impl Gone {
    fn fault<T>(&self) -> Result<T, Fault> {
        let reason = "it was lost and is not open".to_string();
        Err(Fault::new(&self.0.name, FaultKind::Lost { reason, for_good: false }))
    }
}

impl Device for Gone {
    fn describe(&self) -> Description {
        self.0.clone()
    }

    fn allocate(&mut self, _: Allocation) -> Result<BufferId, Fault> {
        self.fault()
    }

    fn write(&mut self, _: BufferId, _: usize, _: &[u8]) -> Result<(), Fault> {
        self.fault()
    }

    fn read(&mut self, _: BufferId, _: usize, _: &mut [u8]) -> Result<(), Fault> {
        self.fault()
    }

    fn copy_out(&mut self, _: BufferId, _: usize, _: HostRegion, _: Ticket) -> Result<Ticket, Fault> {
        self.fault()
    }

    fn prepare(&mut self, _: Arc<Validated>, _: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        self.fault()
    }

    fn run(&mut self, _: PreparedId, _: Span, _: &Bindings) -> Result<Ticket, Fault> {
        self.fault()
    }

    fn wait(&mut self, _: Ticket, _: Duration) -> Result<Progress, Fault> {
        self.fault()
    }

    fn release(&mut self, _: BufferId) -> Result<(), Fault> {
        self.fault()
    }
}
