//! The system's processes.

use crate::{ChildProcess, Exit, Launch, ProcessError, Processes, Stream};
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct RealProcesses;

/// Whether a process of this number exists; one of another user does, too.
pub(super) fn is_alive(id: u32) -> bool {
    let Some(id) = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw) else {
        return false;
    };
    matches!(rustix::process::test_kill_process(id), Ok(()) | Err(rustix::io::Errno::PERM))
}

impl Processes for RealProcesses {
    fn own_id(&self) -> u32 {
        std::process::id()
    }

    fn is_alive(&self, id: u32) -> bool {
        is_alive(id)
    }

    fn spawn(&self, launch: &Launch) -> Result<Box<dyn ChildProcess>, ProcessError> {
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.arguments)
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .stdin(stdio(launch.input))
            .stdout(stdio(launch.output))
            .stderr(stdio(launch.error));
        let descriptors: Vec<RawFd> = launch
            .regions
            .iter()
            .filter_map(|region| region.handle())
            .map(|handle| handle.descriptor)
            .collect();
        if !descriptors.is_empty() {
            let keep_open = move || {
                for &descriptor in &descriptors {
                    // SAFETY: `launch` holds the regions, and with them these descriptors, until `spawn` has returned.
                    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
                    rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
                }
                Ok(())
            };
            // SAFETY: between fork and exec it makes one `fcntl` call for each descriptor; it neither allocates nor
            // takes a lock.
            unsafe { command.pre_exec(keep_open) };
        }
        if launch.dies_with_parent {
            // A terminal's Ctrl-C goes to all of a group: its parent decides when this one ends.
            command.process_group(0);
        }
        #[cfg(target_os = "linux")]
        if launch.dies_with_parent {
            let die = || {
                let signal = Some(rustix::process::Signal::KILL);
                Ok(rustix::process::set_parent_process_death_signal(signal)?)
            };
            // SAFETY: one `prctl` call between fork and exec; it neither allocates nor takes a lock.
            unsafe { command.pre_exec(die) };
        }
        let child = command.spawn().map_err(|source| ProcessError {
            operation: "start",
            process: launch.program.display().to_string(),
            source,
        })?;
        Ok(Box::new(RealChild { child }))
    }
}

fn stdio(stream: Stream) -> Stdio {
    match stream {
        Stream::Inherit => Stdio::inherit(),
        Stream::Null => Stdio::null(),
        Stream::Pipe => Stdio::piped(),
    }
}

#[derive(Debug)]
struct RealChild {
    child: Child,
}

impl RealChild {
    fn error(&self, operation: &'static str) -> impl FnOnce(std::io::Error) -> ProcessError + use<> {
        let process = format!("process {}", self.child.id());
        move |source| ProcessError { operation, process, source }
    }
}

impl ChildProcess for RealChild {
    fn id(&self) -> u32 {
        self.child.id()
    }

    fn take_input(&mut self) -> Option<Box<dyn Write + Send>> {
        self.child.stdin.take().map(|end| Box::new(end) as Box<dyn Write + Send>)
    }

    fn take_output(&mut self) -> Option<Box<dyn Read + Send>> {
        self.child.stdout.take().map(|end| Box::new(end) as Box<dyn Read + Send>)
    }

    fn take_error(&mut self) -> Option<Box<dyn Read + Send>> {
        self.child.stderr.take().map(|end| Box::new(end) as Box<dyn Read + Send>)
    }

    fn kill(&mut self) -> Result<(), ProcessError> {
        self.child.kill().map_err(self.error("kill"))
    }

    fn wait(&mut self, limit: Duration) -> Result<Option<Exit>, ProcessError> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            if let Some(status) = self.child.try_wait().map_err(self.error("wait for"))? {
                return Ok(Some(match (status.code(), status.signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, signal) => Exit::Signal(signal.unwrap_or_default()),
                }));
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
}
