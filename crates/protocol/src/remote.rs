//! A worker process as a device: the supervisor's end of the protocol.

use crate::{Answer, Call, FrameError, Hello, Incoming, Outcome, Request};
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;
use toprope_program::{
    Allocation, Bindings, BufferId, Description, Device, Fault, FaultKind, HostRegion, MemoryPlan,
    PreparedId, Progress, Span, StateLayout, Ticket, Validated,
};
use toprope_world::{ChildProcess, Exit, Launch, SharedRegion, Stream, World};

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The executable.
    pub program: std::path::PathBuf,
    /// Its arguments; one that is [`SCRIPT`] stands for the path of `script`.
    pub arguments: Vec<std::ffi::OsString>,
    /// What an interpreter is to run. It is passed as a shared region, so that no file of it is left anywhere and no list
    /// of processes shows it; blanks follow it.
    pub script: Option<&'static str>,
}

/// Stands for the path of the script among a command's arguments.
pub const SCRIPT: &str = "{script}";

impl WorkerCommand {
    /// The arguments, with the region that holds the script where there is one.
    fn resolved(
        &self,
        world: &dyn World,
    ) -> Result<(Vec<std::ffi::OsString>, Option<Arc<SharedRegion>>), toprope_world::SharedMemoryError> {
        let Some(script) = self.script else { return Ok((self.arguments.clone(), None)) };
        let words = script.len().div_ceil(8).max(1);
        let region = world.shared_memory().create("toprope-script", words * 8)?;
        for index in 0..words {
            let mut bytes = [b'\n'; 8];
            let rest = script.as_bytes().get(index * 8..).unwrap_or_default();
            let count = rest.len().min(8);
            bytes[..count].copy_from_slice(&rest[..count]);
            if let Some(word) = region.word(index * 8) {
                word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
            }
        }
        let folder = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
        let path = region.handle().map(|handle| format!("{folder}/{}", handle.descriptor));
        let place = |argument: &std::ffi::OsString| match (&path, argument == SCRIPT) {
            (Some(path), true) => path.into(),
            _ => argument.clone(),
        };
        Ok((self.arguments.iter().map(place).collect(), Some(region)))
    }
}

/// What a worker is started with.
pub struct WorkerOptions<'a> {
    /// How to start it.
    pub command: &'a WorkerCommand,
    /// Memory that outlives it; the numbers of the protocol are indices.
    pub regions: &'a [Arc<SharedRegion>],
    /// What it is told first; the regions' handles are filled in.
    pub hello: Hello,
    /// Its number.
    pub generation: u64,
    /// No answer within this time is a hang. Waits for runs have their own deadlines.
    pub patience: Duration,
}

/// A buffer as this side knows it.
#[derive(Clone, Copy)]
enum Home {
    /// In the worker's or its chip's memory.
    Remote,
    /// In a shared region: this side reads and writes it in place.
    Shared { region: usize, offset: usize },
}

/// A worker process behind the device interface.
pub struct RemoteDevice {
    child: Box<dyn ChildProcess>,
    input: Option<Box<dyn Write + Send>>,
    answers: Receiver<Result<Incoming<Answer>, FrameError>>,
    regions: Vec<Arc<SharedRegion>>,
    progress: (usize, usize),
    generation: u64,
    step: u64,
    last_id: u64,
    description: Option<Description>,
    name: String,
    buffers: HashMap<BufferId, (Home, usize)>,
    prepared: HashMap<PreparedId, usize>,
    /// The last run or copy that nobody has waited for.
    unfinished: Option<Ticket>,
    /// A wait that was sent and not answered within its deadline.
    waiting: Option<Ticket>,
    patience: Duration,
    /// Why it is of no use any more.
    lost: Option<Fault>,
}

