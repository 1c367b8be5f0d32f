//! One program on one device, seen as memory images: the host writes all of it, runs, and reads all of it back.

use std::sync::Arc;
use std::time::Duration;
use toprope_program::memory::ALIGNMENT_BYTES;
use toprope_program::{
    Allocation, Bindings, BufferId, CheckMask, Device, Fault, FaultKind, HostRegion, Location, MemoryPlan,
    PreparedId, Progress, Region, Span, StateLayout, Tensor, Ticket, Validated, ValueId, Width,
};

/// How long a device may take for one run of a small program.
const DEADLINE: Duration = Duration::from_secs(120);

/// What unwritten memory holds: NaN for floats, -1 for integers, so that whoever reads it shows.
pub const POISON: u8 = 0xFF;

/// Bytes behind the end of each buffer that belong to nobody, so that a write past the end shows.
pub const GUARD_BYTES: usize = 256;

/// The bytes of the three buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    buffers: [Vec<u8>; 3],
}

fn index(region: Region) -> usize {
    match region {
        Region::Current => 0,
        Region::Next => 1,
        Region::Work => 2,
    }
}

impl Image {
    /// The bytes of a place.
    pub fn bytes(&self, location: Location, length: usize) -> &[u8] {
        &self.buffers[index(location.region)][location.offset_bytes..location.offset_bytes + length]
    }

    /// The bytes of the work buffer.
    pub fn work(&self) -> &[u8] {
        &self.buffers[index(Region::Work)]
    }

    /// Overwrites bytes from the start of a place.
    pub fn set_bytes(&mut self, location: Location, bytes: &[u8]) {
        let to = &mut self.buffers[index(location.region)];
        to[location.offset_bytes..location.offset_bytes + bytes.len()].copy_from_slice(bytes);
    }

    /// The first byte outside of `allowed` that differs from `before`: region and offset.
    pub fn stray_write(&self, before: &Image, allowed: &[Location]) -> Option<(Region, usize)> {
        for region in [Region::Current, Region::Next, Region::Work] {
            let (now, then) = (&self.buffers[index(region)], &before.buffers[index(region)]);
            if now == then {
                continue;
            }
            let written = |at: usize| {
                allowed.iter().any(|place| {
                    let end = place.offset_bytes + place.bytes.div_ceil(ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
                    place.region == region && (place.offset_bytes..end).contains(&at)
                })
            };
            let differs = |at: &usize| now[*at] != then[*at] && !written(*at);
            if let Some(at) = (0..now.len()).find(differs) {
                return Some((region, at));
            }
        }
        None
    }
}

/// A prepared program with buffers on a device.
#[derive(Debug)]
pub struct Session {
    /// The program.
    pub program: Arc<Validated>,
    /// Where its values lie.
    pub plan: Arc<MemoryPlan>,
    prepared: PreparedId,
    buffers: [BufferId; 3],
}

impl Session {
    /// Prepares a program and allocates its buffers.
    pub fn open(device: &mut dyn Device, program: &Arc<Validated>, width: Width) -> Result<Session, Fault> {
        let plan = Arc::new(MemoryPlan::new(program, width, StateLayout::Double));
        Session::open_planned(device, program, plan)
    }

    /// As [`Session::open`], with a plan.
    pub fn open_planned(
        device: &mut dyn Device,
        program: &Arc<Validated>,
        plan: Arc<MemoryPlan>,
    ) -> Result<Session, Fault> {
        let prepared = device.prepare(program.clone(), plan.clone())?;
        let mut allocate = |bytes: usize| device.allocate(Allocation::Own(bytes + GUARD_BYTES));
        let current = allocate(plan.state_bytes)?;
        let next = match plan.layout {
            StateLayout::Double => allocate(plan.state_bytes)?,
            StateLayout::InPlace => current,
        };
        let buffers = [current, next, allocate(plan.work_bytes)?];
        Ok(Session { program: program.clone(), plan, prepared, buffers })
    }

