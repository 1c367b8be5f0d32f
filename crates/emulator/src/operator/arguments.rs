//! What a client hands to a call's first phase, copied: it may destroy or reuse its own as soon as the call returns.

use std::ffi::c_char;

use crate::code;
use crate::fault::Fault;
use crate::objects::{BOOLS, INTS, LISTS, SCALARS, snapshot};
use crate::tensor::{DataType, Scalar, Tensor};

/// A tensor and what the operator calls it.
#[derive(Clone, Debug)]
pub struct Operand {
    pub name: &'static str,
    /// Place in its list, where it is of one.
    pub place: Option<usize>,
    pub tensor: Tensor,
}

impl std::ops::Deref for Operand {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

impl Operand {
    /// The name that messages use.
    pub fn label(&self) -> String {
        let name = self.name.trim_end_matches('_');
        self.place.map_or_else(|| name.to_string(), |place| format!("{name}[{place}]"))
    }

    /// An error about this tensor.
    pub fn refuse(&self, why: impl std::fmt::Display) -> Fault {
        invalid(format!("{} ({}): {why}", self.label(), self.tensor.describe()))
    }

    /// The same memory in another window.
    pub fn view(&self, shape: Vec<usize>, strides: Vec<i64>, offset: i64) -> Operand {
        let tensor = Tensor { shape, strides, offset, ..self.tensor.clone() };
        Operand { tensor, ..self.clone() }
    }

    /// Repeated to a shape, as NumPy broadcasts.
    pub fn expand(&self, shape: &[usize]) -> Result<Operand, Fault> {
        let missing = shape.len().checked_sub(self.rank());
        let missing = missing.ok_or_else(|| self.refuse(format!("does not broadcast to {shape:?}")))?;
        let mut strides = vec![0; shape.len()];
        for (axis, &size) in shape.iter().enumerate().skip(missing) {
            let own = self.shape[axis - missing];
            if own == size {
                strides[axis] = self.strides[axis - missing];
            } else if own != 1 {
                return Err(self.refuse(format!("does not broadcast to {shape:?}")));
            }
        }
        Ok(self.view(shape.to_vec(), strides, self.offset))
    }

    /// `size` elements of an axis, from `start` on.
    pub fn narrow(&self, axis: usize, start: usize, size: usize) -> Operand {
        let mut shape = self.shape.clone();
        shape[axis] = size;
        self.view(shape, self.strides.clone(), self.offset + self.strides[axis] * start as i64)
    }

    /// Axes in another order.
    pub fn permute(&self, order: &[usize]) -> Operand {
        let shape = order.iter().map(|&axis| self.shape[axis]).collect();
        let strides = order.iter().map(|&axis| self.strides[axis]).collect();
        self.view(shape, strides, self.offset)
    }

    /// An axis, counted from the end where it is below 0.
    pub fn axis(&self, axis: i64) -> Result<usize, Fault> {
        let rank = self.rank().max(1) as i64;
        let positive = if axis < 0 { axis + rank } else { axis };
        if (0..rank).contains(&positive) {
            Ok(positive as usize)
        } else {
            Err(self.refuse(format!("has no dimension {axis}")))
        }
    }

    /// An error unless the shape is this.
    pub fn must_have(&self, shape: &[usize]) -> Result<(), Fault> {
        if self.shape == shape { Ok(()) } else { Err(self.refuse(format!("must have the shape {shape:?}"))) }
    }

    /// An error unless it is of a float type.
    pub fn must_be_float(&self) -> Result<(), Fault> {
        if self.dtype.is_float() { Ok(()) } else { Err(self.refuse("must be of a float type")) }
    }

    /// An error unless it is of an integer type.
    pub fn must_be_integer(&self) -> Result<(), Fault> {
        if self.dtype.is_float() { Err(self.refuse("must be of an integer type")) } else { Ok(()) }
    }
}

/// A refused call.
pub fn invalid(text: impl Into<String>) -> Fault {
    Fault::new(code::ACLNN_PARAM_INVALID, text)
}

/// What this emulator has no code for.
pub fn not_implemented(text: impl std::fmt::Display) -> Fault {
    Fault::new(code::FIND_KERNEL, format!("{text} is not implemented by this emulator"))
}

/// The value of an argument.
#[derive(Clone, Debug)]
pub enum Value {
    Tensor(Option<Tensor>),
    Tensors(Option<Vec<Tensor>>),
    Scalar(Option<Scalar>),
    Ints(Option<Vec<i64>>),
    Bools(Option<Vec<bool>>),
    Integer(i64),
    Float(f64),
    Text(Option<String>),
}

/// One argument.
#[derive(Clone, Debug)]
pub struct Argument {
    pub name: &'static str,
    /// Whether the call writes it.
    pub output: bool,
    pub value: Value,
}

/// All arguments of a call.
#[derive(Clone, Debug)]
pub struct Arguments(pub Vec<Argument>);

fn null(name: &str) -> Fault {
    Fault::new(code::PARAM_NULLPTR, format!("{} is null", name.trim_end_matches('_')))
}

impl Arguments {
    fn value(&self, name: &'static str) -> Result<&Value, Fault> {
        let found = self.0.iter().find(|argument| argument.name == name);
        found.map(|argument| &argument.value).ok_or_else(|| wrong(name))
    }

