//! Workers as the supervisor holds them: started on threads of their own, so that nothing waits for one to come up.

use crate::decide::{DeviceIndex, Worker};
use crate::protocol::{self, Faults, Hello};
use crate::remote::{RemoteDevice, WorkerCommand, WorkerOptions};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use toprope_program::placed::PlacedName;
use toprope_program::{
    Allocation, Fault, FaultKind, Homes, HostRegion, MemoryPlan, Session, StateLayout, Validated,
};
use toprope_world::{SharedRegion, World};

/// A device of the run's list.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// What opens it.
    pub name: String,
    /// Threads that it may use.
    pub threads: Option<usize>,
    /// The dispatch level to force.
    pub level: Option<String>,
    /// How its worker is started, where it brings one of its own; else it is [`Start::command`].
    pub command: Option<WorkerCommand>,
    /// Whether it computes in the host's memory; one that does not keeps everything in its own.
    pub in_host_memory: bool,
}

impl DeviceSpec {
    /// Lets an operator run on another device from now on.
    pub(super) fn move_operator(&mut self, operator: &str, to: &DeviceSpec) {
        // A name that cannot be read was refused before the run began; such a one is left as it is.
        let (Ok(mut name), Ok(there)) = (PlacedName::parse(&self.name), PlacedName::parse(&to.name)) else {
            return;
        };
        // Where the other device has moved it too, it runs there.
        let onward = there.moved.into_iter().find(|(moved, _)| moved == operator);
        name.moved.push((operator.into(), onward.map_or(there.device, |(_, device)| device)));
        self.name = name.to_string();
        self.in_host_memory &= to.in_host_memory;
        // Both are held by one worker.
        self.command = None;
    }
}

/// A worker that is up: its device with the step's program ready on it.
pub struct Crew {
    /// The process.
    pub device: RemoteDevice,
    /// The program on it.
    pub session: Session,
    /// Which device it is.
    pub index: DeviceIndex,
    /// Which half of the shared state its session takes as the committed one.
    pub half: usize,
    /// Whether the state lies in the device's own memory.
    pub own_state: bool,
}

/// All that starting a worker needs beside the device.
#[derive(Clone)]
pub struct Start {
    /// How.
    pub command: WorkerCommand,
    /// The run's name.
    pub run: String,
    /// The control region, then what else outlives workers.
    pub regions: Vec<Arc<SharedRegion>>,
    /// The step's program.
    pub program: Arc<Validated>,
    /// Its plan.
    pub plan: Arc<MemoryPlan>,
    /// The committed half and the other as host memory; none keeps the state on the device.
    pub state: Option<[HostRegion; 2]>,
    /// Host memory for everything else, where that is small; else each worker has its own, on huge pages.
    pub work: Option<HostRegion>,
    /// What is injected, in its readable form.
    pub faults: Option<Faults>,
    /// How long it may take to come up.
    pub limit: Duration,
}

impl Start {
    /// The same for a device; one with memory of its own adopts none of the host's.
    fn in_memory_of(&self, spec: &DeviceSpec) -> Start {
        let start = self.clone();
        if spec.in_host_memory { start } else { Start { state: None, work: None, ..start } }
    }
}

/// Bytes of the control region's part for one progress word: a cache line.
const PROGRESS_BYTES: u64 = 64;

/// Progress words in the control region; generations take them in turn.
pub const PROGRESS_WORDS: u64 = 64;

/// What came of a launch.
pub type Launched = (Worker, Result<Box<Crew>, Fault>);

/// Starts a worker's process and makes it ready behind the caller's back; `tell` gets it.
///
/// # Errors
/// The process or the thread could not be started.
pub fn launch(
    world: &dyn World,
    start: &Start,
    worker: Worker,
    (index, spec): (DeviceIndex, &DeviceSpec),
    tell: Sender<Launched>,
) -> Result<(), Fault> {
    let device = process(world, start, worker, spec)?;
    let start = start.in_memory_of(spec);
    let name = spec.name.clone();
    let thread = std::thread::Builder::new().name(format!("toprope-launch-{}", worker.generation.0));
    let spawned = thread.spawn(move || {
        // Nobody hears it where the run is over.
        let _ = tell.send((worker, ready(device, &start, index).map(Box::new)));
    });
    let failed = |error: std::io::Error| {
        Fault::new(
            name,
            FaultKind::Lost { reason: format!("no thread to start its worker: {error}"), for_good: false },
        )
    };
    spawned.map(|_| ()).map_err(failed)
}

/// The same, waiting for it.
///
/// # Errors
/// The worker did not come up, or refused the program.
pub fn ready_now(
    world: &dyn World,
    start: &Start,
    worker: Worker,
    (index, spec): (DeviceIndex, &DeviceSpec),
) -> Result<Crew, Fault> {
    ready(process(world, start, worker, spec)?, &start.in_memory_of(spec), index)
}

/// Starts the process from the calling thread, with which the system ends it.
///
/// # Errors
/// It could not be started.
pub fn process(
    world: &dyn World,
    start: &Start,
    worker: Worker,
    spec: &DeviceSpec,
) -> Result<RemoteDevice, Fault> {
    let hello = hello(start.run.clone(), worker, spec, start.faults.clone());
    let command = spec.command.as_ref().unwrap_or(&start.command);
    let (regions, patience) = (start.regions.as_slice(), start.limit);
    let generation = worker.generation.0;
    RemoteDevice::launch(world, WorkerOptions { command, regions, hello, generation, patience })
}

/// What a worker is told first; the regions' handles are filled in when it is started.
pub fn hello(run: String, worker: Worker, spec: &DeviceSpec, faults: Option<Faults>) -> Hello {
    Hello {
        version: protocol::VERSION,
        toprope: env!("CARGO_PKG_VERSION").into(),
        run,
        rank: worker.rank.0,
        device: spec.name.clone(),
        threads: spec.threads,
        level: spec.level.clone(),
        regions: Vec::new(),
        progress: (0, worker.generation.0 % PROGRESS_WORDS * PROGRESS_BYTES),
        faults,
    }
}

/// Waits until the worker is up and prepares the program. Touches no memory of the run.
fn ready(mut device: RemoteDevice, start: &Start, index: DeviceIndex) -> Result<Crew, Fault> {
    if device.ready(start.limit)?.is_none() {
        let waited_ms = start.limit.as_millis() as u64;
        return Err(Fault::new("worker", FaultKind::Hang { waited_ms }));
    }
    let mut homes = Homes::own(&start.plan);
    if let Some([current, next]) = start.state {
        homes.current = Allocation::Adopt(current);
        homes.next = (start.plan.layout == StateLayout::Double).then_some(Allocation::Adopt(next));
    }
    if let Some(work) = start.work {
        homes.work = Allocation::Adopt(work);
    }
    let session = Session::open_in(&mut device, start.program.clone(), start.plan.clone(), homes)?;
    Ok(Crew { device, session, index, half: 0, own_state: start.state.is_none() })
}
