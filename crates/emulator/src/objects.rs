//! `libnnopbase.so`: tensors, scalars, arrays and lists, as a client makes them before a call.

use std::ffi::c_void;
use std::sync::{Arc, RwLock};

use crate::call::{call, write_out};
use crate::code;
use crate::fault::{Fault, tell};
use crate::registry::Registry;
use crate::tensor::{DataType, Scalar, Tensor, contiguous};

/// A client's tensor; its address may be changed.
pub type Shared = RwLock<Tensor>;

pub static TENSORS: Registry<Shared> = Registry::new(4, "aclTensor");
pub static SCALARS: Registry<Scalar> = Registry::new(5, "aclScalar");
pub static INTS: Registry<Vec<i64>> = Registry::new(6, "aclIntArray");
pub static FLOATS: Registry<Vec<f32>> = Registry::new(7, "aclFloatArray");
pub static BOOLS: Registry<Vec<bool>> = Registry::new(8, "aclBoolArray");
pub static LISTS: Registry<Vec<usize>> = Registry::new(9, "aclTensorList");
pub static SCALAR_LISTS: Registry<Vec<usize>> = Registry::new(10, "aclScalarList");

/// Most dimensions of a tensor.
const RANK_MAX: u64 = 8;

/// A copy of what the client's tensor is now.
pub fn snapshot(handle: usize) -> Result<Tensor, Fault> {
    let shared = TENSORS.get(handle)?;
    let tensor = shared.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(tensor.clone())
}

/// Runs a creator: the handle, or null with the reason told.
fn create(name: &'static str, body: impl FnOnce() -> Result<usize, Fault>) -> usize {
    body().unwrap_or_else(|fault| {
        tell(name, &fault);
        0
    })
}

/// Copies a client's array.
///
/// # Safety
/// `values` is null or points to `count` elements.
unsafe fn array<T: Copy>(name: &str, values: *const T, count: u64) -> Result<Vec<T>, Fault> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if values.is_null() {
        return Err(Fault::new(
            code::PARAM_NULLPTR,
            format!("{name} is null, {count} elements were announced"),
        ));
    }
    // SAFETY: not null, and the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(values, count as usize) }.to_vec())
}

/// What `aclCreateTensor` and `aclInitTensor` are given.
struct Described {
    dims: *const i64,
    rank: u64,
    dtype: i32,
    strides: *const i64,
    offset: i64,
    format: i32,
    storage: *const i64,
    storage_rank: u64,
    data: usize,
}

impl Described {
    /// # Safety
    /// The pointers are null or point to as many elements as announced.
    unsafe fn tensor(self) -> Result<Tensor, Fault> {
        let bad = |text: String| Fault::new(code::ACLNN_PARAM_INVALID, text);
        if self.rank > RANK_MAX || self.storage_rank > RANK_MAX {
            return Err(bad(format!("{} dimensions; a tensor has at most {RANK_MAX}", self.rank)));
        }
        let dtype = DataType::from_number(self.dtype)
            .ok_or_else(|| bad(format!("data type {} is not supported by this emulator", self.dtype)))?;
        // SAFETY: the caller's promise.
        let dims = unsafe { array("viewDims", self.dims, self.rank)? };
        let shape = dims.iter().map(|&size| usize::try_from(size));
        let shape: Vec<usize> =
            shape.collect::<Result<_, _>>().map_err(|_| bad(format!("viewDims are {dims:?}: below 0")))?;
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size.max(1)));
        if elements.is_none_or(|elements| elements > 1 << 46) {
            return Err(bad(format!("viewDims are {dims:?}: too large")));
        }
        let strides = if self.strides.is_null() {
            contiguous(&shape)
        } else {
            // SAFETY: the caller's promise.
            unsafe { array("stride", self.strides, self.rank)? }
        };
        // SAFETY: the caller's promise.
        let storage = unsafe { array("storageDims", self.storage, self.storage_rank)? };
        let (offset, format, data) = (self.offset, self.format, self.data);
        Ok(Tensor { dtype, shape, strides, offset, format, storage, data })
    }
}

