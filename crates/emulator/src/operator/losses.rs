//! Losses over classes, and their gradients.

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid, not_implemented};
use crate::operator::run::Run;
use crate::operator::{Planned, kernel_with_workspace, operators};

operators! {
    SoftmaxCrossEntropyWithLogits(features: T, labels: T, loss: To, backprop: To) = with_labels;
    CrossEntropyLoss(
        input: T, target: T, weight: T, reduction: Str, ignoreIndex: i64, labelSmoothing: f64,
        lseSquareScaleForZloss: f64, returnZloss: Flag, loss: To, logProb: To, zloss: To, lseForZloss: To,
    ) = cross_entropy;
    CrossEntropyLossGrad(
        gradLoss: T, logProb: T, target: T, weight: T, gradZloss: T, lseForZloss: T, reduction: Str,
        ignoreIndex: i64, labelSmoothing: f64, lseSquareScaleForZloss: f64, xGrad: To,
    ) = cross_entropy_gradient;
    NLLLoss(
        self_: T, target: T, weight: T, reduction: i64, ignoreIndex: i64, out: To, totalWeightOut: To,
    ) = negative_log_likelihood;
    NLLLossBackward(
        gradOutput: T, self_: T, target: T, weight: T, reduction: i64, ignoreIndex: i64, totalWeight: T,
        out: To,
    ) = negative_log_likelihood_gradient;
}

/// The log-softmax of a row.
fn log_softmax(row: &[f32]) -> Vec<f32> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|&x| (x - most).exp()).sum();
    row.iter().map(|&x| x - most - sum.ln()).collect()
}

fn with_labels(a: &Arguments) -> Planned {
    let (logits, labels) = (a.tensor("features")?, a.tensor("labels")?);
    let (loss, gradient) = (a.tensor("loss")?, a.tensor("backprop")?);
    if logits.rank() != 2 {
        return Err(logits.refuse("must have 2 dimensions"));
    }
    labels.must_have(&logits.shape)?;
    gradient.must_have(&logits.shape)?;
    let width = logits.shape[1].max(1);
    kernel_with_workspace(logits.len(), move |run| {
        let (x, y) = (run.floats(&logits)?, run.floats(&labels)?);
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for (x, y) in x.chunks(width).zip(y.chunks(width)) {
            let log = log_softmax(x);
            losses.push(-log.iter().zip(y).map(|(log, y)| log * y).sum::<f32>());
            gradients.extend(log.iter().zip(y).map(|(log, y)| log.exp() - y));
        }
        run.store(&loss, &losses)?;
        run.store(&gradient, &gradients)
    })
}

/// How losses of rows become one.
#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Mean,
    Sum,
}

impl Reduction {
    fn of(a: &Arguments) -> Result<Reduction, Fault> {
        // A number in NLLLoss, a text in CrossEntropyLoss.
        let number = a.integer("reduction").map(|number| number.to_string());
        match number.or_else(|_| a.text("reduction"))?.as_str() {
            "0" | "none" => Ok(Reduction::None),
            "1" | "mean" => Ok(Reduction::Mean),
            "2" | "sum" => Ok(Reduction::Sum),
            other => Err(invalid(format!("reduction is {other}: none (0), mean (1) or sum (2) is needed"))),
        }
    }
}

/// Targets, class weights and what is left out.
struct Targets {
    target: Operand,
    weight: Option<Operand>,
    ignored: i64,
    classes: usize,
}

impl Targets {
    fn of(a: &Arguments, rows: &Operand) -> Result<Targets, Fault> {
        if rows.rank() != 2 {
            return Err(rows.refuse("must have 2 dimensions"));
        }
        let target = a.tensor("target")?;
        target.must_have(&rows.shape[..1])?;
        target.must_be_integer()?;
        let (weight, classes) = (a.optional("weight")?, rows.shape[1]);
        if let Some(weight) = &weight {
            weight.must_have(&[classes])?;
        }
        Ok(Targets { target, weight, ignored: a.integer("ignoreIndex")?, classes })
    }

    /// For each row its class and weight; none where it is left out.
    fn rows(&self, run: &Run) -> Result<Vec<Option<(usize, f32)>>, Fault> {
        let weights = self.weight.as_ref().map(|weight| run.floats(weight)).transpose()?;
        let row = |&target: &i64| {
            if target == self.ignored {
                return Ok(None);
            }
            let class = usize::try_from(target).ok().filter(|&class| class < self.classes);
            let class = class.ok_or_else(|| {
                let text = format!("target {target} is outside 0..{}", self.classes);
                Fault::new(crate::code::VECTOR_CORE_EXCEPTION, text)
            })?;
            Ok(Some((class, weights.as_ref().map_or(1.0, |weights| weights[class]))))
        };
        run.ints(&self.target)?.iter().map(row).collect()
    }
}

/// Losses of rows, and the weights' sum.
fn losses(rows: &[Option<(usize, f32)>], log: &[f32], classes: usize) -> (Vec<f32>, f32) {
    let loss = |(row, target): (usize, &Option<(usize, f32)>)| {
        target.map_or(0.0, |(class, weight)| -weight * log[row * classes + class])
    };
    (rows.iter().enumerate().map(loss).collect(), rows.iter().flatten().map(|(_, weight)| weight).sum())
}

