//! The driver of pair units, with the model of AMX tiles and with whatever units this machine has.

use super::model::{fused, sum};
use super::*;
use crate::kernel::product::{Product, product_on, product_workspace_bytes};
use crate::kernel::testing::{Random, Stored, assert_close, nan_equal, read, store};
use crate::kernel::{Context, Matrix};
use crate::pool::Pool;

/// The units to test, and what is not run.
fn units() -> Vec<Unit> {
    let mut units = vec![Unit::Model];
    for level in [Level::Avx512Bf16, Level::Amx] {
        match Unit::of(level) {
            Some(unit) => units.push(unit),
            None => println!("not run: this machine has no {level}"),
        }
    }
    units
}

struct Task<'a> {
    a: Matrix<'a>,
    b: Matrix<'a>,
    bias: Option<&'a Stored>,
    accumulate: bool,
    out_bf16: bool,
}

fn run(unit: Unit, threads: usize, task: &Task<'_>) -> (Vec<f32>, Vec<f32>) {
    let (m, n, k) = (task.a.rows, task.b.columns, task.a.columns);
    let pool = Pool::new(threads).unwrap();
    let context = Context { pool: &pool, level: Level::detect() };
    let mut out = store(&vec![0.25; m * n], task.out_bf16);
    let mut sums = vec![f32::NAN; m];
    let mut workspace = vec![0xffu8; product_workspace_bytes(m, n, k, threads)];
    let product = Product {
        a: task.a,
        b: task.b,
        bias: task.bias.map(read),
        out: out.write(),
        out_row_stride: n,
        accumulate: task.accumulate,
        row_sums: Some(&mut sums),
    };
    product_on(Some(unit), &context, product, &mut workspace);
    (out.to_f32(), sums)
}

#[test]
fn products_of_pairs_match_f64_and_do_not_depend_on_threads() {
    let mut random = Random::new(11);
    let sizes = [
        (1, 1, 1),
        (5, 3, 2),
        (16, 16, 32),
        (32, 32, 64),
        (33, 31, 33),
        (17, 70, 65),
        (64, 96, 31),
        (3, 130, 1100),
        (270, 40, 48),
        (0, 4, 4),
        (4, 0, 4),
        (4, 4, 0),
    ];
    for (m, n, k) in sizes {
        for layout in 0..4 {
            let (transpose_a, transpose_b) = (layout & 1 != 0, layout & 2 != 0);
            let a = store(&random.values(m * k), true);
            let b = store(&random.values(k * n), true);
            let bias = store(&random.values(n), false);
            let a_matrix = if transpose_a {
                Matrix::dense(read(&a), k, m).transposed()
            } else {
                Matrix::dense(read(&a), m, k)
            };
            let b_matrix = if transpose_b {
                Matrix::dense(read(&b), n, k).transposed()
            } else {
                Matrix::dense(read(&b), k, n)
            };
            let out_bf16 = layout == 1;
            let accumulate = layout == 2;
            let bias = (layout == 0).then_some(&bias);
            let task = Task { a: a_matrix, b: b_matrix, bias, accumulate, out_bf16 };
            for unit in units() {
                let (got, sums) = run(unit, 1, &task);
                for threads in 2..4 {
                    let again = run(unit, threads, &task);
                    assert!(nan_equal(&got, &again.0) && nan_equal(&sums, &again.1), "{unit:?} {m}x{n}x{k}");
                }
                for row in 0..m {
                    let (mut total, mut total_size) = (0.0, 0.0);
                    for column in 0..n {
                        let (mut want, mut size) = (0.0, 0.0);
                        for depth in 0..k {
                            let term = a.at(row * a_matrix.row_stride + depth * a_matrix.column_stride)
                                * b.at(depth * b_matrix.row_stride + column * b_matrix.column_stride);
                            want += term;
                            size += term.abs();
                        }
                        total += want;
                        total_size += size;
                        want +=
                            bias.map_or(0.0, |bias| bias.at(column)) + if accumulate { 0.25 } else { 0.0 };
                        let place = format!("{unit:?} {m}x{n}x{k} layout {layout} [{row},{column}]");
                        assert_close(
                            got[row * n + column],
                            want,
                            size + want.abs() + 1.0,
                            k + 3,
                            out_bf16,
                            &place,
                        );
                    }
                    assert_close(sums[row], total, total_size, k + n, false, &format!("{unit:?} sum {row}"));
                }
            }
        }
    }
}

