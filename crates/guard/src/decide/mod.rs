//! The guard's decisions as a pure state machine: no clock, no process, no file; the same events give the same actions.

mod event; // what is seen, what is to be done

pub use event::*;

mod stub {
    use super::*;
    use crate::policy::Policy;
    use std::time::Duration;

    pub struct Guard {
        generation: u64,
        number: u64,
        step: u64,
        active: Option<Worker>,
    }
    impl Guard {
        pub fn new(_: Setup, _: Policy) -> Guard {
            Guard { generation: 0, number: 0, step: 0, active: None }
        }
        pub fn deadline(&self) -> Option<Duration> {
            None
        }
        fn launch(&mut self) -> Action {
            self.generation += 1;
            let worker = Worker { rank: Rank(0), generation: Generation(self.generation) };
            self.active = Some(worker);
            Action::Launch { worker, device: DeviceIndex(0), duty: Duty::Active }
        }
        pub fn handle(&mut self, _: Duration, event: Event) -> Vec<Action> {
            match event {
                Event::Begin { step, .. } => {
                    self.step = step;
                    vec![self.launch()]
                }
                Event::Ready { worker } => {
                    vec![Action::Restore { worker, source: Source::Committed, step: self.step }]
                }
                Event::Restored { worker, .. } => {
                    self.number += 1;
                    let attempt = Attempt { step: self.step, number: self.number };
                    vec![Action::Accumulate { worker, attempt, evidence: false }]
                }
                Event::Accumulated { worker, attempt, .. } => vec![Action::Update { worker, attempt }],
                Event::Updated { worker, attempt, .. } => {
                    self.step += 1;
                    self.number += 1;
                    let next = Attempt { step: self.step, number: self.number };
                    vec![
                        Action::Commit { attempt },
                        Action::Accumulate { worker, attempt: next, evidence: false },
                    ]
                }
                Event::Failed { worker, kind, place } => {
                    eprintln!("failed {kind} {place:?}");
                    if self.active != Some(worker) {
                        return Vec::new();
                    }
                    vec![Action::Kill { worker }, self.launch()]
                }
                _ => Vec::new(),
            }
        }
    }
}
pub use stub::Guard;
pub use toprope_program::{FaultClass, FaultKind, Place};
