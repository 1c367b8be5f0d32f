//! Dimensions, shapes and strided views. Token counts are symbols with an upper bound; plans use the bound.

use crate::dtype::DType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A number that is known only when a range is run: it lies in `1..=bound`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Symbol {
    /// The name in the printed form.
    pub name: String,
    /// The largest value that a binding may give.
    pub bound: usize,
}

/// Index of a [`Symbol`] in its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SymbolId(pub u16);

/// One dimension: `factor`, or `factor × symbol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dim {
    /// The constant part.
    pub factor: usize,
    /// The symbol that multiplies it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<SymbolId>,
}

/// Dimensions from the outermost to the innermost.
pub type Shape = Vec<Dim>;

impl From<usize> for Dim {
    fn from(factor: usize) -> Dim {
        Dim { factor, symbol: None }
    }
}

impl Dim {
    /// `factor × symbol`.
    pub fn symbolic(symbol: SymbolId, factor: usize) -> Dim {
        Dim { factor, symbol: Some(symbol) }
    }

    /// This dimension taken `count` times; `None` on overflow.
    pub fn times(self, count: usize) -> Option<Dim> {
        Some(Dim { factor: self.factor.checked_mul(count)?, symbol: self.symbol })
    }

    /// This dimension in `parts` equal parts; `None` where it does not divide.
    pub fn divided(self, parts: usize) -> Option<Dim> {
        (parts != 0 && self.factor.is_multiple_of(parts))
            .then(|| Dim { factor: self.factor / parts, symbol: self.symbol })
    }

    /// The constant, where no symbol takes part.
    pub fn constant(self) -> Option<usize> {
        self.symbol.is_none().then_some(self.factor)
    }

    /// The value under a binding of the symbols. A symbol outside `symbols` counts as 0; the validator rules it out.
    pub fn value(self, symbols: &[usize]) -> usize {
        match self.symbol {
            None => self.factor,
            Some(id) => self.factor.saturating_mul(symbols.get(id.0 as usize).copied().unwrap_or(0)),
        }
    }
}

/// The concrete sizes of a shape under a binding of the symbols.
pub fn sizes(shape: &[Dim], symbols: &[usize]) -> Vec<usize> {
    shape.iter().map(|dim| dim.value(symbols)).collect()
}

/// The number of elements, saturating.
pub fn elements(sizes: &[usize]) -> usize {
    sizes.iter().fold(1usize, |product, &size| product.saturating_mul(size))
}

/// Row-major strides, in elements. Only the outermost dimension may be symbolic, so that strides are constants;
/// an inner symbolic dimension gives `None`, as does an overflow.
pub fn dense_strides(shape: &[Dim]) -> Option<Vec<usize>> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1].checked_mul(shape[axis + 1].constant()?)?;
    }
    Some(strides)
}

/// A dtype and a shape: what an operator's meaning depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Shape,
}

impl Type {
    /// A type from anything that is a list of dimensions.
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = impl Into<Dim>>) -> Type {
        Type { dtype, shape: shape.into_iter().map(Into::into).collect() }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}

/// A type with its symbols bound: what cost and tolerance are computed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concrete {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub sizes: Vec<usize>,
}

impl Concrete {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        elements(&self.sizes)
    }

    /// Stored bytes when dense.
    pub fn bytes(&self) -> u64 {
        self.elements() as u64 * self.dtype.size_bytes(crate::Width::Native) as u64
    }
}

/// A strided window into a dense value, in elements. A stride of 0 repeats.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// Index of the first element.
    pub offset: usize,
    /// Dimensions of the window.
    pub shape: Shape,
    /// Distance between neighbours along each dimension.
    pub strides: Vec<usize>,
}

impl View {
    /// The whole of a dense value. `None` where an inner dimension is symbolic.
    pub fn dense(shape: &[Dim]) -> Option<View> {
        Some(View { offset: 0, shape: shape.to_vec(), strides: dense_strides(shape)? })
    }

