//! A shape with fewer rows, columns, experts or heads, where all of it is too much. What a sum adds up stays as long as it is:
//! errors grow with it, and kernels are chosen by it.

use std::collections::BTreeMap;
use toprope_program::operator::{BalanceLoss, BalanceLossGradient, Occurs, ScatterAdd};
use toprope_program::{Concrete, Operator, Type, View};

/// What one run may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Numbers that are read and written.
    pub elements: usize,
    /// Floating-point operations.
    pub flops: u64,
}

/// What of an instruction fits.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The operator with its attributes.
    pub operator: Operator,
    /// The types of its operands.
    pub operands: Vec<Type>,
}

/// Down to these sizes a dimension is cut, by the name that the operator's record has for it. Others are left: they are what
/// is summed over, or a part of what the operator means.
fn least(operator: &Operator, name: &str) -> Option<usize> {
    let grouped = matches!(operator, Operator::GroupedMatmul(_) | Operator::GroupedOuter(_));
    let product =
        matches!(operator, Operator::Matmul(_) | Operator::GroupedMatmul(_) | Operator::GroupedOuter(_));
    match name {
        "T" if matches!(
            operator,
            Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_)
        ) =>
        {
            Some(8)
        }
        // The rows of an outer product are what it sums over.
        "R" if matches!(operator, Operator::GroupedOuter(_) | Operator::ColumnSum(_)) => None,
        "K" if matches!(operator, Operator::GroupedOuter(_)) => Some(8),
        "T" | "S" | "P" | "N·S" => Some(64),
        "..." | "R.." | "..1" | "M" | "R" => Some(8),
        "N" if product => Some(8),
        "N" if matches!(operator, Operator::Gather(_) | Operator::ScatterAdd(_)) => Some(32),
        "V" => Some(32),
        "E" if grouped => Some(2),
        "C" => Some(64),
        "Hk" => Some(2),
        "rows" => Some(64),
        _ => None,
    }
}

/// The largest part of an instruction within the limits, or the least that there is of it. None where it is whole within
/// them, or has nothing that may be left out, or too little.
pub fn cut(operator: &Operator, operands: &[Concrete], limits: Limits) -> Option<Cut> {
    let whole = named(operator, operands)?;
    let mut sizes = whole.clone();
    let mut changed = false;
    loop {
        let made = with(operator, operands, &whole, &sizes)?;
        let (elements, flops) = cost(&made)?;
        if elements <= limits.elements && flops <= limits.flops {
            return changed.then_some(made);
        }
        let ratio = |name: &&String| {
            let least = least(operator, name)?;
            (sizes[*name] > least).then(|| sizes[*name] as f64 / least as f64)
        };
        let widest = sizes.keys().filter_map(|name| Some((ratio(&name)?, name.clone())));
        let Some((_, name)) = widest.max_by(|a, b| a.0.total_cmp(&b.0)) else {
            // The least that there is, unless it is far too much.
            let near = elements <= 16 * limits.elements && flops <= 32 * limits.flops;
            return (changed && near).then_some(made);
        };
        let least = least(operator, &name)?;
        let half = |size: usize| size.div_ceil(2).max(least);
        let same = |other: &str| matches!((name.as_str(), other), ("T", "S") | ("S", "T"));
        // Queries and keys of one sequence stay as many.
        let linked: Vec<String> = sizes
            .iter()
            .filter(|(other, size)| same(other) && **size == sizes[&name])
            .map(|(other, _)| other.clone())
            .collect();
        let next = half(sizes[&name]);
        for name in linked.into_iter().chain([name]) {
            sizes.insert(name, next);
        }
        changed = true;
    }
}

/// Elements and operations of a cut.
pub(super) fn cost(cut: &Cut) -> Option<(usize, u64)> {
    let outputs = toprope_program::validate::infer(&cut.operator, &cut.operands).ok()?;
    let concrete = |types: &[Type]| -> Vec<Concrete> {
        types
            .iter()
            .map(|t| Concrete { dtype: t.dtype, sizes: toprope_program::shape::sizes(&t.shape, &[]) })
            .collect()
    };
    let (operands, outputs) = (concrete(&cut.operands), concrete(&outputs));
    let elements = operands.iter().chain(&outputs).map(|c| c.sizes.iter().product::<usize>()).sum();
    Some((elements, cut.operator.definition().flops(&operands, &outputs)))
}

