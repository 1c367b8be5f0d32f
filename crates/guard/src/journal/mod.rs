//! What a run wrote down, read back: lines, the ledger of batches, faults, and where the time went.
//!
//! `journal.jsonl` says what happened and `metrics.jsonl` how each step went (docs/journal.md has every field). Both
//! are only ever appended to, by one process at a time; each process that works on a run is an *attempt*, numbered from
//! 1 and named in each line. [`RunRecord::read`] reads both; it never writes, so it can look at a live run.

mod accounts; // goodput, where the time went, the summary
mod fault; // a fault as people see it
mod identity; // whose journal it is
mod ledger; // which batch was committed by whom, exactly once
mod line_log; // append-only files of JSON lines
mod record; // a line's meaning
mod run; // a whole run, read from its folder
mod schema; // every event and field, for docs/journal.md
mod timeline; // what each device was doing when

pub use accounts::{Accounts, GuardSummary};
pub use fault::{FaultRecord, fault_line, one_line};
pub use identity::JournalIdentity;
pub use ledger::{Commit, Ledger, Proof, Violation};
pub use line_log::{BadLine, LineLog, LogLine, read_lines};
pub use record::{Record, What};
pub use run::{AttemptRecord, CheckTotals, JournalError, RunRecord, RunState, StepRecord};
pub use schema::{EVENTS, EventSchema, FieldSchema, page};
pub use timeline::{DeviceDuty, Segment};

/// The journal's version, in each line that begins an attempt. Raised when a line's meaning changes.
pub const JOURNAL_VERSION: u64 = 1;
