//! The worker's end of the protocol: a device behind two pipes.
//!
//! The process may die at any instruction, and nothing is lost by it: what outlives it lies in shared regions. It ends
//! when its input is closed, so that no worker outlives its supervisor.

use crate::protocol::{
    self, Answer, Call, FrameError, Hello, Incoming, Outcome, Request, read_frame, write_frame,
};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use toprope_program::{
    Allocation, Bindings, BufferId, CheckMask, Device, Fault, FaultKind, HostRegion, MemoryPlan, PreparedId,
    Progress, ProgressPlace, ProgressWord, SharedWord, Span, StateLayout, Ticket, Width, validate,
};
use toprope_world::{RegionHandle, SharedRegion, World};

/// What a device is opened from.
pub struct Opening<'a> {
    /// What the supervisor asked for.
    pub hello: &'a Hello,
    /// Where the device writes its progress.
    pub progress: ProgressPlace,
    /// The shared regions by number.
    pub regions: &'a [Arc<SharedRegion>],
}

/// A device and the words by which it is told of the step under way.
pub struct Opened {
    /// What computes.
    pub device: Box<dyn Device>,
    /// Told before each request: the step that is under way. Injection needs it; a device in earnest does not.
    pub at_step: Box<dyn FnMut(u64)>,
    /// Told before a copy to the host is queued; injection may die here.
    pub at_copy: Box<dyn FnMut()>,
    /// Told before each answer, with its bytes and the pipe; injection may die here.
    pub at_answer: AtAnswer,
}

/// Told of an answer's bytes and the pipe that they will go to.
pub type AtAnswer = Box<dyn FnMut(&[u8], &mut dyn Write)>;

