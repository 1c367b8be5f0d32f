//! bf16 products with f32 sums beside PyTorch's (oneDNN).

use super::pairs::Pairs;
use super::rival::{Kept, figure, last_json, text};
use super::training::row;
use super::{Bench, Row, THREADS};
use serde_json::Value;

impl Bench<'_> {
    /// A row for each product.
    pub fn products(&self) -> Result<Vec<Row>, String> {
        let mut script = self.script(&self.asked.python, "pytorch_products.py");
        script.args(["--kept", "--threads", THREADS]);
        let mut kept = Kept::start(script)?;
        // (m, n, k), its figures, PyTorch's form.
        let mut found: Vec<([u64; 3], Pairs, String)> = Vec::new();
        let (mut last, mut beside) = (Value::Null, Value::Null);
        for _ in 0..self.asked.pairs {
            let mut program = self.program("examples/products");
            program.arg(THREADS);
            let ours = last_json(program)?;
            let theirs = kept.round()?;
            for (a, b) in each(&ours).zip(each(&theirs)) {
                let sizes = ["m", "n", "k"].map(|key| a[key].as_u64().unwrap_or(0));
                if sizes != ["m", "n", "k"].map(|key| b[key].as_u64().unwrap_or(0)) {
                    return Err(format!("other products: {a} and {b}"));
                }
                let flops = 2.0 * sizes.iter().map(|&size| size as f64).product::<f64>();
                let rate = |product: &Value| Ok::<_, String>(flops / figure(product, "seconds")? / 1e9);
                if !found.iter().any(|(known, ..)| *known == sizes) {
                    found.push((sizes, Pairs::default(), String::new()));
                }
                for (known, pairs, form) in &mut found {
                    if *known == sizes {
                        pairs.push(&told(&sizes), rate(a)?, rate(b)?, "GFLOP/s");
                        *form = text(b, "form").into();
                    }
                }
            }
            (last, beside) = (ours, theirs);
        }
        let rows = found.iter().map(|(sizes, pairs, form)| {
            let must = if sizes[0] == 1024 { "1.5; 60 % of the AMX peak" } else { "1.0; 1.2" };
            let how = format!(
                "ours: {}, {THREADS} threads, the right side as it lies; PyTorch {}, {form}, the fastest of four forms; \
                 f32 multiply-adds alone {:.0} GFLOP/s",
                text(&last, "level"),
                text(&beside, "torch"),
                last["f32_multiply_adds_flops_per_second"].as_f64().unwrap_or(f64::NAN) / 1e9
            );
            row(&format!("product bf16, {}", told(sizes)), pairs, "GFLOP/s", must, &how)
        });
        Ok(rows.collect())
    }
}

fn each(record: &Value) -> impl Iterator<Item = &Value> {
    record["products"].as_array().into_iter().flatten()
}

fn told(sizes: &[u64; 3]) -> String {
    sizes.map(|size| size.to_string()).join(" × ")
}
