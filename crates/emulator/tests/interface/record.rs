//! The record that PyTorch wrote (`tests/golden/ascend.py`), as tensors on the device.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use safetensors::{Dtype, SafeTensors};

use crate::library::{BOOL, F32, I32, I64, allocate, get, put, size_of, tensor};

/// How a tensor of the record lies in device memory.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Placed {
    /// Row-major.
    Dense,
    /// Every second element of the last axis, from the third element on.
    Spread,
    /// Axes in the opposite order.
    Transposed,
}

pub const ALL: [Placed; 3] = [Placed::Dense, Placed::Spread, Placed::Transposed];

struct Wanted {
    name: String,
    expected: Vec<f64>,
    address: usize,
    dtype: i32,
    places: Vec<usize>,
    bytes: usize,
}

/// One case: inputs to the device, outputs to be compared.
pub struct Case {
    name: String,
    placed: Placed,
    wanted: RefCell<Vec<Wanted>>,
}

fn file() -> &'static SafeTensors<'static> {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    static FILE: OnceLock<SafeTensors<'static>> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/ascend.safetensors");
        SafeTensors::deserialize(BYTES.get_or_init(|| std::fs::read(path).unwrap())).unwrap()
    })
}

/// Names of all cases.
pub fn cases() -> Vec<String> {
    attributes().keys().filter(|name| !["format", "torch"].contains(&name.as_str())).cloned().collect()
}

fn attributes() -> &'static BTreeMap<String, String> {
    static ALL: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    ALL.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/ascend.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        header.metadata().clone().unwrap().into_iter().collect()
    })
}

/// Elements of an allocation, and where in it the elements of a shape lie, in row-major order; strides and offset.
fn layout(shape: &[usize], placed: Placed) -> (usize, Vec<usize>, Vec<i64>, i64) {
    let count: usize = shape.iter().product();
    let mut strides = vec![1i64; shape.len()];
    if placed == Placed::Transposed {
        for axis in 1..shape.len() {
            strides[axis] = strides[axis - 1] * shape[axis - 1] as i64;
        }
    } else {
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as i64;
        }
    }
    let (step, offset) = if placed == Placed::Spread { (2, 3) } else { (1, 0) };
    strides.iter_mut().for_each(|stride| *stride *= step);
    let place = |flat: usize| {
        let (mut rest, mut place) = (flat, offset);
        for axis in (0..shape.len()).rev() {
            place += (rest % shape[axis]) as i64 * strides[axis];
            rest /= shape[axis];
        }
        place as usize
    };
    (count * step as usize + offset as usize, (0..count).map(place).collect(), strides, offset)
}

impl Case {
    /// A case of the record.
    pub fn new(name: &str, placed: Placed) -> Case {
        assert!(attributes().contains_key(name), "{name} is not in the record");
        Case { name: name.into(), placed, wanted: RefCell::default() }
    }

    fn key(&self, argument: &str) -> String {
        format!("{}.{argument}", self.name)
    }

    /// Type, shape and bytes of an argument.
    pub fn raw(&self, argument: &str) -> (i32, Vec<usize>, Vec<u8>) {
        let view = file().tensor(&self.key(argument)).unwrap_or_else(|_| panic!("{}", self.key(argument)));
        let dtype = match view.dtype() {
            Dtype::F32 => F32,
            Dtype::I32 => I32,
            Dtype::I64 => I64,
            Dtype::BOOL => BOOL,
            other => panic!("{other:?}"),
        };
        (dtype, view.shape().to_vec(), view.data().to_vec())
    }

    /// An input on the device.
    pub fn t(&self, argument: &str) -> usize {
        let (dtype, shape, bytes) = self.raw(argument);
        self.place(dtype, &shape, Some(&bytes)).0
    }

    /// A part of an input, by its first index.
    pub fn part(&self, argument: &str, index: usize) -> usize {
        let (dtype, shape, bytes) = self.raw(argument);
        let size = bytes.len() / shape[0];
        self.place(dtype, &shape[1..], Some(&bytes[index * size..(index + 1) * size])).0
    }

    fn place(&self, dtype: i32, shape: &[usize], bytes: Option<&[u8]>) -> (usize, usize, Vec<usize>, usize) {
        let (elements, places, strides, offset) = layout(shape, self.placed);
        let size = size_of(dtype);
        let mut memory = vec![0xA5u8; (elements * size).max(1)];
        if let Some(bytes) = bytes {
            for (flat, &place) in places.iter().enumerate() {
                memory[place * size..(place + 1) * size]
                    .copy_from_slice(&bytes[flat * size..(flat + 1) * size]);
            }
        }
        let address = allocate(memory.len());
        put(address, &memory);
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let handle = tensor(dtype, &shape, Some(&strides), offset, address);
        assert_ne!(handle, 0, "{}", crate::library::message());
        (handle, address, places, memory.len())
    }

