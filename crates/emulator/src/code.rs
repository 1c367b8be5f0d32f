//! CANN's error codes: number, name, what it means, and what it does to the device.

/// What a fault leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// Nothing: the next call is served.
    Passing,
    /// The device answers every later call with a fault until it is reset by force or the process ends.
    Sticky,
}

/// A code of CANN's.
pub struct Code {
    pub number: i32,
    pub name: &'static str,
    pub text: &'static str,
    pub after: After,
}

const fn passing(number: i32, name: &'static str, text: &'static str) -> Code {
    Code { number, name, text, after: After::Passing }
}

const fn sticky(number: i32, name: &'static str, text: &'static str) -> Code {
    Code { number, name, text, after: After::Sticky }
}

pub const INVALID_PARAM: i32 = 100000;
pub const REPEAT_INITIALIZE: i32 = 100002;
pub const PARAM_INVALID: i32 = 107000;
pub const INVALID_DEVICEID: i32 = 107001;
pub const CONTEXT_NULL: i32 = 107002;
pub const STREAM_CONTEXT: i32 = 107003;
pub const EVENT_TIMESTAMP_INVALID: i32 = 107006;
pub const EVENT_TIMESTAMP_REVERSAL: i32 = 107007;
pub const INVALID_HANDLE: i32 = 107017;
pub const DEVICE_TASK_ABORT: i32 = 107022;
pub const STREAM_ABORT: i32 = 107023;
pub const FEATURE_NOT_SUPPORT: i32 = 207000;
pub const MEMORY_ALLOCATION: i32 = 207001;
pub const INTERNAL: i32 = 500000;
pub const REPORT_TIMEOUT: i32 = 507012;
pub const AICORE_TIMEOUT: i32 = 507014;
pub const VECTOR_CORE_EXCEPTION: i32 = 507035;
pub const STREAM_SYNC_TIMEOUT: i32 = 507046;
pub const DEVICE_MEM_ERROR: i32 = 507053;
pub const DRV_INTERNAL_ERROR: i32 = 507899;
pub const PARAM_NULLPTR: i32 = 161001;
pub const ACLNN_PARAM_INVALID: i32 = 161002;
pub const ACLNN_RUNTIME_ERROR: i32 = 361001;
pub const FIND_KERNEL: i32 = 561003;
pub const EXECUTOR_NULLPTR: i32 = 561103;

