//! A kernel's access to device memory: every window is looked up, and a wrong one is told with operator and tensor.

use std::ops::Deref;
use std::sync::Arc;

use half::{bf16, f16};

use crate::code;
use crate::defect::Active;
use crate::fault::Fault;
use crate::memory::{Allocation, POISON, space};
use crate::operator::Operator;
use crate::operator::arguments::Operand;
use crate::operator::store;
use crate::runtime::device::Device;
use crate::runtime::stream::Stream;
use crate::tensor::{DataType, Domain, Tensor};

/// A task that runs.
pub struct Run<'a> {
    pub operator: &'static Operator,
    pub device: &'static Device,
    pub active: &'a Active,
    stream: &'a Stream,
}

/// Dense values, row-major: where they lie, or a copy.
pub enum Dense<T> {
    /// Device memory itself. It is read before anything is stored.
    Lent {
        values: *const T,
        count: usize,
        /// Keeps the bytes, also where the client frees them meanwhile.
        _kept: Arc<Allocation>,
    },
    /// Copied or converted.
    Own(Vec<T>),
}

impl<T> Deref for Dense<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            // SAFETY: looked up and aligned, and the allocation is kept alive.
            Dense::Lent { values, count, .. } => unsafe { std::slice::from_raw_parts(*values, *count) },
            Dense::Own(values) => values,
        }
    }
}

impl<T: Clone> Dense<T> {
    /// Values of one's own.
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Dense::Lent { .. } => self.to_vec(),
            Dense::Own(values) => values,
        }
    }
}

/// Values in the domain in which they are computed with.
#[derive(Clone, Debug)]
pub enum Values {
    Single(Vec<f32>),
    Double(Vec<f64>),
    Integer(Vec<i64>),
}

/// Calls `line(start, count, stride)` for each innermost line of a window, in row-major order, in elements from `data` on.
pub fn lines(tensor: &Tensor, mut line: impl FnMut(i64, usize, i64)) {
    // Axes that lie one in the other are walked as one.
    let (mut shape, mut strides): (Vec<usize>, Vec<i64>) = (Vec::new(), Vec::new());
    for (&size, &stride) in tensor.shape.iter().zip(&tensor.strides) {
        if size == 0 {
            return;
        }
        match (shape.last_mut(), strides.last_mut()) {
            _ if size == 1 => {}
            (Some(outer), Some(outer_stride)) if *outer_stride == stride * size as i64 => {
                *outer *= size;
                *outer_stride = stride;
            }
            _ => {
                shape.push(size);
                strides.push(stride);
            }
        }
    }
    let (count, stride) = (shape.pop().unwrap_or(1), strides.pop().unwrap_or(1));
    let mut index = vec![0; shape.len()];
    let mut start = tensor.offset;
    loop {
        line(start, count, stride);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            start += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            start -= strides[axis] * shape[axis] as i64;
            index[axis] = 0;
        }
    }
}

/// # Safety
/// Every element of the window lies in memory that may be read, `base` being that of element 0 from `data` on.
unsafe fn collect<S: Copy, T>(base: *const u8, tensor: &Tensor, convert: impl Fn(S) -> T) -> Vec<T> {
    let mut values = Vec::with_capacity(tensor.len());
    let base = base.cast::<S>();
    lines(tensor, |start, count, stride| {
        // SAFETY: the caller's promise.
        let at = |place: usize| unsafe {
            base.wrapping_offset((start + stride * place as i64) as isize).read_unaligned()
        };
        values.extend((0..count).map(|place| convert(at(place))));
    });
    values
}

impl<'a> Run<'a> {
    /// A task on a stream.
    pub fn new(operator: &'static Operator, stream: &'a Stream, active: &'a Active) -> Self {
        Run { operator, device: stream.device, active, stream }
    }

    /// Begins: hangs where a defect says so, and spoils the workspace as another task may have.
    pub fn enter(&self, workspace: usize, size: usize) -> Result<(), Fault> {
        self.active.begin(self.stream, self.operator.function)?;
        if size > 0 {
            let (_kept, bytes) =
                space().resolve(workspace, size).map_err(|why| exception("workspace", &why))?;
            // SAFETY: looked up.
            unsafe { bytes.write_bytes(POISON, size) };
        }
        Ok(())
    }

    /// Whether a defect is on in this call.
    pub fn has(&self, defect: &str) -> bool {
        self.active.has(defect)
    }

    /// Where element 0 from `data` on lies, and what keeps it; none where the window has no element.
    pub fn locate(&self, operand: &Operand) -> Result<Option<(Arc<Allocation>, *mut u8)>, Fault> {
        if operand.is_empty() {
            return Ok(None);
        }
        let label = || format!("{} ({})", operand.label(), operand.describe());
        if operand.dtype == DataType::I4 {
            return Err(Fault::new(code::FIND_KERNEL, format!("{}: int4 is not implemented here", label())));
        }
        let outside = || exception(&label(), "the window reaches out of the address range");
        let (low, high) = operand.extent().ok_or_else(outside)?;
        let size = operand.dtype.size() as i64;
        let from = low.checked_mul(size).and_then(|low| (operand.data as i64).checked_add(low));
        let length = (high - low).checked_add(1).and_then(|count| count.checked_mul(size));
        let (Some(from), Some(length)) = (from, length) else { return Err(outside()) };
        let found = space().resolve(from as usize, length as usize);
        let (kept, bytes) = found.map_err(|why| exception(&label(), &why))?;
        if kept.device != self.device.index {
            let text = format!("lies on device {}, the operator runs on {}", kept.device, self.device.index);
            return Err(exception(&label(), &text));
        }
        Ok(Some((kept, bytes.wrapping_offset(-(low * size) as isize))))
    }

