//! `toprope worker`: a device behind two pipes. Started by the supervisor, not by people.

use crate::exit::{Exit, Failure, OrExit};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use toprope_devices::{OpenError, OpenOptions};
use toprope_guard::inject::{self, Entry, Handle, Hooks, Injected, Point, Scheduled, SharedFirings};
use toprope_guard::protocol::{Faults, Hello};
use toprope_guard::worker::{Opened, Opening, serve};
use toprope_program::{Device, Fault, FaultKind, ProgressPlace, Width};
use toprope_world::{RealWorld, SharedRegion, World};

/// Serves until the supervisor is gone.
pub fn run(python: Option<PathBuf>) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    let (input, mut output) = (Box::new(std::io::stdin()), std::io::stdout());
    serve(&world, input, &mut output, &|opening| open(opening, python.as_deref())).or_exit(Exit::Internal)?;
    Ok(Exit::Done)
}

fn open(Opening { hello, progress, regions }: Opening<'_>, python: Option<&Path>) -> Result<Opened, Fault> {
    let (threads, level) = (hello.threads, hello.level.clone());
    let options = OpenOptions {
        threads,
        level,
        width: Width::Native,
        progress: progress.clone(),
        python: python.map(Into::into),
        regions: regions.to_vec(),
    };
    let device =
        toprope_devices::open(&hello.device, &options).map_err(|error| refused(&hello.device, &error))?;
    match &hello.faults {
        None => Ok(Opened::in_earnest(device)),
        Some(faults) => injected(hello, faults, device, progress, regions),
    }
}

/// A device in which a rehearsal's faults happen.
fn injected(
    hello: &Hello,
    faults: &Faults,
    device: Box<dyn Device>,
    progress: ProgressPlace,
    regions: &[Arc<SharedRegion>],
) -> Result<Opened, Fault> {
    let bad = |reason: String| Fault::new(hello.device.clone(), FaultKind::Lost { reason, for_good: false });
    let schedule = inject::parse(&faults.schedule).map_err(|error| bad(error.to_string()))?;
    let scheduled: Vec<Scheduled> = schedule
        .entries
        .into_iter()
        .filter_map(|entry| match entry {
            Entry::Fault(fault) => Some(fault),
            // The supervisor has drawn them already.
            Entry::Random(_) => None,
        })
        .collect();
    let (region, offset) = (faults.firings.0 as usize, faults.firings.1 as usize);
    let firings = regions
        .get(region)
        .and_then(|region| SharedFirings::new(region.clone(), offset, scheduled.len()))
        .ok_or_else(|| bad("no words for injected faults".into()))?;
    let handle = Handle::new(scheduled, Arc::new(firings));
    let device = Injected::new(device, handle.clone(), Box::new(Earnest(RealWorld::new())))
        .named(hello.device.clone())
        .with_progress(progress);
    let (at_step, at_copy, at_answer) = (handle.clone(), handle.clone(), handle);
    let (copying, answering) = (hello.device.clone(), hello.device.clone());
    Ok(Opened {
        device: Box::new(device),
        at_step: Box::new(move |step| at_step.set_step(step)),
        at_copy: Box::new(move || {
            if at_copy.due_at(Point::Snapshot, &copying).is_some() {
                die();
            }
        }),
        at_answer: Box::new(move |frame, output| {
            if at_answer.due_at(Point::Answer, &answering).is_some() {
                // Half an answer, then death: whether it arrives is no matter to the dying.
                let _ = output.write_all(&frame[..frame.len() / 2]).and_then(|()| output.flush());
                die();
            }
        }),
    })
}

/// Ends this process as nothing could prevent it: SIGKILL.
pub(super) fn die() {
    let own = rustix::process::getpid();
    // It cannot fail for one's own process; were it so, the fault would not happen and the rehearsal would say so.
    let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
}

/// Deaths, hangs and slowness in earnest.
struct Earnest(RealWorld);

impl Hooks for Earnest {
    fn die(&mut self) {
        die();
    }

    fn hang(&mut self) {
        loop {
            self.0.clock().sleep(Duration::from_secs(3600));
        }
    }

    fn monotonic(&mut self) -> Duration {
        self.0.clock().monotonic()
    }

    fn sleep(&mut self, duration: Duration) {
        self.0.clock().sleep(duration);
    }
}

fn refused(device: &str, error: &OpenError) -> Fault {
    let kind = FaultKind::Unsupported {
        operator: "open".into(),
        dtype: None,
        shape: Vec::new(),
        reason: error.to_string(),
    };
    Fault::new(device, kind)
}
