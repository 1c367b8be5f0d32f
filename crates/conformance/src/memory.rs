//! What a device promises of memory: computing in a region that the host gave, copies behind a ticket, and state in place.

use crate::replay::{BitDifference, Manner, compare_bits, free_run};
use crate::session::{GUARD_BYTES, Image, Session, all_checks};
use crate::values::Values;
use std::sync::Arc;
use std::time::Duration;
use toprope_program::{
    Allocation, Device, Fault, FaultKind, HostRegion, MemoryPlan, Progress, Role, StateLayout, Ticket,
    Validated, Width,
};

/// 64 bytes that begin at a multiple of 64.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Host memory that devices may adopt or copy to.
struct HostMemory(Vec<Line>);

impl HostMemory {
    fn new(bytes: usize) -> HostMemory {
        HostMemory(vec![Line([0; 64]); bytes.div_ceil(64).max(1)])
    }

    fn region(&mut self) -> HostRegion {
        // SAFETY: every caller keeps `self` until the device has released the region or the copy is done, and reads it
        // only through `bytes` when no ticket is under way.
        unsafe { HostRegion::new(self.0.as_mut_ptr().cast(), self.0.len() * 64) }
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|line| line.0).collect()
    }
}

/// What a trial came to.
#[derive(Debug)]
pub enum Trial {
    /// The property holds.
    Held,
    /// It does not, and what was seen.
    Failed(String),
    /// The device does not offer it.
    Absent(String),
}

/// Runs a program in buffers that the host gave, and compares with the device's own.
pub fn adopted(
    device: &mut dyn Device,
    program: &Arc<Validated>,
    values: &Values,
    symbols: &[usize],
) -> Result<Trial, Fault> {
    let own = Session::open(device, program, Width::Native)?;
    let checks = all_checks(program.program());
    let want = free_run(device, &own, values, symbols, Manner::Whole, &checks)?;
    let bytes = own.plan.state_bytes.max(own.plan.work_bytes) + GUARD_BYTES;
    let mut memory = [HostMemory::new(bytes), HostMemory::new(bytes), HostMemory::new(bytes)];
    let mut buffers = Vec::new();
    for region in memory.iter_mut().map(HostMemory::region) {
        match device.allocate(Allocation::Adopt(region)) {
            Ok(buffer) => buffers.push(buffer),
            Err(Fault { kind: FaultKind::Unsupported { reason, .. }, .. }) => {
                buffers.into_iter().try_for_each(|buffer| device.release(buffer))?;
                own.close(device)?;
                return Ok(Trial::Absent(reason));
            }
            Err(fault) => return Err(fault),
        }
    }
    let adopted = Session::over(&own, [buffers[0], buffers[1], buffers[2]]);
    let got = free_run(device, &adopted, values, symbols, Manner::Whole, &checks)?;
    let difference = compare_bits(&own, symbols, &want, &got, false);
    adopted.close(device)?;
    own.close(device)?;
    // The device computed in the very bytes of the host, so they hold the results without any read.
    let work = &memory[2].bytes()[..got.work().len()];
    if work != got.work() {
        return Ok(Trial::Failed("the adopted bytes do not hold what the device reads".into()));
    }
    Ok(verdict(difference))
}

/// Copies out behind a run and compares with a read.
pub fn copied_out(
    device: &mut dyn Device,
    program: &Arc<Validated>,
    values: &Values,
    symbols: &[usize],
) -> Result<Trial, Fault> {
    let session = Session::open(device, program, Width::Native)?;
    let checks = all_checks(program.program());
    let image = free_run(device, &session, values, symbols, Manner::Whole, &checks)?;
    let bytes = image.work().len();
    let mut memory = HostMemory::new(bytes);
    let region = HostRegion { bytes, ..memory.region() };
    let ticket = match session.copy_out_work(device, region, Ticket(0)) {
        Ok(ticket) => ticket,
        Err(Fault { kind: FaultKind::Unsupported { reason, .. }, .. }) => {
            session.close(device)?;
            return Ok(Trial::Absent(reason));
        }
        Err(fault) => return Err(fault),
    };
    let done = device.wait(ticket, Duration::from_secs(60))? == Progress::Done;
    session.close(device)?;
    if !done {
        return Ok(Trial::Failed("the copy's ticket never came".into()));
    }
    let same = memory.bytes()[..image.work().len()] == *image.work();
    Ok(if same { Trial::Held } else { Trial::Failed("the copy differs from a read".into()) })
}

/// Runs a step with its state in place and compares with the double layout.
pub fn in_place(
    device: &mut dyn Device,
    program: &Arc<Validated>,
    values: &Values,
    symbols: &[usize],
) -> Result<Trial, Fault> {
    let double = Session::open(device, program, Width::Native)?;
    let checks = all_checks(program.program());
    let want = free_run(device, &double, values, symbols, Manner::Whole, &checks)?;
    let plan = Arc::new(MemoryPlan::new(program, Width::Native, StateLayout::InPlace));
    let single = Session::open_planned(device, program, plan)?;
    let got = free_run(device, &single, values, symbols, Manner::Whole, &checks)?;
    let difference = states(&double, &want) != states(&single, &got);
    double.close(device)?;
    single.close(device)?;
    Ok(if difference { Trial::Failed("the next state differs".into()) } else { Trial::Held })
}

/// The bytes of all next states, wherever the plan puts them.
fn states(session: &Session, image: &Image) -> Vec<Vec<u8>> {
    let program = session.program.program();
    let next = program.values_with_ids().filter(|(_, value)| matches!(value.role, Role::Next { .. }));
    next.filter_map(|(id, _)| session.plan.place(id))
        .map(|place| image.bytes(place, place.bytes).to_vec())
        .collect()
}

fn verdict(difference: Option<BitDifference>) -> Trial {
    match difference {
        None => Trial::Held,
        Some(d) => Trial::Failed(format!("%{} of `{}` differs at byte {}", d.value, d.operator, d.byte)),
    }
}
