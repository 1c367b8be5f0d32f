//! Rotary position embedding: y = x·cos + rotate(x)·sin.

use half::bf16;

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid, not_implemented};
use crate::operator::run::Run;
use crate::operator::{Planned, kernel_with_workspace, operators};

operators! {
    RotaryPositionEmbedding(x: T, cos: T, sin: T, mode: i64, out: To) = forward;
    RotaryPositionEmbeddingV2(x: T, cos: T, sin: T, mode: i64, rotate: T, out: To) = forward_with_matrix;
    RotaryPositionEmbeddingGrad(
        dy: T, cos: T, sin: T, x: T, mode: i64, dx: To, dcos: To, dsin: To,
    ) = backward;
    ApplyRotaryPosEmb(query: To, key: To, cos: T, sin: T, layout: i64) = |a| apply(a, Layout::Half);
    ApplyRotaryPosEmbV2(
        query: To, key: To, cos: T, sin: T, layout: i64, rotaryMode: Str,
    ) = |a| apply(a, Layout::named(&a.text("rotaryMode")?)?);
}

/// Which columns are pairs.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    /// Column i with column i + D/2.
    Half,
    /// Columns 2i and 2i + 1.
    Interleaved,
    /// Half, in each half.
    Quarter,
}

impl Layout {
    fn of(mode: i64) -> Result<Layout, Fault> {
        match mode {
            0 => Ok(Layout::Half),
            1 => Ok(Layout::Interleaved),
            2 => Ok(Layout::Quarter),
            3 => Err(not_implemented("rotary mode 3 (interleave-half)")),
            other => Err(invalid(format!("mode is {other}: 0 to 3 are known"))),
        }
    }

    fn named(name: &str) -> Result<Layout, Fault> {
        match name {
            "half" => Ok(Layout::Half),
            "interleave" => Ok(Layout::Interleaved),
            "quarter" => Ok(Layout::Quarter),
            other => Err(invalid(format!("rotaryMode is {other}: half, interleave or quarter is needed"))),
        }
    }

    /// The layout that a run has: with a defect, another.
    fn in_run(self, run: &Run) -> Layout {
        match (run.has("rope.layout"), self) {
            (true, Layout::Interleaved) => Layout::Half,
            (true, _) => Layout::Interleaved,
            (false, layout) => layout,
        }
    }

    /// The partner of a column, and its sign.
    fn partner(self, column: usize, width: usize) -> (usize, f32) {
        match self {
            Layout::Half if column < width / 2 => (column + width / 2, -1.0),
            Layout::Half => (column - width / 2, 1.0),
            Layout::Interleaved if column.is_multiple_of(2) => (column + 1, -1.0),
            Layout::Interleaved => (column - 1, 1.0),
            Layout::Quarter => {
                let half = width / 2;
                let (partner, sign) = Layout::Half.partner(column % half, half);
                (column / half * half + partner, sign)
            }
        }
    }

    fn rotate(self, x: &[f32], width: usize) -> Vec<f32> {
        let one = |place: usize| {
            let (partner, sign) = self.partner(place % width, width);
            sign * x[place / width * width + partner]
        };
        (0..x.len()).map(one).collect()
    }
}

fn width_of(x: &Operand) -> Result<usize, Fault> {
    match x.shape.last() {
        Some(&width) if width > 0 && width % 2 == 0 => Ok(width),
        _ => Err(x.refuse("its last dimension must be even")),
    }
}

/// x·cos + rotate(x)·sin.
fn turned(run: &Run, x: &[f32], cos: &[f32], sin: &[f32], layout: Layout, width: usize) -> Vec<f32> {
    let sign = if run.has("rope.sign") { -1.0 } else { 1.0 };
    let rotated = layout.in_run(run).rotate(x, width);
    let angles = cos.iter().zip(sin);
    x.iter().zip(&rotated).zip(angles).map(|((x, r), (c, s))| x * c + sign * (r * s)).collect()
}

/// Cosines or sines of all elements of x.
struct Angles {
    all: Operand,
    /// The axis along which they differ from token to token.
    tokens: usize,
}

impl Angles {
    fn of(table: &Operand, x: &Operand) -> Result<Angles, Fault> {
        let all = table.expand(&x.shape)?;
        let outer = 0..x.rank().saturating_sub(1);
        let tokens = outer.into_iter().find(|&axis| all.strides[axis] != 0 && all.shape[axis] > 1);
        Ok(Angles { all, tokens: tokens.unwrap_or(0) })
    }

    /// The angles of the token that has the number of the head.
    fn of_heads(&self, angles: &[f32]) -> Vec<f32> {
        let (shape, strides) = (&self.all.shape, crate::tensor::contiguous(&self.all.shape));
        let heads = (0..self.all.rank().saturating_sub(1))
            .rev()
            .find(|&axis| axis != self.tokens && self.all.strides[axis] == 0 && shape[axis] > 1);
        let Some(heads) = heads else { return angles.to_vec() };
        let number = |flat: usize, axis: usize| flat / strides[axis] as usize % shape[axis];
        let place = |flat: usize| {
            let token = number(flat, heads).min(shape[self.tokens] - 1);
            flat - number(flat, self.tokens) * strides[self.tokens] as usize
                + token * strides[self.tokens] as usize
        };
        (0..angles.len()).map(|flat| angles[place(flat)]).collect()
    }

