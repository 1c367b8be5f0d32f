//! The checksum identity of a product.

use super::*;

/// The largest result of a check of a product on a healthy device.
pub const PRODUCT_LIMIT: f64 = 2.0;

/// Attributes of `product_check`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductCheck {}

pub(super) const RECORD: Record = Record {
    name: "product_check",
    summary: "Compares a product's row sums with a·(b·1): the largest distance in units of its bound.",
    formula: "s[k] = Σ_n b[k,n], q[k] = Σ_n |b[k,n]|; worst = max_m |row_sums[m] - Σ_k a[m,k]·s[k]| / (2^-24·(K + N + 4)·Σ_k |a[m,k]|·q[k] + 2^-120), NaN counting as +∞",
    source: "Huang and Abraham (1984); bound: Higham, section 3.1",
    operands: &[
        slot("a", "[M, K]", Accepts::Float),
        slot("b", "[K, N]", Accepts::Float),
        slot("row_sums", "[M]", Accepts::F32),
    ],
    outputs: &[slot("worst", "[1]", Accepts::F32)],
    numerics: "f32 or wider inside. At most 2 on a healthy device: one bound for the product, one for the check. Judged against 2, not across devices.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for ProductCheck {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let (a, b) = (&operands[0], &operands[1]);
        rank("a", a, 2)?;
        rank("b", b, 2)?;
        if a.shape[1] != b.shape[0] {
            return Err("the columns of a must equal the rows of b".into());
        }
        dims("row_sums", &operands[2], &a.shape[..1])?;
        Ok(vec![Type::new(DType::F32, [1])])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        4 * (operands[0].elements() + operands[1].elements()) as u64
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        // Both sides must be below 2; see the numerics line.
        vec![Tolerance { relative: 0.0, accumulated: 0.0, absolute: 2.0 }]
    }
}