    /// A required tensor.
    pub fn tensor(&self, name: &'static str) -> Result<Operand, Fault> {
        self.nullable(name)?.ok_or_else(|| null(name))
    }

    /// A tensor that may be null.
    pub fn nullable(&self, name: &'static str) -> Result<Option<Operand>, Fault> {
        match self.value(name)? {
            Value::Tensor(tensor) => Ok(tensor.clone().map(|tensor| Operand { name, place: None, tensor })),
            _ => Err(wrong(name)),
        }
    }

    /// A tensor that may be null or, which says the same, empty.
    pub fn optional(&self, name: &'static str) -> Result<Option<Operand>, Fault> {
        Ok(self.nullable(name)?.filter(|operand| !operand.is_empty()))
    }

    /// The tensors of a list; none where it is null or empty.
    pub fn tensors(&self, name: &'static str) -> Result<Vec<Operand>, Fault> {
        let Value::Tensors(list) = self.value(name)? else { return Err(wrong(name)) };
        let list = list.iter().flatten().enumerate();
        Ok(list.map(|(place, tensor)| Operand { name, place: Some(place), tensor: tensor.clone() }).collect())
    }

    /// A required scalar.
    pub fn scalar(&self, name: &'static str) -> Result<Scalar, Fault> {
        match self.value(name)? {
            Value::Scalar(scalar) => scalar.ok_or_else(|| null(name)),
            _ => Err(wrong(name)),
        }
    }

    /// A required array of integers.
    pub fn ints(&self, name: &'static str) -> Result<Vec<i64>, Fault> {
        self.optional_ints(name)?.ok_or_else(|| null(name))
    }

    /// An array of integers that may be null.
    pub fn optional_ints(&self, name: &'static str) -> Result<Option<Vec<i64>>, Fault> {
        match self.value(name)? {
            Value::Ints(ints) => Ok(ints.clone()),
            _ => Err(wrong(name)),
        }
    }

    /// A required array of booleans.
    pub fn bools(&self, name: &'static str) -> Result<Vec<bool>, Fault> {
        match self.value(name)? {
            Value::Bools(bools) => bools.clone().ok_or_else(|| null(name)),
            _ => Err(wrong(name)),
        }
    }

    /// An integer.
    pub fn integer(&self, name: &'static str) -> Result<i64, Fault> {
        match self.value(name)? {
            Value::Integer(value) => Ok(*value),
            _ => Err(wrong(name)),
        }
    }

    /// A boolean.
    pub fn flag(&self, name: &'static str) -> Result<bool, Fault> {
        Ok(self.integer(name)? != 0)
    }

    /// A float.
    pub fn float(&self, name: &'static str) -> Result<f64, Fault> {
        match self.value(name)? {
            Value::Float(value) => Ok(*value),
            _ => Err(wrong(name)),
        }
    }

    /// A required text.
    pub fn text(&self, name: &'static str) -> Result<String, Fault> {
        match self.value(name)? {
            Value::Text(text) => text.clone().ok_or_else(|| null(name)),
            _ => Err(wrong(name)),
        }
    }

    /// A data type, given as its number.
    pub fn dtype(&self, name: &'static str) -> Result<DataType, Fault> {
        let number = self.integer(name)?;
        let unknown = || invalid(format!("{name}: {number} is no data type that this emulator knows"));
        DataType::from_number(number as i32).ok_or_else(unknown)
    }

    /// All tensors in the order of the arguments, lists spread out: what `aclSetTensorAddr` counts.
    pub fn flat(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.0.iter_mut().flat_map(|argument| -> Vec<&mut Tensor> {
            match &mut argument.value {
                Value::Tensor(Some(tensor)) => vec![tensor],
                Value::Tensors(Some(list)) => list.iter_mut().collect(),
                _ => Vec::new(),
            }
        })
    }