/// What decoding computes is what a prompt computes: also where few rows are met in another way.
#[test]
fn a_row_has_the_bits_that_it_has_in_a_taller_product() {
    let mut random = Random::new(15);
    for (n, k) in [(1, 1), (16, 32), (33, 31), (70, 65), (96, 64), (130, 1100), (64, 576), (5, 0)] {
        for transposed in [false, true] {
            let tall = 40;
            let a = store(&wild(&mut random, tall * k), true);
            let b = store(&wild(&mut random, k * n), true);
            let a = Matrix::dense(read(&a), tall, k);
            let b = match transposed {
                true => Matrix::dense(read(&b), n, k).transposed(),
                false => Matrix::dense(read(&b), k, n),
            };
            for unit in units() {
                let task = |a| Task { a, b, bias: None, accumulate: false, out_bf16: false };
                let (want, want_sums) = run(unit, 1, &task(a));
                for rows in 1..6 {
                    let start = 11;
                    let (got, sums) = run(unit, 2, &task(a.some_rows(start, rows)));
                    let same = nan_equal(&got, &want[start * n..(start + rows) * n])
                        && nan_equal(&sums, &want_sums[start..start + rows]);
                    assert!(same, "{unit:?} {rows} of {tall} rows, {n} columns, depth {k}");
                }
            }
        }
    }
}

/// Values whose products and sums overflow, cancel, and become subnormal.
fn wild(random: &mut Random, count: usize) -> Vec<f32> {
    let special = [0.0, -0.0, 1e-39, -1e-39, 1e38, -1e38, 1e-20, 1.0, -1.0, f32::INFINITY, f32::NAN, 3e-38];
    let mut value = || match random.below(40) {
        choice @ 0..12 => special[choice],
        12..20 => random.value() * 1e-19,
        _ => random.value(),
    };
    (0..count).map(|_| value()).collect()
}

#[test]
fn amx_has_the_models_bits() {
    if Unit::of(Level::Amx).is_none() {
        println!("not run: this machine has no amx");
        return;
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        let mut random = Random::new(12);
        for (m, n, k) in [(32, 32, 32), (70, 90, 200), (40, 33, 1200)] {
            let a = store(&wild(&mut random, m * k), true);
            let b = store(&wild(&mut random, k * n), true);
            let (a, b) = (Matrix::dense(read(&a), m, k), Matrix::dense(read(&b), k, n));
            let task = Task { a, b, bias: None, accumulate: false, out_bf16: false };
            let (got, sums) = run(Unit::Amx, 1, &task);
            let (want, want_sums) = run(Unit::Model, 1, &task);
            assert!(nan_equal(&got, &want) && nan_equal(&sums, &want_sums), "{m}x{n}x{k}");
        }
    }
}

/// The pseudo code written out once more, without tiles: a dot product of one row and column.
fn plain(a: &[f32], b: &[f32]) -> f32 {
    let mut total = 0.0;
    for (a, b) in a.chunks(GROUP).zip(b.chunks(GROUP)) {
        let (mut even, mut odd) = (0.0, 0.0);
        for (index, (a, b)) in a.iter().zip(b).enumerate() {
            let chain = if index % 2 == 0 { &mut even } else { &mut odd };
            *chain = fused(*a, *b, *chain);
        }
        total = sum(total, sum(even, odd));
    }
    total
}

#[test]
fn the_driver_gives_the_bits_of_the_pseudo_code_in_groups_of_32() {
    let mut random = Random::new(13);
    for (m, n, k) in [(3, 5, 70), (34, 33, 64), (2, 2, 1500)] {
        let a = store(&wild(&mut random, m * k), true);
        let b = store(&wild(&mut random, k * n), true);
        let task = Task {
            a: Matrix::dense(read(&a), m, k),
            b: Matrix::dense(read(&b), k, n),
            bias: None,
            accumulate: false,
            out_bf16: false,
        };
        let (got, _) = run(Unit::Model, 2, &task);
        let (a, b) = (a.to_f32(), b.to_f32());
        for row in 0..m {
            for column in 0..n {
                let line: Vec<f32> = (0..k).map(|depth| b[depth * n + column]).collect();
                let want = plain(&a[row * k..(row + 1) * k], &line);
                // The driver's zero rows behind the last depth may turn a -0 into 0.
                let same = nan_equal(&[got[row * n + column] + 0.0], &[want + 0.0]);
                assert!(same, "{m}x{n}x{k} [{row},{column}]: {:e}, not {want:e}", got[row * n + column]);
            }
        }
    }
}

