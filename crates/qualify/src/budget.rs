//! Time, dealt over stages: what one leaves unused goes to those behind it.

use std::time::Duration;

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tier {
    /// A minute.
    Quick,
    /// Ten minutes.
    Default,
    /// So many hours, nearly all of them soak.
    Hours(f64),
}

/// The fewest and the most hours that can be asked for: below, a default run is the right one.
pub const HOURS: std::ops::RangeInclusive<f64> = 0.1..=720.0;

/// A quick run on an emulator; what is left of 20 s once devices are open.
const QUICK_EMULATED: Duration = Duration::from_secs(18);

impl Tier {
    /// All of it.
    pub fn total(self) -> Duration {
        match self {
            Tier::Quick => Duration::from_secs(60),
            Tier::Default => Duration::from_secs(600),
            Tier::Hours(hours) => Duration::from_secs_f64(hours * 3600.0),
        }
    }

    /// All of it on a device that only stands in for another: what takes long, takes long to say nothing of the chip.
    pub fn total_on(self, emulated: bool) -> Duration {
        match self {
            Tier::Quick if emulated => QUICK_EMULATED,
            tier => tier.total(),
        }
    }

    /// What the proof of a model's own weights may take beside it.
    pub fn own_model(self) -> Duration {
        Duration::from_secs(if self == Tier::Quick { 120 } else { 900 })
    }

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Tier::Quick => "quick".into(),
            Tier::Default => "default".into(),
            Tier::Hours(hours) => format!("{hours} h"),
        }
    }
}

/// What reads the time.
pub type Clock<'a> = &'a dyn Fn() -> Duration;

/// The end of something, and the clock that tells.
#[derive(Clone, Copy)]
pub struct Deadline<'a> {
    clock: Clock<'a>,
    end: Duration,
}

impl<'a> Deadline<'a> {
    /// In so long from now.
    pub fn within(clock: Clock<'a>, time: Duration) -> Deadline<'a> {
        Deadline { clock, end: clock().saturating_add(time) }
    }

    /// A part of what is left, at most `most`.
    pub fn part(&self, share: f64, most: Duration) -> Deadline<'a> {
        let part = self.left().mul_f64(share.clamp(0.0, 1.0)).min(most);
        Deadline { clock: self.clock, end: (self.clock)().saturating_add(part).min(self.end) }
    }

    /// So much later.
    pub fn later(self, time: Duration) -> Deadline<'a> {
        Deadline { end: self.end.saturating_add(time), ..self }
    }

    /// What is left.
    pub fn left(&self) -> Duration {
        self.end.saturating_sub((self.clock)())
    }

    /// Whether it has come.
    pub fn passed(&self) -> bool {
        self.left().is_zero()
    }

    /// The time.
    pub fn now(&self) -> Duration {
        (self.clock)()
    }
}

impl std::fmt::Debug for Deadline<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deadline").field("left", &self.left()).finish_non_exhaustive()
    }
}