    /// Shapes of all tensors.
    pub fn shapes(&self) -> Vec<&[usize]> {
        let shapes = self.0.iter().flat_map(|argument| -> Vec<&[usize]> {
            match &argument.value {
                Value::Tensor(Some(tensor)) => vec![&tensor.shape],
                Value::Tensors(Some(list)) => list.iter().map(|tensor| tensor.shape.as_slice()).collect(),
                _ => Vec::new(),
            }
        });
        shapes.collect()
    }
}

/// The operator's table and its code disagree.
fn wrong(name: &str) -> Fault {
    Fault::new(
        561000,
        format!("the emulator asked for an argument {name} that is not there or of another kind"),
    )
}

/// Takes one argument of a C call.
pub trait Parameter {
    /// What C passes.
    type Raw: Copy;
    /// The same in C's words.
    const C: &'static str;
    /// Whether the call writes it.
    const OUTPUT: bool = false;

    /// Copies what stands behind it.
    ///
    /// # Safety
    /// A pointer is null or points to what CANN's documentation says.
    unsafe fn take(raw: Self::Raw) -> Result<Value, Fault>;
}

macro_rules! handles {
    ($($(#[$what:meta])* $kind:ident $c:literal $output:literal = |$handle:ident| $value:expr;)*) => {
        $(
            $(#[$what])*
            pub struct $kind;
            impl Parameter for $kind {
                type Raw = usize;
                const C: &'static str = $c;
                const OUTPUT: bool = $output;
                unsafe fn take($handle: usize) -> Result<Value, Fault> {
                    Ok($value)
                }
            }
        )*
    };
}

fn some<T>(handle: usize, get: impl FnOnce(usize) -> Result<T, Fault>) -> Result<Option<T>, Fault> {
    if handle == 0 { Ok(None) } else { get(handle).map(Some) }
}

fn list(handle: usize) -> Result<Vec<Tensor>, Fault> {
    LISTS.get(handle)?.iter().map(|&tensor| snapshot(tensor)).collect()
}

handles! {
    /// A tensor.
    T "const aclTensor *" false = |handle| Value::Tensor(some(handle, snapshot)?);
    /// A list of tensors.
    TL "const aclTensorList *" false = |handle| Value::Tensors(some(handle, list)?);
    /// A tensor that the call writes.
    To "const aclTensor *" true = |handle| Value::Tensor(some(handle, snapshot)?);
    /// A list of tensors that the call writes.
    TLo "const aclTensorList *" true = |handle| Value::Tensors(some(handle, list)?);
    /// A scalar.
    S "const aclScalar *" false = |handle| Value::Scalar(some(handle, |handle| SCALARS.get(handle).map(|scalar| *scalar))?);
    /// An array of i64.
    I "const aclIntArray *" false = |handle| Value::Ints(some(handle, |handle| INTS.get(handle).map(|ints| ints.to_vec()))?);
    /// An array of bool.
    B "const aclBoolArray *" false = |handle| Value::Bools(some(handle, |handle| BOOLS.get(handle).map(|bools| bools.to_vec()))?);
}

macro_rules! numbers {
    ($($kind:ident $c:literal: $raw:ty => $variant:ident as $to:ty;)*) => {
        $(
            impl Parameter for $kind {
                type Raw = $raw;
                const C: &'static str = $c;
                unsafe fn take(raw: $raw) -> Result<Value, Fault> {
                    Ok(Value::$variant(raw as $to))
                }
            }
        )*
    };
}

/// A boolean: a byte.
pub struct Flag;
/// An aclDataType.
pub struct Dt;

numbers! {
    i64 "int64_t": i64 => Integer as i64;
    u64 "uint64_t": u64 => Integer as i64;
    i32 "int32_t": i32 => Integer as i64;
    i8 "int8_t": i8 => Integer as i64;
    Flag "bool": u8 => Integer as i64;
    Dt "aclDataType": i32 => Integer as i64;
    f32 "float": f32 => Float as f64;
    f64 "double": f64 => Float as f64;
}

/// A C string.
pub struct Str;

impl Parameter for Str {
    type Raw = *const c_char;
    const C: &'static str = "const char *";

    unsafe fn take(raw: *const c_char) -> Result<Value, Fault> {
        // SAFETY: the caller's promise.
        Ok(Value::Text(unsafe { crate::call::text(raw) }))
    }
}
