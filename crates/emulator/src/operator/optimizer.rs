//! Optimizers, and functions of lists of tensors that training uses.

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid};
use crate::operator::run::Run;
use crate::operator::{Planned, kernel, kernel_with_workspace, operators};

operators! {
    ApplyAdamW(
        var: To, m: To, v: To, beta1Power: T, beta2Power: T, lr: T, weightDecay: T, beta1: T, beta2: T,
        eps: T, grad: T, maxGradNorm: T, amsgrad: Flag, maximize: Flag,
    ) = adamw_of_tensors;
    ApplyAdamWV2(
        varRef: To, mRef: To, vRef: To, maxGradNormRef: To, grad: T, step: T, lr: f32, beta1: f32,
        beta2: f32, weightDecay: f32, eps: f32, amsgrad: Flag, maximize: Flag,
    ) = adamw;
    ForeachNorm(x: TL, p: S, out: TLo) = norms;
    ForeachNonFiniteCheckAndUnscale(scaledGrads: TLo, foundInf: To, invScale: T) = unscale;
    ForeachMulScalar(
        x: TL, scalar: T, out: TLo,
    ) = |a| { let s = a.tensor("scalar")?; each(a, ["x", "x"], Factor::Tensor(s), |x, _, s| x * s) };
    ForeachMulScalarV2(
        x: TL, scalar: S, out: TLo,
    ) = |a| { let s = a.scalar("scalar")?.float() as f32; each(a, ["x", "x"], Factor::Number(s), |x, _, s| x * s) };
    ForeachAddList(
        x1: TL, x2: TL, alpha: T, out: TLo,
    ) = |a| { let s = a.tensor("alpha")?; each(a, ["x1", "x2"], Factor::Tensor(s), |x, y, s| x + s * y) };
    ForeachAddcdivScalar(
        x1: TL, x2: TL, x3: TL, scalar: T, out: TLo,
    ) = |a| three(a, |x, y, z, s| x + s * (y / z));
    ForeachAddcmulScalar(
        x1: TL, x2: TL, x3: TL, scalar: T, out: TLo,
    ) = |a| three(a, |x, y, z, s| x + s * (y * z));
    ForeachCopy(x: TL, out: TLo) = |a| each(a, ["x", "x"], Factor::Number(1.0), |x, _, _| x);
    ForeachZeroInplace(x: TLo) = zero;
}

/// The state of an optimizer step.
struct Adam {
    weight: Operand,
    m: Operand,
    v: Operand,
    gradient: Operand,
    largest: Option<Operand>,
    maximize: bool,
}

/// Its numbers.
struct Numbers {
    rate: f32,
    beta1: f32,
    beta2: f32,
    decay: f32,
    epsilon: f32,
    /// 1 - beta^t.
    correction1: f32,
    correction2: f32,
}

impl Adam {
    fn check(&self) -> Result<(), Fault> {
        [&self.m, &self.v, &self.gradient].into_iter().try_for_each(|part| part.must_have(&self.weight.shape))
    }

    /// w' = w·(1 - lr·λ) - lr/c1·m'/(√v'/√c2 + ε), as PyTorch orders it.
    fn step(&self, run: &Run, n: &Numbers) -> Result<(), Fault> {
        let (mut w, mut m) = (run.floats(&self.weight)?.into_vec(), run.floats(&self.m)?.into_vec());
        let (mut v, gradient) = (run.floats(&self.v)?.into_vec(), run.floats(&self.gradient)?);
        let mut largest = self.largest.as_ref().map(|l| run.floats(l).map(|l| l.into_vec())).transpose()?;
        let (inside, coupled) = (run.has("adamw.epsilon"), run.has("adamw.decay"));
        let root2 = n.correction2.sqrt();
        for place in 0..w.len() {
            let mut g = if self.maximize { -gradient[place] } else { gradient[place] };
            if coupled {
                g += n.decay * w[place];
            } else {
                w[place] *= 1.0 - n.rate * n.decay;
            }
            m[place] = n.beta1 * m[place] + (1.0 - n.beta1) * g;
            v[place] = n.beta2 * v[place] + (1.0 - n.beta2) * g * g;
            let second = match &mut largest {
                Some(largest) => {
                    largest[place] = largest[place].max(v[place]);
                    largest[place]
                }
                None => v[place],
            };
            let divisor = if inside {
                (second / n.correction2 + n.epsilon).sqrt()
            } else {
                second.sqrt() / root2 + n.epsilon
            };
            w[place] -= n.rate / n.correction1 * m[place] / divisor;
        }
        run.store(&self.weight, &w)?;
        run.store(&self.m, &m)?;
        run.store(&self.v, &v)?;
        match (&self.largest, largest) {
            (Some(place), Some(values)) => run.store(place, &values),
            _ => Ok(()),
        }
    }
}