    fn read<T>(
        &self,
        operand: &Operand,
        from_float: impl Fn(f32) -> T + Copy,
        from_double: impl Fn(f64) -> T,
        from_integer: impl Fn(i64) -> T + Copy,
    ) -> Result<Vec<T>, Fault> {
        let Some((_kept, base)) = self.locate(operand)? else { return Ok(Vec::new()) };
        let t = &operand.tensor;
        // SAFETY: `locate` looked the whole window up.
        let mut values = unsafe {
            match t.dtype {
                DataType::F32 => collect(base, t, from_float),
                DataType::F16 => collect(base, t, |v: u16| from_float(f16::from_bits(v).to_f32())),
                DataType::Bf16 => collect(base, t, |v: u16| from_float(bf16::from_bits(v).to_f32())),
                DataType::F64 => collect(base, t, from_double),
                DataType::I8 => collect(base, t, |v: i8| from_integer(i64::from(v))),
                DataType::U8 => collect(base, t, |v: u8| from_integer(i64::from(v))),
                DataType::Bool => collect(base, t, |v: u8| from_integer(i64::from(v != 0))),
                DataType::I16 => collect(base, t, |v: i16| from_integer(i64::from(v))),
                DataType::U16 => collect(base, t, |v: u16| from_integer(i64::from(v))),
                DataType::I32 => collect(base, t, |v: i32| from_integer(i64::from(v))),
                DataType::U32 => collect(base, t, |v: u32| from_integer(i64::from(v))),
                DataType::I64 => collect(base, t, from_integer),
                DataType::U64 => collect(base, t, |v: u64| from_integer(v as i64)),
                DataType::I4 => Vec::new(),
            }
        };
        values.shrink_to_fit();
        Ok(values)
    }

    /// Values as f32.
    pub fn floats(&self, operand: &Operand) -> Result<Dense<f32>, Fault> {
        let flush = self.has("any.flush_denormals");
        if operand.dtype == DataType::F32
            && operand.is_contiguous()
            && !flush
            && let Some((kept, base)) = self.locate(operand)?
        {
            let start = base.wrapping_offset(operand.offset as isize * 4).cast::<f32>();
            if start.is_aligned() {
                return Ok(Dense::Lent { values: start, count: operand.len(), _kept: kept });
            }
        }
        let plain = |value| value;
        let mut values = self.read(operand, plain, |value| value as f32, |value| value as f32)?;
        if flush {
            values.iter_mut().filter(|value| value.is_subnormal()).for_each(|value| *value = 0.0);
        }
        Ok(Dense::Own(values))
    }

    /// Values as f64.
    pub fn doubles(&self, operand: &Operand) -> Result<Vec<f64>, Fault> {
        self.read(operand, f64::from, |value| value, |value| value as f64)
    }

    /// Values as i64, floats rounded towards 0.
    pub fn ints(&self, operand: &Operand) -> Result<Vec<i64>, Fault> {
        self.read(operand, |value| value as i64, |value| value as i64, |value| value)
    }

    /// Whether each value is other than 0.
    pub fn bools(&self, operand: &Operand) -> Result<Vec<bool>, Fault> {
        self.read(operand, |value| value != 0.0, |value| value != 0.0, |value| value != 0)
    }

    /// Values in a domain.
    pub fn values(&self, operand: &Operand, domain: Domain) -> Result<Values, Fault> {
        Ok(match domain {
            Domain::Single => Values::Single(self.floats(operand)?.into_vec()),
            Domain::Double => Values::Double(self.doubles(operand)?),
            Domain::Integer => Values::Integer(self.ints(operand)?),
        })
    }

    /// Stores f32 values, rounded once to the tensor's type.
    pub fn store(&self, operand: &Operand, values: &[f32]) -> Result<(), Fault> {
        store::floats(self, operand, values)
    }

    /// Stores f64 values, rounded once to the tensor's type.
    pub fn store_doubles(&self, operand: &Operand, values: &[f64]) -> Result<(), Fault> {
        store::doubles(self, operand, values)
    }

    /// Stores integers, modulo the tensor's width.
    pub fn store_ints(&self, operand: &Operand, values: &[i64]) -> Result<(), Fault> {
        store::integers(self, operand, values)
    }

    /// Stores booleans.
    pub fn store_bools(&self, operand: &Operand, values: &[bool]) -> Result<(), Fault> {
        self.store_ints(operand, &values.iter().map(|&value| i64::from(value)).collect::<Vec<_>>())
    }

    /// Stores values of any domain.
    pub fn store_values(&self, operand: &Operand, values: &Values) -> Result<(), Fault> {
        match values {
            Values::Single(values) => self.store(operand, values),
            Values::Double(values) => self.store_doubles(operand, values),
            Values::Integer(values) => self.store_ints(operand, values),
        }
    }
}

/// A wrong address, as a core sees it.
fn exception(what: &str, why: &str) -> Fault {
    Fault::new(code::VECTOR_CORE_EXCEPTION, format!("{what}: {why}"))
}
