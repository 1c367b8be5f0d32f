//! `libnnopbase.so`: tensors, scalars, lists, executors, forwarded to `libcann_emulator.so`.

#[macro_use]
#[path = "../../src/forward.rs"]
mod forward;

forward! {
    aclCreateBoolArray aclCreateFloatArray aclCreateIntArray aclCreateScalar aclCreateScalarList
    aclCreateTensor aclCreateTensorList aclDestroyAclOpExecutor aclDestroyBoolArray aclDestroyFloatArray
    aclDestroyIntArray aclDestroyScalar aclDestroyScalarList aclDestroyTensor aclDestroyTensorList
    aclGetDataType aclGetFormat aclGetIntArraySize aclGetRawTensorAddr aclGetStorageShape
    aclGetTensorListSize aclGetViewOffset aclGetViewShape aclGetViewStrides aclInitTensor
    aclSetAclOpExecutorRepeatable aclSetDynamicInputTensorAddr aclSetDynamicOutputTensorAddr
    aclSetDynamicTensorAddr aclSetInputTensorAddr aclSetOutputTensorAddr aclSetRawTensorAddr
    aclSetTensorAddr aclnnFinalize aclnnInit
}