impl RemoteDevice {
    /// Starts a worker and sends its greeting; [`RemoteDevice::ready`] tells when it is up.
    ///
    /// # Errors
    /// The process could not be started: `Lost`.
    pub fn launch(world: &dyn World, options: WorkerOptions<'_>) -> Result<RemoteDevice, Fault> {
        let WorkerOptions { command, regions, mut hello, generation, patience } = options;
        let name = hello.device.clone();
        let lost = |reason: String| Fault::new(name.clone(), FaultKind::Lost { reason, for_good: false });
        hello.regions =
            regions.iter().filter_map(|region| region.handle()).map(|handle| handle.to_string()).collect();
        if hello.regions.len() != regions.len() {
            return Err(lost("a region of this process alone cannot be shared with a worker".into()));
        }
        let progress = (hello.progress.0 as usize, hello.progress.1 as usize);
        if let Some(word) = regions.get(progress.0).and_then(|region| region.word(progress.1)) {
            word.store(generation, Ordering::Release);
        }
        let (arguments, script) = command.resolved(world).map_err(|error| lost(error.to_string()))?;
        let launch = Launch {
            program: command.program.clone(),
            arguments,
            environment: Vec::new(),
            regions: regions.iter().cloned().chain(script).collect(),
            input: Stream::Pipe,
            output: Stream::Pipe,
            error: Stream::Inherit,
            dies_with_parent: true,
        };
        let mut child = world.processes().spawn(&launch).map_err(|error| lost(error.to_string()))?;
        let input = child.take_input();
        let output = child.take_output();
        let (sender, answers) = channel();
        let reader = std::thread::Builder::new().name(format!("toprope-worker-{generation}"));
        let read_all = move || {
            let Some(mut output) = output else { return };
            loop {
                let frame = crate::read_frame(&mut *output);
                let ended = frame.is_err();
                if sender.send(frame).is_err() || ended {
                    return;
                }
            }
        };
        reader.spawn(read_all).map_err(|error| lost(format!("no thread to read its answers: {error}")))?;
        let mut device = RemoteDevice {
            child,
            input,
            answers,
            regions: regions.to_vec(),
            progress,
            generation,
            step: 0,
            last_id: 0,
            description: None,
            name,
            buffers: HashMap::new(),
            prepared: HashMap::new(),
            unfinished: None,
            waiting: None,
            patience,
            lost: None,
        };
        device.send(Call::Hello(hello), &[])?;
        Ok(device)
    }

    /// Waits at most `limit` for the worker to be up. `None` where it is not yet.
    ///
    /// # Errors
    /// It died, speaks another version, or its device could not be opened.
    pub fn ready(&mut self, limit: Duration) -> Result<Option<&Description>, Fault> {
        if self.description.is_none() {
            let Some(answer) = self.receive(1, limit)? else { return Ok(None) };
            match answer.head.outcome {
                Outcome::Ready { version, description } if version == crate::VERSION => {
                    self.description = Some(*description);
                }
                Outcome::Ready { version, .. } => {
                    let reason = format!(
                        "the worker speaks protocol version {version}, this supervisor {}; use one installation for both",
                        crate::VERSION
                    );
                    return Err(self.lose(FaultKind::Lost { reason, for_good: false }));
                }
                Outcome::Fault { fault } => return Err(*fault),
                other => return Err(self.nonsense("hello", &other)),
            }
        }
        Ok(self.description.as_ref())
    }

    /// Says which step is under way.
    pub fn set_step(&mut self, step: u64) {
        self.step = step;
    }

    /// The worker's process.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// The worker's number.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The instruction that the progress word names, where one is under way.
    pub fn instruction(&self) -> Option<usize> {
        let (region, offset) = self.progress;
        let word = self.regions.get(region)?.word(offset + 16)?;
        word.load(Ordering::Acquire).checked_sub(1).map(|index| index as usize)
    }

    /// Ends the process at once and awaits its end.
    pub fn kill(&mut self) -> Option<Exit> {
        self.input = None;
        // Either it is dead already, or the wait below tells.
        let _ = self.child.kill();
        self.child.wait(KILL_LIMIT).ok().flatten()
    }

    fn lose(&mut self, kind: FaultKind) -> Fault {
        let fault = Fault::new(self.name.clone(), kind);
        self.lost.get_or_insert(fault).clone()
    }

    fn nonsense(&mut self, request: &str, outcome: &Outcome) -> Fault {
        let reason = format!("the worker answered `{request}` with {outcome:?}");
        self.lose(FaultKind::Lost { reason, for_good: false })
    }

    fn send(&mut self, call: Call, payload: &[u8]) -> Result<u64, Fault> {
        if let Some(fault) = &self.lost {
            return Err(fault.clone());
        }
        self.last_id += 1;
        let request = Request { id: self.last_id, generation: self.generation, step: self.step, call };
        let sent = match self.input.as_mut() {
            Some(input) => crate::write_frame(&mut **input, &request, payload),
            None => Err(FrameError::Closed),
        };
        match sent {
            Ok(()) => Ok(self.last_id),
            Err(error) => Err(self.gone(&error)),
        }
    }

    /// The pipe is closed or broken: says how the process ended, where it did.
    fn gone(&mut self, error: &FrameError) -> Fault {
        let reason = match self.child.wait(EXIT_LIMIT) {
            Ok(Some(exit)) => format!("the worker {exit}"),
            _ => format!("the worker's answer did not come: {error}"),
        };
        self.lose(FaultKind::Lost { reason, for_good: false })
    }

