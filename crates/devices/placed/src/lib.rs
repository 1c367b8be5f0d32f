//! A device some of whose operators run on other devices: what an operator that one chip computes wrong asks for, while the
//! chip is sound in all the others.
//!
//! The first device is the home of every value. A span is cut where the device changes; before a piece on a guest what it
//! reads and writes is copied there, and behind it what it wrote is copied back. Each such piece costs two round trips over
//! the host. Where all devices adopt the same memory of the host, nothing is copied.

mod work; // spans cut into pieces

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use toprope_program::placed::PlacedName;
use toprope_program::{
    Allocation, Bindings, BufferId, Description, Device, Fault, FaultKind, HostRegion, Location, MemoryPlan,
    PreparedId, Progress, Range, Span, Ticket, Validated,
};
use toprope_world::World;
use work::{Host, Piece, Work, pieces};

/// A guest with the operators that run on it.
pub struct Guest {
    /// The device.
    pub device: Box<dyn Device>,
    /// Operators by name.
    pub operators: Vec<String>,
}

/// A buffer on every device.
struct Buffer {
    main: BufferId,
    guests: Vec<BufferId>,
    /// All of them are the same memory.
    is_shared: bool,
}

/// A program on every device.
struct Prepared {
    main: PreparedId,
    guests: Vec<PreparedId>,
    program: Arc<Validated>,
    plan: Arc<MemoryPlan>,
}

/// A device some of whose operators run on others.
pub struct PlacedDevice {
    name: String,
    main: Box<dyn Device>,
    guests: Vec<Guest>,
    world: Box<dyn World>,
    buffers: Vec<Option<Buffer>>,
    programs: Vec<Prepared>,
    queue: VecDeque<Work>,
    /// Copies to the host, with the first device's tickets.
    copies: HashMap<Ticket, Ticket>,
    last: u64,
    /// Tickets that a fault took with it; the newest [`FAILED_MAX`].
    failed: VecDeque<(Ticket, Fault)>,
    /// The first device's last run.
    last_main: Option<Ticket>,
    /// What the last run was of, for copies behind a run that was a guest's alone.
    last_run: Option<(PreparedId, Range, Bindings)>,
}

/// Failed tickets that are remembered.
const FAILED_MAX: usize = 256;

/// How long what is queued may take where nobody gave a deadline: far beyond any deadline of a guard.
const PATIENCE: Duration = Duration::from_secs(3600);

impl PlacedDevice {
    /// Puts devices together; `name` says which operators run where, and is what the device calls itself.
    pub fn new(
        name: &PlacedName,
        main: Box<dyn Device>,
        guests: Vec<Guest>,
        world: Box<dyn World>,
    ) -> PlacedDevice {
        PlacedDevice {
            name: name.to_string(),
            main,
            guests,
            world,
            buffers: Vec::new(),
            programs: Vec::new(),
            queue: VecDeque::new(),
            copies: HashMap::new(),
            last: 0,
            failed: VecDeque::new(),
            last_main: None,
            last_run: None,
        }
    }

    fn device(&mut self, host: Host) -> &mut dyn Device {
        match host {
            Host::Main => &mut *self.main,
            Host::Guest(guest) => &mut *self.guests[guest].device,
        }
    }

    fn buffer(&self, id: BufferId) -> &Buffer {
        match self.buffers.get(id.0 as usize) {
            Some(Some(buffer)) => buffer,
            _ => panic!("buffer {} is not one of this device", id.0),
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.last += 1;
        Ticket(self.last)
    }

    /// The bindings as a device knows its buffers.
    fn bound(&self, bindings: &Bindings, host: Host) -> Bindings {
        let own = |id: BufferId| match host {
            Host::Main => self.buffer(id).main,
            Host::Guest(guest) => self.buffer(id).guests[guest],
        };
        Bindings {
            current: own(bindings.current),
            next: own(bindings.next),
            work: own(bindings.work),
            ..bindings.clone()
        }
    }

    /// Where the values of a piece lie that are not in memory which all devices share.
    fn places(&self, work: &Work, piece: Piece, read: bool) -> Vec<(BufferId, Location)> {
        let prepared = &self.programs[work.prepared.0 as usize];
        let program = prepared.program.program();
        let mut found: Vec<(BufferId, Location)> = Vec::new();
        for instruction in &program.range(work.range)[piece.from..piece.to] {
            if instruction.check.is_some_and(|bit| !work.bindings.checks.fires(bit)) {
                continue;
            }
            let operands = instruction.operands.iter().map(|operand| operand.value).filter(|_| read);
            // What is written may be added to, or written in part: it is brought over too.
            for id in operands.chain(instruction.outputs.iter().copied()) {
                let Some(location) = prepared.plan.place(id) else { continue };
                let buffer = work.bindings.buffer(location.region);
                let known = found.iter().any(|(_, there)| *there == location);
                if location.bytes > 0 && !known && !self.buffer(buffer).is_shared {
                    found.push((buffer, location));
                }
            }
        }
        found
    }

    /// Copies values between the first device and a guest.
    fn bring(&mut self, places: &[(BufferId, Location)], guest: usize, back: bool) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        for (buffer, location) in places {
            let (main, there) = (self.buffer(*buffer).main, self.buffer(*buffer).guests[guest]);
            bytes.resize(location.bytes, 0);
            let guest = &mut *self.guests[guest].device;
            if back {
                guest.read(there, location.offset_bytes, &mut bytes)?;
                self.main.write(main, location.offset_bytes, &bytes)?;
            } else {
                self.main.read(main, location.offset_bytes, &mut bytes)?;
                guest.write(there, location.offset_bytes, &bytes)?;
            }
        }
        Ok(())
    }

