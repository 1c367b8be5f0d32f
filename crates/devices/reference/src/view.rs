//! Strided windows of stored bytes to dense tensors and back.

use half::bf16;
use toprope_program::{DType, Slice, Tensor, Width};

/// The window as a dense tensor. `bytes` are those of the buffer that the slice lies in.
pub(crate) fn gather(bytes: &[u8], slice: &Slice, width: Width) -> Tensor {
    let bytes = &bytes[slice.location.offset_bytes..];
    let data = match (slice.dtype, width) {
        (DType::F32 | DType::Bf16, Width::Wide) => collect(bytes, slice, f64::from_le_bytes),
        (DType::F32, Width::Native) => collect(bytes, slice, |word| f64::from(f32::from_le_bytes(word))),
        (DType::Bf16, Width::Native) => collect(bytes, slice, |word| bf16::from_le_bytes(word).to_f64()),
        (DType::I32, _) => collect(bytes, slice, |word| f64::from(i32::from_le_bytes(word))),
        (DType::U32, _) => collect(bytes, slice, |word| f64::from(u32::from_le_bytes(word))),
    };
    Tensor { dtype: slice.dtype, sizes: slice.sizes.clone(), data }
}

fn collect<const SIZE: usize>(bytes: &[u8], slice: &Slice, decode: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
    let (words, _) = bytes.as_chunks::<SIZE>();
    let mut data = Vec::with_capacity(slice.elements());
    if slice.is_dense() {
        data.extend(words[slice.offset..slice.offset + slice.elements()].iter().map(|word| decode(*word)));
        return data;
    }
    let (Some((&columns, rows)), Some((&stride, row_strides))) =
        (slice.sizes.split_last(), slice.strides.split_last())
    else {
        return data;
    };
    let mut index = vec![0usize; rows.len()];
    let mut start = slice.offset;
    for _ in 0..rows.iter().product::<usize>() {
        data.extend((0..columns).map(|column| decode(words[start + column * stride])));
        // The next row: the innermost index that does not run over.
        for axis in (0..rows.len()).rev() {
            index[axis] += 1;
            start += row_strides[axis];
            if index[axis] < rows[axis] {
                break;
            }
            start -= rows[axis] * row_strides[axis];
            index[axis] = 0;
        }
    }
    data
}

/// Writes a dense output. Its elements have been rounded to its dtype.
pub(crate) fn store(bytes: &mut [u8], slice: &Slice, tensor: &Tensor, width: Width) {
    assert_eq!((tensor.dtype, &tensor.sizes), (slice.dtype, &slice.sizes), "an output has another type");
    let stored = tensor.to_bytes(width);
    bytes[slice.location.offset_bytes..][..stored.len()].copy_from_slice(&stored);
}
