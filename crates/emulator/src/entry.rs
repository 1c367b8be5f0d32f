//! Which function answers to which of CANN's names. The libraries with CANN's names ask here.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use crate::operator::executor;
use crate::runtime::{
    context, copy, event, host_function, info, management, memory_errors, stream_functions as stream,
    virtual_memory,
};
use crate::{fault, objects, operator};

macro_rules! table {
    ($($name:literal $function:expr;)*) => { vec![$(($name, $function as *const () as usize)),*] };
}

/// `libascendcl.so`.
fn ascendcl() -> Vec<(&'static str, usize)> {
    table! {
        "aclInit" info::init;
        "aclFinalize" info::finalize;
        "cannEmulatorVersion" info::emulator_version;
        "aclrtGetSocName" info::soc_name;
        "aclGetRecentErrMsg" fault::recent_message;
        "aclrtPeekAtLastError" fault::peek;
        "aclrtGetLastError" fault::take;
        "aclrtGetVersion" info::version;
        "aclrtGetRunMode" info::run_mode;
        "aclsysGetCANNVersion" info::cann_version;
        "aclGetCannAttribute" info::attribute;
        "aclGetDeviceCapability" info::capability;
        "aclrtGetDeviceInfo" info::device_info;
        "aclrtGetDeviceCount" info::device_count;
        "aclrtSetDevice" context::set_device;
        "aclrtGetDevice" context::get_device;
        "aclrtResetDevice" context::reset_device;
        "aclrtResetDeviceForce" context::reset_device_force;
        "aclrtSynchronizeDevice" context::synchronize_device;
        "aclrtSynchronizeDeviceWithTimeout" context::synchronize_device_with_timeout;
        "aclrtSetDeviceSatMode" info::set_saturation_mode;
        "aclrtDeviceCanAccessPeer" info::can_access_peer;
        "aclrtDeviceEnablePeerAccess" info::enable_peer;
        "aclrtDeviceDisablePeerAccess" info::disable_peer;
        "aclrtSetOpExecuteTimeOut" info::set_execute_timeout;
        "aclrtSetOpExecuteTimeOutV2" info::set_execute_timeout_v2;
        "aclrtSetOpWaitTimeout" info::set_wait_timeout;
        "aclrtSetSysParamOpt" info::set_system_option;
        "aclrtCtxSetSysParamOpt" info::set_context_option;
        "aclrtGetDeviceUtilizationRate" info::utilization;
        "aclrtDeviceGetUuid" info::uuid;
        "aclrtGetPrimaryCtxState" info::primary_context;
        "aclrtDeviceTaskAbort" memory_errors::task_abort;
        "aclrtGetMemUceInfo" memory_errors::get_info;
        "aclrtMemUceRepair" memory_errors::repair;
        "aclrtGetErrorVerbose" memory_errors::verbose;
        "aclrtRepairError" memory_errors::repair_error;
        "aclrtSetExceptionInfoCallback" info::exception_callback;
        "aclrtCreateContext" context::create;
        "aclrtDestroyContext" context::destroy;
        "aclrtSetCurrentContext" context::set_current;
        "aclrtGetCurrentContext" context::get_current;
        "aclrtCreateStream" stream::create;
        "aclrtCreateStreamWithConfig" stream::create_with_config;
        "aclrtDestroyStream" stream::destroy;
        "aclrtDestroyStreamForce" stream::destroy_force;
        "aclrtSynchronizeStream" stream::synchronize;
        "aclrtSynchronizeStreamWithTimeout" stream::synchronize_with_timeout;
        "aclrtStreamQuery" stream::query;
        "aclrtStreamWaitEvent" event::stream_wait;
        "aclrtSetStreamFailureMode" stream::set_failure_mode;
        "aclrtSetStreamOverflowSwitch" stream::set_overflow_switch;
        "aclrtGetStreamOverflowSwitch" stream::get_overflow_switch;
        "aclrtStreamAbort" stream::abort;
        "aclrtStreamGetId" stream::id;
        "aclrtCreateEvent" event::create;
        "aclrtCreateEventWithFlag" event::create_with_flag;
        "aclrtCreateEventExWithFlag" event::create_with_flag;
        "aclrtDestroyEvent" event::destroy;
        "aclrtRecordEvent" event::record;
        "aclrtResetEvent" event::reset;
        "aclrtQueryEvent" event::query_old;
        "aclrtQueryEventStatus" event::query_status;
        "aclrtQueryEventWaitStatus" event::query_wait;
        "aclrtSynchronizeEvent" event::synchronize;
        "aclrtEventElapsedTime" event::elapsed;
        "aclrtEventGetTimestamp" event::timestamp;
        "aclrtMalloc" copy::malloc;
        "aclrtMallocAlign32" copy::malloc_align32;
        "aclrtFree" copy::free;
        "aclrtMallocHost" copy::malloc_host;
        "aclrtFreeHost" copy::free_host;
        "aclrtGetMemInfo" copy::memory_info;
        "aclrtMemcpy" copy::memcpy;
        "aclrtMemcpyAsync" copy::memcpy_async;
        "aclrtMemcpy2d" copy::memcpy_2d;
        "aclrtMemcpy2dAsync" copy::memcpy_2d_async;
        "aclrtMemset" copy::memset;
        "aclrtMemsetAsync" copy::memset_async;
        "aclrtMemGetAllocationGranularity" virtual_memory::granularity;
        "aclrtMallocPhysical" virtual_memory::malloc_physical;
        "aclrtFreePhysical" virtual_memory::free_physical;
        "aclrtReserveMemAddress" virtual_memory::reserve;
        "aclrtReleaseMemAddress" virtual_memory::release;
        "aclrtMapMem" virtual_memory::map;
        "aclrtUnmapMem" virtual_memory::unmap;
        "aclrtPointerGetAttributes" copy::pointer_attributes;
        "aclrtLaunchCallback" host_function::launch_callback;
        "aclrtSubscribeReport" host_function::subscribe;
        "aclrtProcessReport" host_function::process_report;
        "aclrtUnSubscribeReport" host_function::unsubscribe;
        "aclrtLaunchHostFunc" host_function::launch_host_function;
    }
}