    /// Begins the next piece of the oldest work.
    fn begin(&mut self, work: &mut Work) -> Result<(), Fault> {
        let Some(piece) = work.pieces.front().copied() else { return Ok(()) };
        if let Host::Guest(guest) = piece.host {
            let places = self.places(work, piece, true);
            self.bring(&places, guest, false)?;
        }
        let bindings = self.bound(&work.bindings, piece.host);
        let entry = &self.programs[work.prepared.0 as usize];
        let prepared = match piece.host {
            Host::Main => entry.main,
            Host::Guest(guest) => entry.guests[guest],
        };
        let span = Span { range: work.range, from: piece.from, to: piece.to };
        let ticket = self.device(piece.host).run(prepared, span, &bindings)?;
        if piece.host == Host::Main {
            self.last_main = Some(ticket);
        }
        work.running = Some(ticket);
        Ok(())
    }

    /// Goes on with the oldest work until it is done, or the time is over.
    fn advance(&mut self, work: &mut Work, limit: Duration) -> Result<Progress, Fault> {
        let until = self.world.clock().monotonic().saturating_add(limit);
        loop {
            let (Some(piece), Some(ticket)) = (work.pieces.front().copied(), work.running) else {
                match work.pieces.is_empty() {
                    true => return Ok(Progress::Done),
                    false => self.begin(work)?,
                }
                continue;
            };
            let left = until.saturating_sub(self.world.clock().monotonic());
            if let Progress::Running { instruction } = self.device(piece.host).wait(ticket, left)? {
                return Ok(Progress::Running { instruction });
            }
            if let Host::Guest(guest) = piece.host {
                let places = self.places(work, piece, false);
                self.bring(&places, guest, true)?;
            }
            work.running = None;
            work.pieces.pop_front();
        }
    }

    /// Does everything that was queued up to a ticket.
    fn settle(&mut self, through: Ticket, limit: Duration) -> Result<Progress, Fault> {
        let until = self.world.clock().monotonic().saturating_add(limit);
        while self.queue.front().is_some_and(|work| work.ticket <= through) {
            let Some(mut work) = self.queue.pop_front() else { break };
            let left = until.saturating_sub(self.world.clock().monotonic());
            match self.advance(&mut work, left) {
                Ok(Progress::Done) => {}
                Ok(running) => {
                    self.queue.push_front(work);
                    return Ok(running);
                }
                Err(fault) => {
                    // What was queued behind a fault is not carried out.
                    let tickets =
                        std::iter::once(work.ticket).chain(self.queue.drain(..).map(|work| work.ticket));
                    self.failed.extend(tickets.map(|ticket| (ticket, fault.clone())));
                    self.failed.drain(..self.failed.len().saturating_sub(FAILED_MAX));
                    return Err(fault);
                }
            }
        }
        Ok(Progress::Done)
    }

    /// Gives back what was allocated before a device refused; the refusal is what is told.
    fn take_back(&mut self, main: BufferId, guests: Vec<BufferId>) {
        for (guest, id) in self.guests.iter_mut().zip(guests) {
            let _ = guest.device.release(id);
        }
        let _ = self.main.release(main);
    }

    /// Does everything that was queued.
    fn drain(&mut self) -> Result<(), Fault> {
        match self.settle(Ticket(self.last), PATIENCE)? {
            Progress::Done => Ok(()),
            Progress::Running { .. } => {
                Err(Fault::new(&*self.name, FaultKind::Hang { waited_ms: PATIENCE.as_millis() as u64 }))
            }
        }
    }
}

impl Device for PlacedDevice {
    fn describe(&self) -> Description {
        let mut description = self.main.describe();
        description.name.clone_from(&self.name);
        for guest in &self.guests {
            let there = guest.device.describe();
            let operators = guest.operators.join(", ");
            description.level.push_str(&format!("; {operators} on {} {}", there.name, there.level));
            description.versions.extend(there.versions);
            description.dtypes.retain(|dtype| there.dtypes.contains(dtype));
            description.deterministic &= there.deterministic;
            description.emulated |= there.emulated;
            description
                .health
                .extend(there.health.iter().map(|problem| format!("{}: {problem}", there.name)));
        }
        description
    }