#[test]
fn the_models_arithmetic_is_fused_and_flushes_subnormals() {
    let mut random = Random::new(14);
    for _ in 0..100_000 {
        let [a, b, c] = [0; 3].map(|_| f32::from_bits(random.bits()));
        let want = a.mul_add(b, c);
        let normal = [a, b, c, want].iter().all(|value| value.is_normal());
        // Near the smallest normal number tininess before and after rounding differ; those are below.
        if normal && want.abs() > 2.0 * f32::MIN_POSITIVE {
            assert_eq!(fused(a, b, c).to_bits(), want.to_bits(), "{a:e} {b:e} {c:e}");
            assert_eq!(
                sum(a, c).to_bits(),
                if (a + c).is_subnormal() { 0.0f32.copysign(a + c) } else { a + c }.to_bits()
            );
        }
    }
    let tiny = f32::MIN_POSITIVE;
    assert_eq!(fused(1e-39, 1e30, 1.0), 1.0, "subnormal factors are zero");
    assert_eq!(fused(1.0, 1.0, -1e-39), 1.0, "subnormal addends are zero");
    assert_eq!(fused(tiny, 0.5, 0.0).to_bits(), 0, "subnormal results are zero");
    assert_eq!(fused(tiny, -0.5, 0.0).to_bits(), (-0.0f32).to_bits(), "of their sign");
    assert_eq!(sum(tiny * 1.5, -tiny), 0.0, "so are those of sums");
    // 2^-126·(1 - 2^-26) rounds up to a normal number with an unbounded exponent: not tiny, kept.
    let half = 2f32.powi(-63);
    let kept = fused(half * (1.0 - 2f32.powi(-13)), half * (1.0 + 2f32.powi(-13)), 0.0);
    assert_eq!(kept, tiny);
    // 2^-126·(1 - 2^-22) does not.
    let lost = fused(half * (1.0 - 2f32.powi(-11)), half * (1.0 + 2f32.powi(-11)), 0.0);
    assert_eq!(lost, 0.0);
    assert!(fused(f32::NAN, 1.0, 1.0).is_nan() && fused(f32::INFINITY, 0.0, 1.0).is_nan());
    assert_eq!(fused(1e38, 1e38, -1e38), f32::INFINITY);
}

#[test]
fn tiles_hold_pairs_in_both_orders_from_every_layout() {
    let (lines, depth) = (21, 45);
    let at = |line: usize, depth: usize| bf16::from_bits((line * 100 + depth + 1) as u16);
    let by_line: Vec<bf16> = (0..lines).flat_map(|line| (0..depth).map(move |d| at(line, d))).collect();
    let by_depth: Vec<bf16> = (0..depth).flat_map(|d| (0..lines).map(move |line| at(line, d))).collect();
    let spread: Vec<bf16> = by_line.iter().flat_map(|value| [*value, bf16::NAN]).collect();
    let blocks = [
        Block { pointer: by_line.as_ptr(), row_stride: depth, column_stride: 1 },
        Block { pointer: by_depth.as_ptr(), row_stride: 1, column_stride: lines },
        Block { pointer: spread.as_ptr(), row_stride: 2 * depth, column_stride: 2 },
    ];
    for level in Level::available() {
        for block in blocks {
            for across in [false, true] {
                let mut out = vec![u32::MAX; 2 * 2 * TILE];
                // SAFETY: `out` holds two strips of two tiles.
                unsafe { pack_tiles(level, block, 32, lines, depth, across, out.as_mut_ptr()) };
                for (place, word) in out.iter().enumerate() {
                    let (strip, group, row, column) =
                        (place / (2 * TILE), place / TILE % 2, place % TILE / 16, place % 16);
                    let (line, pair) = if across { (column, row) } else { (row, column) };
                    let (line, first) = (strip * 16 + line, group * 32 + 2 * pair);
                    let want = |d: usize| if line < lines && d < depth { at(line, d).to_bits() } else { 0 };
                    let want = u32::from(want(first)) | u32::from(want(first + 1)) << 16;
                    assert_eq!(*word, want, "{level} {across} {place}");
                }
            }
        }
    }
}
