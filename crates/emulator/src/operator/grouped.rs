//! Grouped products: rows (or the inner dimension) are cut into groups, each with a matrix of its own.

use crate::code;
use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid, not_implemented};
use crate::operator::gemm::{Matrix, Precision, TILE, product};
use crate::operator::run::Run;
use crate::operator::{Planned, kernel_with_workspace, operators};
use crate::tensor::Domain;

operators! {
    GroupedMatmul(
        x: TL, weight: TL, bias: TL, scale: TL, offset: TL, antiquantScale: TL, antiquantOffset: TL,
        groupList: I, splitItem: i64, y: TLo,
    ) = |a| plan(a, Groups::host(a)?, -1, "y");
    GroupedMatmulV2(
        x: TL, weight: TL, bias: TL, scale: TL, offset: TL, antiquantScale: TL, antiquantOffset: TL,
        groupList: I, splitItem: i64, groupType: i64, y: TLo,
    ) = |a| plan(a, Groups::host(a)?, a.integer("groupType")?, "y");
    GroupedMatmulV3(
        x: TL, weight: TL, bias: TL, scale: TL, offset: TL, antiquantScale: TL, antiquantOffset: TL,
        groupList: T, splitItem: i64, groupType: i64, y: TLo,
    ) = |a| plan(a, Groups::on_device(a, 0)?, a.integer("groupType")?, "y");
    GroupedMatmulV4(
        x: TL, weight: TL, bias: TL, scale: TL, offset: TL, antiquantScale: TL, antiquantOffset: TL,
        perTokenScale: TL, groupList: T, activationInput: TL, activationQuantScale: TL,
        activationQuantOffset: TL, splitItem: i64, groupType: i64, groupListType: i64, actType: i64,
        out: TLo, activationFeatureOut: TLo, dynQuantScaleOut: TLo,
    ) = |a| newest(a);
    GroupedMatmulV5(
        x: TL, weight: TL, bias: TL, scale: TL, offset: TL, antiquantScale: TL, antiquantOffset: TL,
        perTokenScale: TL, groupList: T, activationInput: TL, activationQuantScale: TL,
        activationQuantOffset: TL, splitItem: i64, groupType: i64, groupListType: i64, actType: i64,
        tuningConfig: I, out: TLo, activationFeatureOut: TLo, dynQuantScaleOut: TLo,
    ) = |a| newest(a);
    GroupedMatmulAdd(
        x: T, weight: T, groupList: T, y: To, transposeX: Flag, transposeWeight: Flag, groupType: i64,
    ) = add;
}

/// Where groups end.
enum Groups {
    /// There is one group for each pair of operands.
    None,
    /// Ends, known when the call is planned.
    Host(Vec<i64>),
    /// On the device: ends, or (`counts`) how many each has.
    Device { list: Operand, counts: bool },
}

impl Groups {
    fn host(a: &Arguments) -> Result<Groups, Fault> {
        let list = a.optional_ints("groupList")?.filter(|list| !list.is_empty());
        Ok(list.map_or(Groups::None, Groups::Host))
    }

    fn on_device(a: &Arguments, kind: i64) -> Result<Groups, Fault> {
        let Some(list) = a.optional("groupList")? else { return Ok(Groups::None) };
        list.must_be_integer()?;
        match kind {
            0 | 1 => Ok(Groups::Device { list, counts: kind == 1 }),
            _ => Err(not_implemented(format!("groupListType {kind}"))),
        }
    }

    /// Rows of each group, once the list is known.
    fn ranges(&self, run: &Run, groups: usize, rows: usize) -> Result<Vec<std::ops::Range<usize>>, Fault> {
        let wrong = |text: String| Fault::new(code::VECTOR_CORE_EXCEPTION, format!("groupList: {text}"));
        let (list, counts) = match self {
            Groups::None => (vec![rows as i64], false),
            Groups::Host(list) => (list.clone(), false),
            Groups::Device { list, counts } => (run.ints(list)?, *counts),
        };
        if list.len() != groups {
            return Err(wrong(format!("{} groups, there are {groups} matrices", list.len())));
        }
        let mut ranges = Vec::new();
        let mut start = 0;
        for &value in &list {
            let end = if counts { start + value } else { value };
            if end < start || end > rows as i64 {
                return Err(wrong(format!("{list:?} does not cut {rows} rows into {groups} groups")));
            }
            ranges.push(start as usize..end as usize);
            start = end;
        }
        if run.has("experts.offset") {
            // All but the first begin, and all but the last end, one row late.
            let all = start as usize;
            for group in 1..ranges.len() {
                let border = (ranges[group].start + 1).min(all);
                ranges[group - 1].end = border;
                ranges[group].start = border;
            }
            if let Some(last) = ranges.last_mut() {
                last.end = all;
            }
        }
        Ok(ranges)
    }
}