    fn allocate(&mut self, allocation: Allocation) -> Result<BufferId, Fault> {
        let main = self.main.allocate(allocation)?;
        // A device may answer with the buffer that it made of this memory before; the guests have theirs.
        let known = |buffer: &Option<Buffer>| buffer.as_ref().is_some_and(|known| known.main == main);
        if let Some(index) = self.buffers.iter().position(known) {
            return Ok(BufferId(index as u32));
        }
        let mut guests = Vec::with_capacity(self.guests.len());
        for guest in &mut self.guests {
            match guest.device.allocate(allocation) {
                Ok(id) => guests.push(id),
                Err(fault) => {
                    self.take_back(main, guests);
                    return Err(fault);
                }
            }
        }
        let buffer = Buffer { main, guests, is_shared: matches!(allocation, Allocation::Adopt(_)) };
        let free = self.buffers.iter().position(Option::is_none).unwrap_or(self.buffers.len());
        if free == self.buffers.len() {
            self.buffers.push(None);
        }
        self.buffers[free] = Some(buffer);
        Ok(BufferId(free as u32))
    }

    fn write(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.drain()?;
        let main = self.buffer(buffer).main;
        self.main.write(main, offset_bytes, bytes)
    }

    fn read(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        self.drain()?;
        let main = self.buffer(buffer).main;
        self.main.read(main, offset_bytes, bytes)
    }

    fn copy_out(
        &mut self,
        buffer: BufferId,
        offset_bytes: usize,
        to: HostRegion,
        after: Ticket,
    ) -> Result<Ticket, Fault> {
        assert!(after.0 <= self.last, "{after:?} was never given");
        if self.queue.front().is_some_and(|work| work.ticket <= after) {
            self.drain()?;
        }
        // Behind a run that was a guest's alone: a run of nothing stands for it.
        if self.last_main.is_none()
            && let Some((prepared, range, bindings)) = self.last_run.clone()
        {
            let bindings = self.bound(&bindings, Host::Main);
            let main = self.programs[prepared.0 as usize].main;
            self.last_main = Some(self.main.run(main, Span { range, from: 0, to: 0 }, &bindings)?);
        }
        let Some(behind) = self.last_main else {
            panic!("{after:?} was never given");
        };
        let main = self.buffer(buffer).main;
        let inner = self.main.copy_out(main, offset_bytes, to, behind)?;
        let ticket = self.ticket();
        self.copies.insert(ticket, inner);
        Ok(ticket)
    }

    fn prepare(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        let main = self.main.prepare(program.clone(), plan.clone())?;
        let mut guests = Vec::new();
        for guest in &mut self.guests {
            guests.push(guest.device.prepare(program.clone(), plan.clone())?);
        }
        self.programs.push(Prepared { main, guests, program, plan });
        Ok(PreparedId(self.programs.len() as u32 - 1))
    }

    fn run(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        let Some(entry) = self.programs.get(prepared.0 as usize) else {
            panic!("program {} is not one of this device", prepared.0);
        };
        let operators: Vec<&[String]> = self.guests.iter().map(|guest| guest.operators.as_slice()).collect();
        let pieces = pieces(entry.program.program(), span, &operators);
        let ticket = self.ticket();
        let mut work =
            Work { ticket, prepared, range: span.range, bindings: bindings.clone(), pieces, running: None };
        self.last_run = Some((prepared, span.range, bindings.clone()));
        if self.queue.is_empty() {
            self.begin(&mut work)?;
        }
        self.queue.push_back(work);
        Ok(ticket)
    }

    fn wait(&mut self, ticket: Ticket, deadline: Duration) -> Result<Progress, Fault> {
        assert!(ticket.0 <= self.last, "{ticket:?} was never given");
        if let Some(inner) = self.copies.get(&ticket).copied() {
            let progress = self.main.wait(inner, deadline)?;
            if progress == Progress::Done {
                self.copies.remove(&ticket);
            }
            return Ok(progress);
        }
        if let Some((_, fault)) = self.failed.iter().find(|(failed, _)| *failed == ticket) {
            return Err(fault.clone());
        }
        self.settle(ticket, deadline)
    }

    fn release(&mut self, buffer: BufferId) -> Result<(), Fault> {
        self.drain()?;
        let Some(known) = self.buffers.get_mut(buffer.0 as usize).and_then(Option::take) else {
            panic!("buffer {} is not one of this device", buffer.0);
        };
        self.main.release(known.main)?;
        for (guest, id) in self.guests.iter_mut().zip(known.guests) {
            guest.device.release(id)?;
        }
        Ok(())
    }
}