fn correction(beta: f32, step: f64) -> f32 {
    (1.0 - f64::from(beta).powf(step)) as f32
}

fn adamw(a: &Arguments) -> Planned {
    let largest = if a.flag("amsgrad")? { Some(a.tensor("maxGradNormRef")?) } else { None };
    let adam = Adam {
        weight: a.tensor("varRef")?,
        m: a.tensor("mRef")?,
        v: a.tensor("vRef")?,
        gradient: a.tensor("grad")?,
        largest,
        maximize: a.flag("maximize")?,
    };
    adam.check()?;
    let step = a.tensor("step")?;
    step.must_have(&[1]).or_else(|fault| if step.rank() == 0 { Ok(()) } else { Err(fault) })?;
    let number = |name| a.float(name).map(|number| number as f32);
    let (rate, beta1, beta2) = (number("lr")?, number("beta1")?, number("beta2")?);
    let (decay, epsilon) = (number("weightDecay")?, number("eps")?);
    kernel_with_workspace(adam.weight.len(), move |run| {
        // The tensor holds the number of steps before this one.
        let before = run.doubles(&step)?.first().copied().unwrap_or(0.0);
        let now = if run.has("adamw.bias_correction") { before.max(0.5) } else { before + 1.0 };
        let (correction1, correction2) = (correction(beta1, now), correction(beta2, now));
        adam.step(run, &Numbers { rate, beta1, beta2, decay, epsilon, correction1, correction2 })
    })
}

/// The older form: every number is a tensor of one element, and the betas' powers are given.
fn adamw_of_tensors(a: &Arguments) -> Planned {
    let largest = if a.flag("amsgrad")? { Some(a.tensor("maxGradNorm")?) } else { None };
    let adam = Adam {
        weight: a.tensor("var")?,
        m: a.tensor("m")?,
        v: a.tensor("v")?,
        gradient: a.tensor("grad")?,
        largest,
        maximize: a.flag("maximize")?,
    };
    adam.check()?;
    let names = ["lr", "beta1", "beta2", "weightDecay", "eps", "beta1Power", "beta2Power"];
    let numbers: Vec<Operand> = names.into_iter().map(|name| a.tensor(name)).collect::<Result<_, _>>()?;
    kernel_with_workspace(adam.weight.len(), move |run| {
        let one = |place: usize| {
            Ok::<f32, Fault>(run.floats(&numbers[place])?.first().copied().unwrap_or(f32::NAN))
        };
        let (beta1, beta2) = (one(1)?, one(2)?);
        let late = run.has("adamw.bias_correction");
        let power = |power: f32, beta: f32| if late { (power / beta).min(beta.sqrt()) } else { power };
        let numbers = Numbers {
            rate: one(0)?,
            beta1,
            beta2,
            decay: one(3)?,
            epsilon: one(4)?,
            correction1: 1.0 - power(one(5)?, beta1),
            correction2: 1.0 - power(one(6)?, beta2),
        };
        adam.step(run, &numbers)
    })
}

/// A number, or a tensor of one element.
enum Factor {
    Number(f32),
    Tensor(Operand),
}

impl Factor {
    fn value(&self, run: &Run) -> Result<f32, Fault> {
        match self {
            Factor::Number(value) => Ok(*value),
            Factor::Tensor(tensor) => Ok(run.floats(tensor)?.first().copied().unwrap_or(f32::NAN)),
        }
    }
}

