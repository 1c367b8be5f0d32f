//! The inference proof: a prompt through prefill and then token by token through decode with caches, greedily, beside the
//! trusted device and beside the trusted device's own whole window.

use crate::bench::Bench;
use crate::budget::Deadline;
use crate::result::Outcome;
use serde::Serialize;
use std::sync::Arc;
use toprope_program::{
    DType, Device, Fault, MemoryPlan, Range, Role, Session, StateLayout, Validated, Width,
};

/// Writes a model's weights to a session's state.
pub type WriteWeights = dyn Fn(&mut dyn Device, &Session) -> Result<(), Fault>;

/// Where a case's weights are from.
#[derive(Clone)]
pub enum Weights {
    /// Every parameter by name, as stored.
    Stored(Vec<(String, Vec<u8>)>),
    /// Read from somebody's files, once for each device.
    Published(Arc<WriteWeights>),
}

/// The programs of a model's inference, with its weights. They have the same parameters in the same order.
#[derive(Clone)]
pub struct InferenceCase {
    /// What it is, for people.
    pub name: String,
    /// Dtype of its activations.
    pub dtype: DType,
    /// Logits of a prompt, filling caches.
    pub prefill: Arc<Validated>,
    /// Logits of one more token.
    pub decode: Arc<Validated>,
    /// Logits of a whole window, without caches.
    pub whole: Arc<Validated>,
    /// The parameters.
    pub weights: Weights,
    /// What is given.
    pub prompt: Vec<i32>,
    /// Tokens that are made.
    pub tokens: usize,
}

/// What came of an inference case.
#[derive(Clone, Debug, Serialize)]
pub struct InferenceProof {
    /// What it was.
    pub name: String,
    /// Dtype of its activations.
    pub dtype: DType,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The device beside which it ran.
    pub beside: String,
    /// Tokens that were made.
    pub tokens: u64,
    /// Among them, those that are the trusted device's.
    pub agreed: u64,
    /// Among the others, those where the trusted device's first two choices lie closer than logits may.
    pub tied: u64,
    /// The largest distance of a logit from the trusted device's, relative to the largest logit.
    pub distance: f64,
    /// The same of the trusted device's caches from its whole window.
    pub trusted_distance: f64,
    /// What the distance may be.
    pub tolerance: f64,
}

/// How far logits of one window may lie apart, relative to the largest: some hundred roundings of f32, or of bf16 between
/// the operators.
pub fn logit_tolerance(dtype: DType) -> f64 {
    if dtype == DType::Bf16 { 0.04 } else { 1e-4 }
}

