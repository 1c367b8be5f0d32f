//! Sister dies side by side: the same programs on each, bits compared, and the one that stands alone named.

use crate::budget::Deadline;
use crate::cases::QualifyError;
use crate::sisters::Pace;
use serde::Serialize;
use toprope_conformance::generate::cases::{Case, case};
use toprope_conformance::generate::exemplars::exemplars;
use toprope_conformance::lockstep::{Lockstep, Obstacle};
use toprope_conformance::replay::{Manner, compare_bits, free_run};
use toprope_conformance::session::{Image, Session, all_checks};
use toprope_conformance::values::{Regime, draw};
use toprope_conformance::{Oracle, Verdict};
use toprope_program::{Device, Fault, FaultKind, Range, Width};

/// A die under its name.
pub struct Die {
    /// The name that opens it.
    pub name: String,
    /// The die.
    pub device: Box<dyn Device>,
}

impl std::fmt::Debug for Die {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Die").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a die stands among its sisters.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Standing {
    /// The name that opens it.
    pub name: String,
    /// Programs in which its bits are the majority's.
    pub agreed: u64,
    /// Programs in which they are not, though a majority of its sisters agree.
    pub alone: u64,
    /// Programs among them in which the oracle finds it outside of the bound.
    pub outside: u64,
    /// Programs that it failed in.
    pub faults: u64,
    /// The first thing that speaks against it.
    pub finding: Option<String>,
    /// The operators that it stands alone in.
    pub operators: Vec<String>,
}

/// What a vote came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Vote {
    /// Programs that were put to all dies.
    pub programs: u64,
    /// Programs in which no majority agreed.
    pub undecided: u64,
    /// The dies, in the order in which they were named.
    pub dies: Vec<Standing>,
    /// How fast each is among its sisters, in the same order; empty where that was not measured.
    pub paces: Vec<Pace>,
}

impl Vote {
    /// The dies that speak against themselves.
    pub fn bad(&self) -> Vec<&Standing> {
        self.dies.iter().filter(|die| die.alone > 0 || die.outside > 0 || die.faults > 0).collect()
    }

    /// The dies that are slower than their sisters.
    pub fn slow(&self) -> Vec<&Pace> {
        self.paces.iter().filter(|pace| pace.slow.is_some()).collect()
    }

    /// The vote in a sentence.
    pub fn told(&self) -> String {
        let bad = self.bad();
        let count = self.dies.len();
        match bad.as_slice() {
            [] if self.undecided > 0 => format!(
                "no majority in {} of {} programs: the dies' bits differ among each other",
                self.undecided, self.programs
            ),
            [] => format!("{count} dies agree to the bit in {} programs", self.programs),
            [one] => {
                format!("{} is the bad one of {count}: {}", one.name, one.finding.clone().unwrap_or_default())
            }
            many => {
                let names: Vec<&str> = many.iter().map(|die| die.name.as_str()).collect();
                format!("{} of {count} dies stand apart: {}", many.len(), names.join(", "))
            }
        }
    }
}

/// Puts the contract's cases to all dies until the deadline, at most `rounds` of each operator. The oracle speaks where bits
/// differ: a die inside of its bound may add in another order, and stands alone all the same.
pub fn vote(
    dies: &mut [Die],
    oracle: &mut Oracle,
    seed: u64,
    rounds: u64,
    deadline: &Deadline<'_>,
) -> Result<Vote, QualifyError> {
    let standing = |die: &Die| Standing { name: die.name.clone(), ..Standing::default() };
    let mut vote = Vote { dies: dies.iter().map(standing).collect(), ..Vote::default() };
    for round in 0..rounds {
        for operator in exemplars() {
            if round > 0 && deadline.passed() {
                return Ok(vote);
            }
            let case = case(&operator, seed, round)?;
            one(dies, oracle, &case, operator.name(), &mut vote)?;
        }
    }
    Ok(vote)
}

