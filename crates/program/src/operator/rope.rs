//! Rotary position embedding of heads, leaving their first columns as they are.

use super::*;

/// Attributes of `rope`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Columns of each head that are copied before the rotated ones begin.
    pub start: usize,
    /// Pairs are neighbours (2i, 2i+1) rather than halves (i, i + d/2).
    pub interleaved: bool,
    /// Rotates backwards: the gradient.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inverse: bool,
}

pub(super) const RECORD: Record = Record {
    name: "rope",
    summary: "Rotates pairs of columns by an angle that grows with the position.",
    formula: "with d = D - start, c = table[p,0,i], s = table[p,1,i], p = positions[t], (a, b) the i-th pair behind start: (a', b') = (a·c - b·s, a·s + b·c); inverse: s → -s; columns before start are copied; a position outside 0..P gives zeros in the rotated columns",
    source: "RoFormer, arXiv 2104.09864, equation 34; the table holds YaRN's frequencies and magnitude (arXiv 2309.00071)",
    operands: &[
        slot("x", "[T, H, D]", Accepts::Float),
        slot("positions", "[T]", Accepts::I32),
        slot("table", "[P, 2, (D - start)/2]", Accepts::F32),
    ],
    outputs: &[slot("y", "[T, H, D]", Accepts::Float)],
    numerics: "f32 inside, one rounding on store to x's dtype; magnitude |a·c| + |b·s|.",
    gradient: "dx = rope(dy, positions, table; inverse)",
    invariant: Invariant::Identity("each pair keeps a² + b², times the table's c² + s²"),
};

impl Definition for Rope {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let x = &operands[0];
        rank("x", x, 3)?;
        dims("positions", &operands[1], &x.shape[..1])?;
        let columns = constant("the columns of x", x.shape[2])?;
        let rotated = columns.checked_sub(self.start).ok_or("start lies behind the last column")?;
        if rotated % 2 != 0 || rotated == 0 {
            return Err(format!("{rotated} rotated columns are not pairs"));
        }
        rank("table", &operands[2], 3)?;
        dims("table", &operands[2], &[operands[2].shape[0], 2.into(), (rotated / 2).into()])?;
        Ok(vec![x.clone()])
    }

    fn flops(&self, _: &[Concrete], outputs: &[Concrete]) -> u64 {
        3 * count(outputs)
    }

    fn tolerances(&self, _: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(outputs[0].dtype, 2.0)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let operator = Rope { inverse: !self.inverse, ..self.clone() };
        let inputs = [gradients.incoming(0)?, gradients.operand(1), gradients.operand(2)];
        let gradient = gradients.emit(operator, inputs)?[0];
        gradients.set(0, gradient);
        Ok(())
    }
}
