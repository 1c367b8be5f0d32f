//! Products against f64 loops, at every level and number of threads.

use super::*;
use crate::kernel::testing::{Random, assert_close, contexts, nan_equal, read, store};

struct Case {
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [
        (1, 1, 1),
        (1, 17, 5),
        (7, 1, 3),
        (5, 16, 16),
        (6, 33, 31),
        (13, 63, 7),
        (12, 64, 256),
        (29, 65, 257),
        (3, 130, 600),
        (200, 100, 40),
        (400, 70, 13),
        (0, 5, 3),
        (5, 0, 3),
        (5, 7, 0),
        (97, 1100, 23),
    ];
    for (index, (m, n, k)) in sizes.into_iter().enumerate() {
        for layout in 0..4 {
            // Large cases take two layouts each.
            if m * n * k < 50_000 || (layout + index) % 2 == 0 {
                cases.push(Case { m, n, k, transpose_a: layout & 1 != 0, transpose_b: layout & 2 != 0 });
            }
        }
    }
    cases
}

fn matrix<'a>(
    values: &'a crate::kernel::testing::Stored,
    rows: usize,
    columns: usize,
    transposed: bool,
) -> Matrix<'a> {
    // A stride of its own and an offset of nothing: rows are 3 apart further than needed.
    let inner = if transposed { rows } else { columns };
    let stride = inner + 3;
    let (row_stride, column_stride) = if transposed { (1, stride) } else { (stride, 1) };
    Matrix { values: read(values), rows, columns, row_stride, column_stride }
}

#[test]
fn products_match_f64_at_every_level_and_thread_count() {
    let mut random = Random::new(1);
    for case in cases() {
        let Case { m, n, k, transpose_a, transpose_b } = case;
        for dtypes in 0..8 {
            if m * n * k > 50_000 && dtypes % 3 != 0 {
                continue;
            }
            let (a_bf16, b_bf16, out_bf16) = (dtypes & 1 != 0, dtypes & 2 != 0, dtypes & 4 != 0);
            let a_size = if transpose_a { k * (m + 3) } else { m * (k + 3) };
            let b_size = if transpose_b { n * (k + 3) } else { k * (n + 3) };
            let a = store(&random.values(a_size), a_bf16);
            let b = store(&random.values(b_size), b_bf16);
            let bias = store(&random.values(n), b_bf16);
            let (a_matrix, b_matrix) = (matrix(&a, m, k, transpose_a), matrix(&b, k, n, transpose_b));
            let with_bias = dtypes % 2 == 0;
            let accumulate = !out_bf16 && k % 2 == 1;
            let old = random.values(m * (n + 2));
            let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
            for context in contexts() {
                let mut out = store(&old, out_bf16);
                let mut sums = vec![f32::NAN; m];
                let mut workspace = vec![0u8; product_workspace_bytes(m, n, k, context.pool.threads())];
                product(
                    &context.context(),
                    Product {
                        a: a_matrix,
                        b: b_matrix,
                        bias: with_bias.then(|| read(&bias)),
                        out: out.write(),
                        out_row_stride: n + 2,
                        accumulate,
                        row_sums: Some(&mut sums),
                    },
                    &mut workspace,
                );
                let got = out.to_f32();
                if let Some((want, want_sums)) = &first {
                    assert!(nan_equal(&got, want), "{m}x{n}x{k} {} differs", context.name);
                    assert!(nan_equal(&sums, want_sums), "{m}x{n}x{k} {} row sums differ", context.name);
                    continue;
                }
                for row in 0..m {
                    let (mut sum, mut sum_size) = (0.0f64, 0.0f64);
                    for column in 0..n {
                        let (mut want, mut size) = (0.0f64, 0.0f64);
                        for depth in 0..k {
                            let term = a.at(row * a_matrix.row_stride + depth * a_matrix.column_stride)
                                * b.at(depth * b_matrix.row_stride + column * b_matrix.column_stride);
                            want += term;
                            size += term.abs();
                        }
                        sum += want;
                        sum_size += size;
                        if with_bias {
                            want += bias.at(column);
                            size += bias.at(column).abs();
                        }
                        if accumulate {
                            want += f64::from(old[row * (n + 2) + column]);
                            size += want.abs() + 1.0;
                        }
                        let got = got[row * (n + 2) + column];
                        assert_close(
                            got,
                            want,
                            size,
                            k + 3,
                            out_bf16,
                            &format!("{m}x{n}x{k} [{row},{column}]"),
                        );
                    }
                    assert_close(sums[row], sum, sum_size, k + n, false, &format!("{m}x{n}x{k} sum {row}"));
                    // Columns behind the last stay as they were.
                    if row + 1 < m {
                        let behind = &got[row * (n + 2) + n..(row + 1) * (n + 2)];
                        let before = &store(&old, out_bf16).to_f32()[row * (n + 2) + n..(row + 1) * (n + 2)];
                        assert_eq!(behind, before);
                    }
                }
                first = Some((got, sums));
            }
        }
    }
}