    /// The answer to request `id`, waited for at most `limit`.
    fn receive(&mut self, id: u64, limit: Duration) -> Result<Option<Incoming<Answer>>, Fault> {
        if let Some(fault) = &self.lost {
            return Err(fault.clone());
        }
        loop {
            // An answer of another generation costs the limit anew; there are at most as many as the pipe holds.
            match self.answers.recv_timeout(limit) {
                Ok(Ok(answer)) if answer.head.generation != self.generation => {}
                Ok(Ok(answer)) if answer.head.id == id => return Ok(Some(answer)),
                Ok(Ok(answer)) => {
                    let reason = format!("the worker answered request {} in place of {id}", answer.head.id);
                    return Err(self.lose(FaultKind::Lost { reason, for_good: false }));
                }
                Ok(Err(error)) => return Err(self.gone(&error)),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone(&FrameError::Closed)),
            }
        }
    }

    /// Sends a request and awaits its answer.
    fn ask(&mut self, call: Call, payload: &[u8]) -> Result<Incoming<Answer>, Fault> {
        self.finish()?;
        let id = self.send(call, payload)?;
        self.answer(id)
    }

    fn answer(&mut self, id: u64) -> Result<Incoming<Answer>, Fault> {
        match self.receive(id, self.patience)? {
            Some(Incoming { head: Answer { outcome: Outcome::Fault { fault }, .. }, .. }) => Err(*fault),
            Some(answer) => Ok(answer),
            None => {
                let waited_ms = self.patience.as_millis() as u64;
                Err(self.lose(FaultKind::Hang { waited_ms }))
            }
        }
    }

    /// Waits for what was queued, so that memory may be looked at.
    fn finish(&mut self) -> Result<(), Fault> {
        let Some(ticket) = self.waiting.or(self.unfinished) else { return Ok(()) };
        match self.wait(ticket, self.patience)? {
            Progress::Done => Ok(()),
            Progress::Running { .. } => {
                let waited_ms = self.patience.as_millis() as u64;
                Err(self.lose(FaultKind::Hang { waited_ms }))
            }
        }
    }

    /// The address of a part of a shared buffer; asserts that it lies inside, as all devices do.
    fn shared(&self, buffer: BufferId, offset: usize, bytes: usize) -> Option<*mut u8> {
        let (home, length) = self.buffers.get(&buffer)?;
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= *length),
            "{bytes} bytes leave the buffer"
        );
        match *home {
            Home::Remote => None,
            Home::Shared { region, offset: base } => {
                Some(self.regions[region].as_ptr().wrapping_add(base + offset))
            }
        }
    }

    /// The region that host memory lies in, with the offset.
    fn region_of(&self, host: HostRegion) -> Option<(usize, usize)> {
        self.regions.iter().enumerate().find_map(|(index, region)| {
            let offset = (host.address as usize).checked_sub(region.as_ptr() as usize)?;
            (offset.checked_add(host.bytes)? <= region.len()).then_some((index, offset))
        })
    }
}

/// A killed process is gone within this time, or the machine has other troubles.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A process whose pipe is closed has ended within this time, or does something else.
const EXIT_LIMIT: Duration = Duration::from_millis(500);

impl std::fmt::Debug for RemoteDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let generation = self.generation;
        f.debug_struct("RemoteDevice")
            .field("name", &self.name)
            .field("generation", &generation)
            .finish_non_exhaustive()
    }
}

impl Drop for RemoteDevice {
    fn drop(&mut self) {
        // A worker ends by itself when its pipe is closed; one that hangs or was stopped does not.
        self.kill();
    }
}

impl Device for RemoteDevice {
    fn describe(&self) -> Description {
        self.description.clone().unwrap_or_else(|| Description {
            name: self.name.clone(),
            hardware: String::new(),
            level: String::new(),
            versions: Vec::new(),
            dtypes: Vec::new(),
            memory_bytes: None,
            units: 0,
            deterministic: false,
            emulated: false,
            health: vec!["not up yet".into()],
        })
    }

    fn allocate(&mut self, allocation: Allocation) -> Result<BufferId, Fault> {
        let (call, home, length) = match allocation {
            Allocation::Own(bytes) => (Call::Allocate { bytes: bytes as u64 }, Home::Remote, bytes),
            Allocation::Adopt(host) => {
                let Some((region, offset)) = self.region_of(host) else {
                    let kind = FaultKind::Unsupported {
                        operator: "adopt".into(),
                        dtype: None,
                        shape: Vec::new(),
                        reason: "the memory does not lie in a region that the worker was given".into(),
                    };
                    return Err(Fault::new(self.name.clone(), kind));
                };
                let (call_region, bytes) = (region as u32, host.bytes as u64);
                let call = Call::Adopt { region: call_region, offset: offset as u64, bytes };
                (call, Home::Shared { region, offset }, host.bytes)
            }
        };
        match self.ask(call, &[])?.head.outcome {
            Outcome::Buffer { buffer } => {
                self.buffers.insert(BufferId(buffer), (home, length));
                Ok(BufferId(buffer))
            }
            other => Err(self.nonsense("allocate", &other)),
        }
    }

