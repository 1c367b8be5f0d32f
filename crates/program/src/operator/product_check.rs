//! The checksum identity of a product.

use super::*;

/// The largest result of a check of a product on a healthy device, in units of its bound: the calibrated constant of
/// f32 accumulation with its margin (docs/checks.md).
pub const PRODUCT_LIMIT: f64 = 128.0;

/// Which product is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductForm {
    /// `matmul`.
    #[default]
    Matmul,
    /// `grouped_matmul`.
    GroupedMatmul,
    /// `grouped_outer`.
    GroupedOuter,
}

impl ProductForm {
    fn is_matmul(&self) -> bool {
        *self == ProductForm::Matmul
    }
}

/// Attributes of `product_check`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductCheck {
    /// The product whose row sums these are.
    #[serde(default, skip_serializing_if = "ProductForm::is_matmul")]
    pub form: ProductForm,
}

pub(super) const RECORD: Record = Record {
    name: "product_check",
    summary: "Compares a product's row sums with a·(b·1): the largest distance in units of its bound.",
    formula: "s[k] = Σ_n b[k,n], t[k] = √(Σ_n b[k,n]²); worst = max_m |row_sums[m] - Σ_k a[m,k]·s[k]| / (2^-24·√(K+N)·Σ_k |a[m,k]|·t[k] + 2^-70), NaN counting as +∞; the same for each expert with its rows (form grouped_matmul: its matrix; grouped_outer: aᵀ, b its rows, K their number)",
    source: "Huang and Abraham (1984); bound: docs/checks.md, after V-ABFT",
    operands: &[
        slot("a", "[M, K]", Accepts::Float),
        slot("b", "[K, N]; [E, K, N]; [M, N]", Accepts::Float),
        slot("row_sums", "[M]; [M]; [E, K]", Accepts::F32),
        optional("offsets", "[E+1]", Accepts::I32),
    ],
    outputs: &[slot("worst", "[1]", Accepts::F32)],
    numerics: "f32 or wider inside, any order. At most 128 on a healthy device. Judged against that, not across devices.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for ProductCheck {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let types = &operands[..2];
        let product: &dyn Definition = match self.form {
            ProductForm::Matmul => &Matmul { output: DType::F32, row_sums: true },
            ProductForm::GroupedMatmul => &GroupedMatmul { output: DType::F32, row_sums: true },
            ProductForm::GroupedOuter => &GroupedOuter { output: DType::F32, row_sums: true },
        };
        let outputs = match (self.form, operands.get(3)) {
            (ProductForm::Matmul, None) => product.infer(types)?,
            (ProductForm::Matmul, Some(_)) => return Err("a matmul has no offsets".into()),
            (_, Some(offsets)) => product.infer(&[types[0].clone(), types[1].clone(), offsets.clone()])?,
            (_, None) => return Err("a grouped product has offsets".into()),
        };
        dims("row_sums", &operands[2], &outputs[1].shape)?;
        Ok(vec![Type::new(DType::F32, [1])])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        4 * (operands[0].elements() + operands[1].elements()) as u64
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        // Both sides must be below the limit; see the numerics line.
        vec![Tolerance { relative: 0.0, accumulated: 0.0, absolute: PRODUCT_LIMIT }]
    }
}