#[allow(clippy::too_many_arguments, reason = "CANN's function has that many")]
pub unsafe extern "C" fn create_tensor(
    dims: *const i64,
    rank: u64,
    dtype: i32,
    strides: *const i64,
    offset: i64,
    format: i32,
    storage: *const i64,
    storage_rank: u64,
    data: usize,
) -> usize {
    create("aclCreateTensor", || {
        let described = Described { dims, rank, dtype, strides, offset, format, storage, storage_rank, data };
        // SAFETY: the caller's promise.
        Ok(TENSORS.insert(RwLock::new(unsafe { described.tensor()? })))
    })
}

#[allow(clippy::too_many_arguments, reason = "CANN's function has that many")]
pub unsafe extern "C" fn init_tensor(
    tensor: usize,
    dims: *const i64,
    rank: u64,
    dtype: i32,
    strides: *const i64,
    offset: i64,
    format: i32,
    storage: *const i64,
    storage_rank: u64,
    data: usize,
) -> i32 {
    call("aclInitTensor", || {
        let shared = TENSORS.get(tensor)?;
        let described = Described { dims, rank, dtype, strides, offset, format, storage, storage_rank, data };
        // SAFETY: the caller's promise.
        let new = unsafe { described.tensor()? };
        *shared.write().unwrap_or_else(std::sync::PoisonError::into_inner) = new;
        Ok(())
    })
}

pub extern "C" fn destroy_tensor(tensor: usize) -> i32 {
    call("aclDestroyTensor", || TENSORS.remove(tensor).map(drop))
}

pub unsafe extern "C" fn create_scalar(value: *const c_void, dtype: i32) -> usize {
    create("aclCreateScalar", || {
        let unknown = || Fault::new(code::ACLNN_PARAM_INVALID, format!("data type {dtype} is not supported"));
        let dtype = DataType::from_number(dtype).ok_or_else(unknown)?;
        if value.is_null() {
            return Err(Fault::new(code::PARAM_NULLPTR, "value is null"));
        }
        // SAFETY: not null, and the caller promises an element of the type.
        Ok(SCALARS.insert(unsafe { Scalar::read(value.cast(), dtype)? }))
    })
}

pub extern "C" fn destroy_scalar(scalar: usize) -> i32 {
    call("aclDestroyScalar", || SCALARS.remove(scalar).map(drop))
}

macro_rules! arrays {
    ($($create:ident $destroy:ident $created:literal $destroyed:literal $type:ty => $registry:ident;)*) => {
        $(
            pub unsafe extern "C" fn $create(values: *const $type, count: u64) -> usize {
                // SAFETY: the caller promises `count` elements.
                create($created, || Ok($registry.insert(unsafe { array("value", values, count)? })))
            }

            pub extern "C" fn $destroy(array: usize) -> i32 {
                call($destroyed, || $registry.remove(array).map(drop))
            }
        )*
    };
}

arrays! {
    create_ints destroy_ints "aclCreateIntArray" "aclDestroyIntArray" i64 => INTS;
    create_floats destroy_floats "aclCreateFloatArray" "aclDestroyFloatArray" f32 => FLOATS;
}

pub unsafe extern "C" fn create_bools(values: *const u8, count: u64) -> usize {
    create("aclCreateBoolArray", || {
        // SAFETY: the caller promises `count` elements of a byte each.
        let bytes = unsafe { array("value", values, count)? };
        Ok(BOOLS.insert(bytes.into_iter().map(|byte| byte != 0).collect()))
    })
}

pub extern "C" fn destroy_bools(array: usize) -> i32 {
    call("aclDestroyBoolArray", || BOOLS.remove(array).map(drop))
}

pub unsafe extern "C" fn create_list(tensors: *const usize, count: u64) -> usize {
    create("aclCreateTensorList", || {
        // SAFETY: the caller promises `count` handles.
        let handles = unsafe { array("value", tensors, count)? };
        for &handle in &handles {
            TENSORS.get(handle)?;
        }
        Ok(LISTS.insert(handles))
    })
}