fn one(
    dies: &mut [Die],
    oracle: &mut Oracle,
    case: &Case,
    operator: &'static str,
    vote: &mut Vote,
) -> Result<(), QualifyError> {
    let regime = Regime::ALL[case.seed as usize % Regime::ALL.len()];
    let values = draw(case.program.program(), &case.symbols, case.seed, regime);
    let mut images: Vec<Option<(Session, Image)>> = Vec::new();
    for (die, standing) in dies.iter_mut().zip(&mut vote.dies) {
        let device = die.device.as_mut();
        let ran = Session::open(device, &case.program, Width::Native).and_then(|session| {
            let checks = all_checks(case.program.program());
            let image = free_run(device, &session, &values, &case.symbols, Manner::Whole, &checks)?;
            Ok((session, image))
        });
        match ran {
            Ok(ran) => images.push(Some(ran)),
            Err(Fault { kind: FaultKind::Unsupported { .. }, .. }) => images.push(None),
            Err(fault) => {
                standing.faults += 1;
                standing.finding.get_or_insert(format!("{}: {fault}", case.name));
                images.push(None);
            }
        }
    }
    vote.programs += 1;
    let same = |a: usize, b: usize| match (&images[a], &images[b]) {
        (Some((session, left)), Some((_, right))) => {
            compare_bits(session, &case.symbols, left, right, false).is_none()
        }
        _ => false,
    };
    let present: Vec<usize> = (0..images.len()).filter(|index| images[*index].is_some()).collect();
    // The first die that more than half agree with.
    let majority = present
        .iter()
        .find(|leader| present.iter().filter(|other| same(**leader, **other)).count() * 2 > present.len())
        .copied();
    let mut alone = Vec::new();
    match majority {
        None if present.len() > 1 => {
            vote.undecided += 1;
            alone.clone_from(&present);
        }
        None => {}
        Some(leader) => {
            for index in &present {
                if same(leader, *index) {
                    vote.dies[*index].agreed += 1;
                } else {
                    vote.dies[*index].alone += 1;
                    alone.push(*index);
                    let (Some((session, left)), Some((_, right))) = (&images[leader], &images[*index]) else {
                        continue;
                    };
                    if let Some(d) = compare_bits(session, &case.symbols, left, right, false) {
                        let standing = &mut vote.dies[*index];
                        let finding =
                            format!("{}: `{}` %{} differs from the others'", case.name, d.operator, d.value);
                        standing.finding.get_or_insert(finding);
                        if !standing.operators.iter().any(|name| name == d.operator) {
                            standing.operators.push(d.operator.to_string());
                        }
                    }
                }
            }
        }
    }
    for (image, die) in images.into_iter().zip(dies.iter_mut()) {
        if let Some((session, _)) = image {
            // A die that cannot give memory back says so in its next program.
            let _ = session.close(die.device.as_mut());
        }
    }
    for index in alone {
        let found = outside(dies[index].device.as_mut(), oracle, case, values.clone())?;
        if let Some(finding) = found {
            let standing = &mut vote.dies[index];
            standing.outside += 1;
            standing.finding = Some(format!("`{operator}` in {}: {finding}", case.name));
        }
    }
    Ok(())
}

/// What the oracle finds outside of its bound.
fn outside(
    device: &mut dyn Device,
    oracle: &mut Oracle,
    case: &Case,
    values: toprope_conformance::values::Values,
) -> Result<Option<String>, QualifyError> {
    let mut judged = || -> Result<Option<String>, Obstacle> {
        let mut lockstep = Lockstep::open(device, oracle, &case.program, &case.symbols, values.clone())?;
        let steps = lockstep.range(device, oracle, Range::Accumulate, true)?;
        lockstep.close(device, oracle)?;
        Ok(steps.into_iter().find_map(|step| match step.judgement.verdict {
            Verdict::Differ(finding) => Some(finding),
            Verdict::Agree | Verdict::Incomparable(_) => None,
        }))
    };
    match judged() {
        Ok(finding) => Ok(finding),
        Err(Obstacle::Oracle(fault)) => Err(QualifyError::Oracle(fault)),
        Err(obstacle) => Ok(Some(obstacle.to_string())),
    }
}
