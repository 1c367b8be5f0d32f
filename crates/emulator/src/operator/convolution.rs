//! Convolutions, and windows that move over images.

use half::f16;

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid, not_implemented};
use crate::operator::gemm::{Precision, hf32};
use crate::operator::{Planned, kernel, kernel_with_workspace, operators};

operators! {
    Convolution(
        input: T, weight: T, bias: T, stride: I, padding: I, dilation: I, transposed: Flag,
        outputPadding: I, groups: i64, output: To, cubeMathType: i8,
    ) = convolution;
    Im2col(self_: T, kernelSize: I, dilation: I, padding: I, stride: I, out: To) = columns;
    AvgPool2d(
        self_: T, kernelSize: I, strides: I, paddings: I, ceilMode: Flag, countIncludePad: Flag,
        divisorOverride: i64, cubeMathType: i8, out: To,
    ) = average;
    MaxPool(
        self_: T, kernelShape: I, strides: I, autoPad: i64, pads: I, dilations: I, ceilMode: i64, out: To,
    ) = maximum;
    UpsampleNearest2d(self_: T, outputSize: I, out: To) = upsample;
    ReflectionPad1d(self_: T, padding: I, out: To) = reflect;
}

/// A window's numbers along one axis.
#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    kernel: usize,
    stride: usize,
    before: i64,
    dilation: usize,
}

impl Axis {
    /// The input's place under a window's element; none in the padding.
    fn place(&self, window: usize, element: usize) -> Option<usize> {
        let place = (window * self.stride + element * self.dilation) as i64 - self.before;
        usize::try_from(place).ok().filter(|&place| place < self.size)
    }
}

/// The numbers of an array, one for each of two axes; one number stands for both, and none for `else_`.
fn two(values: Option<Vec<i64>>, else_: i64) -> Result<[i64; 2], Fault> {
    match values.unwrap_or_default()[..] {
        [] => Ok([else_; 2]),
        [one] => Ok([one; 2]),
        [a, b] => Ok([a, b]),
        // Both sides of both axes: the first ones count.
        [a, b, c, d] if a == c && b == d => Ok([a, b]),
        ref other => Err(not_implemented(format!("a window with the numbers {other:?}"))),
    }
}

/// The last two axes of an image and their windows; others count as batch.
fn axes(
    x: &Operand,
    kernel: [i64; 2],
    stride: [i64; 2],
    padding: [i64; 2],
    dilation: [i64; 2],
) -> Result<[Axis; 2], Fault> {
    if x.rank() < 3 {
        return Err(x.refuse("must have 3 dimensions or more"));
    }
    if kernel.iter().chain(&stride).chain(&dilation).any(|&number| number < 1) {
        return Err(invalid("kernels, strides and dilations must be above 0"));
    }
    let one = |axis: usize| Axis {
        size: x.shape[x.rank() - 2 + axis],
        kernel: kernel[axis] as usize,
        stride: stride[axis] as usize,
        before: padding[axis],
        dilation: dilation[axis] as usize,
    };
    Ok([one(0), one(1)])
}

