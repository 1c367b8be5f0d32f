//! The vendor's error numbers: names, meanings, and what each calls for. Numbers and names are the vendor's; what to do is our
//! reading of public reports (docs/ascend.md).

use std::fmt;

/// What an error calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remedy {
    /// Nothing: the state that was asked for is there already.
    Ignore,
    /// The call was wrong; the device is well.
    Fix,
    /// Something is not there; the run goes on without it.
    Degrade,
    /// The step's numbers overflowed: leave it out.
    SkipStep,
    /// The same again.
    Repeat,
    /// Free memory or handles, then again.
    Free,
    /// Stop what is queued, make streams anew, then the step again.
    Restart,
    /// Reset the device, or a new process.
    Reset,
    /// Another device.
    Replace,
    /// Install CANN again.
    Reinstall,
}

impl Remedy {
    /// As a message says it.
    pub fn words(self) -> &'static str {
        match self {
            Remedy::Ignore => "nothing to do",
            Remedy::Fix => "the call is wrong, the device is well",
            Remedy::Degrade => "go on without it",
            Remedy::SkipStep => "skip the step",
            Remedy::Repeat => "repeat the step",
            Remedy::Free => "free memory and repeat",
            Remedy::Restart => "make streams anew and repeat the step",
            Remedy::Reset => "reset the device or start a new process",
            Remedy::Replace => "replace the device",
            Remedy::Reinstall => "install CANN again",
        }
    }

    /// Whether every later call on the device fails too, until a forced reset or a new process.
    pub fn is_sticky(self) -> bool {
        matches!(self, Remedy::Reset | Remedy::Replace)
    }
}

/// What is known of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The vendor's number.
    pub code: i32,
    /// The vendor's name, without the prefix of its constants; in words where only the family is public.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What it calls for.
    pub remedy: Remedy,
}

const fn record(code: i32, name: &'static str, meaning: &'static str, remedy: Remedy) -> Record {
    Record { code, name, meaning, remedy }
}

use Remedy::{Degrade, Fix, Free, Ignore, Reinstall, Repeat, Replace, Reset, Restart, SkipStep};

