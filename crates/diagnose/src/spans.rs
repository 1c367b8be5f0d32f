//! The same step on one device twice: one operator at a time, and several in one span. A device whose bits repeat gives the
//! same bits both ways; one that does not has an operator that reads what another has not finished, or that runs otherwise
//! behind another. Lockstep, which runs each operator alone, cannot see that.

use crate::free::{FreeError, Runner};
use crate::guess::{Experiment, Guess, Kind};
use crate::lockstep::shape_of;
use crate::row::{Outcome, Place, Row, Standing, coordinates};
use crate::step::{StepError, StepValues};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use toprope_program::shape::sizes;
use toprope_program::{Device, Program, Range, Role, Span, Tensor, Validated, ValueId, Width};

/// What came of it.
#[derive(Clone, Debug)]
pub enum Spans {
    /// So many results have the same bits both ways.
    Same(u64),
    /// The first instruction that has not, with what is known of it.
    Differs(Box<(Row, Guess)>),
    /// It was not tried, and why.
    NotRun(String),
}

/// How a range is cut into spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// One instruction each.
    Single,
    /// Two each, from this one on.
    Pairs(usize),
    /// All of it in one.
    Whole,
}

impl Cut {
    fn told(self) -> &'static str {
        match self {
            Cut::Single => "one operator at a time",
            Cut::Pairs(_) => "two operators in one span",
            Cut::Whole => "the whole range in one span",
        }
    }

    fn spans(self, range: Range, count: usize) -> Vec<Span> {
        let span = |from: usize, to: usize| Span { range, from, to: to.min(count) };
        let spans = match self {
            Cut::Single => (0..count).map(|from| span(from, from + 1)).collect(),
            Cut::Pairs(start) => {
                let mut spans = vec![span(0, start)];
                spans.extend((start..count).step_by(2).map(|from| span(from, from + 2)));
                spans
            }
            Cut::Whole => vec![span(0, count)],
        };
        spans.into_iter().filter(|span: &Span| span.from < span.to).collect()
    }
}

/// A result of a step: micro-batch, range, instruction and value.
type At = (usize, Range, usize, ValueId);

/// Runs a step on a device in several cuts from the same state and batch, and compares the bits.
///
/// # Errors
/// The device fails, or the values do not fit the program.
pub fn spans(
    device: &mut dyn Device,
    name: &str,
    program: &Arc<Validated>,
    step: &StepValues,
) -> Result<Spans, FreeError> {
    if !device.describe().deterministic {
        return Ok(Spans::NotRun(format!("{name} does not say that its bits repeat")));
    }
    let single = bits(device, program, step, Cut::Single)?;
    let mut compared = 0;
    let mut first: Option<(At, Cut)> = None;
    for cut in [Cut::Pairs(0), Cut::Pairs(1), Cut::Whole] {
        let other = bits(device, program, step, cut)?;
        let mut known = single.iter();
        for (at, bits) in other {
            // The other cut tells of the same results in the same order, or of some of them.
            let Some((_, want)) = known.by_ref().find(|(place, _)| *place == at) else { break };
            compared += 1;
            let is_first = first.is_none_or(|(held, _)| order(at) < order(held));
            if bits != *want && is_first {
                first = Some((at, cut));
            }
        }
    }
    let Some((at, cut)) = first else { return Ok(Spans::Same(compared)) };
    if bits(device, program, step, Cut::Single)? != single {
        return Ok(Spans::NotRun("its bits differ from run to run already, one operator at a time".into()));
    }
    let alone = value(device, program, step, Cut::Single, at)?;
    let together = value(device, program, step, cut, at)?;
    Ok(Spans::Differs(Box::new(told(name, program, step, (at, cut), &alone, &together))))
}

fn order((micro, range, index, value): At) -> (bool, usize, usize, u32) {
    (range == Range::Update, micro, index, value.0)
}

/// What hears of a result: where it stands, and its bytes.
type Hears<'a> = &'a mut dyn FnMut(At, Vec<u8>);

/// Runs the step and tells of each result that is asked for behind its span.
fn run(
    device: &mut dyn Device,
    program: &Arc<Validated>,
    step: &StepValues,
    cut: Cut,
    hear: Hears<'_>,
) -> Result<(), FreeError> {
    step.micro.first().ok_or(StepError::Empty)?;
    step.before(program.program())?;
    let mut runner = Runner::open(device, program, step).map_err(FreeError::Subject)?;
    let mut parts: Vec<(Range, usize)> =
        (0..step.micro.len()).map(|micro| (Range::Accumulate, micro)).collect();
    parts.push((Range::Update, step.micro.len() - 1));
    for (range, micro) in parts {
        if range == Range::Accumulate {
            runner.feed(device, step, micro).map_err(FreeError::Subject)?;
        }
        let symbols = &step.micro[micro].symbols;
        for span in cut.spans(range, program.program().range(range).len()) {
            runner.run(device, span).map_err(FreeError::Subject)?;
            for (index, id) in asked_for(program.program(), span) {
                let bytes = runner.bytes(device, id, symbols).map_err(FreeError::Subject)?;
                if let Some(bytes) = bytes {
                    hear((micro, range, index, id), bytes);
                }
            }
        }
    }
    runner.close(device).map_err(FreeError::Subject)
}