/// Runs a case on both devices. Each token is fed to both, so that one other choice does not end the comparison.
pub fn prove(bench: &mut Bench<'_>, case: &InferenceCase, deadline: &Deadline<'_>) -> InferenceProof {
    let mut proof = InferenceProof {
        name: case.name.clone(),
        dtype: case.dtype,
        outcome: Outcome::NotRun("there was no time".into()),
        beside: String::new(),
        tokens: 0,
        agreed: 0,
        tied: 0,
        distance: 0.0,
        trusted_distance: 0.0,
        tolerance: logit_tolerance(case.dtype),
    };
    let Some(trusted) = bench.trusted.as_deref_mut() else {
        proof.outcome = Outcome::NotRun("there is no trusted device to stand beside".into());
        return proof;
    };
    proof.beside = trusted.describe().name;
    for device in [&*trusted, &*bench.device] {
        if let Some(reason) = lacks_memory(device, case) {
            proof.outcome = Outcome::NotRun(reason);
            return proof;
        }
    }
    // The trusted device leads; what it chose is what both go on from.
    let led = lead(trusted, case, deadline);
    let (tokens, theirs, window) = match led {
        Ok(led) => led,
        Err(fault) => {
            proof.outcome = Outcome::NotRun(format!("the trusted device failed: {fault}"));
            return proof;
        }
    };
    proof.trusted_distance = theirs.iter().zip(&window).map(|(a, b)| distance(a, b)).fold(0.0, f64::max);
    let ours = match follow(bench.device.as_mut(), case, &tokens, deadline) {
        Ok(ours) => ours,
        Err(fault) => {
            bench.revive(&fault);
            proof.outcome = Outcome::Failed(fault.to_string());
            return proof;
        }
    };
    for (got, want) in ours.iter().zip(&theirs) {
        proof.tokens += 1;
        let (chosen, wanted) = (greatest(got), greatest(want));
        let apart = distance(got, want);
        proof.distance =
            if apart.is_nan() || proof.distance.is_nan() { f64::NAN } else { proof.distance.max(apart) };
        if chosen == wanted {
            proof.agreed += 1;
            continue;
        }
        let gap = (want[wanted] - want.get(chosen).copied().unwrap_or(f32::NEG_INFINITY)).abs();
        if f64::from(gap) <= 2.0 * proof.tolerance * largest(want) {
            proof.tied += 1;
        }
    }
    let all = case.tokens as u64;
    proof.outcome = if exceeds(proof.distance, proof.tolerance) {
        Outcome::Failed(format!(
            "logits lie {:.2e} of the largest apart, {:.0e} is allowed",
            proof.distance, proof.tolerance
        ))
    } else if proof.agreed + proof.tied < proof.tokens {
        Outcome::Failed(format!(
            "{} of {} tokens are others, with no tie to excuse them",
            proof.tokens - proof.agreed - proof.tied,
            proof.tokens
        ))
    } else if exceeds(proof.trusted_distance, proof.tolerance) {
        Outcome::NotRun(format!(
            "the trusted device's caches lie {:.2e} from its own whole window",
            proof.trusted_distance
        ))
    } else if proof.tokens < all {
        Outcome::NotRun(format!("{} of {all} tokens in the time that there was", proof.tokens))
    } else {
        Outcome::Passed
    };
    proof
}

/// Why a case does not fit a device's memory.
fn lacks_memory(device: &dyn Device, case: &InferenceCase) -> Option<String> {
    let description = device.describe();
    let there = description.memory_bytes?;
    let plan = |program: &Arc<Validated>| MemoryPlan::new(program, Width::Native, StateLayout::InPlace);
    let (prefill, decode, whole) = (plan(&case.prefill), plan(&case.decode), plan(&case.whole));
    let work = prefill.work_bytes.saturating_add(decode.work_bytes).max(whole.work_bytes);
    let needed = prefill.state_bytes.saturating_add(work) as u64;
    (needed > there).then(|| {
        let mib = |bytes: u64| bytes >> 20;
        format!("it needs {} MiB, and {} has {} MiB", mib(needed), description.name, mib(there))
    })
}

/// Rows of logits.
type Rows = Vec<Vec<f32>>;

/// Chooses greedily: the tokens, the logits that each was chosen from, and those of the whole window without caches.
fn lead(
    device: &mut dyn Device,
    case: &InferenceCase,
    deadline: &Deadline<'_>,
) -> Result<(Vec<i32>, Rows, Rows), Fault> {
    let mut all = case.prompt.clone();
    let mut decoding = Decoding::open(device, case)?;
    let mut logits = vec![decoding.prefill(device, &case.prompt)?];
    while logits.len() < case.tokens && !deadline.passed() {
        let token = greatest(&logits[logits.len() - 1]) as i32;
        logits.push(decoding.next(device, token, all.len())?);
        all.push(token);
    }
    let mut session = decoding.weights.open_over(device, case.whole.clone())?;
    let rows = write_window(device, &mut session, &all, 0)?;
    session.run(device, Range::Accumulate)?;
    let whole = session.read_f32(device, "logits")?;
    session.close(device)?;
    decoding.close(device)?;
    let width = whole.len() / rows.max(1);
    let window = whole.chunks_exact(width.max(1)).skip(case.prompt.len() - 1).map(<[f32]>::to_vec).collect();
    Ok((all[case.prompt.len()..].to_vec(), logits, window))
}

/// The logits of the device on tokens that were chosen before.
fn follow(
    device: &mut dyn Device,
    case: &InferenceCase,
    tokens: &[i32],
    deadline: &Deadline<'_>,
) -> Result<Rows, Fault> {
    let mut decoding = Decoding::open(device, case)?;
    let mut logits = vec![decoding.prefill(device, &case.prompt)?];
    for (index, token) in tokens.iter().enumerate() {
        if deadline.passed() {
            break;
        }
        logits.push(decoding.next(device, *token, case.prompt.len() + index)?);
    }
    decoding.close(device)?;
    Ok(logits)
}