/// The runtime's numbers, ascending.
pub const RUNTIME: &[Record] = &[
    record(100_000, "INVALID_PARAM", "bad argument", Fix),
    record(100_001, "UNINITIALIZE", "before aclInit", Fix),
    record(100_002, "REPEAT_INITIALIZE", "a second aclInit", Ignore),
    record(100_024, "OP_NOT_FOUND", "no such operator", Fix),
    record(100_026, "UNSUPPORTED_DATA_TYPE", "element type not supported", Fix),
    record(100_029, "KERNEL_NOT_FOUND", "no such kernel", Fix),
    record(107_000, "PARAM_INVALID", "bad argument", Fix),
    record(107_001, "INVALID_DEVICEID", "no such device", Fix),
    record(107_002, "CONTEXT_NULL", "no context on this thread", Fix),
    record(107_003, "STREAM_CONTEXT", "a stream of another context", Fix),
    record(107_006, "EVENT_TIMESTAMP_INVALID", "an event that was not recorded", Fix),
    record(107_007, "EVENT_TIMESTAMP_REVERSAL", "events in the wrong order", Fix),
    record(107_017, "INVALID_HANDLE", "a stale handle", Fix),
    record(107_019, "WAIT_TIMEOUT", "a wait's time is over", Repeat),
    record(107_020, "TASK_TIMEOUT", "a task took longer than it may", Reset),
    record(107_022, "DEVICE_TASK_ABORT", "the device was stopped", Restart),
    record(107_023, "STREAM_ABORT", "the stream was aborted", Restart),
    record(107_024, "stream capture (107024)", "misuse of stream capture", Fix),
    record(107_025, "stream capture (107025)", "misuse of stream capture", Fix),
    record(107_026, "stream capture (107026)", "misuse of stream capture", Fix),
    record(107_027, "STREAM_CAPTURED", "the stream is being captured", Fix),
    record(107_028, "stream capture (107028)", "misuse of stream capture", Fix),
    record(107_029, "stream capture (107029)", "misuse of stream capture", Fix),
    record(107_030, "STREAM_CAPTURE_MODE_NOT_SUPPORT", "not while capturing in this mode", Fix),
    record(107_031, "stream capture (107031)", "misuse of stream capture", Fix),
    record(107_032, "stream capture (107032)", "misuse of stream capture", Fix),
    record(107_033, "stream capture (107033)", "misuse of stream capture", Fix),
    record(107_034, "stream capture (107034)", "misuse of stream capture", Fix),
    record(107_035, "TASK_ABORT_STOP", "the task was stopped", Fix),
    record(107_036, "stream capture (107036)", "misuse of stream capture", Fix),
    record(200_000, "BAD_ALLOC", "host memory did not suffice", Free),
    record(207_000, "FEATURE_NOT_SUPPORT", "driver or firmware lacks it", Degrade),
    record(207_001, "MEMORY_ALLOCATION", "memory did not suffice", Free),
    record(207_003, "AICORE_OVER_FLOW", "numeric overflow on an AI core", SkipStep),
    record(207_004, "NO_DEVICE", "the device is not available", Replace),
    record(207_005, "RESOURCE_ALLOC_FAIL", "resources did not suffice", Free),
    record(207_006, "NO_PERMISSION", "no permission on the device node", Fix),
    record(207_007, "NO_EVENT_RESOURCE", "events did not suffice", Free),
    record(207_008, "NO_STREAM_RESOURCE", "streams did not suffice", Free),
    record(207_015, "REPEATED_INIT", "a second initialisation", Ignore),
    record(207_016, "AIVEC_OVER_FLOW", "numeric overflow on a vector core", SkipStep),
    record(207_017, "OVER_FLOW", "numeric overflow", SkipStep),
    record(207_018, "DEVICE_OOM", "device memory did not suffice", Free),
    record(500_000, "INTERNAL_ERROR", "internal error", Reset),
    record(500_001, "FAILURE", "internal failure", Reset),
    record(500_002, "GE_FAILURE", "the graph engine failed", Reset),
    record(500_003, "RT_FAILURE", "the runtime failed", Reset),
    record(500_004, "DRV_FAILURE", "the driver failed", Reset),
    record(500_005, "PROFILING_FAILURE", "profiling failed", Reset),
    record(507_000, "INTERNAL_ERROR", "internal error of the host's runtime", Reset),
    record(507_001, "TS_ERROR", "the task scheduler failed", Reset),
    record(507_004, "STREAM_NOT_COMPLETE", "the stream has work left", Repeat),
    record(507_006, "EVENT_NOT_COMPLETE", "the event has not come", Repeat),
    record(507_010, "LOST_HEARTBEAT", "the task scheduler is gone", Replace),
    record(507_011, "MODEL_EXECUTE", "a model failed", Reset),
    record(507_012, "REPORT_TIMEOUT", "no report came in time", Repeat),
    record(507_013, "SYS_DMA", "a system DMA failed", Reset),
    record(507_014, "AICORE_TIMEOUT", "a kernel hung", Reset),
    record(507_015, "AICORE_EXCEPTION", "a kernel faulted", Reset),
    record(507_016, "AICORE_TRAP_EXCEPTION", "a kernel trapped", Reset),
    record(507_017, "AICPU_TIMEOUT", "a kernel on the device's CPU hung", Reset),
    record(507_018, "AICPU_EXCEPTION", "a kernel on the device's CPU faulted", Reset),
    record(507_033, "DEV_SETUP_ERROR", "the device cannot be opened", Replace),
    record(507_034, "VECTOR_CORE_TIMEOUT", "a vector kernel hung", Reset),
    record(507_035, "VECTOR_CORE_EXCEPTION", "a vector kernel faulted", Reset),
    record(507_036, "VECTOR_CORE_TRAP_EXCEPTION", "a vector kernel trapped", Reset),
    record(507_042, "AICORE_TRAP_READ_OVERFLOW", "a kernel read outside of its memory", Reset),
    record(507_043, "AICORE_TRAP_WRITE_OVERFLOW", "a kernel wrote outside of its memory", Reset),
    record(507_044, "VECTOR_CORE_TRAP_READ_OVERFLOW", "a vector kernel read outside of its memory", Reset),
    record(507_045, "VECTOR_CORE_TRAP_WRITE_OVERFLOW", "a vector kernel wrote outside of its memory", Reset),
    record(507_046, "STREAM_SYNC_TIMEOUT", "a wait for a stream is over; the work may go on", Repeat),
    record(507_047, "EVENT_SYNC_TIMEOUT", "a wait for an event is over; the work may go on", Repeat),
    record(507_048, "FFTS_PLUS_TIMEOUT", "a fused task hung", Reset),
    record(507_049, "FFTS_PLUS_EXCEPTION", "a fused task faulted", Reset),
    record(507_050, "FFTS_PLUS_TRAP_EXCEPTION", "a fused task trapped", Reset),
    record(507_051, "SEND_MSG", "a message to the device was not sent", Repeat),
    record(507_052, "COPY_DATA", "data to the device was not copied", Repeat),
    record(507_053, "DEVICE_MEM_ERROR", "uncorrectable memory error", Restart),
    record(507_054, "HBM_MULTI_BIT_ECC_ERROR", "several bits of device memory flipped", Restart),
    record(507_055, "SUSPECT_DEVICE_MEM_ERROR", "perhaps a memory error", Reset),
    record(507_056, "LINK_ERROR", "the link between devices failed", Restart),
    record(507_057, "SUSPECT_REMOTE_ERROR", "a peer's fault, or a bad address here", Reset),
    record(507_899, "DRV_INTERNAL_ERROR", "the driver failed; also what a poisoned device answers", Reset),
    record(507_900, "AICPU_INTERNAL_ERROR", "the device's CPU failed", Reset),
    record(507_901, "SOCKET_CLOSE", "the session with the device is lost", Replace),
    record(507_902, "AICPU_INFO_LOAD_RSP", "the device's CPU did not load", Reset),
    record(507_903, "STREAM_CAPTURE_INVALIDATED", "a capture became invalid", Fix),
    record(507_904, "COMM_OP_RETRY_FAIL", "a collective's retries are used up", Restart),
    record(574_006, "stress detect (574006)", "the stress test saw a wrong bit", Replace),
    record(574_007, "stress detect (574007)", "the voltage was not restored after the stress test", Replace),
    record(574_008, "stress detect (574008)", "the stress test saw a wrong low bit", Replace),
    record(574_009, "stress detect (574009)", "the stress test saw a wrong high bit", Replace),
];

