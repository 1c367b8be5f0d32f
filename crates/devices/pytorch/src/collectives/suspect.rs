//! Which rank explains what was received wrongly.

use super::{Operation, Wrong};

/// The ranks that could each alone have caused one wrong result.
fn able(operation: Operation, wrong: &Wrong, ranks: usize, seen_by: usize) -> Vec<usize> {
    match (operation, wrong.from) {
        // A block goes from one rank to another: one of the two.
        (Operation::AllGather | Operation::AllToAll | Operation::Broadcast, Some(from)) => {
            // What a rank gives to all and only one receives wrongly, that one did.
            let sent_right_elsewhere = operation != Operation::AllToAll && seen_by == 1 && ranks > 2;
            let mut pair = vec![wrong.rank];
            if from != wrong.rank && !sent_right_elsewhere {
                pair.push(from);
            }
            pair
        }
        // A sum that only one rank has wrongly: that one. Otherwise any rank's share may be it.
        (Operation::AllReduce, _) if seen_by == 1 && ranks > 2 => vec![wrong.rank],
        _ => (0..ranks).collect(),
    }
}

/// The one rank that alone explains every wrong result, where there is exactly one.
pub fn one_that_explains(results: &[(Operation, Vec<Wrong>)], ranks: usize) -> Option<usize> {
    let mut suspects: Vec<usize> = (0..ranks).collect();
    for (operation, wrongs) in results {
        for wrong in wrongs {
            let seen_by = wrongs.iter().filter(|other| other.from == wrong.from).count();
            let able = able(*operation, wrong, ranks, seen_by);
            suspects.retain(|rank| able.contains(rank));
        }
    }
    let any = results.iter().any(|(_, wrongs)| !wrongs.is_empty());
    match suspects.as_slice() {
        [one] if any => Some(*one),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(rank: usize, from: Option<usize>) -> Wrong {
        Wrong { rank, from, element: 0, got: 1.0, want: 0.0, count: 1 }
    }

    #[test]
    fn a_sender_whose_block_is_wrong_everywhere_is_named() {
        let gathered = (0..4).map(|rank| wrong(rank, Some(2))).collect();
        let reduced = (0..4).map(|rank| wrong(rank, None)).collect();
        let results = [(Operation::AllReduce, reduced), (Operation::AllGather, gathered)];
        assert_eq!(one_that_explains(&results, 4), Some(2));
    }

    #[test]
    fn a_receiver_that_alone_is_wrong_is_named() {
        let results = [(Operation::AllReduce, vec![wrong(3, None)])];
        assert_eq!(one_that_explains(&results, 4), Some(3));
        let results = [(Operation::AllGather, vec![wrong(1, Some(0)), wrong(1, Some(2))])];
        assert_eq!(one_that_explains(&results, 4), Some(1));
    }

    #[test]
    fn a_sum_that_is_wrong_everywhere_names_nobody() {
        let results = [(Operation::AllReduce, (0..4).map(|rank| wrong(rank, None)).collect())];
        assert_eq!(one_that_explains(&results, 4), None);
        assert_eq!(one_that_explains(&[], 4), None);
        let two = vec![wrong(0, Some(1)), wrong(2, Some(3))];
        assert_eq!(one_that_explains(&[(Operation::AllToAll, two)], 4), None);
    }
}