    fn read(&self, run: &Run) -> Result<Vec<f32>, Fault> {
        let mut angles = run.floats(&self.all)?.into_vec();
        if run.has("rope.bf16_angles") {
            angles.iter_mut().for_each(|angle| *angle = bf16::from_f32(*angle).to_f32());
        }
        if run.has("rope.next_position") {
            let (tokens, inner) = self.all.shape.split_at(self.tokens + 1);
            let (count, inner) = (tokens[self.tokens], inner.iter().product::<usize>());
            // The last token, which has no next one, keeps its own.
            for tokens in angles.chunks_mut(count * inner) {
                tokens.copy_within(inner.min(tokens.len()).., 0);
            }
        }
        if run.has("rope.head_angles") {
            angles = self.of_heads(&angles);
        }
        Ok(angles)
    }
}

fn forward(a: &Arguments) -> Planned {
    let (x, cos, sin, out) = (a.tensor("x")?, a.tensor("cos")?, a.tensor("sin")?, a.tensor("out")?);
    let (layout, width) = (Layout::of(a.integer("mode")?)?, width_of(&x)?);
    out.must_have(&x.shape)?;
    let (cos, sin) = (Angles::of(&cos, &x)?, Angles::of(&sin, &x)?);
    kernel_with_workspace(x.len(), move |run| {
        let values = turned(run, &run.floats(&x)?, &cos.read(run)?, &sin.read(run)?, layout, width);
        run.store(&out, &values)
    })
}

fn forward_with_matrix(a: &Arguments) -> Planned {
    if a.optional("rotate")?.is_some() {
        return Err(not_implemented("a rotation by a matrix"));
    }
    forward(a)
}

fn backward(a: &Arguments) -> Planned {
    let (dy, cos, sin, x) = (a.tensor("dy")?, a.tensor("cos")?, a.tensor("sin")?, a.optional("x")?);
    let (dx, dcos, dsin) = (a.tensor("dx")?, a.optional("dcos")?, a.optional("dsin")?);
    let (layout, width) = (Layout::of(a.integer("mode")?)?, width_of(&dy)?);
    dx.must_have(&dy.shape)?;
    let (cos, sin) = (Angles::of(&cos, &dy)?, Angles::of(&sin, &dy)?);
    kernel_with_workspace(dy.len(), move |run| {
        let upstream = run.floats(&dy)?;
        // The transpose of a rotation is the rotation by the opposite angle.
        let opposite: Vec<f32> = sin.read(run)?.iter().map(|s| -s).collect();
        let gradient = turned(run, &upstream, &cos.read(run)?, &opposite, layout, width);
        if let Some(x) = &x {
            let x = run.floats(x)?;
            let rotated = layout.in_run(run).rotate(&x, width);
            for (place, with) in [(&dcos, &x[..]), (&dsin, &rotated[..])] {
                if let Some(place) = place {
                    let product: Vec<f32> = upstream.iter().zip(with).map(|(dy, x)| dy * x).collect();
                    run.store(place, &summed(&product, &dy.shape, place)?)?;
                }
            }
        }
        run.store(&dx, &gradient)
    })
}

/// Sums over the axes that were broadcast.
fn summed(values: &[f32], shape: &[usize], to: &Operand) -> Result<Vec<f32>, Fault> {
    let own = crate::tensor::contiguous(&to.shape);
    let dense = to.view(to.shape.clone(), own, 0).expand(shape)?;
    let strides = crate::tensor::contiguous(shape);
    let mut sums = vec![0.0f64; to.len()];
    for (flat, &value) in values.iter().enumerate() {
        let place: i64 = (0..shape.len())
            .map(|axis| (flat as i64 / strides[axis] % shape[axis] as i64) * dense.strides[axis])
            .sum();
        sums[place as usize] += f64::from(value);
    }
    Ok(sums.into_iter().map(|sum| sum as f32).collect())
}

fn apply(a: &Arguments, layout: Layout) -> Planned {
    let (query, key, cos, sin) = (a.tensor("query")?, a.tensor("key")?, a.tensor("cos")?, a.tensor("sin")?);
    match a.integer("layout")? {
        1..=4 => {}
        other => return Err(invalid(format!("layout is {other}: 1 to 4 are known"))),
    }
    let width = width_of(&query)?;
    let parts = [query, key].into_iter().map(|x| Ok((Angles::of(&cos, &x)?, Angles::of(&sin, &x)?, x)));
    let parts: Vec<(Angles, Angles, Operand)> = parts.collect::<Result<_, Fault>>()?;
    kernel_with_workspace(0, move |run| {
        for (cos, sin, x) in &parts {
            let values = turned(run, &run.floats(x)?, &cos.read(run)?, &sin.read(run)?, layout, width);
            run.store(x, &values)?;
        }
        Ok(())
    })
}