/// The operators' numbers, ascending.
pub const OPERATORS: &[Record] = &[
    record(161_001, "ACLNN_ERR_PARAM_NULLPTR", "an argument is null", Fix),
    record(161_002, "ACLNN_ERR_PARAM_INVALID", "an argument is not supported", Fix),
    record(361_001, "ACLNN_ERR_RUNTIME_ERROR", "a call of the runtime failed inside an operator", Reset),
    record(561_000, "ACLNN_ERR_INNER", "internal error of an operator", Fix),
    record(561_001, "ACLNN_ERR_INNER_INFERSHAPE_ERROR", "shapes could not be inferred", Fix),
    record(561_002, "ACLNN_ERR_INNER_TILING_ERROR", "no tiling for these shapes", Fix),
    record(561_003, "ACLNN_ERR_INNER_FIND_KERNEL_ERROR", "no kernel for these types", Fix),
    record(561_101, "ACLNN_ERR_INNER_CREATE_EXECUTOR", "no executor could be made", Fix),
    record(561_102, "ACLNN_ERR_INNER_NOT_TRANS_EXECUTOR", "the executor was not handed on", Fix),
    record(561_103, "ACLNN_ERR_INNER_NULLPTR", "an executor is null", Fix),
];

/// Broken installations: 561104 to 561119.
const INSTALLATION: Record =
    record(561_104, "ACLNN_ERR_INNER installation", "operator packages are missing or broken", Reinstall);

/// A number that nobody published.
const UNKNOWN: Record = record(0, "unknown", "a number that is in no public list", Reset);

/// What is known of a number; an unknown one keeps its number.
pub fn lookup(code: i32) -> Record {
    let find = |table: &[Record]| {
        table.binary_search_by_key(&code, |record| record.code).ok().map(|place| table[place])
    };
    if let Some(found) = find(RUNTIME).or_else(|| find(OPERATORS)) {
        return found;
    }
    let base = if (561_104..=561_119).contains(&code) { INSTALLATION } else { UNKNOWN };
    Record { code, ..base }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.name, self.meaning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_found_once() {
        assert_eq!(RUNTIME.len(), 92);
        for table in [RUNTIME, OPERATORS] {
            assert!(table.is_sorted_by(|a, b| a.code < b.code));
            table.iter().for_each(|record| assert_eq!(lookup(record.code), *record));
        }
    }

    #[test]
    fn numbers_in_no_list_keep_their_number_and_are_not_trusted() {
        assert_eq!(lookup(561_110).remedy, Remedy::Reinstall);
        let unknown = lookup(599_999);
        assert_eq!((unknown.code, unknown.remedy), (599_999, Remedy::Reset));
        assert!(unknown.remedy.is_sticky());
    }
}