/// The 92 codes of the runtime. `name` in lower case, behind `runtime.`, is the name of the defect that answers with it.
pub const RUNTIME: &[Code] = &[
    passing(100000, "INVALID_PARAM", "invalid parameter"),
    passing(100001, "UNINITIALIZE", "aclInit was not called"),
    passing(100002, "REPEAT_INITIALIZE", "aclInit was called before"),
    passing(100024, "OP_NOT_FOUND", "operator not found"),
    passing(100026, "UNSUPPORTED_DATA_TYPE", "unsupported data type"),
    passing(100029, "KERNEL_NOT_FOUND", "kernel not found"),
    passing(107000, "PARAM_INVALID", "parameter invalid"),
    passing(107001, "INVALID_DEVICEID", "no device of this number"),
    passing(107002, "CONTEXT_NULL", "no context on this thread: set a device first"),
    passing(107003, "STREAM_CONTEXT", "the stream is of another context"),
    passing(107006, "EVENT_TIMESTAMP_INVALID", "the event holds no time"),
    passing(107007, "EVENT_TIMESTAMP_REVERSAL", "the end lies before the start"),
    passing(107017, "INVALID_HANDLE", "no object has this handle"),
    passing(107019, "WAIT_TIMEOUT", "a wait ran out of time"),
    sticky(107020, "TASK_TIMEOUT", "a task ran out of time"),
    sticky(107022, "DEVICE_TASK_ABORT", "the device's tasks were aborted: it is in stop state"),
    passing(107023, "STREAM_ABORT", "the stream was aborted"),
    passing(107024, "CAPTURE_107024", "stream capture misused"),
    passing(107025, "CAPTURE_107025", "stream capture misused"),
    passing(107026, "CAPTURE_107026", "stream capture misused"),
    passing(107027, "STREAM_CAPTURED", "the stream is being captured"),
    passing(107028, "CAPTURE_107028", "stream capture misused"),
    passing(107029, "CAPTURE_107029", "stream capture misused"),
    passing(107030, "MODE_NOT_SUPPORT", "not allowed in this capture mode"),
    passing(107031, "CAPTURE_107031", "stream capture misused"),
    passing(107032, "CAPTURE_107032", "stream capture misused"),
    passing(107033, "CAPTURE_107033", "stream capture misused"),
    passing(107034, "CAPTURE_107034", "stream capture misused"),
    passing(107035, "TASK_ABORT_STOP", "stopped before its tasks were aborted"),
    passing(107036, "CAPTURE_107036", "stream capture misused"),
    passing(200000, "BAD_ALLOC", "host memory could not be had"),
    passing(207000, "FEATURE_NOT_SUPPORT", "the feature is not supported"),
    passing(207001, "MEMORY_ALLOCATION", "EL0004: Failed to allocate memory"),
    passing(207003, "AICORE_OVER_FLOW", "overflow seen by an AI core"),
    sticky(207004, "NO_DEVICE", "no device is available"),
    passing(207005, "RESOURCE_ALLOC_FAIL", "a resource could not be had"),
    passing(207006, "NO_PERMISSION", "permission denied"),
    passing(207007, "NO_EVENT_RESOURCE", "no event is left"),
    passing(207008, "NO_STREAM_RESOURCE", "no stream is left"),
    passing(207015, "REPEATED_INIT", "initialised before"),
    passing(207016, "AIVEC_OVER_FLOW", "overflow seen by a vector core"),
    passing(207017, "OVER_FLOW", "overflow"),
    passing(207018, "DEVICE_OOM", "EL0004: device memory is exhausted"),
    sticky(500000, "INTERNAL_ERROR", "internal error"),
    sticky(500001, "FAILURE", "failure"),
    sticky(500002, "GE_FAILURE", "failure of the graph engine"),
    sticky(500003, "RT_FAILURE", "failure of the runtime"),
    sticky(500004, "DRV_FAILURE", "failure of the driver"),
    sticky(500005, "PROFILING_FAILURE", "failure of the profiler"),
    sticky(507000, "RT_INTERNAL_ERROR", "internal error of the runtime"),
    sticky(507001, "TS_ERROR", "error of the task scheduler"),
    passing(507004, "STREAM_NOT_COMPLETE", "the stream is not complete"),
    passing(507006, "EVENT_NOT_COMPLETE", "the event is not complete"),
    sticky(507010, "LOST_HEARTBEAT", "EL0001: lost heartbeat of the task scheduler"),
    sticky(507011, "MODEL_EXECUTE", "execution of a model failed"),
    passing(507012, "REPORT_TIMEOUT", "no report came in time"),
    sticky(507013, "SYS_DMA", "system DMA failed"),
    sticky(507014, "AICORE_TIMEOUT", "EZ9999: an AI core ran out of time"),
    sticky(507015, "AICORE_EXCEPTION", "EZ9999: exception in an AI core"),
    sticky(507016, "AICORE_TRAP_EXCEPTION", "EZ9999: trap in an AI core"),
    sticky(507017, "AICPU_TIMEOUT", "an AI CPU ran out of time"),
    sticky(507018, "AICPU_EXCEPTION", "exception in an AI CPU"),
    sticky(507033, "DEV_SETUP_ERROR", "the device cannot be opened"),
    sticky(507034, "VECTOR_CORE_TIMEOUT", "EZ9999: a vector core ran out of time"),
    sticky(507035, "VECTOR_CORE_EXCEPTION", "EZ9999: exception in a vector core"),
    sticky(507036, "VECTOR_CORE_TRAP_EXCEPTION", "EZ9999: trap in a vector core"),
    sticky(507042, "AICORE_TRAP_READ_OVERFLOW", "an AI core read out of range"),
    sticky(507043, "AICORE_TRAP_WRITE_OVERFLOW", "an AI core wrote out of range"),
    sticky(507044, "VECTOR_CORE_TRAP_READ_OVERFLOW", "a vector core read out of range"),
    sticky(507045, "VECTOR_CORE_TRAP_WRITE_OVERFLOW", "a vector core wrote out of range"),
    passing(507046, "STREAM_SYNC_TIMEOUT", "the wait for a stream ran out of time"),
    passing(507047, "EVENT_SYNC_TIMEOUT", "the wait for an event ran out of time"),
    sticky(507048, "FFTS_PLUS_TIMEOUT", "a fused task ran out of time"),
    sticky(507049, "FFTS_PLUS_EXCEPTION", "exception in a fused task"),
    sticky(507050, "FFTS_PLUS_TRAP_EXCEPTION", "trap in a fused task"),
    passing(507051, "SEND_MSG", "a message to the device was not sent"),
    passing(507052, "COPY_DATA", "data were not copied to the device"),
    sticky(507053, "DEVICE_MEM_ERROR", "UCE ERROR: uncorrectable error of device memory"),
    sticky(507054, "HBM_MULTI_BIT_ECC_ERROR", "HBM MULTI BIT ECC ERROR, time us= 0."),
    sticky(507055, "SUSPECT_DEVICE_MEM_ERROR", "suspected error of device memory"),
    sticky(507056, "LINK_ERROR", "HCCS link error"),
    sticky(507057, "SUSPECT_REMOTE_ERROR", "suspected error of a remote device"),
    sticky(507899, "DRV_INTERNAL_ERROR", "internal error of the driver"),
    sticky(507900, "AICPU_INTERNAL_ERROR", "internal error of an AI CPU"),
    sticky(507901, "SOCKET_CLOSE", "the session between host and device was lost"),
    sticky(507902, "AICPU_INFO_LOAD_RSP", "an AI CPU answered wrongly to a load"),
    passing(507903, "STREAM_CAPTURE_INVALIDATED", "the capture was invalidated"),
    sticky(507904, "COMM_OP_RETRY_FAIL", "retries of a collective were exhausted"),
    sticky(574006, "STRESS_BIT_FAIL", "stress detection: bit failure"),
    sticky(574007, "STRESS_VOLTAGE_RECOVERY_FAIL", "stress detection: the voltage was not restored"),
    sticky(574008, "STRESS_LOW_BIT_FAIL", "stress detection: low bit failure"),
    sticky(574009, "STRESS_HIGH_BIT_FAIL", "stress detection: high bit failure"),
];

/// The statuses of aclnn functions that the emulator itself answers with.
pub const ACLNN: &[Code] = &[
    passing(161001, "ACLNN_PARAM_NULLPTR", "a required argument is null"),
    passing(161002, "ACLNN_PARAM_INVALID", "an argument is invalid"),
    passing(361001, "ACLNN_RUNTIME_ERROR", "a runtime call failed"),
    passing(561000, "ACLNN_INNER", "inner error"),
    passing(561003, "ACLNN_INNER_FIND_KERNEL", "no kernel"),
    passing(561103, "ACLNN_INNER_NULLPTR", "the executor is null or gone"),
];

/// Whether a code tells of the device, not of the call or of the operator library.
pub fn is_of_device(number: i32) -> bool {
    number > MEMORY_ALLOCATION && RUNTIME.iter().any(|code| code.number == number)
}

/// The record of a number; none where CANN has no such code.
pub fn find(number: i32) -> Option<&'static Code> {
    RUNTIME.iter().chain(ACLNN).find(|code| code.number == number)
}
