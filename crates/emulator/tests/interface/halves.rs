//! f16 and bf16: computed in f32, rounded once. Each operator on rounded inputs gives the rounded f32 result, bit by bit.

use half::{bf16, f16};

use crate::library::*;
use crate::run;

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 - 1001.0) / 700.0).collect()
}

fn words(dtype: i32, values: &[f32]) -> Vec<u16> {
    let word =
        |&x: &f32| if dtype == BF16 { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() };
    values.iter().map(word).collect()
}

fn widened(dtype: i32, words: &[u16]) -> Vec<f32> {
    let value =
        |&w: &u16| if dtype == BF16 { bf16::from_bits(w).to_f32() } else { f16::from_bits(w).to_f32() };
    words.iter().map(value).collect()
}

/// Runs `call` on half and on f32 tensors of the same values; the results must round to the same bits.
fn same(name: &str, shapes: &[&[i64]], out: &[i64], call: impl Fn(&[usize], usize, i32)) {
    let count = |shape: &[i64]| shape.iter().product::<i64>() as usize;
    for dtype in [BF16, F16] {
        let rounded: Vec<Vec<u16>> =
            shapes.iter().enumerate().map(|(i, shape)| words(dtype, &numbers(count(shape), i))).collect();
        let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<u8>>();
        let half: Vec<usize> =
            shapes.iter().zip(&rounded).map(|(shape, words)| dense(dtype, shape, &bytes(words)).0).collect();
        let wide: Vec<usize> = shapes
            .iter()
            .zip(&rounded)
            .map(|(shape, words)| floats(shape, &widened(dtype, words)).0)
            .collect();
        let (half_out, half_at) = dense(dtype, out, &vec![0; count(out) * 2]);
        let (wide_out, wide_at) = room(out);
        call(&half, half_out, dtype);
        call(&wide, wide_out, F32);
        let got: Vec<u16> =
            get(half_at, count(out) * 2).chunks(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect();
        assert_eq!(got, words(dtype, &read(wide_at, count(out))), "{name} of type {dtype}");
    }
}

#[test]
fn halves_compute_in_f32_and_round_once() {
    begin();
    let plain: &[&[i64]] = &[&[5, 8], &[5, 8]];
    same("Add", plain, &[5, 8], |x, out, _| run!("Add", x[0], x[1], scalar(0.5), out));
    same("Mul", plain, &[5, 8], |x, out, _| run!("Mul", x[0], x[1], out));
    same("Div", plain, &[5, 8], |x, out, _| run!("Div", x[0], x[1], out));
    same("Maximum", plain, &[5, 8], |x, out, _| run!("Maximum", x[0], x[1], out));
    same("Exp", &[&[40]], &[40], |x, out, _| run!("Exp", x[0], out));
    same("Silu", &[&[40]], &[40], |x, out, _| run!("Silu", x[0], out));
    same("Softmax", &[&[5, 8]], &[5, 8], |x, out, _| run!("Softmax", x[0], -1i64, out));
    same("SwiGlu", &[&[5, 8]], &[5, 4], |x, out, _| run!("SwiGlu", x[0], -1i64, out));
    same("SwiGluGrad", &[&[5, 4], &[5, 8]], &[5, 8], |x, out, _| run!("SwiGluGrad", x[0], x[1], -1i64, out));
    same("ReduceSum", &[&[5, 8]], &[5], |x, out, dtype| run!("ReduceSum", x[0], ints(&[1]), 0u8, dtype, out));
    same("Matmul", &[&[5, 70], &[70, 3]], &[5, 3], |x, out, _| run!("Matmul", x[0], x[1], out, 0i8));
    same("RmsNorm", &[&[5, 8], &[8]], &[5, 8], |x, out, _| {
        run!("RmsNorm", x[0], x[1], 1e-6f64, out, room(&[5, 1]).0);
    });
    same("Cat", plain, &[10, 8], |x, out, _| run!("Cat", list(&x[..2]), 0i64, out));
    same("IndexAdd", &[&[4, 6], &[3, 6]], &[4, 6], |x, out, _| {
        let (index, _) =
            dense(I64, &[3], &[1i64, 1, 3].iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>());
        run!("IndexAdd", x[0], 0i64, index, x[1], scalar(1.0), out);
    });
    same(
        "FlashAttentionScoreV2",
        &[&[1, 6, 2, 4], &[1, 6, 2, 4], &[1, 6, 2, 4]],
        &[1, 6, 2, 4],
        |x, out, _| {
            let (none, far) = (0usize, i64::from(i32::MAX));
            let empty = tensor(F32, &[0], None, 0, 0);
            run!(
                "FlashAttentionScoreV2",
                x[0],
                x[1],
                x[2],
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                0.5f64,
                1.0f64,
                far,
                far,
                2i64,
                c"BSND".as_ptr(),
                0i64,
                0i64,
                1i64,
                room(&[1, 2, 6, 8]).0,
                room(&[1, 2, 6, 8]).0,
                empty,
                out
            );
        },
    );
}

/// f32 activations with f16 or bf16 weights: the weights count as the f32 values that they stand for.
#[test]
fn products_of_two_types_are_promoted() {
    begin();
    let (rows, inner, columns) = (3, 40, 5);
    let left = numbers(rows * inner, 1);
    for dtype in [F16, BF16] {
        let right = words(dtype, &numbers(inner * columns, 2));
        let bytes: Vec<u8> = right.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (x, _) = floats(&[rows as i64, inner as i64], &left);
        let (half, _) = dense(dtype, &[inner as i64, columns as i64], &bytes);
        let (wide, _) = floats(&[inner as i64, columns as i64], &widened(dtype, &right));
        let shape = [rows as i64, columns as i64];
        let ((mixed, mixed_at), (same, same_at)) = (room(&shape), room(&shape));
        run!("Mm", x, half, mixed, 0i8);
        run!("Mm", x, wide, same, 0i8);
        assert_eq!(read(mixed_at, rows * columns), read(same_at, rows * columns), "type {dtype}");
    }
}

#[test]
fn a_full_sum_may_go_to_one_place() {
    begin();
    let (x, _) = floats(&[4], &[1.0, 2.0, 3.0, 4.0]);
    for shape in [&[][..], &[1]] {
        let (out, at) = room(shape);
        run!("ReduceSum", x, ints(&[0]), 0u8, F32, out);
        assert_eq!(read(at, 1), [10.0]);
    }
}