/// The names of an operand's dimensions, from the operator's record; those that `...` stands for are named by it once.
fn names(operator: &Operator, at: usize, rank: usize) -> Option<Vec<&'static str>> {
    let record = operator.definition().record();
    let many = || record.operands.last().filter(|last| matches!(last.occurs, Occurs::Many));
    let slot = record.operands.get(at).or_else(many)?;
    let inner = slot.shape.strip_prefix('[')?.strip_suffix(']')?;
    let mut names: Vec<&str> = inner.split(", ").collect();
    if let Some(dots) = names.iter().position(|name| name.ends_with("..")) {
        for name in ["..1", "", "", "", ""].into_iter().take(rank.saturating_sub(names.len())).rev() {
            names.insert(dots + 1, name);
        }
    }
    Some(names)
}

/// The sizes by name. None where an operator's dimensions are not by name.
fn named(operator: &Operator, operands: &[Concrete]) -> Option<BTreeMap<String, usize>> {
    let mut sizes = BTreeMap::new();
    match operator {
        // What is drawn has its shape among the attributes, what is verified those of another.
        Operator::RandomBits(_) | Operator::Verify(_) => return None,
        Operator::Assemble(assemble) => {
            // Rows stay rows where every window has all of them.
            let rows = assemble.shape.first()?.factor;
            let all = |view: &View| {
                let one_row = assemble.shape[1..].iter().map(|dim| dim.factor).product::<usize>();
                view.shape.first().is_some_and(|dim| dim.factor == rows)
                    && view.strides.first() == Some(&one_row)
                    && view.offset < one_row.max(1)
            };
            let parts = operands.iter().all(|operand| operand.sizes.first() == Some(&rows));
            return (parts && assemble.views.iter().all(all)).then(|| [("...".to_string(), rows)].into());
        }
        _ => {}
    }
    for (at, operand) in operands.iter().enumerate() {
        for (name, size) in names(operator, at, operand.sizes.len())?.iter().zip(&operand.sizes) {
            // Of tensors of several shapes, the longest counts.
            let held = sizes.entry((*name).to_string()).or_insert(*size);
            *held = (*held).max(*size);
        }
    }
    if let Operator::ScatterAdd(scatter) = operator {
        sizes.insert("rows".into(), scatter.rows.factor);
    }
    Some(sizes)
}

/// The instruction with other sizes.
fn with(
    operator: &Operator,
    operands: &[Concrete],
    whole: &BTreeMap<String, usize>,
    sizes: &BTreeMap<String, usize>,
) -> Option<Cut> {
    if let Operator::Assemble(assemble) = operator {
        let rows = *sizes.get("...")?;
        let mut assemble = assemble.clone();
        let shapes = assemble.views.iter_mut().map(|view| &mut view.shape);
        shapes.chain([&mut assemble.shape]).for_each(|shape| shape[0] = rows.into());
        let part = |operand: &Concrete| {
            Type::new(operand.dtype, std::iter::once(rows).chain(operand.sizes[1..].iter().copied()))
        };
        return Some(Cut { operator: assemble.into(), operands: operands.iter().map(part).collect() });
    }
    let mut cut = Vec::new();
    for (at, operand) in operands.iter().enumerate() {
        let mut own = operand.sizes.clone();
        for (name, size) in names(operator, at, operand.sizes.len())?.iter().zip(&mut own) {
            *size = match *name {
                "E+1" => sizes.get("E").map_or(operand.sizes[0], |experts| experts + 1).min(*size),
                // Query heads are as many to a key head as they were.
                "Hq" => *size / whole.get("Hk")? * sizes.get("Hk")?,
                name => sizes.get(name).copied().unwrap_or(*size).min(*size),
            };
        }
        cut.push(Type::new(operand.dtype, own));
    }
    // Sequences become shorter, and stay as many.
    let shorter = |sequence: usize| -> Option<usize> {
        let sequences = whole.get("N·S")? / sequence.max(1);
        let rows = sizes.get("N·S")?;
        rows.is_multiple_of(sequences.max(1)).then(|| rows / sequences.max(1))
    };
    let operator = match operator {
        Operator::BalanceLoss(balance) => BalanceLoss { sequence: shorter(balance.sequence)? }.into(),
        Operator::BalanceLossGradient(balance) => {
            BalanceLossGradient { sequence: shorter(balance.sequence)? }.into()
        }
        Operator::ScatterAdd(scatter) => {
            ScatterAdd { rows: (*sizes.get("rows")?).into(), ..scatter.clone() }.into()
        }
        other => other.clone(),
    };
    Some(Cut { operator, operands: cut })
}

#[cfg(test)]
mod tests {
    use super::*;
    use toprope_program::DType;
    use toprope_program::operator::{Adamw, Assemble, Attention, GroupedMatmul, Matmul};

    fn concrete(dtype: DType, sizes: &[usize]) -> Concrete {
        Concrete { dtype, sizes: sizes.to_vec() }
    }

    fn sizes(cut: &Cut) -> Vec<Vec<usize>> {
        cut.operands.iter().map(|t| toprope_program::shape::sizes(&t.shape, &[])).collect()
    }

