//! Measures this machine and the product kernels: `cargo run --release -p toprope-cpu --example peaks [THREADS…]`.

use half::bf16;
use std::time::Instant;
use toprope_cpu::kernel::{
    Context, Floats, FloatsMut, Matrix, Product, peak, product, product_workspace_bytes,
};
use toprope_cpu::level::Level;
use toprope_cpu::pool::Pool;

/// The best of several runs: the machine's own speed, with as little of its other work as possible.
fn best_seconds(mut job: impl FnMut()) -> f64 {
    job();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 5 || begin.elapsed().as_secs_f64() < 0.4 {
        let start = Instant::now();
        job();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn products(context: &Context<'_>, peak_gflops: f64) {
    // (m, n, k, a transposed, b transposed): a layer's forward, input gradient and weight gradient.
    let shapes = [
        (4096, 704, 256, false, false),
        (4096, 256, 704, false, false),
        (4096, 256, 704, false, true),
        (256, 704, 4096, true, false),
        (704, 256, 4096, true, false),
        (1024, 1024, 1024, false, false),
        (1024, 1024, 1024, false, true),
        (1024, 1024, 1024, true, false),
        (1, 4096, 1024, false, true),
        (1, 4096, 1024, false, false),
    ];
    for (m, n, k, transpose_a, transpose_b) in shapes {
        let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i % 5) as f32 - 2.0).collect();
        let a16: Vec<bf16> = a.iter().map(|x| bf16::from_f32(*x)).collect();
        let b16: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
        let mut out = vec![0.0f32; m * n];
        let mut out16 = vec![bf16::ZERO; m * n];
        let mut workspace = vec![0u8; product_workspace_bytes(m, n, k, context.pool.threads())];
        let mut line = format!(
            "{m}x{n}x{k}{}{}",
            [" ", " aT"][transpose_a as usize],
            [" ", " bT"][transpose_b as usize]
        );
        for wide in [true, false] {
            let a_values = if wide { Floats::F32(&a) } else { Floats::Bf16(&a16) };
            let b_values = if wide { Floats::F32(&b) } else { Floats::Bf16(&b16) };
            let a_matrix = if transpose_a {
                Matrix::dense(a_values, k, m).transposed()
            } else {
                Matrix::dense(a_values, m, k)
            };
            let b_matrix = if transpose_b {
                Matrix::dense(b_values, n, k).transposed()
            } else {
                Matrix::dense(b_values, k, n)
            };
            let seconds = best_seconds(|| {
                let out = if wide { FloatsMut::F32(&mut out) } else { FloatsMut::Bf16(&mut out16) };
                product(
                    context,
                    Product {
                        a: a_matrix,
                        b: b_matrix,
                        bias: None,
                        out,
                        out_row_stride: n,
                        accumulate: false,
                        row_sums: None,
                    },
                    &mut workspace,
                );
            });
            let gflops = 2.0 * (m * n * k) as f64 / seconds / 1e9;
            line += &format!(
                "  {} {:7.1} us {gflops:6.1} GFLOP/s {:4.1} %",
                if wide { "f32" } else { "bf16" },
                seconds * 1e6,
                gflops / peak_gflops * 100.0
            );
        }
        println!("  {line}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut thread_counts = Vec::new();
    for argument in std::env::args().skip(1) {
        thread_counts.push(argument.parse::<usize>()?);
    }
    if thread_counts.is_empty() {
        thread_counts = vec![1, 2];
    }
    for threads in thread_counts {
        let pool = Pool::new(threads)?;
        for level in Level::available() {
            let context = Context { pool: &pool, level };
            let rounds = if level == Level::Portable { 20_000 } else { 1_000_000 };
            let mut flops = 0;
            let seconds = best_seconds(|| flops = peak::fused_multiply_adds(&context, rounds));
            let gflops = flops as f64 / seconds / 1e9;
            println!("{level}, {threads} threads: fused multiply-add peak {gflops:.1} GFLOP/s");
            if level != Level::Portable {
                products(&context, gflops);
            }
        }
        let context = Context { pool: &pool, level: Level::detect() };
        let values = vec![1.0f32; 1 << 25];
        let mut out = vec![0.0f32; 1 << 25];
        let mut bytes = 0;
        let seconds = best_seconds(|| bytes = peak::triad(&context, &values, &values, &mut out));
        println!("{threads} threads: triad {:.1} GB/s", bytes as f64 / seconds / 1e9);
    }
    Ok(())
}