fn newest(a: &Arguments) -> Planned {
    for absent in ["perTokenScale", "activationInput", "activationQuantScale", "activationQuantOffset"] {
        if a.optional(absent).is_ok_and(|given| given.is_some())
            || a.tensors(absent).is_ok_and(|l| !l.is_empty())
        {
            return Err(not_implemented(format!("a grouped product with {absent}")));
        }
    }
    if a.integer("actType")? != 0 {
        return Err(not_implemented(format!("a grouped product with actType {}", a.integer("actType")?)));
    }
    plan(a, Groups::on_device(a, a.integer("groupListType")?)?, a.integer("groupType")?, "out")
}

/// One of a list, or one matrix of a tensor that holds all of them.
fn matrix(list: &[Operand], group: usize) -> Operand {
    match list {
        [whole] if whole.rank() == 3 => {
            let one = whole.narrow(0, group, 1);
            one.view(one.shape[1..].to_vec(), one.strides[1..].to_vec(), one.offset)
        }
        _ => list[group].clone(),
    }
}

fn matrices(list: &[Operand]) -> usize {
    match list {
        [whole] if whole.rank() == 3 => whole.shape[0],
        _ => list.len(),
    }
}

fn plan(a: &Arguments, groups: Groups, group_type: i64, out: &'static str) -> Planned {
    for absent in ["scale", "offset", "antiquantScale", "antiquantOffset"] {
        if !a.tensors(absent)?.iter().all(|tensor| tensor.is_empty()) {
            return Err(not_implemented(format!("a grouped product with {absent}")));
        }
    }
    let (x, weight, y) = (a.tensors("x")?, a.tensors("weight")?, a.tensors(out)?);
    let bias: Vec<Operand> = a.tensors("bias")?.into_iter().filter(|bias| !bias.is_empty()).collect();
    for operand in x.iter().chain(&weight).chain(&y) {
        if operand.dtype.domain() != Domain::Single || !(2..=3).contains(&operand.rank()) {
            return Err(operand.refuse("must be a matrix, or matrices, of float32, float16 or bfloat16"));
        }
    }
    if x.is_empty() || weight.is_empty() || y.is_empty() {
        return Err(Fault::new(code::PARAM_NULLPTR, format!("x, weight or {out} has no tensor")));
    }
    match (group_type, x.len(), &groups) {
        (2, 1, _) => inner(x[0].clone(), weight, y, groups),
        (0 | -1, 1, Groups::Host(_) | Groups::Device { .. }) => rows(x[0].clone(), weight, bias, y, groups),
        (0 | -1, ..) => pairs(x, weight, bias, y),
        _ => Err(not_implemented(format!("groupType {group_type} with {} tensors in x", x.len()))),
    }
}

/// y[i] = x[i]·weight[i] + bias[i].
fn pairs(x: Vec<Operand>, weight: Vec<Operand>, bias: Vec<Operand>, y: Vec<Operand>) -> Planned {
    if matrices(&weight) != x.len() || y.len() != x.len() || !(bias.is_empty() || bias.len() == x.len()) {
        return Err(invalid(format!(
            "x has {} tensors, weight {}, y {}",
            x.len(),
            matrices(&weight),
            y.len()
        )));
    }
    for (group, (left, result)) in x.iter().zip(&y).enumerate() {
        fits(left, &matrix(&weight, group), result)?;
    }
    let elements = y.iter().map(|y| y.len()).sum();
    kernel_with_workspace(elements, move |run| {
        for group in 0..x.len() {
            let right = packed(run, &matrix(&weight, group))?;
            let values = with_bias(run, &x[group], right, bias.get(group))?;
            store(run, &y[group], &values)?;
        }
        Ok(())
    })
}

fn fits(left: &Operand, right: &Operand, out: &Operand) -> Result<(), Fault> {
    if right.shape[0] != left.shape[1] {
        return Err(right.refuse(format!("its inner dimension must be {}", left.shape[1])));
    }
    out.must_have(&[left.shape[0], right.shape[1]])
}

/// An expert's matrix.
fn packed(run: &Run, weight: &Operand) -> Result<Matrix, Fault> {
    if run.has("experts.stale_weight") { Matrix::first_seen(run, weight) } else { Matrix::read(run, weight) }
}

fn with_bias(run: &Run, left: &Operand, right: Matrix, bias: Option<&Operand>) -> Result<Vec<f32>, Fault> {
    let mut values = product(run, Matrix::read(run, left)?, right, Precision::Full);
    if let Some(bias) = bias {
        let bias = run.floats(bias)?;
        for row in values.chunks_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias.iter()).for_each(|(value, &bias)| *value += bias);
        }
    }
    Ok(values)
}

/// Rows that the defect `experts.buffer` has room for.
const BUFFER_ROWS: usize = 32;

/// Stores one group's result, or the half of it that a defect leaves.
fn store(run: &Run, target: &Operand, values: &[f32]) -> Result<(), Fault> {
    let columns = target.shape[1];
    if !run.has("experts.half_columns") || columns < 2 {
        return run.store(target, values);
    }
    let half = columns.div_ceil(2);
    let values: Vec<f32> = values.chunks(columns).flat_map(|row| row[..half].iter().copied()).collect();
    run.store(&target.narrow(1, 0, half), &values)
}