    /// Elements `start..start + length` along `axis`.
    pub fn narrow(mut self, axis: usize, start: usize, length: usize) -> View {
        self.offset += start * self.strides[axis];
        self.shape[axis] = length.into();
        self
    }

    /// Two axes exchanged.
    pub fn transpose(mut self, first: usize, second: usize) -> View {
        self.shape.swap(first, second);
        self.strides.swap(first, second);
        self
    }

    /// One constant axis seen as two: `outer × inner`.
    pub fn split(mut self, axis: usize, outer: usize, inner: usize) -> View {
        let stride = self.strides[axis];
        self.shape.splice(axis..=axis, [outer.into(), inner.into()]);
        self.strides.splice(axis..=axis, [stride * inner, stride]);
        self
    }

    /// A new axis that repeats the same elements.
    pub fn repeat(mut self, axis: usize, dim: Dim) -> View {
        self.shape.insert(axis, dim);
        self.strides.insert(axis, 0);
        self
    }

    /// An axis of one element, left out.
    pub fn drop_axis(mut self, axis: usize) -> View {
        self.shape.remove(axis);
        self.strides.remove(axis);
        self
    }

    /// Whether the window is a dense value on its own (row-major, from its offset on).
    pub fn is_dense(&self) -> bool {
        let Some(dense) = dense_strides(&self.shape) else { return false };
        self.shape
            .iter()
            .zip(&self.strides)
            .zip(&dense)
            .all(|((dim, stride), want)| stride == want || dim.constant() == Some(1))
    }

    /// Whether the window stays inside a dense value of shape `base` for every binding within the bounds.
    /// Both sides are linear in the one symbol, so the slope and the first binding decide.
    pub fn stays_inside(&self, base: &[Dim]) -> bool {
        if self.shape.len() != self.strides.len() {
            return false;
        }
        let (Some(reach_one), Some(base_one)) = (self.reach(1), count(base, 1)) else { return false };
        let (Some(reach_two), Some(base_two)) = (self.reach(2), count(base, 2)) else { return false };
        let theirs: Vec<SymbolId> = base.iter().filter_map(|dim| dim.symbol).collect();
        // A repeated axis reaches nothing new, whatever its symbol.
        let moving = self.shape.iter().zip(&self.strides).filter(|(_, stride)| **stride != 0);
        let own: Vec<SymbolId> = moving.filter_map(|(dim, _)| dim.symbol).collect();
        if own.len() > 1 || theirs.len() > 1 || own.iter().any(|id| !theirs.contains(id)) {
            return false;
        }
        reach_one <= base_one && reach_two.saturating_sub(reach_one) <= base_two.saturating_sub(base_one)
    }

    /// One past the last element reached when every symbol is `symbol`; `None` on overflow.
    fn reach(&self, symbol: usize) -> Option<usize> {
        let mut last = self.offset;
        for (dim, stride) in self.shape.iter().zip(&self.strides) {
            let size = dim.symbol.map_or(Some(dim.factor), |_| dim.factor.checked_mul(symbol))?;
            last = last.checked_add(size.checked_sub(1)?.checked_mul(*stride)?)?;
        }
        last.checked_add(1)
    }
}

fn count(shape: &[Dim], symbol: usize) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, dim| {
        let size = dim.symbol.map_or(Some(dim.factor), |_| dim.factor.checked_mul(symbol))?;
        product.checked_mul(size)
    })
}

/// Prints shapes as `[16*sequences, 64]`; needs the program's symbols for their names.
pub struct ShapeText<'a> {
    /// Dimensions to print.
    pub shape: &'a [Dim],
    /// The program's symbols.
    pub symbols: &'a [Symbol],
}

impl fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dim) in self.shape.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match dim.symbol.map(|id| self.symbols.get(id.0 as usize)) {
                None => write!(f, "{}", dim.factor)?,
                Some(Some(symbol)) if dim.factor == 1 => f.write_str(&symbol.name)?,
                Some(Some(symbol)) => write!(f, "{}*{}", dim.factor, symbol.name)?,
                Some(None) => write!(f, "{}*?", dim.factor)?,
            }
        }
        f.write_str("]")
    }
}