macro_rules! refused {
    ($($name:ident)*) => {
        /// Functions of the runtime that the emulator lacks: each says so, by name.
        fn refused() -> Vec<(&'static str, usize)> {
            $(
                #[allow(non_snake_case, reason = "CANN's name")]
                extern "C" fn $name() -> i32 {
                    crate::call::call(stringify!($name), || info::not_here(stringify!($name)))
                }
            )*
            vec![$((stringify!($name), $name as *const () as usize)),*]
        }
    };
}

refused! {
    aclrtMemcpyAsyncWithCondition aclrtMemcpyBatch aclrtGetMemUsageInfo aclrtHostRegister aclrtHostUnregister aclrtGetDeviceIdFromExceptionInfo
    aclmdlRICaptureBegin aclmdlRICaptureEnd aclmdlRICaptureGetInfo aclmdlRIExecuteAsync aclmdlRIDestroy
}

/// `libnnopbase.so`.
fn nnopbase() -> Vec<(&'static str, usize)> {
    table! {
        "aclCreateTensor" objects::create_tensor;
        "aclInitTensor" objects::init_tensor;
        "aclDestroyTensor" objects::destroy_tensor;
        "aclCreateScalar" objects::create_scalar;
        "aclDestroyScalar" objects::destroy_scalar;
        "aclCreateIntArray" objects::create_ints;
        "aclDestroyIntArray" objects::destroy_ints;
        "aclCreateFloatArray" objects::create_floats;
        "aclDestroyFloatArray" objects::destroy_floats;
        "aclCreateBoolArray" objects::create_bools;
        "aclDestroyBoolArray" objects::destroy_bools;
        "aclCreateTensorList" objects::create_list;
        "aclDestroyTensorList" objects::destroy_list;
        "aclCreateScalarList" objects::create_scalar_list;
        "aclDestroyScalarList" objects::destroy_scalar_list;
        "aclGetViewShape" objects::view_shape;
        "aclGetStorageShape" objects::storage_shape;
        "aclGetViewStrides" objects::view_strides;
        "aclGetViewOffset" objects::view_offset;
        "aclGetFormat" objects::format;
        "aclGetDataType" objects::data_type;
        "aclGetIntArraySize" objects::ints_size;
        "aclGetTensorListSize" objects::list_size;
        "aclSetRawTensorAddr" objects::set_raw_address;
        "aclGetRawTensorAddr" objects::raw_address;
        "aclSetAclOpExecutorRepeatable" executor::set_repeatable;
        "aclDestroyAclOpExecutor" executor::destroy;
        "aclSetTensorAddr" executor::set_tensor;
        "aclSetDynamicTensorAddr" executor::set_list;
        "aclSetInputTensorAddr" executor::set_input;
        "aclSetDynamicInputTensorAddr" executor::set_input_list;
        "aclSetOutputTensorAddr" executor::set_output;
        "aclSetDynamicOutputTensorAddr" executor::set_output_list;
        "aclnnInit" objects::initialise;
        "aclnnFinalize" objects::finalise;
    }
}

/// `libdcmi.so`.
fn dcmi() -> Vec<(&'static str, usize)> {
    table! {
        "dcmiEmulatorVersion" info::emulator_version;
        "dcmi_init" management::init;
        "dcmi_get_dcmi_version" management::version;
        "dcmi_get_card_list" management::cards;
        "dcmi_get_device_num_in_card" management::chips;
        "dcmi_get_card_id_device_id_from_logicid" management::place;
        "dcmi_get_device_health" management::health;
        "dcmi_get_device_temperature" management::temperature;
        "dcmi_get_device_ecc_info" management::memory_errors;
    }
}

fn all() -> &'static BTreeMap<&'static str, usize> {
    static ALL: OnceLock<BTreeMap<&'static str, usize>> = OnceLock::new();
    ALL.get_or_init(|| {
        let operators = operator::functions().iter().map(|(&name, &function)| (name, function));
        let runtime = ascendcl().into_iter().chain(refused()).chain(nnopbase()).chain(dcmi());
        runtime.chain(operators).collect()
    })
}

/// The function of a name; null where there is none. The one symbol that `libcann_emulator.so` exports.
///
/// # Safety
/// `name` is null or ends in a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cann_emulator_entry(name: *const c_char) -> *const c_void {
    if name.is_null() {
        return std::ptr::null();
    }
    // SAFETY: not null, and the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    let found = name.to_str().ok().and_then(|name| all().get(name));
    found.map_or(std::ptr::null(), |&function| function as *const c_void)
}

/// Names of the functions of one library: `ascendcl`, `nnopbase`, `opapi` or `dcmi`. Its forwarders must have the same.
#[must_use]
pub fn names(library: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = match library {
        "ascendcl" => ascendcl().into_iter().chain(refused()).map(|(name, _)| name).collect(),
        "nnopbase" => nnopbase().into_iter().map(|(name, _)| name).collect(),
        "dcmi" => dcmi().into_iter().map(|(name, _)| name).collect(),
        "opapi" => operator::functions().keys().copied().collect(),
        _ => Vec::new(),
    };
    names.sort_unstable();
    names
}