/// The results of a span that are asked for behind it, in order: a device need not store what nobody reads any more.
fn asked_for(program: &Program, span: Span) -> Vec<(usize, ValueId)> {
    let instructions = program.range(span.range);
    let (within, behind) = (&instructions[span.from..span.to], &instructions[span.to..]);
    let read = |id: ValueId| behind.iter().any(|i| i.operands.iter().any(|operand| operand.value == id));
    let mut written: Vec<ValueId> = Vec::new();
    let mut found = Vec::new();
    for (index, instruction) in within.iter().enumerate().rev() {
        for id in instruction.outputs.iter().rev() {
            let stays = match program.value(*id).role {
                Role::Scratch => read(*id),
                _ => true,
            };
            // Written in place again: it is the later instruction's.
            if stays && !written.contains(id) {
                found.push((span.from + index, *id));
            }
            written.push(*id);
        }
    }
    found.reverse();
    found
}

/// A digest of each result's bits.
fn bits(
    device: &mut dyn Device,
    program: &Arc<Validated>,
    step: &StepValues,
    cut: Cut,
) -> Result<Vec<(At, u64)>, FreeError> {
    let mut found = Vec::new();
    run(device, program, step, cut, &mut |at, bytes| {
        // Its keys are fixed: the same bytes give the same digest everywhere.
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        found.push((at, hasher.finish()));
    })?;
    Ok(found)
}

/// One result's numbers.
fn value(
    device: &mut dyn Device,
    program: &Arc<Validated>,
    step: &StepValues,
    cut: Cut,
    wanted: At,
) -> Result<Tensor, FreeError> {
    let value = program.program().value(wanted.3);
    let sizes = sizes(&value.shape, &step.micro[wanted.0].symbols);
    let mut found = Tensor { dtype: value.dtype, sizes: sizes.clone(), data: Vec::new() };
    run(device, program, step, cut, &mut |at, bytes| {
        if at == wanted {
            found = Tensor::from_bytes(value.dtype, &sizes, Width::Native, &bytes).unwrap_or(found.clone());
        }
    })?;
    Ok(found)
}

fn told(
    name: &str,
    program: &Arc<Validated>,
    step: &StepValues,
    ((micro_batch, range, index, id), cut): (At, Cut),
    alone: &Tensor,
    together: &Tensor,
) -> (Row, Guess) {
    let plain = program.program();
    let instruction = &plain.range(range)[index];
    let output = plain.value(id);
    let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    let pairs = alone.data.iter().copied().zip(together.data.iter().copied()).enumerate();
    let differing: Vec<(usize, f64, f64)> =
        pairs.filter(|(_, (a, b))| !same(*a, *b)).map(|(at, (a, b))| (at, a, b)).collect();
    let furthest = |x: &(usize, f64, f64)| if (x.1 - x.2).is_nan() { f64::MAX } else { (x.1 - x.2).abs() };
    let worst = differing.iter().max_by(|x, y| furthest(x).total_cmp(&furthest(y)));
    let finding = format!(
        "{} of {} elements of {} have other bits with {} than with {}",
        differing.len(),
        alone.data.len(),
        output.name,
        cut.told(),
        Cut::Single.told()
    );
    let place = worst.map(|(at, alone, together)| Place {
        output: output.name.clone(),
        index: coordinates(*at, &sizes(&output.shape, &step.micro[micro_batch].symbols)),
        got: format!("{together:e}"),
        want: format!("{alone:e}"),
        error: Some((together - alone).abs()).filter(|error| error.is_finite()),
        // The same bits are asked for.
        tolerance: None,
    });
    let subject =
        Standing { runs: 1, wrong_runs: 1, ..Standing::fault(name, Outcome::Differ, finding.clone()) };
    let row = Row {
        micro_batch,
        range,
        index,
        operator: instruction.operator.name().into(),
        layer: instruction.part.clone(),
        shape: shape_of(plain, instruction, &step.micro[micro_batch].symbols),
        standings: vec![subject],
        worst: place,
        wrong_share: differing.len() as f64 / alone.data.len().max(1) as f64,
        sampled: None,
        vote: None,
    };
    let experiment = |ran: String, showed: String| Experiment { ran, showed };
    let guess = Guess {
        kind: Kind::DiffersInRange,
        sentence: "It gives other bits in one span with others than alone: it does not wait for what it reads, or another kernel runs there.".into(),
        experiments: vec![
            experiment("each operator alone on the trusted device's operands".into(), "agrees".into()),
            experiment("the step again, one operator at a time".into(), "the same bits".into()),
            experiment(format!("the step again, {}", cut.told()), finding),
        ],
    };
    (row, guess)
}
