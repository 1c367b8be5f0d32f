//! Tensors, scalars and lists for one call. The first phase copies what it needs, so they live as long as it takes.

use super::abi::{ACLNN_PARAM_NULLPTR, Code, Element, FORMAT_ND, Handle};
use super::library::Libraries;
use super::prototype::Raw;
use crate::call::{Argument, Call, Number, Space, View};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

type CreateTensor = unsafe extern "C" fn(
    *const i64,
    u64,
    c_int,
    *const i64,
    i64,
    c_int,
    *const i64,
    u64,
    *mut c_void,
) -> Handle;
type CreateScalar = unsafe extern "C" fn(*const c_void, c_int) -> Handle;
type CreateIntArray = unsafe extern "C" fn(*const i64, u64) -> Handle;
type CreateTensorList = unsafe extern "C" fn(*const Handle, u64) -> Handle;
pub(super) type OfHandle = unsafe extern "C" fn(Handle) -> Code;

/// Where each space begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bases {
    /// `Bindings::current`.
    pub(crate) current: u64,
    /// `Bindings::next`.
    pub(crate) next: u64,
    /// `Bindings::work`.
    pub(crate) work: u64,
    /// Temporaries.
    pub(crate) scratch: u64,
    /// What the host wrote.
    pub(crate) constants: u64,
}

impl Bases {
    fn of(&self, space: Space) -> u64 {
        match space {
            Space::Current => self.current,
            Space::Next => self.next,
            Space::Work => self.work,
            Space::Scratch => self.scratch,
            Space::Constants => self.constants,
        }
    }
}

/// The functions that make and destroy objects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Objects {
    create_tensor: CreateTensor,
    create_scalar: CreateScalar,
    create_int_array: CreateIntArray,
    create_tensor_list: CreateTensorList,
    destroy_tensor: OfHandle,
    destroy_scalar: OfHandle,
    destroy_int_array: OfHandle,
    destroy_tensor_list: OfHandle,
}

impl Objects {
    /// Resolves the functions, or names what is missing.
    pub(super) fn load(libraries: &Libraries) -> Result<Objects, Vec<&'static str>> {
        let mut missing = Vec::new();
        let mut find = |name: &'static str| match libraries.symbol(name) {
            Some(address) => address,
            None => {
                missing.push(name);
                std::ptr::null()
            }
        };
        let names = [
            "aclCreateTensor",
            "aclCreateScalar",
            "aclCreateIntArray",
            "aclCreateTensorList",
            "aclDestroyTensor",
            "aclDestroyScalar",
            "aclDestroyIntArray",
            "aclDestroyTensorList",
        ];
        let found = names.map(&mut find);
        if !missing.is_empty() {
            return Err(missing);
        }
        // SAFETY: CANN's symbols, under the prototypes of its Apache-2.0 header `acl_meta.h`.
        Ok(unsafe {
            Objects {
                create_tensor: std::mem::transmute::<*const c_void, CreateTensor>(found[0]),
                create_scalar: std::mem::transmute::<*const c_void, CreateScalar>(found[1]),
                create_int_array: std::mem::transmute::<*const c_void, CreateIntArray>(found[2]),
                create_tensor_list: std::mem::transmute::<*const c_void, CreateTensorList>(found[3]),
                destroy_tensor: std::mem::transmute::<*const c_void, OfHandle>(found[4]),
                destroy_scalar: std::mem::transmute::<*const c_void, OfHandle>(found[5]),
                destroy_int_array: std::mem::transmute::<*const c_void, OfHandle>(found[6]),
                destroy_tensor_list: std::mem::transmute::<*const c_void, OfHandle>(found[7]),
            }
        })
    }

    fn tensor(&self, view: &View, bases: &Bases) -> Result<Handle, Code> {
        let signed = |sizes: &[usize]| -> Vec<i64> { sizes.iter().map(|size| *size as i64).collect() };
        let (sizes, strides) = (signed(&view.sizes), signed(&view.strides));
        let storage = [view.reach() as i64];
        let address = bases.of(view.space) + view.byte as u64;
        // SAFETY: the arrays live until the call returns and have the lengths given; the address is only named.
        let handle = unsafe {
            (self.create_tensor)(
                sizes.as_ptr(),
                sizes.len() as u64,
                view.element as c_int,
                strides.as_ptr(),
                view.offset as i64,
                FORMAT_ND,
                storage.as_ptr(),
                1,
                address as *mut c_void,
            )
        };
        made(handle)
    }

    fn scalar(&self, number: Number) -> Result<Handle, Code> {
        // SAFETY: the number lives until the call returns, which copies as many bytes as its type has.
        made(unsafe {
            match number {
                Number::F32(x) => (self.create_scalar)((&raw const x).cast(), Element::F32 as c_int),
                Number::I64(x) => (self.create_scalar)((&raw const x).cast(), Element::I64 as c_int),
            }
        })
    }

    fn ints(&self, numbers: &[i64]) -> Result<Handle, Code> {
        // SAFETY: the array lives until the call returns, which copies it.
        made(unsafe { (self.create_int_array)(numbers.as_ptr(), numbers.len() as u64) })
    }
}