#[test]
fn bits_depend_on_neither_row_sums_nor_the_other_rows() {
    let mut random = Random::new(2);
    let (m, n, k) = (61, 150, 530);
    let a = store(&random.values(m * k), false);
    let b = store(&random.values(k * n), false);
    let context = &contexts()[0];
    let run = |rows: std::ops::Range<usize>, sums: bool| {
        let mut out = vec![0.0f32; rows.len() * n];
        let mut row_sums = vec![0.0; rows.len()];
        let mut workspace = vec![0u8; product_workspace_bytes(rows.len(), n, k, context.pool.threads())];
        let crate::kernel::testing::Stored::F32(a) = &a else { panic!("stored as f32") };
        product(
            &context.context(),
            Product {
                a: Matrix::dense(Floats::F32(&a[rows.start * k..rows.end * k]), rows.len(), k),
                b: Matrix::dense(read(&b), k, n),
                bias: None,
                out: FloatsMut::F32(&mut out),
                out_row_stride: n,
                accumulate: false,
                row_sums: sums.then_some(&mut row_sums[..]),
            },
            &mut workspace,
        );
        out
    };
    let whole = run(0..m, false);
    assert_eq!(whole, run(0..m, true));
    assert_eq!(whole[..n], run(0..1, false));
    assert_eq!(whole[17 * n..20 * n], run(17..20, true));
}

#[test]
fn not_a_number_and_infinity_stay_in_their_rows_and_columns() {
    let (m, n, k) = (9, 20, 40);
    for context in contexts() {
        let mut a = vec![1.0f32; m * k];
        let mut b = vec![1.0f32; k * n];
        a[3 * k + 5] = f32::NAN;
        b[7 * n + 2] = f32::INFINITY;
        a[4 * k + 7] = 0.0;
        let mut out = vec![0.0f32; m * n];
        let mut sums = vec![0.0; m];
        let mut workspace = vec![0u8; product_workspace_bytes(m, n, k, context.pool.threads())];
        product(
            &context.context(),
            Product {
                a: Matrix::dense(Floats::F32(&a), m, k),
                b: Matrix::dense(Floats::F32(&b), k, n),
                bias: None,
                out: FloatsMut::F32(&mut out),
                out_row_stride: n,
                accumulate: false,
                row_sums: Some(&mut sums),
            },
            &mut workspace,
        );
        for row in 0..m {
            for column in 0..n {
                let got = out[row * n + column];
                let want = match (row, column) {
                    (3, _) | (4, 2) => f32::NAN,
                    (_, 2) => f32::INFINITY,
                    (4, _) => 39.0,
                    _ => 40.0,
                };
                assert!(got == want || got.is_nan() && want.is_nan(), "[{row},{column}] is {got}");
            }
            let want = if row == 3 || row == 4 { f32::NAN } else { f32::INFINITY };
            assert!(sums[row] == want || sums[row].is_nan() && want.is_nan(), "sum {row} is {}", sums[row]);
        }
    }
}

