//! The protocol between supervisor and worker: what `docs/worker-protocol.md` describes, for workers in any language.
//!
//! A worker is a [`toprope_program::Device`] behind two pipes: each request is one of the device's methods. Requests are
//! carried out in order. `write` and `run` are not answered: what became of them is told by the next answer, so that a
//! step costs few round trips. Every message bears run, rank and generation; what bears others is not believed.

mod frame; // bytes on the pipe
pub mod remote; // a worker process as a device

pub use frame::{FrameError, Incoming, read_frame, write_frame};

use serde::{Deserialize, Serialize};
use toprope_program::{Description, Fault, MemoryPlan, Program, Range, Region};

/// What both sides must speak.
///
/// 2: `prepare` tells where every value lies.
pub const VERSION: u32 = 2;

/// The first thing that a worker is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the supervisor.
    pub version: u32,
    /// The supervisor's own version, for messages.
    pub toprope: String,
    /// The run's name.
    pub run: String,
    /// The rank that the worker computes.
    pub rank: u16,
    /// The device to open.
    pub device: String,
    /// Threads that it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// The dispatch level to force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Shared regions, by number: file descriptor and bytes, as `<descriptor>:<bytes>`.
    pub regions: Vec<String>,
    /// Where the progress word lies: region and offset in bytes.
    pub progress: (u32, u64),
    /// The fault schedule to inject, and where its words of firings lie; none in earnest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<Faults>,
}

/// What a worker is to inject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Faults {
    /// The schedule in its readable form.
    pub schedule: String,
    /// The region and the offset in bytes of its first firings word.
    pub firings: (u32, u64),
}

/// A request: the header and one of the device's methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Counts requests of one worker, from 1.
    pub id: u64,
    /// Whom it is for; `hello` tells the worker its number, which all of its answers bear.
    pub generation: u64,
    /// The step under way; decides nothing but what injected faults and messages say.
    pub step: u64,
    /// What to do.
    #[serde(flatten)]
    pub call: Call,
}

/// One of the device's methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    /// Open the device and say what it is. Answered by `ready`.
    Hello(Hello),
    /// Memory of the device's own, zeroed. Answered by `buffer`.
    Allocate {
        /// Bytes.
        bytes: u64,
    },
    /// Compute on a part of a shared region in place. Answered by `buffer`, or refused as `unsupported`.
    Adopt {
        /// The region's number.
        region: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u64,
    },
    /// Give memory back. Answered by `done`.
    Release {
        /// Which.
        buffer: u32,
    },
    /// Copy the frame's payload into a buffer, after everything queued. Not answered.
    Write {
        /// Which.
        buffer: u32,
        /// First byte.
        offset: u64,
    },
    /// Answer with the bytes of a buffer as payload, after everything queued. Answered by `done`.
    Read {
        /// Which.
        buffer: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u64,
    },
    /// Queue a copy of a buffer into a shared region behind a run; later runs do not wait for it. Not answered; `wait`
    /// tells of it.
    CopyOut {
        /// Which.
        buffer: u32,
        /// First byte.
        offset: u64,
        /// The region's number.
        region: u32,
        /// First byte in the region.
        region_offset: u64,
        /// Bytes.
        bytes: u64,
        /// The request's id of the run that it waits for.
        after: u64,
    },
    /// Make a program ready. Answered by `prepared`, or refused as `unsupported` or `out_of_memory`.
    Prepare {
        /// The program in its JSON form.
        program: Box<Program>,
        /// Whether the next state takes the current one's place.
        in_place: bool,
        /// Where each value lies, by id: the buffer's number among those of `run` and the first byte.
        places: Vec<Option<(u8, u64)>>,
    },
    /// Queue instructions. Not answered; `wait` tells of it.
    Run {
        /// Which program.
        prepared: u32,
        /// Which range.
        range: Range,
        /// First instruction.
        from: usize,
        /// One past the last.
        to: usize,
        /// Buffers: committed state, next state, everything else.
        buffers: [u32; 3],
        /// Values of the symbols.
        symbols: Vec<usize>,
        /// Whether this is the first micro-batch of its step.
        first: bool,
        /// Which checks fire.
        checks: Vec<u64>,
    },
    /// Wait for a run or a copy. Answered by `done` or with its fault.
    Wait {
        /// The request's id of the run or copy.
        ticket: u64,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The id of the request.
    pub id: u64,
    /// The worker's generation.
    pub generation: u64,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Done; the payload of a `read` follows.
    Done,
    /// The device is open.
    Ready {
        /// [`VERSION`] of the worker.
        version: u32,
        /// What it says of itself.
        description: Box<Description>,
    },
    /// Memory is there.
    Buffer {
        /// Its number.
        buffer: u32,
    },
    /// A program is ready.
    Prepared {
        /// Its number.
        prepared: u32,
    },
    /// It failed, or something that was queued before it and not answered.
    Fault {
        /// How.
        fault: Box<Fault>,
    },
}

/// A memory plan's places as `prepare` tells them.
pub fn places(plan: &MemoryPlan) -> Vec<Option<(u8, u64)>> {
    let number = |region| match region {
        Region::Current => 0,
        Region::Next => 1,
        Region::Work => 2,
    };
    let told = |place: &toprope_program::Location| (number(place.region), place.offset_bytes as u64);
    plan.places.iter().map(|place| place.as_ref().map(told)).collect()
}