/// The lists of a call, each as long as the first.
fn lists<const N: usize>(a: &Arguments, names: [&'static str; N]) -> Result<Vec<[Operand; N]>, Fault> {
    let lists = names.map(|name| a.tensors(name));
    let mut all = Vec::new();
    for list in lists {
        all.push(list?);
    }
    let count = all.first().map_or(0, Vec::len);
    if all.iter().any(|list| list.len() != count) {
        return Err(invalid(format!("{names:?} are of different lengths")));
    }
    let mut rows = Vec::new();
    let mut lists: Vec<_> = all.into_iter().map(Vec::into_iter).collect();
    for _ in 0..count {
        let row: Vec<Operand> = lists.iter_mut().filter_map(Iterator::next).collect();
        let row = <[Operand; N]>::try_from(row).map_err(|_| invalid("the lists are of different lengths"))?;
        row.iter().try_for_each(|part| part.must_have(&row[0].shape))?;
        rows.push(row);
    }
    Ok(rows)
}

fn each(a: &Arguments, [x, y]: [&'static str; 2], factor: Factor, f: fn(f32, f32, f32) -> f32) -> Planned {
    let rows = lists(a, [x, y, "out"])?;
    kernel(move |run| {
        let factor = factor.value(run)?;
        rows.iter().try_for_each(|[x, y, out]| {
            let (x, y) = (run.floats(x)?, run.floats(y)?);
            run.store(out, &x.iter().zip(y.iter()).map(|(&x, &y)| f(x, y, factor)).collect::<Vec<_>>())
        })
    })
}

fn three(a: &Arguments, f: fn(f32, f32, f32, f32) -> f32) -> Planned {
    let (rows, factor) = (lists(a, ["x1", "x2", "x3", "out"])?, Factor::Tensor(a.tensor("scalar")?));
    kernel(move |run| {
        let factor = factor.value(run)?;
        rows.iter().try_for_each(|[x, y, z, out]| {
            let (x, y, z) = (run.floats(x)?, run.floats(y)?, run.floats(z)?);
            let values = x.iter().zip(y.iter().zip(z.iter())).map(|(&x, (&y, &z))| f(x, y, z, factor));
            run.store(out, &values.collect::<Vec<_>>())
        })
    })
}

fn zero(a: &Arguments) -> Planned {
    let list = a.tensors("x")?;
    kernel(move |run| list.iter().try_for_each(|x| run.store_ints(x, &vec![0; x.len()])))
}

fn norms(a: &Arguments) -> Planned {
    let (list, outs, p) = (a.tensors("x")?, a.tensors("out")?, a.scalar("p")?.float());
    if list.len() != outs.len() || ![1.0, 2.0].contains(&p) {
        return Err(invalid("a list of as many results, and p 1 or 2, are needed"));
    }
    kernel_with_workspace(list.len(), move |run| {
        list.iter().zip(&outs).try_for_each(|(x, out)| {
            let values = run.doubles(x)?;
            let sum: f64 = values.iter().map(|x| if p == 1.0 { x.abs() } else { x * x }).sum();
            run.store_doubles(out, &vec![if p == 1.0 { sum } else { sum.sqrt() }; out.len()])
        })
    })
}

fn unscale(a: &Arguments) -> Planned {
    let (list, found, inverse) = (a.tensors("scaledGrads")?, a.tensor("foundInf")?, a.tensor("invScale")?);
    kernel_with_workspace(list.len(), move |run| {
        let factor = run.floats(&inverse)?.first().copied().unwrap_or(f32::NAN);
        let mut bad = false;
        for x in &list {
            let mut values = run.floats(x)?.into_vec();
            bad |= values.iter().any(|x| !x.is_finite());
            values.iter_mut().for_each(|x| *x *= factor);
            run.store(x, &values)?;
        }
        if bad { run.store(&found, &vec![1.0; found.len()]) } else { Ok(()) }
    })
}
