//! `libascendcl.so`: the runtime, forwarded to `libcann_emulator.so`.

#[macro_use]
#[path = "../../src/forward.rs"]
mod forward;

forward! {
    aclFinalize aclGetCannAttribute aclGetDeviceCapability aclGetRecentErrMsg aclInit aclmdlRICaptureBegin
    aclmdlRICaptureEnd aclmdlRICaptureGetInfo aclmdlRIDestroy aclmdlRIExecuteAsync aclrtCreateContext
    aclrtCreateEvent aclrtCreateEventExWithFlag aclrtCreateEventWithFlag aclrtCreateStream
    aclrtCreateStreamWithConfig aclrtCtxSetSysParamOpt aclrtDestroyContext aclrtDestroyEvent
    aclrtDestroyStream aclrtDestroyStreamForce aclrtDeviceCanAccessPeer aclrtDeviceDisablePeerAccess
    aclrtDeviceEnablePeerAccess aclrtDeviceGetUuid aclrtDeviceTaskAbort aclrtEventElapsedTime
    aclrtEventGetTimestamp aclrtFree aclrtFreeHost aclrtFreePhysical aclrtGetCurrentContext aclrtGetDevice
    aclrtGetDeviceCount aclrtGetDeviceIdFromExceptionInfo aclrtGetDeviceInfo aclrtGetDeviceUtilizationRate
    aclrtGetErrorVerbose aclrtGetLastError aclrtGetMemInfo aclrtGetMemUceInfo aclrtGetMemUsageInfo
    aclrtGetPrimaryCtxState aclrtGetRunMode aclrtGetSocName aclrtGetStreamOverflowSwitch aclrtGetVersion
    aclrtHostRegister aclrtHostUnregister aclrtLaunchCallback aclrtLaunchHostFunc aclrtMalloc
    aclrtMallocAlign32 aclrtMallocHost aclrtMallocPhysical aclrtMapMem aclrtMemGetAllocationGranularity
    aclrtMemUceRepair aclrtMemcpy aclrtMemcpy2d aclrtMemcpy2dAsync aclrtMemcpyAsync
    aclrtMemcpyAsyncWithCondition aclrtMemcpyBatch aclrtMemset aclrtMemsetAsync aclrtPeekAtLastError
    aclrtPointerGetAttributes aclrtProcessReport aclrtQueryEvent aclrtQueryEventStatus
    aclrtQueryEventWaitStatus aclrtRecordEvent aclrtReleaseMemAddress aclrtRepairError
    aclrtReserveMemAddress aclrtResetDevice aclrtResetDeviceForce aclrtResetEvent aclrtSetCurrentContext
    aclrtSetDevice aclrtSetDeviceSatMode aclrtSetExceptionInfoCallback aclrtSetOpExecuteTimeOut
    aclrtSetOpExecuteTimeOutV2 aclrtSetOpWaitTimeout aclrtSetStreamFailureMode aclrtSetStreamOverflowSwitch
    aclrtSetSysParamOpt aclrtStreamAbort aclrtStreamGetId aclrtStreamQuery aclrtStreamWaitEvent
    aclrtSubscribeReport aclrtSynchronizeDevice aclrtSynchronizeDeviceWithTimeout aclrtSynchronizeEvent
    aclrtSynchronizeStream aclrtSynchronizeStreamWithTimeout aclrtUnSubscribeReport aclrtUnmapMem
    aclsysGetCANNVersion cannEmulatorVersion
}