#[test]
fn groups_match_f64_and_do_not_depend_on_threads_or_level() {
    let mut random = Random::new(3);
    for (offsets, k, n) in [
        (vec![0, 5, 5, 18, 250], 33, 40),
        (vec![0, 0], 4, 4),
        (vec![0, 300, 301, 301, 302], 17, 70),
        (vec![0, 1, 2, 3], 300, 600),
    ] {
        let rows = *offsets.last().unwrap() as usize;
        let experts = offsets.len() - 1;
        for bf16 in [false, true] {
            let a = store(&random.values(rows * k), bf16);
            let w = store(&random.values(experts * k * n), bf16);
            let dy = store(&random.values(rows * n), bf16);
            for transposed in [false, true] {
                let mut first: Option<[Vec<f32>; 4]> = None;
                for context in contexts() {
                    let mut workspace = vec![
                        0u8;
                        grouped_workspace_bytes(
                            rows.max(experts * k),
                            n,
                            k.max(rows),
                            context.pool.threads()
                        )
                    ];
                    let weight = if transposed {
                        Matrix { values: read(&w), rows: k, columns: n, row_stride: 1, column_stride: k }
                    } else {
                        Matrix::dense(read(&w), k, n)
                    };
                    let mut out = store(&vec![7.0; rows * n], bf16);
                    let mut sums = vec![7.0; rows];
                    grouped_product(
                        &context.context(),
                        GroupedProduct {
                            a: Matrix::dense(read(&a), rows, k),
                            weight,
                            weight_stride: k * n,
                            offsets: &offsets,
                            out: out.write(),
                            out_row_stride: n,
                            row_sums: Some(&mut sums),
                        },
                        &mut workspace,
                    );
                    let mut outer = store(&vec![7.0; experts * k * n], false);
                    let mut outer_sums = vec![7.0; experts * k];
                    grouped_outer(
                        &context.context(),
                        GroupedOuter {
                            a: Matrix::dense(read(&a), rows, k),
                            b: Matrix::dense(read(&dy), rows, n),
                            offsets: &offsets,
                            out: outer.write(),
                            accumulate: false,
                            row_sums: Some(&mut outer_sums),
                        },
                        &mut workspace,
                    );
                    let got = [out.to_f32(), sums, outer.to_f32(), outer_sums];
                    if let Some(want) = &first {
                        assert!(
                            got.iter().zip(want).all(|(got, want)| nan_equal(got, want)),
                            "{}",
                            context.name
                        );
                        continue;
                    }
                    for expert in 0..experts {
                        let range = offsets[expert] as usize..offsets[expert + 1] as usize;
                        for row in range.clone() {
                            let (mut sum, mut sum_size) = (0.0, 0.0);
                            for column in 0..n {
                                let (mut want, mut size) = (0.0, 0.0);
                                for depth in 0..k {
                                    let place =
                                        if transposed { column * k + depth } else { depth * n + column };
                                    let term = a.at(row * k + depth) * w.at(expert * k * n + place);
                                    want += term;
                                    size += term.abs();
                                }
                                assert_close(got[0][row * n + column], want, size, k, bf16, "grouped");
                                sum += want;
                                sum_size += size;
                            }
                            assert_close(got[1][row], sum, sum_size, k + n, false, "grouped sum");
                        }
                        for depth in 0..k {
                            let (mut sum, mut sum_size) = (0.0, 0.0);
                            for column in 0..n {
                                let (mut want, mut size) = (0.0, 0.0);
                                for row in range.clone() {
                                    let term = a.at(row * k + depth) * dy.at(row * n + column);
                                    want += term;
                                    size += term.abs();
                                }
                                let got = got[2][(expert * k + depth) * n + column];
                                assert_close(got, want, size, range.len(), false, "outer");
                                (sum, sum_size) = (sum + want, sum_size + size);
                            }
                            let got = got[3][expert * k + depth];
                            assert_close(got, sum, sum_size, range.len() + n, false, "outer sum");
                        }
                    }
                    first = Some(got);
                }
            }
        }
    }
}

#[test]
fn offsets_that_are_wrong_are_clipped_and_never_overlap() {
    let (rows, k, n) = (9, 3, 20);
    let a = vec![1.0f32; rows * k];
    let w = vec![1.0f32; 3 * k * n];
    for (offsets, covered) in [
        ([0, 4, 4, 9], 0..9),
        ([2, 5, 3, 99], 2..9),
        ([0, -7, 6, 2], 0..6),
        ([i32::MAX, i32::MIN, 0, 0], 0..0),
    ] {
        for context in contexts() {
            let mut out = vec![7.0f32; rows * n];
            let mut sums = vec![7.0f32; rows];
            let mut workspace = vec![0u8; grouped_workspace_bytes(rows, n, k, context.pool.threads())];
            grouped_product(
                &context.context(),
                GroupedProduct {
                    a: Matrix::dense(Floats::F32(&a), rows, k),
                    weight: Matrix::dense(Floats::F32(&w), k, n),
                    weight_stride: k * n,
                    offsets: &offsets,
                    out: FloatsMut::F32(&mut out),
                    out_row_stride: n,
                    row_sums: Some(&mut sums),
                },
                &mut workspace,
            );
            for row in 0..rows {
                let want = if covered.contains(&row) { k as f32 } else { 0.0 };
                assert!(
                    out[row * n..(row + 1) * n].iter().all(|value| *value == want),
                    "{offsets:?} row {row}"
                );
                assert_eq!(sums[row], want * n as f32, "{offsets:?} row {row}");
            }
        }
    }
}