    /// An input with its last two axes swapped.
    pub fn swapped(&self, argument: &str) -> usize {
        let (dtype, shape, bytes) = self.raw(argument);
        let (_, address, _, _) = self.place(dtype, &shape, Some(&bytes));
        let (_, _, mut strides, offset) = layout(&shape, self.placed);
        let mut shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let last = shape.len() - 1;
        shape.swap(last - 1, last);
        strides.swap(last - 1, last);
        tensor(dtype, &shape, Some(&strides), offset, address)
    }

    /// Zeros that must end as `argument`.
    pub fn zeros(&self, argument: &str) -> usize {
        let (dtype, shape, bytes) = self.raw(argument);
        let (handle, address, places, count) = self.place(dtype, &shape, Some(&vec![0; bytes.len()]));
        self.expect(argument, dtype, &bytes, dtype, address, places, count);
        handle
    }

    /// A tensor that begins as `input` and must end as one part of `argument`.
    pub fn in_place_from_part(&self, input: &str, argument: &str, part: usize) -> usize {
        let (dtype, shape, bytes) = self.raw(input);
        let (handle, address, places, count) = self.place(dtype, &shape, Some(&bytes));
        let all = self.raw(argument).2;
        let end = &all[part * bytes.len()..(part + 1) * bytes.len()];
        self.expect(argument, dtype, end, dtype, address, places, count);
        handle
    }

    /// Room for an output; `check` compares it with the record.
    pub fn o(&self, argument: &str) -> usize {
        self.o_as(argument, None)
    }

    /// Room for an output that the record has in another type.
    pub fn o_as(&self, argument: &str, dtype: Option<i32>) -> usize {
        let (recorded, shape, bytes) = self.raw(argument);
        let (handle, address, places, count) = self.place(dtype.unwrap_or(recorded), &shape, None);
        self.expect(argument, recorded, &bytes, dtype.unwrap_or(recorded), address, places, count);
        handle
    }

    /// A tensor that is read and written: begins as `input`, must end as `argument`.
    pub fn in_place(&self, input: &str, argument: &str) -> usize {
        let (dtype, shape, bytes) = self.raw(input);
        let (handle, address, places, count) = self.place(dtype, &shape, Some(&bytes));
        self.expect(argument, dtype, &self.raw(argument).2, dtype, address, places, count);
        handle
    }

    #[allow(clippy::too_many_arguments, reason = "one place, called twice")]
    fn expect(
        &self,
        name: &str,
        recorded: i32,
        bytes: &[u8],
        dtype: i32,
        address: usize,
        places: Vec<usize>,
        count: usize,
    ) {
        let expected = numbers(recorded, bytes);
        let wanted = Wanted { name: name.into(), expected, address, dtype, places, bytes: count };
        self.wanted.borrow_mut().push(wanted);
    }

    /// Compares all outputs: within `tolerance` of the largest number, and nothing else of their memory touched.
    pub fn check(&self, tolerance: f64) {
        for wanted in self.wanted.borrow().iter() {
            let place = format!("{} {:?}: {}", self.name, self.placed, wanted.name);
            let memory = get(wanted.address, wanted.bytes);
            let size = size_of(wanted.dtype);
            let all = numbers(wanted.dtype, &memory[..memory.len() / size * size]);
            let largest =
                wanted.expected.iter().filter(|x| x.is_finite()).fold(1e-3, |m: f64, x| m.max(x.abs()));
            for (index, (&at, &want)) in wanted.places.iter().zip(&wanted.expected).enumerate() {
                let got = all[at];
                let near = (got - want).abs() <= tolerance * largest || got == want;
                assert!(near, "{place}[{index}]: {got} instead of {want}");
            }
            for (at, byte) in memory.iter().enumerate() {
                if !wanted.places.contains(&(at / size)) {
                    assert_eq!(*byte, 0xA5, "{place}: byte {at} lies between its elements and was written");
                }
            }
        }
    }

    /// An attribute of the case.
    pub fn attribute(&self, name: &str) -> serde_json::Value {
        let all: serde_json::Value = serde_json::from_str(&attributes()[&self.name]).unwrap();
        all[name].clone()
    }
}

fn numbers(dtype: i32, bytes: &[u8]) -> Vec<f64> {
    let chunks = bytes.chunks(size_of(dtype));
    match dtype {
        F32 => chunks.map(|b| f64::from(f32::from_ne_bytes(b.try_into().unwrap()))).collect(),
        I32 => chunks.map(|b| f64::from(i32::from_ne_bytes(b.try_into().unwrap()))).collect(),
        I64 => chunks.map(|b| i64::from_ne_bytes(b.try_into().unwrap()) as f64).collect(),
        _ => chunks.map(|b| f64::from(b[0])).collect(),
    }
}