/// Prefill and decode on one device over the same weights, the caches handed from the one to the other.
struct Decoding {
    /// Of prefill; it holds the weights.
    weights: Session,
    decode: Session,
    caches: Vec<String>,
}

impl Decoding {
    fn open(device: &mut dyn Device, case: &InferenceCase) -> Result<Decoding, Fault> {
        let weights = Session::open(device, case.prefill.clone(), Width::Native, StateLayout::InPlace)?;
        match &case.weights {
            Weights::Stored(values) => {
                for (name, bytes) in values.iter().filter(|(name, _)| weights.has(name)) {
                    weights.write(device, name, bytes)?;
                }
            }
            Weights::Published(write) => write(device, &weights)?,
        }
        let decode = weights.open_over(device, case.decode.clone())?;
        let cache = case.prefill.program().values.iter().filter(|value| value.role == Role::Cache);
        let caches = cache.map(|value| value.name.clone()).collect();
        Ok(Decoding { weights, decode, caches })
    }

    /// The logits behind the last token of a prompt.
    fn prefill(&mut self, device: &mut dyn Device, prompt: &[i32]) -> Result<Vec<f32>, Fault> {
        let logits = cached(device, &mut self.weights, prompt, 0)?;
        for name in &self.caches {
            let bytes = self.weights.read(device, name)?;
            self.decode.write(device, name, &bytes)?;
        }
        Ok(logits)
    }

    /// The logits behind one more token, which stands at `place`.
    fn next(&mut self, device: &mut dyn Device, token: i32, place: usize) -> Result<Vec<f32>, Fault> {
        cached(device, &mut self.decode, &[token], place)
    }

    fn close(self, device: &mut dyn Device) -> Result<(), Fault> {
        self.decode.close(device)?;
        self.weights.close(device)
    }
}

fn write_window(
    device: &mut dyn Device,
    session: &mut Session,
    tokens: &[i32],
    from: usize,
) -> Result<usize, Fault> {
    let count = tokens.len();
    session.bind(count);
    session.write_i32(device, "tokens", tokens)?;
    session.write_i32(device, "segment_start", &vec![0; count])?;
    let positions: Vec<i32> = (from..from + count).map(|place| place as i32).collect();
    session.write_i32(device, "positions", &positions)?;
    Ok(count)
}

/// The last row's logits of a window behind `from` rows of the caches.
fn cached(
    device: &mut dyn Device,
    session: &mut Session,
    tokens: &[i32],
    from: usize,
) -> Result<Vec<f32>, Fault> {
    let rows = write_window(device, session, tokens, from)?;
    session.write_i32(device, "position", &[from as i32])?;
    session.write_i32(device, "cache_length", &[(from + rows) as i32])?;
    // Some programs give the logits of one row only.
    let one = session.has("row");
    if one {
        session.write_i32(device, "row", &[(rows - 1) as i32])?;
    }
    session.run(device, Range::Accumulate)?;
    let all = session.read_f32(device, "logits")?;
    let width = if one { all.len() } else { all.len() / rows };
    Ok(all[all.len() - width..].to_vec())
}

/// Whether a distance is more than is allowed, or no number.
fn exceeds(distance: f64, allowed: f64) -> bool {
    distance.is_nan() || distance > allowed
}

/// Index of the greatest number, the first of equals; NaN is below all.
fn greatest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, x) in logits.iter().enumerate() {
        if *x > logits[best] || logits[best].is_nan() {
            best = index;
        }
    }
    best
}

fn largest(logits: &[f32]) -> f64 {
    logits.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max)
}

/// The largest distance of two rows, relative to the largest number of the second; NaN where one is.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let mut most = 0.0f64;
    for (got, want) in got.iter().zip(want) {
        let apart = f64::from((got - want).abs());
        if apart.is_nan() {
            return f64::NAN;
        }
        most = most.max(apart);
    }
    most / largest(want).max(f64::MIN_POSITIVE)
}
