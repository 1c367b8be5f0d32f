//! Elements and rows moved to other places.

use crate::call::{View, dense};
use crate::emit::{Emit, Lacking, Lowered};
use crate::ffi::abi::Element;
use toprope_program::operator::Assemble;

/// A window that meets itself is added slice by slice, up to so many of them.
const SLICES_MAX: usize = 1024;

pub(super) fn assemble(e: &mut Emit<'_>, it: &Assemble, x: &[View], y: &[View]) -> Lowered {
    let target = e.target(&y[0]);
    e.zero(&target)?;
    for (view, part) in it.views.iter().zip(x) {
        let part = e.wide(part)?;
        let window = View {
            offset: target.offset + view.offset,
            sizes: part.sizes.clone(),
            strides: view.strides.clone(),
            ..target.clone()
        };
        add_window(e, &window, &part)?;
    }
    e.finish(&y[0], &target)
}

/// Adds a part into a window that may see an element more than once.
fn add_window(e: &mut Emit<'_>, window: &View, part: &View) -> Lowered {
    let repeated: Vec<usize> =
        (0..window.rank()).filter(|axis| window.strides[*axis] == 0 && window.sizes[*axis] > 1).collect();
    if !repeated.is_empty() {
        let kept: Vec<usize> = (0..window.rank()).filter(|axis| !repeated.contains(axis)).collect();
        let sum = e.sum(part, &repeated)?;
        let mut window = window.permute(&kept);
        if kept.is_empty() {
            window = View { sizes: vec![1], strides: vec![1], ..window };
        }
        return add_window(e, &window, &sum);
    }
    if !meets_itself(window) {
        return e.binary_into("Add", window, part, window);
    }
    // Along its first axis each slice is a window of its own.
    if window.rank() == 0 || window.sizes[0] > SLICES_MAX {
        return Err(Lacking("a window that overlaps itself is too large to be added slice by slice".into()));
    }
    for index in 0..window.sizes[0] {
        add_window(e, &pick(window, index), &pick(part, index))?;
    }
    Ok(())
}

/// A slice of the first axis, never without axes.
fn pick(view: &View, index: usize) -> View {
    if view.rank() == 1 { view.narrow(0, index, 1) } else { view.select(0, index) }
}

/// Whether two indices may see one element: sorted by stride, each must step over all that the smaller ones reach.
fn meets_itself(view: &View) -> bool {
    let mut axes: Vec<(usize, usize)> =
        view.strides.iter().copied().zip(view.sizes.iter().copied()).filter(|(_, size)| *size > 1).collect();
    axes.sort_unstable();
    let mut reach = 0;
    for (stride, size) in axes {
        if stride <= reach {
            return true;
        }
        reach += stride * (size - 1);
    }
    false
}

pub(super) fn gather(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (indices, there) = e.within(&x[1], x[0].sizes[0])?;
    let rows = e.rows(&x[0], &indices)?;
    let rows = e.cast(&rows, y[0].element)?;
    let nothing = e.temporary(y[0].element, &[1]);
    e.zero(&nothing)?;
    e.choose_into(&there.unsqueeze(1), &rows, &nothing, &y[0])
}

/// Rows with their zeros where an index strays.
pub(super) fn only_where(e: &mut Emit<'_>, there: &View, rows: &View) -> Lowered<View> {
    let nothing = e.constant_f32(0.0);
    e.choose(there, rows, &nothing)
}

pub(super) fn scatter_add(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let target = e.target(&y[0]);
    e.zero(&target)?;
    let (indices, there) = e.within(&x[1], target.sizes[0])?;
    let rows = e.wide(&x[0])?;
    let rows = only_where(e, &there.unsqueeze(1), &rows)?;
    e.add_rows(&target, &indices, &rows)?;
    e.finish(&y[0], &target)
}

/// Each row of the cache asks which of the new rows is its own: the position is known to the device only.
pub(super) fn append(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (cache, rows) = (&y[0], &x[1]);
    let (places, count) = (cache.sizes[0], rows.sizes[0]);
    let ramp = e.ramp(places);
    let wanted = e.binary("Sub", &ramp, &x[2])?;
    let (indices, there) = e.within(&wanted, count)?;
    let rows = e.rows(rows, &indices)?;
    let mut mask = there;
    for axis in 1..cache.rank() {
        mask = mask.unsqueeze(axis);
    }
    let merged = e.choose(&mask, &rows, cache)?;
    debug_assert_eq!(merged.strides, dense(&merged.sizes));
    debug_assert!(merged.element == cache.element && cache.element != Element::Bool);
    e.copy(cache, &merged)
}