/// Rows of x are grouped; all groups' rows lie in one tensor. Rows behind the last group are left alone.
fn rows(x: Operand, weight: Vec<Operand>, bias: Vec<Operand>, y: Vec<Operand>, groups: Groups) -> Planned {
    let experts = matrices(&weight);
    let [y] = &y[..] else { return Err(not_implemented("a grouped product of one x into several tensors")) };
    let (right, y) = (matrix(&weight, 0), y.clone());
    fits(&x, &right, &y)?;
    kernel_with_workspace(y.len(), move |run| {
        let ranges = groups.ranges(run, experts, x.shape[0])?;
        let mean = x.shape[0] as f64 / experts.max(1) as f64;
        for (expert, range) in ranges.into_iter().enumerate().filter(|(_, range)| !range.is_empty()) {
            let left = x.narrow(0, range.start, range.len());
            let bias = match &bias[..] {
                [] => None,
                [whole] if whole.rank() == 2 => {
                    let row = whole.narrow(0, expert, 1);
                    Some(row.view(vec![row.shape[1]], vec![row.strides[1]], row.offset))
                }
                list => list.get(expert).cloned(),
            };
            let right = packed(run, &matrix(&weight, expert))?;
            let mut values = with_bias(run, &left, right, bias.as_ref())?;
            if run.has("experts.capacity") {
                let capacity = (1.5 * mean).ceil() as usize * y.shape[1];
                values.iter_mut().skip(capacity).for_each(|value| *value = 0.0);
            }
            if run.has("experts.tail_rows") && range.len() > TILE {
                values[range.len() / TILE * TILE * y.shape[1]..].fill(0.0);
            }
            let mut stored = range.len();
            if run.has("experts.buffer") {
                stored = stored.min(BUFFER_ROWS);
                values.truncate(stored * y.shape[1]);
            }
            store(run, &y.narrow(0, range.start, stored), &values)?;
        }
        Ok(())
    })
}

/// Rows that the defect `experts.gradient_rows` sums over.
const GRADIENT_ROWS: usize = 32;

/// How many rows of a group are summed over.
fn summed(run: &Run, group: &std::ops::Range<usize>) -> usize {
    if run.has("experts.gradient_rows") { group.len().min(GRADIENT_ROWS) } else { group.len() }
}

/// The inner dimension is grouped: y[e] = x[:, e]·weight[e, :], zeros for an empty group.
fn inner(x: Operand, weight: Vec<Operand>, y: Vec<Operand>, groups: Groups) -> Planned {
    let [weight] = &weight[..] else { return Err(invalid("with groupType 2, weight is one tensor")) };
    let (weight, experts) = (weight.clone(), matrices(&y));
    if weight.rank() != 2 || weight.shape[0] != x.shape[1] {
        return Err(weight.refuse(format!("must be a matrix of {} rows", x.shape[1])));
    }
    for group in 0..experts {
        matrix(&y, group).must_have(&[x.shape[0], weight.shape[1]])?;
    }
    kernel_with_workspace(y.iter().map(|y| y.len()).sum(), move |run| {
        let ranges = groups.ranges(run, experts, x.shape[1])?;
        for (group, range) in ranges.into_iter().enumerate() {
            let count = summed(run, &range);
            let left = x.narrow(1, range.start, count);
            let right = weight.narrow(0, range.start, count);
            let right = Matrix::read(run, &right)?;
            store(run, &matrix(&y, group), &with_bias(run, &left, right, None)?)?;
        }
        Ok(())
    })
}

/// y[e] += xᵀ[:, e]·weight[e, :].
fn add(a: &Arguments) -> Planned {
    let (x, weight, y) = (a.tensor("x")?, a.tensor("weight")?, a.tensor("y")?);
    if !a.flag("transposeX")? || a.flag("transposeWeight")? || a.integer("groupType")? != 2 {
        return Err(not_implemented("GroupedMatmulAdd with other than transposeX and groupType 2"));
    }
    let groups = Groups::on_device(a, 0)?;
    let (rows, columns) = (x.shape[1], weight.shape[1]);
    let experts = y.len() / (rows * columns).max(1);
    if !y.is_contiguous() || y.len() != experts * rows * columns || weight.shape[0] != x.shape[0] {
        return Err(y.refuse(format!("must hold matrices of [{rows}, {columns}], one behind the other")));
    }
    let strides = crate::tensor::contiguous(&[experts, rows, columns]);
    let y = vec![y.view(vec![experts, rows, columns], strides, y.offset)];
    let x = x.permute(&[1, 0]);
    kernel_with_workspace(y[0].len(), move |run| {
        let ranges = groups.ranges(run, experts, x.shape[1])?;
        for (group, range) in ranges.into_iter().enumerate() {
            let count = summed(run, &range);
            let left = x.narrow(1, range.start, count);
            let right = weight.narrow(0, range.start, count);
            let target = matrix(&y, group);
            let mut values = with_bias(run, &left, Matrix::read(run, &right)?, None)?;
            let before = run.floats(&target)?;
            values.iter_mut().zip(before.iter()).for_each(|(value, before)| *value += before);
            store(run, &target, &values)?;
        }
        Ok(())
    })
}