    const LIMITS: Limits = Limits { elements: 1 << 21, flops: 1 << 27 };

    #[test]
    fn what_is_summed_over_stays_as_long_as_it_is() {
        let matmul: Operator = Matmul { output: DType::Bf16, row_sums: false }.into();
        let operands = [concrete(DType::Bf16, &[4096, 7168]), concrete(DType::Bf16, &[7168, 4608])];
        let small = sizes(&cut(&matmul, &operands, LIMITS).unwrap());
        assert_eq!((small[0][1], small[1][0]), (7168, 7168), "{small:?}");
        assert!(small[0][0] >= 8 && small[1][1] >= 8 && small[0][0] * small[1][1] <= 1 << 14, "{small:?}");
        let grouped: Operator = GroupedMatmul { output: DType::Bf16, row_sums: false }.into();
        let operands = [
            concrete(DType::Bf16, &[32768, 2048]),
            concrete(DType::Bf16, &[64, 2048, 7168]),
            concrete(DType::I32, &[65]),
        ];
        let small = sizes(&cut(&grouped, &operands, LIMITS).unwrap());
        assert_eq!(small[2][0], small[1][0] + 1, "{small:?}");
        assert_eq!((small[0][1], small[1][1]), (2048, 2048));
    }

    #[test]
    fn heads_keep_their_groups_and_a_sequence_its_keys() {
        let attention: Operator = Attention { scale: 0.1 }.into();
        let head = |rows, heads, width| concrete(DType::Bf16, &[rows, heads, width]);
        let operands =
            [head(4096, 32, 192), head(4096, 8, 192), head(4096, 8, 128), concrete(DType::I32, &[4096])];
        let small = sizes(&cut(&attention, &operands, LIMITS).unwrap());
        assert_eq!((small[0][0], small[0][1]), (small[1][0], 4 * small[1][1]), "{small:?}");
        assert_eq!(small[3][0], small[0][0]);
    }

    #[test]
    fn rows_of_windows_and_sequences_are_cut_with_their_attributes() {
        let dims =
            |sizes: &[usize]| -> Vec<toprope_program::Dim> { sizes.iter().map(|n| (*n).into()).collect() };
        let view = |offset, width| View { offset, shape: dims(&[4096, width]), strides: vec![576, 1] };
        let beside: Operator = Assemble {
            output: DType::Bf16,
            shape: dims(&[4096, 576]),
            views: vec![view(0, 512), view(512, 64)],
        }
        .into();
        let limits = Limits { elements: 1 << 17, flops: 1 << 22 };
        let operands = [concrete(DType::Bf16, &[4096, 512]), concrete(DType::Bf16, &[4096, 64])];
        let small = cut(&beside, &operands, limits).unwrap();
        assert!(sizes(&small)[0][0] < 4096 && sizes(&small)[0][0] == sizes(&small)[1][0]);
        assert!(toprope_program::validate::infer(&small.operator, &small.operands).is_ok());
        let balance: Operator = BalanceLoss { sequence: 2048 }.into();
        let operands = [concrete(DType::F32, &[4096, 256]), concrete(DType::I32, &[4096, 8])];
        let small = cut(&balance, &operands, limits).unwrap();
        let Operator::BalanceLoss(cut) = &small.operator else { panic!("another operator") };
        assert_eq!(2 * cut.sequence, sizes(&small)[0][0]);
    }

    #[test]
    fn what_fits_is_not_cut_and_state_is_cut_by_rows() {
        let adamw: Operator =
            Adamw { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, digests: false }.into();
        let state = |rows| concrete(DType::F32, &[rows, 7168]);
        let operands = |rows| {
            let scalars = [concrete(DType::F32, &[1]), concrete(DType::F32, &[3])];
            [state(rows), state(rows), state(rows), state(rows)]
                .into_iter()
                .chain(scalars)
                .collect::<Vec<_>>()
        };
        assert!(cut(&adamw, &operands(4), LIMITS).is_none());
        // Experts' weights are few, and their rows many.
        let experts = |sizes: &[usize]| concrete(DType::F32, sizes);
        let add: Operator = toprope_program::operator::Add { output: DType::F32 }.into();
        let cut_experts = cut(&add, &[experts(&[4, 7168, 4096]), experts(&[4, 7168, 4096])], LIMITS).unwrap();
        assert!(sizes(&cut_experts)[0].iter().product::<usize>() < 1 << 20, "{cut_experts:?}");
        let small = sizes(&cut(&adamw, &operands(16160), LIMITS).unwrap());
        assert!(
            small[0][0] >= 8 && small[0][0] < 16160 && small[0] == small[3] && small[5] == [3],
            "{small:?}"
        );
    }
}
