//! CANN's C interface (runtime, objects, operators of Huawei's Ascend NPUs) over CPU kernels: `libcann_emulator.so`, and
//! beside it `libascendcl.so`, `libnnopbase.so` and `libopapi.so`, which forward to it. Any CANN program may load them.
//!
//! What passes here is *emulated*: it says that a program follows the interface (order of calls, ownership, streams,
//! strides, error handling) and survives the faults that can be switched on (`defect`). It says nothing about a chip's
//! speed, nor about what the interface's public callers do not show: types that only a vendor's document lists,
//! formats other than plain strided, quantised products. Functions that are known and absent refuse by name.
//!
//! Prototypes, enums and codes are facts, written in our own words; ARCHITECTURE.md says where each kind came from.
//! Nothing here knows who calls.
//!
//! Settings, all from the environment: `CANN_EMULATOR_DEVICES` (1), `CANN_EMULATOR_SOC` (Ascend910B3),
//! `CANN_EMULATOR_MEMORY` (bytes of a device, 16 GiB), `CANN_EMULATOR_LATENCY_US` and `CANN_EMULATOR_BANDWIDTH` (none),
//! `CANN_EMULATOR_DEFECTS` (see `list`).

mod call;
mod calls;
mod code;
mod defect;
pub mod entry;
mod fault;
pub mod header;
mod memory;
mod objects;
mod operator;
mod registry;
mod runtime;
mod settings;
mod tensor;