pub unsafe extern "C" fn create_scalar_list(scalars: *const usize, count: u64) -> usize {
    create("aclCreateScalarList", || {
        // SAFETY: the caller promises `count` handles.
        let handles = unsafe { array("value", scalars, count)? };
        for &handle in &handles {
            SCALARS.get(handle)?;
        }
        Ok(SCALAR_LISTS.insert(handles))
    })
}

/// Destroys the list's tensors too.
pub extern "C" fn destroy_list(list: usize) -> i32 {
    call("aclDestroyTensorList", || {
        for &handle in LISTS.remove(list)?.iter() {
            // The client may have destroyed one before.
            let _ = TENSORS.remove(handle);
        }
        Ok(())
    })
}

/// Destroys the list's scalars too.
pub extern "C" fn destroy_scalar_list(list: usize) -> i32 {
    call("aclDestroyScalarList", || {
        for &handle in SCALAR_LISTS.remove(list)?.iter() {
            // The client may have destroyed one before.
            let _ = SCALARS.remove(handle);
        }
        Ok(())
    })
}

/// An array for the caller, from malloc, so that free ends it.
///
/// # Safety
/// `place` and `count` are null or may be written to.
unsafe fn give(values: &[i64], place: *mut *mut i64, count: *mut u64) -> Result<(), Fault> {
    // SAFETY: at least a byte is asked for.
    let copy = unsafe { libc::malloc((values.len() * 8).max(1)) }.cast::<i64>();
    if copy.is_null() {
        return Err(Fault::new(200000, "the host has no memory left"));
    }
    // SAFETY: the allocation holds that many elements.
    unsafe { copy.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    // SAFETY: the caller's promise.
    unsafe {
        write_out("dims", place, copy)?;
        write_out("dimsNum", count, values.len() as u64)
    }
}

macro_rules! shapes {
    ($($function:ident $name:literal |$tensor:ident| $values:expr;)*) => {
        $(
            pub unsafe extern "C" fn $function(tensor: usize, place: *mut *mut i64, count: *mut u64) -> i32 {
                call($name, || {
                    let $tensor = snapshot(tensor)?;
                    // SAFETY: the caller gives places for the answers, or null, which is refused.
                    unsafe { give(&$values, place, count) }
                })
            }
        )*
    };
}

shapes! {
    view_shape "aclGetViewShape" |tensor| tensor.shape.iter().map(|&size| size as i64).collect::<Vec<_>>();
    storage_shape "aclGetStorageShape" |tensor| tensor.storage;
    view_strides "aclGetViewStrides" |tensor| tensor.strides;
}

macro_rules! answers {
    ($($function:ident $name:literal $type:ty, |$handle:ident| $value:expr;)*) => {
        $(
            pub unsafe extern "C" fn $function($handle: usize, place: *mut $type) -> i32 {
                call($name, || {
                    let value = $value;
                    // SAFETY: the caller gives a place for the answer, or null, which is refused.
                    unsafe { write_out("answer", place, value) }
                })
            }
        )*
    };
}

answers! {
    view_offset "aclGetViewOffset" i64, |tensor| snapshot(tensor)?.offset;
    format "aclGetFormat" i32, |tensor| snapshot(tensor)?.format;
    data_type "aclGetDataType" i32, |tensor| snapshot(tensor)?.dtype as i32;
    ints_size "aclGetIntArraySize" u64, |array| INTS.get(array)?.len() as u64;
    list_size "aclGetTensorListSize" u64, |list| LISTS.get(list)?.len() as u64;
    raw_address "aclGetRawTensorAddr" usize, |tensor| snapshot(tensor)?.data;
}

pub extern "C" fn set_raw_address(tensor: usize, address: usize) -> i32 {
    call("aclSetRawTensorAddr", || {
        let shared: Arc<Shared> = TENSORS.get(tensor)?;
        shared.write().unwrap_or_else(std::sync::PoisonError::into_inner).data = address;
        Ok(())
    })
}

pub extern "C" fn initialise(_config: usize) -> i32 {
    call("aclnnInit", || Ok(()))
}

pub extern "C" fn finalise() -> i32 {
    call("aclnnFinalize", || Ok(()))
}