fn made(handle: Handle) -> Result<Handle, Code> {
    if handle.is_null() { Err(ACLNN_PARAM_NULLPTR) } else { Ok(handle) }
}

/// A call's arguments as objects, destroyed with it.
pub(super) struct Built {
    /// In the operator's order.
    pub(super) raws: Vec<Raw>,
    owned: Vec<(Handle, OfHandle)>,
}

impl Built {
    /// Makes the objects of a call.
    pub(super) fn new(objects: &Objects, call: &Call, bases: &Bases) -> Result<Built, Code> {
        let mut built = Built { raws: Vec::with_capacity(call.arguments.len()), owned: Vec::new() };
        for argument in &call.arguments {
            let raw = match argument {
                Argument::Tensor(view) => built.own(objects.tensor(view, bases)?, objects.destroy_tensor),
                Argument::Tensors(views) => built.list(objects, views, bases)?,
                Argument::Absent => Raw::Pointer(null_mut()),
                Argument::Scalar(number) => built.own(objects.scalar(*number)?, objects.destroy_scalar),
                Argument::Ints(numbers) => built.own(objects.ints(numbers)?, objects.destroy_int_array),
                Argument::I64(x) => Raw::I64(*x),
                Argument::I8(x) => Raw::I8(*x),
                Argument::Type(element) => Raw::Type(*element as c_int),
                Argument::Bool(x) => Raw::Bool(*x),
                Argument::F64(x) => Raw::F64(*x),
                Argument::Text(text) => Raw::Pointer(text.as_ptr().cast_mut().cast()),
            };
            built.raws.push(raw);
        }
        Ok(built)
    }

    fn own(&mut self, handle: Handle, destroy: OfHandle) -> Raw {
        self.owned.push((handle, destroy));
        Raw::Pointer(handle)
    }

    /// A list takes its tensors over.
    fn list(&mut self, objects: &Objects, views: &[View], bases: &Bases) -> Result<Raw, Code> {
        let before = self.owned.len();
        let mut handles = Vec::with_capacity(views.len());
        for view in views {
            let handle = objects.tensor(view, bases)?;
            self.own(handle, objects.destroy_tensor);
            handles.push(handle);
        }
        // SAFETY: the array lives until the call returns, which copies it.
        let list = made(unsafe { (objects.create_tensor_list)(handles.as_ptr(), handles.len() as u64) })?;
        self.owned.truncate(before);
        Ok(self.own(list, objects.destroy_tensor_list))
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        for (handle, destroy) in self.owned.drain(..) {
            // SAFETY: made above, destroyed once, and no longer used: the first phase has its own copies.
            unsafe { destroy(handle) };
        }
    }
}
