//! Two of three that agree: whether the framework, the vendor's library or the chip differs.

use crate::probe::Outcome;
use crate::row::{Row, Standing};

/// What a row says of who stands alone; none with fewer than three devices, or where nobody does.
pub fn vote(row: &Row, outcomes: &[Option<Outcome>]) -> Option<String> {
    if row.standings.len() < 3 {
        return None;
    }
    let wrong: Vec<&Standing> = row.standings.iter().filter(|standing| standing.is_wrong()).collect();
    let right: Vec<&Standing> = row.standings.iter().filter(|standing| !standing.is_wrong()).collect();
    let names = |list: &[&Standing]| list.iter().map(|s| s.device.as_str()).collect::<Vec<_>>().join(" and ");
    let same = |which: &dyn Fn(&Standing) -> bool| {
        let chosen: Vec<&Outcome> = row
            .standings
            .iter()
            .zip(outcomes)
            .filter(|(s, _)| which(s))
            .filter_map(|(_, o)| o.as_ref())
            .collect();
        chosen.len() > 1 && chosen.windows(2).all(|pair| pair[0].same_bits(pair[1]))
    };
    match (wrong.len(), right.len()) {
        (0, _) => None,
        (1, _) => {
            let how = if same(&|s| !s.is_wrong()) { "to the bit" } else { "within the tolerance" };
            Some(format!("{} stands alone; {} agree {how}", wrong[0].device, names(&right)))
        }
        (_, 1) => {
            let how = if same(&Standing::is_wrong) { "with the same bits" } else { "each in its own way" };
            Some(format!("{} are wrong {how}; {} is right", names(&wrong), right[0].device))
        }
        (_, 0) => Some("every device is outside of the tolerance".into()),
        _ => Some(format!("{} are wrong; {} agree", names(&wrong), names(&right))),
    }
}

/// What the devices between stand for: the same chip by another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Only the subject is wrong, and another way to the same chip is right.
    Subject,
    /// Both ways to the chip are wrong: what they share is the vendor's library or the chip.
    Shared,
    /// Only the other way is wrong.
    Other,
}

/// Who is to blame for a row, where the second device reaches the subject's chip by another way.
pub fn blame(row: &Row) -> Option<Blame> {
    let [subject, other, trusted] = row.standings.as_slice() else { return None };
    match (subject.is_wrong(), other.is_wrong(), trusted.is_wrong()) {
        (true, false, false) => Some(Blame::Subject),
        (true, true, false) => Some(Blame::Shared),
        (false, true, false) => Some(Blame::Other),
        _ => None,
    }
}

/// The verdict on a step in a sentence: `same_hardware` says whether subject and second device run on one chip.
pub fn sentence(subject: &str, other: &str, blame: Blame, same_hardware: bool) -> String {
    match (blame, same_hardware) {
        (Blame::Subject, true) => format!(
            "The chip can do it: {other} is right on the same hardware. What differs is the software of {subject}."
        ),
        (Blame::Subject, false) => format!("{subject} stands alone: its software or its chip."),
        (Blame::Shared, true) => format!(
            "{subject} and {other} are wrong on the same hardware: the vendor's library that both use, or the chip."
        ),
        (Blame::Shared, false) => {
            format!("{subject} and {other} are wrong on different hardware: what they share is software.")
        }
        (Blame::Other, _) => format!("{other} stands alone: the framework, and not {subject}."),
    }
}