fn convolution(a: &Arguments) -> Planned {
    let (x, weight, bias, out) =
        (a.tensor("input")?, a.tensor("weight")?, a.optional("bias")?, a.tensor("output")?);
    let precision = Precision::of(a.integer("cubeMathType")?, &[&x, &weight])?;
    let groups = usize::try_from(a.integer("groups")?).ok().filter(|&groups| groups > 0);
    let groups = groups.ok_or_else(|| invalid("groups must be above 0"))?;
    // One axis is two axes, the first of one element.
    let lift = |t: &Operand| {
        let mut t = t.clone();
        if t.rank() == 3 {
            t.tensor.shape.insert(2, 1);
            t.tensor.strides.insert(2, 0);
        }
        t
    };
    if x.rank() != weight.rank() || x.rank() != out.rank() || !(3..=4).contains(&x.rank()) {
        return Err(not_implemented("a convolution over other than one or two axes"));
    }
    let flat = x.rank() == 3;
    let numbers = |name, else_| {
        let given = a.optional_ints(name)?.unwrap_or_default();
        if flat { Ok([else_, given.first().copied().unwrap_or(else_)]) } else { two(Some(given), else_) }
    };
    let (stride, padding, dilation) =
        (numbers("stride", 1)?, numbers("padding", 0)?, numbers("dilation", 1)?);
    let (x, weight, out) = (lift(&x), lift(&weight), lift(&out));
    let transposed = a.flag("transposed")?;
    let kernel_size = [weight.shape[2] as i64, weight.shape[3] as i64];
    // A transposed convolution is walked from its result's side.
    let [rows, columns] = axes(if transposed { &out } else { &x }, kernel_size, stride, padding, dilation)?;
    let (channels, outputs) = (x.shape[1], out.shape[1]);
    let fits = if transposed {
        weight.shape[0] == channels && weight.shape[1] * groups == outputs
    } else {
        weight.shape[0] == outputs && weight.shape[1] * groups == channels
    };
    if !fits || x.shape[0] != out.shape[0] || channels % groups != 0 || outputs % groups != 0 {
        return Err(weight.refuse(format!("does not fit to {:?} in and {:?} out", x.shape, out.shape)));
    }
    kernel_with_workspace(out.len(), move |run| {
        let round = |v: &f32| match precision {
            Precision::Full => *v,
            Precision::Half => f16::from_f32(*v).to_f32(),
            Precision::Hf32 => hf32(*v),
        };
        let values: Vec<f32> = run.floats(&x)?.iter().map(round).collect();
        let weights: Vec<f32> = run.floats(&weight)?.iter().map(round).collect();
        let bias = bias.as_ref().map(|bias| run.floats(bias)).transpose()?;
        let mut sums = vec![0.0f64; out.len()];
        let at = |shape: &[usize], n: usize, c: usize, h: usize, w: usize| {
            ((n * shape[1] + c) * shape[2] + h) * shape[3] + w
        };
        // `near` is walked by windows, `far` lies under them.
        let (near, far) = if transposed { (&x.shape, &out.shape) } else { (&out.shape, &x.shape) };
        let (near_group, far_group) = (near[1] / groups, far[1] / groups);
        for n in 0..near[0] {
            for c in 0..near[1] {
                let first = c / near_group * far_group;
                for h in 0..near[2] {
                    for w in 0..near[3] {
                        let here = at(near, n, c, h, w);
                        for i in 0..rows.kernel {
                            let Some(y) = rows.place(h, i) else { continue };
                            for j in 0..columns.kernel {
                                let Some(z) = columns.place(w, j) else { continue };
                                for k in 0..far_group {
                                    let there = at(far, n, first + k, y, z);
                                    let factor = f64::from(weights[at(&weight.shape, c, k, i, j)]);
                                    if transposed {
                                        sums[there] += f64::from(values[here]) * factor;
                                    } else {
                                        sums[here] += f64::from(values[there]) * factor;
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        if let Some(bias) = &bias {
            let pixels = out.shape[2] * out.shape[3];
            let channel = |place: usize| place / pixels % outputs;
            sums.iter_mut().enumerate().for_each(|(place, sum)| *sum += f64::from(bias[channel(place)]));
        }
        run.store_doubles(&out, &sums)
    })
}

/// How many windows there are along the axes, from the result's shape.
fn windows(out: &Operand, outer: usize) -> Result<[usize; 2], Fault> {
    match out.shape[..] {
        [.., rows, columns] if out.len() == outer * rows * columns => Ok([rows, columns]),
        _ => Err(out.refuse("does not have the image's batch and channels")),
    }
}

fn columns(a: &Arguments) -> Planned {
    let (x, out) = (a.tensor("self_")?, a.tensor("out")?);
    let get = |name, else_| two(a.optional_ints(name)?, else_);
    let [rows, columns] =
        axes(&x, get("kernelSize", 1)?, get("stride", 1)?, get("padding", 0)?, get("dilation", 1)?)?;
    let count = |axis: &Axis| {
        let reach = axis.size as i64 + 2 * axis.before - (axis.dilation * (axis.kernel - 1)) as i64 - 1;
        usize::try_from(reach).map_or(0, |reach| reach / axis.stride + 1)
    };
    let (high, wide) = (count(&rows), count(&columns));
    let outer = x.len() / (rows.size * columns.size).max(1);
    if out.len() != outer * rows.kernel * columns.kernel * high * wide {
        return Err(out.refuse(format!("must hold {high}·{wide} windows for each channel")));
    }
    kernel(move |run| {
        let values = run.floats(&x)?;
        let mut result = Vec::with_capacity(out.len());
        for image in 0..outer {
            for (i, j) in (0..rows.kernel).flat_map(|i| (0..columns.kernel).map(move |j| (i, j))) {
                for (h, w) in (0..high).flat_map(|h| (0..wide).map(move |w| (h, w))) {
                    let place = rows.place(h, i).zip(columns.place(w, j));
                    result
                        .push(place.map_or(0.0, |(y, z)| values[(image * rows.size + y) * columns.size + z]));
                }
            }
        }
        run.store(&out, &result)
    })
}

/// Runs `fold` over the elements under each window, with the number of elements that a full window has.
fn pool(
    x: Operand,
    out: Operand,
    [rows, columns]: [Axis; 2],
    fold: impl Fn(&[f32], usize) -> f32 + Send + Sync + 'static,
) -> Planned {
    let outer = x.len() / (rows.size * columns.size).max(1);
    let [high, wide] = windows(&out, outer)?;
    kernel_with_workspace(out.len(), move |run| {
        let values = run.floats(&x)?;
        let mut result = Vec::with_capacity(out.len());
        for image in 0..outer {
            for (h, w) in (0..high).flat_map(|h| (0..wide).map(move |w| (h, w))) {
                let mut under = Vec::new();
                // The part of the window that lies on the image or its padding counts as full.
                let full = |axis: &Axis, window: usize| {
                    let start = (window * axis.stride) as i64 - axis.before;
                    (start + axis.kernel as i64).min(axis.size as i64 + axis.before) - start
                };
                for i in 0..rows.kernel {
                    for j in 0..columns.kernel {
                        if let Some((y, z)) = rows.place(h, i).zip(columns.place(w, j)) {
                            under.push(values[(image * rows.size + y) * columns.size + z]);
                        }
                    }
                }
                result.push(fold(&under, (full(&rows, h) * full(&columns, w)).max(1) as usize));
            }
        }
        run.store(&out, &result)
    })
}

fn average(a: &Arguments) -> Planned {
    let (x, out) = (a.tensor("self_")?, a.tensor("out")?);
    let size = two(a.optional_ints("kernelSize")?, 1)?;
    let stride = a.optional_ints("strides")?.filter(|strides| !strides.is_empty());
    let stride = stride.map_or(Ok(size), |stride| two(Some(stride), 1))?;
    let axes = axes(&x, size, stride, two(a.optional_ints("paddings")?, 0)?, [1, 1])?;
    let (padding_counts, divisor) = (a.flag("countIncludePad")?, a.integer("divisorOverride")?);
    pool(x, out, axes, move |under, full| {
        let count = if padding_counts { full } else { under.len().max(1) };
        let count = if divisor != 0 { divisor as f64 } else { count as f64 };
        (under.iter().map(|&x| f64::from(x)).sum::<f64>() / count) as f32
    })
}

fn maximum(a: &Arguments) -> Planned {
    if a.integer("autoPad")? != 0 {
        return Err(not_implemented("MaxPool with autoPad"));
    }
    let (x, out) = (a.tensor("self_")?, a.tensor("out")?);
    let get = |name, else_| two(a.optional_ints(name)?, else_);
    let axes = axes(&x, get("kernelShape", 1)?, get("strides", 1)?, get("pads", 0)?, get("dilations", 1)?)?;
    pool(x, out, axes, |under, _| under.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

fn upsample(a: &Arguments) -> Planned {
    let (x, out) = (a.tensor("self_")?, a.tensor("out")?);
    let size = two(Some(a.ints("outputSize")?), 1)?;
    if x.rank() != 4 || out.rank() != 4 {
        return Err(x.refuse("must have 4 dimensions"));
    }
    out.must_have(&[x.shape[0], x.shape[1], size[0].max(0) as usize, size[1].max(0) as usize])?;
    kernel(move |run| {
        let values = run.floats(&x)?;
        let (high, wide) = (out.shape[2], out.shape[3]);
        let value = |place: usize| {
            let (image, h, w) = (place / (high * wide), place / wide % high, place % wide);
            let (y, z) = (h * x.shape[2] / high, w * x.shape[3] / wide);
            values[(image * x.shape[2] + y) * x.shape[3] + z]
        };
        run.store(&out, &(0..out.len()).map(value).collect::<Vec<_>>())
    })
}

fn reflect(a: &Arguments) -> Planned {
    let (x, padding, out) = (a.tensor("self_")?, a.ints("padding")?, a.tensor("out")?);
    let (Some(&width), [before, after]) = (x.shape.last(), &padding[..]) else {
        return Err(invalid("padding must have two numbers"));
    };
    if (*before).max(*after) >= width as i64 || (*before).min(*after) < 0 {
        return Err(invalid(format!("padding {padding:?} must be below the width {width}, and not below 0")));
    }
    let before = *before;
    let wide = width + (before + *after) as usize;
    let mut shape = x.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = wide;
    }
    out.must_have(&shape)?;
    kernel(move |run| {
        let values = run.floats(&x)?;
        let value = |place: usize| {
            let inside = ((place % wide) as i64 - before).abs();
            let mirrored = if inside >= width as i64 { 2 * (width as i64 - 1) - inside } else { inside };
            values[place / wide * width + mirrored as usize]
        };
        run.store(&out, &(0..out.len()).map(value).collect::<Vec<_>>())
    })
}
