//! Devices that are right and in trouble: memory that forgets, time that passes, a chip that minds a neighbour.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use toprope_program::{
    Allocation, Bindings, BufferId, Description, Device, Fault, HostRegion, MemoryPlan, PreparedId, Progress,
    Span, Ticket, Validated,
};

/// What is the matter.
pub enum Trouble {
    /// From the so manieth read of a large buffer on, one bit of it is another.
    Forgets(AtomicU64),
    /// Each run takes so many times as long.
    Slow(u32),
    /// Reads what the second device holds, while this says so.
    Crowded(Arc<AtomicBool>),
}

/// A device in trouble; `second` does everything that `first` does.
pub struct Troubled {
    pub trouble: Trouble,
    pub first: Box<dyn Device>,
    pub second: Option<Box<dyn Device>>,
}

/// Buffers of this size are no program's.
const LARGE: usize = 1 << 20;

impl Troubled {
    fn both<T>(&mut self, what: impl Fn(&mut dyn Device) -> Result<T, Fault>) -> Result<T, Fault> {
        if let Some(second) = &mut self.second {
            what(second.as_mut())?;
        }
        what(self.first.as_mut())
    }
}

impl Device for Troubled {
    fn describe(&self) -> Description {
        self.first.describe()
    }

    fn allocate(&mut self, allocation: Allocation) -> Result<BufferId, Fault> {
        let Allocation::Own(bytes) = allocation else { return self.first.allocate(allocation) };
        self.both(|device| device.allocate(Allocation::Own(bytes)))
    }

    fn write(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.both(|device| device.write(buffer, offset_bytes, bytes))
    }

    fn read(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        match (&self.trouble, &mut self.second) {
            (Trouble::Crowded(busy), Some(second)) if busy.load(Ordering::Relaxed) => {
                return second.read(buffer, offset_bytes, bytes);
            }
            _ => self.first.read(buffer, offset_bytes, bytes)?,
        }
        if let Trouble::Forgets(left) = &self.trouble
            && bytes.len() > LARGE
            && left.fetch_sub(1, Ordering::Relaxed) <= 1
        {
            left.store(0, Ordering::Relaxed);
            bytes[LARGE] ^= 4;
        }
        Ok(())
    }

    fn copy_out(
        &mut self,
        buffer: BufferId,
        offset_bytes: usize,
        to: HostRegion,
        after: Ticket,
    ) -> Result<Ticket, Fault> {
        self.first.copy_out(buffer, offset_bytes, to, after)
    }

    fn prepare(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        self.both(|device| device.prepare(program.clone(), plan.clone()))
    }

    fn run(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        let began = Instant::now();
        let ticket = self.both(|device| {
            let ticket = device.run(prepared, span, bindings)?;
            device.wait(ticket, Duration::from_secs(60))?;
            Ok(ticket)
        })?;
        if let Trouble::Slow(times) = self.trouble {
            std::thread::sleep(began.elapsed() * (times - 1));
        }
        Ok(ticket)
    }

    fn wait(&mut self, ticket: Ticket, deadline: Duration) -> Result<Progress, Fault> {
        self.first.wait(ticket, deadline)
    }

    fn release(&mut self, buffer: BufferId) -> Result<(), Fault> {
        self.both(|device| device.release(buffer))
    }
}