    /// The same prepared program over other buffers: current, next, work.
    pub fn over(other: &Session, buffers: [BufferId; 3]) -> Session {
        let (program, plan) = (other.program.clone(), other.plan.clone());
        Session { program, plan, prepared: other.prepared, buffers }
    }

    /// Queues a copy of the work buffer.
    pub fn copy_out_work(
        &self,
        device: &mut dyn Device,
        to: HostRegion,
        after: Ticket,
    ) -> Result<Ticket, Fault> {
        device.copy_out(self.buffers[2], 0, to, after)
    }

    /// Gives the buffers back.
    pub fn close(self, device: &mut dyn Device) -> Result<(), Fault> {
        device.release(self.buffers[0])?;
        if self.buffers[1] != self.buffers[0] {
            device.release(self.buffers[1])?;
        }
        device.release(self.buffers[2])
    }

    /// Buffers full of poison.
    pub fn blank(&self) -> Image {
        let state = vec![POISON; self.plan.state_bytes + GUARD_BYTES];
        Image { buffers: [state.clone(), state, vec![POISON; self.plan.work_bytes + GUARD_BYTES]] }
    }

    /// Puts a value into an image; a value without a place is left out.
    pub fn put(&self, image: &mut Image, id: ValueId, tensor: &Tensor) {
        if let Some(place) = self.plan.place(id) {
            image.set_bytes(place, &tensor.to_bytes(self.plan.width));
        }
    }

    /// Takes a value of these sizes out of an image.
    pub fn get(&self, image: &Image, id: ValueId, sizes: &[usize]) -> Option<Tensor> {
        let dtype = self.program.program().value(id).dtype;
        let bytes = sizes.iter().product::<usize>() * dtype.size_bytes(self.plan.width);
        let place = self.plan.place(id)?;
        Tensor::from_bytes(dtype, sizes, self.plan.width, image.bytes(place, bytes))
    }

    /// In place, the next state's buffer is the current one's and lies in its part of the image.
    fn is_same_as_current(&self, at: usize) -> bool {
        at == index(Region::Next) && self.buffers[at] == self.buffers[index(Region::Current)]
    }

    /// Writes a whole image.
    pub fn write(&self, device: &mut dyn Device, image: &Image) -> Result<(), Fault> {
        for (at, (buffer, bytes)) in self.buffers.iter().zip(&image.buffers).enumerate() {
            if !bytes.is_empty() && !self.is_same_as_current(at) {
                device.write(*buffer, 0, bytes)?;
            }
        }
        Ok(())
    }

    /// Reads a whole image.
    pub fn read(&self, device: &mut dyn Device) -> Result<Image, Fault> {
        let mut image = self.blank();
        for (at, (buffer, bytes)) in self.buffers.iter().zip(&mut image.buffers).enumerate() {
            if !bytes.is_empty() && !self.is_same_as_current(at) {
                device.read(*buffer, 0, bytes)?;
            }
        }
        Ok(image)
    }

    /// Runs a span to its end.
    pub fn run(
        &self,
        device: &mut dyn Device,
        span: Span,
        symbols: &[usize],
        first: bool,
        checks: &CheckMask,
    ) -> Result<(), Fault> {
        let [current, next, work] = self.buffers;
        let bindings =
            Bindings { current, next, work, symbols: symbols.to_vec(), first, checks: checks.clone() };
        let ticket = device.run(self.prepared, span, &bindings)?;
        match device.wait(ticket, DEADLINE)? {
            Progress::Done => Ok(()),
            Progress::Running { .. } => {
                let waited_ms = DEADLINE.as_millis() as u64;
                Err(Fault::new(device.describe().name, FaultKind::Hang { waited_ms }))
            }
        }
    }
}

/// Every check fires.
pub fn all_checks(program: &toprope_program::Program) -> CheckMask {
    let bits = toprope_program::Range::ALL
        .into_iter()
        .flat_map(|range| program.range(range))
        .filter_map(|instruction| instruction.check);
    CheckMask::all(bits.max().map_or(0, |bit| usize::from(bit) + 1))
}
