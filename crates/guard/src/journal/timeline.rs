//! What each device was doing when.

use super::{AttemptRecord, Record, What};
use serde::Serialize;
use std::time::Duration;

/// What a device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceDuty {
    /// Runs steps.
    Serving,
    /// Must not be used until it passes a test.
    Quarantined,
}

/// A stretch of time of a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Segment {
    /// The device.
    pub device: String,
    /// The rank that it serves.
    pub rank: u64,
    /// The process.
    pub attempt: u64,
    /// What it was doing.
    pub duty: DeviceDuty,
    /// From when, since 1970.
    pub from: Duration,
    /// Until when; none while it goes on.
    pub to: Option<Duration>,
}

/// Takes a line in.
pub(super) fn apply(segments: &mut Vec<Segment>, attempt: &AttemptRecord, record: &Record) {
    let Some(time) = record.time else { return };
    let name = |device: u64| {
        let index = usize::try_from(device).ok();
        let named = index.and_then(|index| attempt.devices.get(index)).cloned();
        named.unwrap_or_else(|| format!("device {device}"))
    };
    let mine = |segment: &Segment| segment.attempt == record.attempt && segment.to.is_none();
    let (device, rank, duty) = match &record.what {
        What::Start { devices, .. } => {
            // A run without a guard names its one device here and says no more of it.
            let Some(primary) = devices.first() else { return };
            (primary.clone(), 0, DeviceDuty::Serving)
        }
        What::WorkerActive { rank, device, .. } | What::Moved { rank, to: device, .. } => {
            (name(*device), *rank, DeviceDuty::Serving)
        }
        What::Quarantined { device } => (name(*device), 0, DeviceDuty::Quarantined),
        What::Retested { device, passed: true } => {
            let device = name(*device);
            let ends =
                |segment: &Segment| segment.device == device && segment.duty == DeviceDuty::Quarantined;
            return end(segments, time, |segment| mine(segment) && ends(segment));
        }
        What::Stopped { .. } | What::End { .. } => return end(segments, time, mine),
        _ => return,
    };
    let same = |segment: &Segment| segment.rank == rank && segment.duty == duty && segment.device == device;
    if segments.iter().any(|segment| mine(segment) && same(segment)) {
        return;
    }
    end(segments, time, |segment| {
        mine(segment)
            && (segment.device == device
                || (duty == DeviceDuty::Serving && segment.rank == rank && segment.duty == duty))
    });
    segments.push(Segment { device, rank, attempt: record.attempt, duty, from: time, to: None });
}

fn end(segments: &mut [Segment], time: Duration, which: impl Fn(&Segment) -> bool) {
    for segment in segments.iter_mut().filter(|segment| which(segment)) {
        segment.to = Some(time.max(segment.from));
    }
}

/// Ends what went on when its process died: at that process's last line.
pub(super) fn close(mut segments: Vec<Segment>, attempts: &[AttemptRecord]) -> Vec<Segment> {
    for segment in segments.iter_mut().filter(|segment| segment.to.is_none()) {
        let attempt = attempts.iter().find(|attempt| attempt.attempt == segment.attempt);
        segment.to = Some(attempt.and_then(|attempt| attempt.last).unwrap_or(segment.from).max(segment.from));
    }
    segments
}