fn reduce(losses: Vec<f32>, total: f32, reduction: Reduction) -> Vec<f32> {
    match reduction {
        Reduction::None => losses,
        Reduction::Mean => vec![losses.iter().sum::<f32>() / total],
        Reduction::Sum => vec![losses.iter().sum()],
    }
}

fn cross_entropy(a: &Arguments) -> Planned {
    if a.float("labelSmoothing")? != 0.0 || a.flag("returnZloss")? {
        return Err(not_implemented("CrossEntropyLoss with label smoothing or z-loss"));
    }
    let (x, loss, log_out) = (a.tensor("input")?, a.tensor("loss")?, a.tensor("logProb")?);
    let (targets, reduction) = (Targets::of(a, &x)?, Reduction::of(a)?);
    log_out.must_have(&x.shape)?;
    kernel_with_workspace(x.len(), move |run| {
        let classes = targets.classes.max(1);
        let log: Vec<f32> = run.floats(&x)?.chunks(classes).flat_map(log_softmax).collect();
        let (rows, total) = losses(&targets.rows(run)?, &log, classes);
        run.store(&log_out, &log)?;
        run.store(&loss, &reduce(rows, total, reduction))
    })
}

/// d loss / d log-probability of each row's class.
fn factors(
    run: &Run,
    upstream: &Operand,
    rows: &[Option<(usize, f32)>],
    total: f32,
    reduction: Reduction,
) -> Result<Vec<f32>, Fault> {
    let upstream = run.floats(upstream)?;
    let factor = |(row, target): (usize, &Option<(usize, f32)>)| {
        let dy = if reduction == Reduction::None { upstream[row] } else { upstream[0] };
        let dy = if reduction == Reduction::Mean { dy / total } else { dy };
        target.map_or(0.0, |(_, weight)| -dy * weight)
    };
    Ok(rows.iter().enumerate().map(factor).collect())
}

fn check_upstream(upstream: &Operand, rows: usize, reduction: Reduction) -> Result<(), Fault> {
    let count = if reduction == Reduction::None { rows } else { 1 };
    if upstream.len() == count { Ok(()) } else { Err(upstream.refuse(format!("must have {count} elements"))) }
}

fn cross_entropy_gradient(a: &Arguments) -> Planned {
    if a.float("labelSmoothing")? != 0.0 || a.optional("gradZloss")?.is_some() {
        return Err(not_implemented("CrossEntropyLossGrad with label smoothing or z-loss"));
    }
    let (upstream, log, out) = (a.tensor("gradLoss")?, a.tensor("logProb")?, a.tensor("xGrad")?);
    let (targets, reduction) = (Targets::of(a, &log)?, Reduction::of(a)?);
    out.must_have(&log.shape)?;
    check_upstream(&upstream, log.shape[0], reduction)?;
    kernel_with_workspace(log.len(), move |run| {
        let rows = targets.rows(run)?;
        let total = rows.iter().flatten().map(|(_, weight)| weight).sum();
        let factors = factors(run, &upstream, &rows, total, reduction)?;
        let mut gradient: Vec<f32> = Vec::with_capacity(log.len());
        for (row, log) in run.floats(&log)?.chunks(targets.classes.max(1)).enumerate() {
            let class = rows[row].map(|(class, _)| class);
            gradient.extend(log.iter().enumerate().map(|(column, log)| {
                let own = if class == Some(column) { 1.0 } else { 0.0 };
                factors[row] * (own - log.exp())
            }));
        }
        run.store(&out, &gradient)
    })
}

fn negative_log_likelihood(a: &Arguments) -> Planned {
    let (log, out, total_out) = (a.tensor("self_")?, a.tensor("out")?, a.tensor("totalWeightOut")?);
    let (targets, reduction) = (Targets::of(a, &log)?, Reduction::of(a)?);
    kernel_with_workspace(log.len(), move |run| {
        let (rows, total) = losses(&targets.rows(run)?, &run.floats(&log)?, targets.classes.max(1));
        run.store(&out, &reduce(rows, total, reduction))?;
        run.store(&total_out, &vec![total; total_out.len()])
    })
}

fn negative_log_likelihood_gradient(a: &Arguments) -> Planned {
    let (upstream, log, out) = (a.tensor("gradOutput")?, a.tensor("self_")?, a.tensor("out")?);
    let total = a.tensor("totalWeight")?;
    let (targets, reduction) = (Targets::of(a, &log)?, Reduction::of(a)?);
    out.must_have(&log.shape)?;
    check_upstream(&upstream, log.shape[0], reduction)?;
    kernel_with_workspace(log.len(), move |run| {
        let rows = targets.rows(run)?;
        let total = run.floats(&total)?.first().copied().unwrap_or(1.0);
        let factors = factors(run, &upstream, &rows, total, reduction)?;
        let mut gradient = vec![0.0; log.len()];
        for (row, target) in rows.iter().enumerate() {
            if let Some((class, _)) = target {
                gradient[row * targets.classes + class] = factors[row];
            }
        }
        run.store(&out, &gradient)
    })
}
