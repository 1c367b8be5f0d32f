//! The system's clocks.

use crate::Clock;
use std::time::{Duration, Instant, SystemTime};

#[derive(Debug)]
pub(super) struct RealClock {
    origin: Instant,
}

impl RealClock {
    pub(super) fn starting_now() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for RealClock {
    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wall(&self) -> Duration {
        // A clock that stands before 1970 is a clock that was never set; zero says so in every report.
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}