    fn write(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &[u8]) -> Result<(), Fault> {
        match self.shared(buffer, offset_bytes, bytes.len()) {
            Some(address) => {
                self.finish()?;
                // SAFETY: inside the region (`shared`), which this device holds; the worker has finished all that was
                // queued, and the protocol lets it touch the memory only while something is.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address, bytes.len()) };
                Ok(())
            }
            None => {
                let call = Call::Write { buffer: buffer.0, offset: offset_bytes as u64 };
                self.send(call, bytes).map(|_| ())
            }
        }
    }

    fn read(&mut self, buffer: BufferId, offset_bytes: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        if let Some(address) = self.shared(buffer, offset_bytes, bytes.len()) {
            self.finish()?;
            // SAFETY: as in `write`.
            unsafe { std::ptr::copy_nonoverlapping(address, bytes.as_mut_ptr(), bytes.len()) };
            return Ok(());
        }
        let (offset, count) = (offset_bytes as u64, bytes.len() as u64);
        let answer = self.ask(Call::Read { buffer: buffer.0, offset, bytes: count }, &[])?;
        if answer.payload.len() != bytes.len() {
            let reason = format!(
                "the worker sent {} bytes where {} were asked for",
                answer.payload.len(),
                bytes.len()
            );
            return Err(self.lose(FaultKind::Lost { reason, for_good: false }));
        }
        bytes.copy_from_slice(&answer.payload);
        Ok(())
    }

    fn copy_out(
        &mut self,
        buffer: BufferId,
        offset_bytes: usize,
        to: HostRegion,
        after: Ticket,
    ) -> Result<Ticket, Fault> {
        let Some((region, region_offset)) = self.region_of(to) else {
            let kind = FaultKind::Unsupported {
                operator: "copy_out".into(),
                dtype: None,
                shape: Vec::new(),
                reason: "the memory does not lie in a region that the worker was given".into(),
            };
            return Err(Fault::new(self.name.clone(), kind));
        };
        let id = self.send(
            Call::CopyOut {
                buffer: buffer.0,
                offset: offset_bytes as u64,
                region: region as u32,
                region_offset: region_offset as u64,
                bytes: to.bytes as u64,
                after: after.0,
            },
            &[],
        )?;
        Ok(Ticket(id))
    }

    fn prepare(&mut self, program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<PreparedId, Fault> {
        let in_place = plan.layout == StateLayout::InPlace;
        let call = Call::Prepare {
            program: Box::new(program.program().clone()),
            in_place,
            places: crate::places(&plan),
        };
        match self.ask(call, &[])?.head.outcome {
            Outcome::Prepared { prepared } => {
                self.prepared.insert(PreparedId(prepared), plan.work_bytes);
                Ok(PreparedId(prepared))
            }
            other => Err(self.nonsense("prepare", &other)),
        }
    }

    fn run(&mut self, prepared: PreparedId, span: Span, bindings: &Bindings) -> Result<Ticket, Fault> {
        assert!(self.prepared.contains_key(&prepared), "program {} is not one of this device", prepared.0);
        let id = self.send(
            Call::Run {
                prepared: prepared.0,
                range: span.range,
                from: span.from,
                to: span.to,
                buffers: [bindings.current.0, bindings.next.0, bindings.work.0],
                symbols: bindings.symbols.clone(),
                first: bindings.first,
                checks: bindings.checks.0.clone(),
            },
            &[],
        )?;
        self.unfinished = Some(Ticket(id));
        Ok(Ticket(id))
    }

    fn wait(&mut self, ticket: Ticket, deadline: Duration) -> Result<Progress, Fault> {
        let id = match self.waiting {
            // The answer to the wait that timed out comes first.
            Some(Ticket(id)) => id,
            None => self.send(Call::Wait { ticket: ticket.0 }, &[])?,
        };
        match self.receive(id, deadline)? {
            None => {
                self.waiting = Some(Ticket(id));
                Ok(Progress::Running { instruction: self.instruction() })
            }
            Some(answer) => {
                self.waiting = None;
                if self.unfinished.is_some_and(|last| last <= ticket) {
                    self.unfinished = None;
                }
                match answer.head.outcome {
                    Outcome::Done => Ok(Progress::Done),
                    Outcome::Fault { fault } => Err(*fault),
                    other => Err(self.nonsense("wait", &other)),
                }
            }
        }
    }

    fn release(&mut self, buffer: BufferId) -> Result<(), Fault> {
        self.buffers.remove(&buffer);
        match self.ask(Call::Release { buffer: buffer.0 }, &[])?.head.outcome {
            Outcome::Done => Ok(()),
            other => Err(self.nonsense("release", &other)),
        }
    }
}
