//! Data types and tensors: a window of strides over device memory.

use crate::code;
use crate::fault::Fault;

/// Element types that kernels know, with CANN's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum DataType {
    F32 = 0,
    F16 = 1,
    I8 = 2,
    I32 = 3,
    U8 = 4,
    I16 = 6,
    U16 = 7,
    U32 = 8,
    I64 = 9,
    U64 = 10,
    F64 = 11,
    Bool = 12,
    Bf16 = 27,
    I4 = 29,
}

/// How elements are computed with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Domain {
    /// Integers and booleans, modulo 2^64 inside.
    Integer,
    /// f16, bf16 and f32, in f32.
    Single,
    /// f64.
    Double,
}

impl DataType {
    /// The type of a number of CANN's.
    pub fn from_number(number: i32) -> Option<DataType> {
        use DataType::*;
        let all = [F32, F16, I8, I32, U8, I16, U16, U32, I64, U64, F64, Bool, Bf16, I4];
        all.into_iter().find(|&dtype| dtype as i32 == number)
    }

    /// Bytes of an element; of a pair for i4.
    pub fn size(self) -> usize {
        match self {
            DataType::I8 | DataType::U8 | DataType::Bool | DataType::I4 => 1,
            DataType::F16 | DataType::Bf16 | DataType::I16 | DataType::U16 => 2,
            DataType::F32 | DataType::I32 | DataType::U32 => 4,
            DataType::I64 | DataType::U64 | DataType::F64 => 8,
        }
    }

    /// How it is computed with.
    pub fn domain(self) -> Domain {
        match self {
            DataType::F32 | DataType::F16 | DataType::Bf16 => Domain::Single,
            DataType::F64 => Domain::Double,
            _ => Domain::Integer,
        }
    }

    /// Whether it is a float type.
    pub fn is_float(self) -> bool {
        self.domain() != Domain::Integer
    }

    /// The name that messages use.
    pub fn name(self) -> &'static str {
        match self {
            DataType::F32 => "float32",
            DataType::F16 => "float16",
            DataType::Bf16 => "bfloat16",
            DataType::F64 => "float64",
            DataType::I8 => "int8",
            DataType::U8 => "uint8",
            DataType::I16 => "int16",
            DataType::U16 => "uint16",
            DataType::I32 => "int32",
            DataType::U32 => "uint32",
            DataType::I64 => "int64",
            DataType::U64 => "uint64",
            DataType::Bool => "bool",
            DataType::I4 => "int4",
        }
    }
}

/// A window of device memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: DataType,
    pub shape: Vec<usize>,
    /// In elements.
    pub strides: Vec<i64>,
    /// In elements, from `data` on.
    pub offset: i64,
    pub format: i32,
    pub storage: Vec<i64>,
    pub data: usize,
}

/// Row-major strides of a shape.
pub fn contiguous(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1) as i64;
    }
    strides
}

impl Tensor {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Whether its elements lie one behind the other, in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != expected {
                return false;
            }
            expected *= size as i64;
        }
        true
    }

    /// Offsets of the first and the last element that are touched, from `data` on; none where there is no element.
    pub fn extent(&self) -> Option<(i64, i64)> {
        if self.is_empty() {
            return None;
        }
        let (mut low, mut high) = (self.offset, self.offset);
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = stride.checked_mul(size as i64 - 1)?;
            if reach < 0 { low = low.checked_add(reach)? } else { high = high.checked_add(reach)? }
        }
        Some((low, high))
    }

    /// For messages.
    pub fn describe(&self) -> String {
        format!(
            "{} {:?}, strides {:?}, offset {}, at {:#x}",
            self.dtype.name(),
            self.shape,
            self.strides,
            self.offset,
            self.data
        )
    }
}

/// A scalar of CANN's: its own type, whatever the tensors have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    Integer(i64),
    Float(f64),
}

impl Scalar {
    /// As a float.
    pub fn float(self) -> f64 {
        match self {
            Scalar::Integer(value) => value as f64,
            Scalar::Float(value) => value,
        }
    }

    /// As an integer, rounded towards 0.
    pub fn integer(self) -> i64 {
        match self {
            Scalar::Integer(value) => value,
            Scalar::Float(value) => value as i64,
        }
    }

    /// Reads a scalar of a type.
    ///
    /// # Safety
    /// `value` points to an element of the type, not necessarily aligned.
    pub unsafe fn read(value: *const u8, dtype: DataType) -> Result<Scalar, Fault> {
        // SAFETY: the caller's promise, for each type its own size.
        unsafe {
            Ok(match dtype {
                DataType::F32 => Scalar::Float(f64::from(value.cast::<f32>().read_unaligned())),
                DataType::F16 => Scalar::Float(value.cast::<half::f16>().read_unaligned().to_f64()),
                DataType::Bf16 => Scalar::Float(value.cast::<half::bf16>().read_unaligned().to_f64()),
                DataType::F64 => Scalar::Float(value.cast::<f64>().read_unaligned()),
                DataType::I8 => Scalar::Integer(i64::from(value.cast::<i8>().read())),
                DataType::U8 => Scalar::Integer(i64::from(value.read())),
                DataType::Bool => Scalar::Integer(i64::from(value.read() != 0)),
                DataType::I16 => Scalar::Integer(i64::from(value.cast::<i16>().read_unaligned())),
                DataType::U16 => Scalar::Integer(i64::from(value.cast::<u16>().read_unaligned())),
                DataType::I32 => Scalar::Integer(i64::from(value.cast::<i32>().read_unaligned())),
                DataType::U32 => Scalar::Integer(i64::from(value.cast::<u32>().read_unaligned())),
                DataType::I64 => Scalar::Integer(value.cast::<i64>().read_unaligned()),
                DataType::U64 => Scalar::Integer(value.cast::<u64>().read_unaligned() as i64),
                DataType::I4 => {
                    return Err(Fault::new(code::ACLNN_PARAM_INVALID, "an int4 scalar is not supported"));
                }
            })
        }
    }
}
