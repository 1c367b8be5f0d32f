//! Which sizes belong together: the letters of an operator's record, such as the K of a product's two operands.

use crate::probe::Probe;
use std::collections::BTreeMap;
use toprope_program::Operator;

/// A size that an operator's record names.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// The letter, such as `K`.
    pub letter: String,
    /// Its size.
    pub size: usize,
    /// Where it stands.
    places: Vec<Place>,
    /// Whether an output has it; where none does, it is summed over.
    pub in_outputs: bool,
}

/// Where a size stands, as `(times·size + more - less)/over`.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The value's index.
    value: usize,
    axis: usize,
    times: usize,
    more: usize,
    less: usize,
    over: usize,
}

impl Axis {
    /// Maps this size to another, and leaves all others.
    pub fn map(&self, size: usize) -> impl Fn(usize, usize, usize) -> usize + '_ {
        move |value, axis, n| match self.places.iter().find(|p| (p.value, p.axis) == (value, axis)) {
            Some(p) => (size * p.times + p.more).saturating_sub(p.less) / p.over,
            // Shapes among the attributes are known by their number alone.
            None if value == usize::MAX && n == self.size => size,
            None => n,
        }
    }

    /// Whether it is the size of an axis of a value, as it is.
    pub fn stands_alone_at(&self, value: usize, axis: usize) -> bool {
        let plain = |p: &Place| (p.times, p.more, p.less, p.over) == (1, 0, 0, 1);
        self.places.iter().any(|p| (p.value, p.axis) == (value, axis) && plain(p))
    }

    /// Whether an operand has it.
    pub fn in_operand(&self, probe: &Probe, at: usize) -> bool {
        let value = probe.instruction().operands.get(at).map(|operand| operand.value.0 as usize);
        value.is_some_and(|value| self.places.iter().any(|place| place.value == value))
    }
}

/// The axes of a dense probe.
pub(super) fn axes(probe: &Probe) -> Vec<Axis> {
    let (instruction, program) = (probe.instruction(), probe.program().program());
    let record = instruction.operator.definition().record();
    let mut found: BTreeMap<String, Axis> = BTreeMap::new();
    let operands =
        instruction.operands.iter().enumerate().map(|(at, o)| {
            (record.operands[at.min(record.operands.len() - 1)].shape, o.value.0 as usize, false)
        });
    let outputs = instruction
        .outputs
        .iter()
        .enumerate()
        .map(|(at, id)| (record.outputs[at.min(record.outputs.len() - 1)].shape, id.0 as usize, true));
    for (shape, value, output) in operands.chain(outputs) {
        let sizes: Vec<usize> = program.values[value].shape.iter().map(|dim| dim.factor).collect();
        for (axis, (letter, more)) in letters(shape, sizes.len()).into_iter().enumerate() {
            let (times, letter) = multiple(letter);
            let (letter, less, over) = part(letter, &instruction.operator);
            let size = (sizes[axis] * over + less).saturating_sub(more) / times;
            if letter.parse::<usize>().is_ok() {
                continue;
            }
            let entry = found.entry(letter.clone()).or_insert(Axis {
                letter,
                size,
                places: Vec::new(),
                in_outputs: false,
            });
            entry.in_outputs |= output;
            if entry.size == size {
                entry.places.push(Place { value, axis, times, more, less, over });
            }
        }
    }
    let mut list: Vec<Axis> = found.into_values().filter(|axis| !axis.places.is_empty()).collect();
    list.extend(together(&instruction.operator, &list));
    list.sort_by_key(|axis| axis.letter != TOGETHER);
    list
}

/// Queries and keys of one text, which grow together.
const TOGETHER: &str = "T = S";

fn together(operator: &Operator, list: &[Axis]) -> Option<Axis> {
    if !matches!(operator, Operator::Attention(_) | Operator::AttentionGradient(_)) {
        return None;
    }
    let of = |letter: &str| list.iter().find(|axis| axis.letter == letter);
    let (queries, keys) = (of("T")?, of("S")?);
    let places = queries.places.iter().chain(&keys.places).copied().collect();
    (queries.size == keys.size).then(|| Axis { letter: TOGETHER.into(), places, ..queries.clone() })
}

/// What is taken off a letter and what it is divided by: `(D - start)/2` is half of what `start` leaves of D.
fn part(letter: String, operator: &Operator) -> (String, usize, usize) {
    let parts = letter.strip_prefix('(').and_then(|rest| rest.split_once(")/"));
    let Some(((inner, over), fields)) = parts.zip(serde_json::to_value(operator).ok()) else {
        return (letter, 0, 1);
    };
    match (inner.split_once(" - "), over.parse()) {
        (Some((of, attribute)), Ok(over)) if over > 0 => {
            let less = fields.get(attribute.trim()).and_then(serde_json::Value::as_u64).unwrap_or(0);
            (of.trim().to_string(), less as usize, over)
        }
        _ => (letter, 0, 1),
    }
}

/// What a letter is multiplied with: `2F` is twice F.
fn multiple(letter: String) -> (usize, String) {
    let digits = letter.len() - letter.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    match letter[..digits].parse() {
        Ok(times) if times > 0 && digits < letter.len() => (times, letter[digits..].to_string()),
        _ => (1, letter),
    }
}

/// The letter of each axis with what is added to it: `[R.., D]` of three axes is R0, R1, D.
fn letters(shape: &str, rank: usize) -> Vec<(String, usize)> {
    let inner = shape.trim_start_matches('[').trim_end_matches(']');
    let words: Vec<&str> = inner.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let mut list = Vec::new();
    for word in &words {
        let many = if *word == "..." { Some("N") } else { word.strip_suffix("..") };
        if let Some(letter) = many {
            let many = (rank + 1).saturating_sub(words.len());
            list.extend((0..many).map(|i| (format!("{letter}{i}"), 0)));
        } else if let Some((letter, more)) = word.split_once('+') {
            list.push((letter.trim().to_string(), more.trim().parse().unwrap_or(0)));
        } else {
            list.push((word.to_string(), 0));
        }
    }
    list.truncate(rank);
    list
}

#[cfg(test)]
mod tests {
    use super::letters;

    #[test]
    fn letters_are_read_from_a_record() {
        let plain = |list: Vec<(String, usize)>| {
            list.into_iter().map(|(letter, more)| format!("{letter}+{more}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(plain(letters("[M, K]", 2)), "M+0 K+0");
        assert_eq!(plain(letters("[R.., D]", 3)), "R0+0 R1+0 D+0");
        assert_eq!(plain(letters("[R..]", 2)), "R0+0 R1+0");
        assert_eq!(plain(letters("[E+1]", 1)), "E+1");
        assert_eq!(plain(letters("[...]", 2)), "N0+0 N1+0");
    }
}
