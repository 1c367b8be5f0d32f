//! Time of bf16 products with f32 sums, as one JSON object: `cargo run --release -p toprope-cpu --example products [THREADS]`.
//! `benches/rivals/pytorch_products.py` measures the same ones in PyTorch.

use half::bf16;
use std::time::Instant;
use toprope_cpu::kernel::{
    Context, Floats, FloatsMut, Matrix, Product, peak, product, product_workspace_bytes,
};
use toprope_cpu::level::Level;
use toprope_cpu::pool::Pool;

/// (m, n, k): a square one, and a layer's of the bench recipes.
const PRODUCTS: [(usize, usize, usize); 2] = [(1024, 1024, 1024), (4096, 704, 256)];
const SECONDS: f64 = 0.5;

fn median_seconds(mut job: impl FnMut()) -> f64 {
    job();
    let began = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < 5 || began.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        job();
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |threads| threads.parse())?;
    let pool = Pool::new(threads)?;
    let context = Context { pool: &pool, level: Level::detect() };
    let mut told = Vec::new();
    for (m, n, k) in PRODUCTS {
        let a: Vec<bf16> = (0..m * k).map(|i| bf16::from_f32((i % 7) as f32 - 3.0)).collect();
        let b: Vec<bf16> = (0..k * n).map(|i| bf16::from_f32((i % 5) as f32 - 2.0)).collect();
        let mut out = vec![bf16::ZERO; m * n];
        let mut workspace = vec![0u8; product_workspace_bytes(m, n, k, threads)];
        let seconds = median_seconds(|| {
            let each = Product {
                a: Matrix::dense(Floats::Bf16(&a), m, k),
                b: Matrix::dense(Floats::Bf16(&b), k, n),
                bias: None,
                out: FloatsMut::Bf16(&mut out),
                out_row_stride: n,
                accumulate: false,
                row_sums: None,
            };
            product(&context, each, &mut workspace);
        });
        told.push(format!(r#"{{"m": {m}, "n": {n}, "k": {k}, "seconds": {seconds:e}}}"#));
    }
    let mut flops = 0;
    let seconds = median_seconds(|| flops = peak::fused_multiply_adds(&context, 200_000));
    println!(
        r#"{{"products": [{}], "threads": {threads}, "level": "{}", "f32_multiply_adds_flops_per_second": {:e}}}"#,
        told.join(", "),
        context.level,
        flops as f64 / seconds
    );
    Ok(())
}
