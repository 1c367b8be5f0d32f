//! Tickets: runs in one stream, copies to the host in another, each with events that tell how far it is.

use crate::device::cann::Cann;
use crate::ffi::abi::Code;
use crate::ffi::runtime::{Event, Pinned, Stream};
use std::collections::VecDeque;
use toprope_program::{Fault, HostRegion, Place, ProgressPlace, Ticket};

/// Events that one run records at most: chips have only so many.
const MARKS_MAX: usize = 64;

/// Failed tickets that are remembered.
const FAILED_MAX: usize = 256;

/// After which of `count` operators an event is recorded: every how many.
pub(crate) fn stride(count: usize) -> usize {
    count.div_ceil(MARKS_MAX).max(1)
}

/// A point in a run.
#[derive(Debug)]
pub(crate) struct Mark {
    /// What runs after it.
    pub(crate) next: Place,
    /// Comes when everything before is done.
    pub(crate) event: Event,
}

/// What was queued.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its ticket.
    pub(crate) ticket: Ticket,
    /// The first operator, and points between; none for copies.
    pub(crate) start: Option<Place>,
    /// In order.
    pub(crate) marks: Vec<Mark>,
    /// Comes when everything is done.
    pub(crate) end: Event,
    /// Where a copy goes when it is done.
    pub(crate) copy: Option<(Pinned, HostRegion)>,
}

/// Everything under way.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    runs: VecDeque<Entry>,
    copies: VecDeque<Entry>,
    spare: Vec<Event>,
    last: u64,
    /// Tickets that a failure took with it; the newest [`FAILED_MAX`].
    failed: VecDeque<(Ticket, Fault)>,
}

impl Queue {
    /// The next ticket.
    pub(crate) fn ticket(&mut self) -> Ticket {
        self.last += 1;
        Ticket(self.last)
    }

    /// Whether a ticket was given.
    pub(crate) fn gave(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.last
    }

    /// An event to record.
    pub(crate) fn event(&mut self, cann: &Cann) -> Result<Event, Code> {
        self.spare.pop().map_or_else(|| cann.runtime.create_event(), Ok)
    }

    /// An event that is waited for no more; it may be recorded again.
    pub(crate) fn give_back(&mut self, event: Event) {
        self.spare.push(event);
    }

    /// Points of a run that came to nothing.
    pub(crate) fn give_back_all(&mut self, marks: Vec<Mark>) {
        self.spare.extend(marks.into_iter().map(|mark| mark.event));
    }

    /// Records a point of a stream.
    pub(crate) fn record(&mut self, cann: &Cann, stream: Stream) -> Result<Event, Code> {
        let event = self.event(cann)?;
        match cann.runtime.record(event, stream) {
            0 => Ok(event),
            code => {
                self.spare.push(event);
                Err(code)
            }
        }
    }

    /// Adds a run.
    pub(crate) fn add_run(&mut self, entry: Entry) {
        self.runs.push_back(entry);
    }

    /// Adds a copy.
    pub(crate) fn add_copy(&mut self, entry: Entry) {
        self.copies.push_back(entry);
    }

    /// The event behind a ticket, where it is still under way.
    pub(crate) fn end_of(&self, ticket: Ticket) -> Option<Event> {
        self.runs.iter().chain(&self.copies).find(|entry| entry.ticket == ticket).map(|entry| entry.end)
    }

    /// Whether a ticket is still under way, and in which stream: `true` for copies.
    pub(crate) fn under_way(&self, ticket: Ticket) -> Option<bool> {
        let in_runs = self.runs.iter().any(|entry| entry.ticket == ticket);
        let in_copies = self.copies.iter().any(|entry| entry.ticket == ticket);
        in_runs.then_some(false).or(in_copies.then_some(true))
    }

    /// Takes out what is done, writes progress, and finishes copies.
    pub(crate) fn poll(&mut self, cann: &Cann, progress: &ProgressPlace) -> Result<(), Code> {
        while let Some(front) = self.copies.front() {
            if !cann.runtime.is_complete(front.end)? {
                break;
            }
            let Some(entry) = self.copies.pop_front() else { break };
            if let Some((pinned, to)) = entry.copy {
                pinned.copy_to(to);
                cann.runtime.unpin(pinned);
            }
            self.spare.push(entry.end);
        }
        while let Some(front) = self.runs.front_mut() {
            if cann.runtime.is_complete(front.end)? {
                let Some(entry) = self.runs.pop_front() else { break };
                if let Some(last) = entry.marks.last().map(|mark| &mark.next).or(entry.start.as_ref()) {
                    progress.word().mark(entry.ticket, last.index);
                }
                self.spare.extend(entry.marks.into_iter().map(|mark| mark.event));
                self.spare.push(entry.end);
                continue;
            }
            let mut reached = 0;
            for mark in &front.marks {
                if !cann.runtime.is_complete(mark.event)? {
                    break;
                }
                reached += 1;
            }
            for mark in front.marks.drain(..reached) {
                self.spare.push(mark.event);
                front.start = Some(mark.next);
            }
            if let Some(at) = &front.start {
                progress.word().mark(front.ticket, at.index);
            }
            break;
        }
        Ok(())
    }

    /// The first operator that has not ended, as far as events tell; call [`Queue::poll`] before.
    pub(crate) fn first_unfinished(&self) -> Option<Place> {
        self.runs.front().and_then(|entry| entry.start.clone())
    }

    /// Why a ticket came to nothing, where it did.
    pub(crate) fn failure_of(&self, ticket: Ticket) -> Option<Fault> {
        self.failed.iter().find(|(failed, _)| *failed == ticket).map(|(_, fault)| fault.clone())
    }

    /// Everything under way has failed with `fault`. Pinned memory is given back where the copies are `settled`; else a copy
    /// may still write to it, and it stays until the process ends.
    pub(crate) fn fail(&mut self, cann: &Cann, fault: &Fault, settled: bool) {
        let tickets = self.runs.iter().chain(&self.copies).map(|entry| (entry.ticket, fault.clone()));
        self.failed.extend(tickets);
        self.failed.drain(..self.failed.len().saturating_sub(FAILED_MAX));
        self.forget(cann, settled);
    }

    fn forget(&mut self, cann: &Cann, settled: bool) {
        for entry in self.runs.drain(..).chain(self.copies.drain(..)) {
            if let Some((pinned, _)) = entry.copy
                && settled
            {
                cann.runtime.unpin(pinned);
            }
            self.spare.extend(entry.marks.into_iter().map(|mark| mark.event));
            self.spare.push(entry.end);
        }
    }

    /// Gives events back.
    pub(crate) fn close(&mut self, cann: &Cann, settled: bool) {
        self.forget(cann, settled);
        for event in self.spare.drain(..) {
            cann.runtime.destroy_event(event);
        }
    }
}