impl Opened {
    /// A device that nothing is injected into.
    pub fn in_earnest(device: Box<dyn Device>) -> Opened {
        Opened { device, at_step: Box::new(|_| {}), at_copy: Box::new(|| {}), at_answer: Box::new(|_, _| {}) }
    }
}

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// What came is not this protocol.
    #[error(
        "the supervisor's message cannot be read: {0}\nhint: `toprope worker` is started by `toprope train`, not by hand"
    )]
    Frame(#[from] FrameError),
    /// A shared region could not be opened.
    #[error("a shared region cannot be opened: {0}")]
    Region(#[from] toprope_world::SharedMemoryError),
    /// The first message was another one, or a later message named what is not there.
    #[error("the supervisor's message makes no sense: {0}")]
    Nonsense(String),
}

/// Serves until the input is closed.
///
/// # Errors
/// A message that cannot be read, or that names what is not there.
pub fn serve(
    world: &dyn World,
    input: Box<dyn Read + Send>,
    output: &mut dyn Write,
    open: &dyn Fn(Opening<'_>) -> Result<Opened, Fault>,
) -> Result<(), WorkerError> {
    let requests = read_behind(input)?;
    let Ok(first) = requests.recv() else { return Ok(()) };
    let Incoming { head: Request { id, generation, call: Call::Hello(hello), .. }, .. } = first? else {
        return Err(WorkerError::Nonsense("the first request must be `hello`".into()));
    };
    let answer = |outcome| Answer { id, generation, outcome };
    if hello.version != protocol::VERSION {
        let reason = format!(
            "the supervisor speaks protocol version {}, this worker {}; use one installation for both",
            hello.version,
            protocol::VERSION
        );
        let fault = Box::new(Fault::new(hello.device, FaultKind::Lost { reason, for_good: false }));
        return Ok(write_frame(output, &answer(Outcome::Fault { fault }), &[])?);
    }
    let mut regions = Vec::new();
    for text in &hello.regions {
        regions.push(world.shared_memory().open(text.parse::<RegionHandle>()?)?);
    }
    let progress = progress_place(&regions, hello.progress)?;
    match open(Opening { hello: &hello, progress, regions: &regions }) {
        Err(fault) => Ok(write_frame(output, &answer(Outcome::Fault { fault: Box::new(fault) }), &[])?),
        Ok(opened) => {
            let description = Box::new(opened.device.describe());
            let ready = Outcome::Ready { version: protocol::VERSION, description };
            write_frame(output, &answer(ready), &[])?;
            let device_name = hello.device.clone();
            let mut worker = Worker {
                opened,
                regions,
                device_name,
                generation,
                buffers: Vec::new(),
                tickets: HashMap::new(),
                unanswered: None,
            };
            for request in requests {
                worker.carry_out(request?, output)?;
            }
            Ok(())
        }
    }
}

/// Reads requests on a thread of its own, which ends the process when the supervisor is gone, whatever the device does.
fn read_behind(
    mut input: Box<dyn Read + Send>,
) -> Result<Receiver<Result<Incoming<Request>, FrameError>>, WorkerError> {
    let (sender, receiver) = channel();
    let read_all = move || {
        loop {
            let frame = read_frame::<Request>(&mut *input);
            if matches!(frame, Err(FrameError::Closed)) {
                std::process::exit(0);
            }
            let ended = frame.is_err();
            if sender.send(frame).is_err() || ended {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("toprope-requests".into()).spawn(read_all);
    thread.map_err(FrameError::Broken)?;
    Ok(receiver)
}

fn progress_place(regions: &[Arc<SharedRegion>], at: (u32, u64)) -> Result<ProgressPlace, WorkerError> {
    let missing = || WorkerError::Nonsense(format!("no progress word at {at:?}"));
    let region = regions.get(at.0 as usize).ok_or_else(missing)?;
    let offset = at.1 as usize;
    let last = offset.checked_add(size_of::<ProgressWord>() - 8).ok_or_else(missing)?;
    if region.word(offset).is_none() || region.word(last).is_none() {
        return Err(missing());
    }
    let word = region.as_ptr().wrapping_add(offset).cast::<ProgressWord>();
    // The word must outlive the device, and the device lives until the process ends: so does this mapping.
    std::mem::forget(region.clone());
    // SAFETY: aligned and inside the region (looked at above), which stays mapped until the process ends.
    Ok(ProgressPlace::Shared(unsafe { SharedWord::new(word) }))
}

struct Worker {
    opened: Opened,
    regions: Vec<Arc<SharedRegion>>,
    device_name: String,
    generation: u64,
    buffers: Vec<BufferId>,
    /// Tickets of the device by the id of their request, of the last requests.
    tickets: HashMap<u64, Ticket>,
    /// A fault of a request that has no answer of its own.
    unanswered: Option<Fault>,
}

/// The supervisor has its own deadlines; this one only keeps a wait from being endless by accident.
const FOR_EVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Requests whose tickets are remembered.
const TICKETS_KEPT: u64 = 256;

impl Worker {
    fn carry_out(
        &mut self,
        Incoming { head: Request { id, generation, step, call }, payload }: Incoming<Request>,
        output: &mut dyn Write,
    ) -> Result<(), WorkerError> {
        if generation != self.generation {
            let reason = format!("generation {generation} was addressed, this worker is {}", self.generation);
            return Err(WorkerError::Nonsense(reason));
        }
        (self.opened.at_step)(step);
        let answered = !matches!(call, Call::Write { .. } | Call::Run { .. } | Call::CopyOut { .. });
        let done = match self.unanswered.clone() {
            // What was queued behind a fault is not carried out.
            Some(fault) => Err(fault),
            None => self.call(id, call, &payload)?,
        };
        if !answered {
            if let Err(fault) = done {
                self.unanswered = Some(fault);
            }
            return Ok(());
        }
        let (outcome, bytes) = match done {
            Ok(done) => done,
            Err(fault) => {
                self.unanswered = None;
                (Outcome::Fault { fault: Box::new(fault) }, Vec::new())
            }
        };
        let mut frame = Vec::new();
        write_frame(&mut frame, &Answer { id, generation: self.generation, outcome }, &bytes)?;
        (self.opened.at_answer)(&frame, output);
        output.write_all(&frame).and_then(|()| output.flush()).map_err(FrameError::Broken)?;
        Ok(())
    }

    fn buffer(&self, number: u32) -> Result<BufferId, WorkerError> {
        let found = self.buffers.get(number as usize).copied();
        found.ok_or_else(|| WorkerError::Nonsense(format!("no buffer {number}")))
    }

    fn host(&self, region: u32, offset: u64, bytes: u64) -> Result<HostRegion, WorkerError> {
        let missing = || WorkerError::Nonsense(format!("no {bytes} bytes from {offset} in region {region}"));
        let memory = self.regions.get(region as usize).ok_or_else(missing)?;
        let (offset, bytes) = (offset as usize, bytes as usize);
        if offset.checked_add(bytes).is_none_or(|end| end > memory.len()) {
            return Err(missing());
        }
        // SAFETY: inside a region that stays mapped until the process ends (`serve` holds it); the supervisor touches
        // it only while nothing is queued.
        Ok(unsafe { HostRegion::new(memory.as_ptr().wrapping_add(offset), bytes) })
    }

    /// The inner result is the device's, the outer one the protocol's.
    #[allow(clippy::type_complexity)]
    fn call(
        &mut self,
        id: u64,
        call: Call,
        payload: &[u8],
    ) -> Result<Result<(Outcome, Vec<u8>), Fault>, WorkerError> {
        let done = |()| (Outcome::Done, Vec::new());
        Ok(match call {
            Call::Hello(_) => return Err(WorkerError::Nonsense("a second `hello`".into())),
            Call::Allocate { bytes } => {
                let got = self.opened.device.allocate(Allocation::Own(bytes as usize));
                got.map(|buffer| self.remember(buffer))
            }
            Call::Adopt { region, offset, bytes } => {
                let host = self.host(region, offset, bytes)?;
                let got = self.opened.device.allocate(Allocation::Adopt(host));
                got.map(|buffer| self.remember(buffer))
            }
            Call::Release { buffer } => {
                let buffer = self.buffer(buffer)?;
                self.opened.device.release(buffer).map(done)
            }
            Call::Write { buffer, offset } => {
                let buffer = self.buffer(buffer)?;
                self.opened.device.write(buffer, offset as usize, payload).map(done)
            }
            Call::Read { buffer, offset, bytes } => {
                let buffer = self.buffer(buffer)?;
                let mut read = Vec::new();
                let length = usize::try_from(bytes).unwrap_or(usize::MAX);
                if read.try_reserve_exact(length).is_err() {
                    return Err(WorkerError::Nonsense(format!(
                        "there is no memory to read {bytes} bytes to"
                    )));
                }
                read.resize(length, 0);
                let got = self.opened.device.read(buffer, offset as usize, &mut read);
                got.map(|()| (Outcome::Done, read))
            }
            Call::CopyOut { buffer, offset, region, region_offset, bytes, after } => {
                let (buffer, to) = (self.buffer(buffer)?, self.host(region, region_offset, bytes)?);
                let Some(after) = self.tickets.get(&after).copied() else {
                    return Err(WorkerError::Nonsense(format!("no run {after} among the last")));
                };
                (self.opened.at_copy)();
                let queued = self.opened.device.copy_out(buffer, offset as usize, to, after);
                queued.map(|ticket| self.queued(id, ticket))
            }
            Call::Prepare { program, in_place, places } => {
                let program = validate(*program).map_err(|defects| {
                    let listed: Vec<String> = defects.iter().map(ToString::to_string).collect();
                    WorkerError::Nonsense(format!("the program is not valid: {}", listed.join("; ")))
                })?;
                let layout = if in_place { StateLayout::InPlace } else { StateLayout::Double };
                let plan = Arc::new(MemoryPlan::new(&program, Width::Native, layout));
                if protocol::places(&plan) != places {
                    let reason = "the memory plan is not what this worker makes of the program; use one installation for both";
                    return Err(WorkerError::Nonsense(reason.into()));
                }
                let prepared = self.opened.device.prepare(Arc::new(program), plan);
                prepared.map(|PreparedId(prepared)| (Outcome::Prepared { prepared }, Vec::new()))
            }
            Call::Run { prepared, range, from, to, buffers, symbols, first, checks } => {
                let [current, next, work] = buffers;
                let bindings = Bindings {
                    current: self.buffer(current)?,
                    next: self.buffer(next)?,
                    work: self.buffer(work)?,
                    symbols,
                    first,
                    checks: CheckMask(checks),
                };
                let span = Span { range, from, to };
                let queued = self.opened.device.run(PreparedId(prepared), span, &bindings);
                queued.map(|ticket| self.queued(id, ticket))
            }
            Call::Wait { ticket } => {
                let Some(own) = self.tickets.get(&ticket).copied() else {
                    return Err(WorkerError::Nonsense(format!("no run {ticket} among the last")));
                };
                self.tickets.retain(|known, _| known + TICKETS_KEPT > id);
                match self.opened.device.wait(own, FOR_EVER) {
                    Ok(Progress::Done) => Ok(done(())),
                    Ok(Progress::Running { .. }) => {
                        let waited_ms = FOR_EVER.as_millis() as u64;
                        Err(Fault::new(self.device_name.clone(), FaultKind::Hang { waited_ms }))
                    }
                    Err(fault) => Err(fault),
                }
            }
        })
    }

    fn remember(&mut self, buffer: BufferId) -> (Outcome, Vec<u8>) {
        let known = self.buffers.iter().position(|other| *other == buffer);
        let index = known.unwrap_or_else(|| {
            self.buffers.push(buffer);
            self.buffers.len() - 1
        });
        (Outcome::Buffer { buffer: index as u32 }, Vec::new())
    }

    fn queued(&mut self, id: u64, ticket: Ticket) -> (Outcome, Vec<u8>) {
        self.tickets.insert(id, ticket);
        (Outcome::Done, Vec::new())
    }
}
