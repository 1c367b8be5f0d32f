//! Reads the language of `--faults`. Errors name the column, what was expected and the nearest word.

use super::spec::*;
use toprope_program::{OPERATORS, Range};

/// A schedule that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "faults, line {line}, column {column}: found {found}, expected {expected}{}; docs/faults.md has the language",
    nearest.as_ref().map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default()
)]
pub struct SpecError {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The word that stands there.
    pub found: String,
    /// What could stand there.
    pub expected: String,
    /// The most similar word that could.
    pub nearest: Option<String>,
}

#[derive(Clone, Debug)]
struct Token<'a> {
    text: &'a str,
    line: usize,
    column: usize,
}

/// Reads a schedule: clauses separated by `;` or line ends; `#` begins a comment.
///
/// # Errors
/// The first word that does not fit, with its place.
pub fn parse(text: &str) -> Result<Schedule, SpecError> {
    let tokens = tokens(text);
    let end = Token { text: "", line: text.lines().count().max(1), column: last_column(text) };
    let mut reader = Reader { tokens: &tokens, at: 0, end };
    let mut entries = Vec::new();
    loop {
        while reader.take(";") {}
        if reader.peek().is_none() {
            return Ok(Schedule { entries });
        }
        entries.push(reader.entry()?);
        if reader.peek().is_some() && !reader.take(";") {
            return Err(reader.error("the end of the clause (`;` or a new line)", &[]));
        }
    }
}

fn last_column(text: &str) -> usize {
    text.lines().last().map_or(1, |line| line.chars().count() + 1)
}

/// Words, with `:`, `;`, `(` and `)` on their own and each line's end as a `;`.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split('#').next().unwrap_or(line);
        let mut start = None;
        let mut column = 0;
        let mut begin = 0;
        for (at, c) in code.char_indices() {
            column += 1;
            let names_a_device = tokens.last().is_some_and(|token: &Token<'_>| token.text == "device");
            let inside = c == ':' && names_a_device && is_inside_a_name(code, at);
            let alone = matches!(c, ';' | '(' | ')') || (c == ':' && !inside);
            if c.is_whitespace() || alone {
                if let Some(from) = start.take() {
                    tokens.push(Token { text: &code[from..at], line: number + 1, column: begin });
                }
                if alone {
                    tokens.push(Token { text: &code[at..at + 1], line: number + 1, column });
                }
            } else if start.is_none() {
                (start, begin) = (Some(at), column);
            }
        }
        if let Some(from) = start {
            tokens.push(Token { text: &code[from..], line: number + 1, column: begin });
        }
        tokens.push(Token { text: ";", line: number + 1, column: column + 1 });
    }
    tokens
}

/// Whether a colon belongs to a device's name, as in `cuda:0`.
fn is_inside_a_name(code: &str, at: usize) -> bool {
    let before = code[..at].chars().next_back().is_some_and(|c| c.is_ascii_alphabetic());
    before && code[at + 1..].chars().next().is_some_and(|c| c.is_ascii_alphanumeric())
}

struct Reader<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    end: Token<'a>,
}

const WHAT: &[&str] = &[
    "die",
    "hang",
    "driver",
    "out_of_memory",
    "unsupported",
    "slow",
    "flip",
    "wrong_carry",
    "missing_carry",
    "compound",
    "zero_tile",
    "stuck_lane",
    "nan",
    "inf",
    "tear",
    "disk",
    "kill",
];

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).map(|token| token.text)
    }

    fn take(&mut self, word: &str) -> bool {
        let there = self.peek() == Some(word);
        self.at += usize::from(there);
        there
    }

    fn error(&self, expected: impl Into<String>, words: &[&str]) -> SpecError {
        let token = self.tokens.get(self.at).unwrap_or(&self.end);
        let found = match token.text {
            "" => "the end".to_string(),
            ";" => "the end of the clause".to_string(),
            text => format!("`{text}`"),
        };
        let distance = |word: &&&str| strsim::damerau_levenshtein(word, &token.text.to_lowercase());
        let nearest =
            words.iter().min_by_key(distance).filter(|word| distance(word) <= (word.len() / 3).max(1));
        let nearest = nearest.filter(|_| token.text.len() > 1).map(|word| (*word).to_string());
        SpecError { line: token.line, column: token.column, found, expected: expected.into(), nearest }
    }

    fn one_of(&self, words: &[&str]) -> SpecError {
        let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
        let expected = match quoted.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        };
        self.error(expected, words)
    }

    fn need(&mut self, word: &str) -> Result<(), SpecError> {
        if self.take(word) { Ok(()) } else { Err(self.one_of(&[word])) }
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, SpecError> {
        match self.peek().and_then(|text| text.replace('_', "").parse().ok()) {
            Some(number) => {
                self.at += 1;
                Ok(number)
            }
            None => Err(self.error(what, &[])),
        }
    }

    fn word(&mut self, what: &str) -> Result<&'a str, SpecError> {
        match self.peek() {
            Some(text) if !matches!(text, ";" | ":" | "(" | ")") => {
                self.at += 1;
                Ok(text)
            }
            _ => Err(self.error(what, &[])),
        }
    }

    fn entry(&mut self) -> Result<Entry, SpecError> {
        if self.take("random") {
            return self.random().map(Entry::Random);
        }
        if !self.take("step") {
            return Err(self.one_of(&["step", "random"]));
        }
        let step = self.number("the step's number, counted from 0")?;
        let device = if self.take("device") { Some(self.word("a device's name")?.to_string()) } else { None };
        let always = self.take("always");
        if !self.take(":") {
            return Err(self.one_of(&["device", "always", ":"]));
        }
        Ok(Entry::Fault(Scheduled { step, device, always, what: self.what()? }))
    }

    fn random(&mut self) -> Result<RandomFaults, SpecError> {
        let mut random = RandomFaults { seed: 0, rate: 0.05, classes: RandomClass::ALL.to_vec() };
        while let Some(text) = self.peek().filter(|text| *text != ";") {
            let keys = ["seed=", "rate=", "classes="];
            let Some((key, value)) = text.split_once('=') else { return Err(self.one_of(&keys)) };
            match key {
                "seed" => {
                    random.seed = value.parse().map_err(|_| self.error("seed= and a whole number", &[]))?
                }
                "rate" => {
                    let rate = value.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
                    random.rate = rate.ok_or_else(|| self.error("rate= and a number from 0 to 1", &[]))?;
                }
                "classes" => {
                    let known = |name: &str| RandomClass::ALL.into_iter().find(|class| class.name() == name);
                    random.classes.clear();
                    for name in value.split(',') {
                        let Some(class) = known(name) else {
                            let names = RandomClass::ALL.map(RandomClass::name);
                            let mut error = self.one_of(&names);
                            error.expected = format!("classes= and some of {}, with commas", error.expected);
                            let near = names
                                .into_iter()
                                .min_by_key(|known| strsim::damerau_levenshtein(known, name));
                            (error.found, error.nearest) = (format!("`{name}`"), near.map(Into::into));
                            return Err(error);
                        };
                        if !random.classes.contains(&class) {
                            random.classes.push(class);
                        }
                    }
                }
                _ => return Err(self.one_of(&keys)),
            }
            self.at += 1;
        }
        Ok(random)
    }

    fn what(&mut self) -> Result<What, SpecError> {
        let Some(word) = self.peek() else { return Err(self.one_of(WHAT)) };
        let start = self.at;
        self.at += 1;
        Ok(match word {
            "die" => {
                if self.take("while") {
                    self.need("answering")?;
                    return Ok(What::DieWhileAnswering);
                }
                if self.peek() == Some("in")
                    && self.tokens.get(self.at + 1).is_some_and(|t| t.text == "snapshot")
                {
                    self.at += 2;
                    return Ok(What::DieInSnapshot);
                }
                What::Die(self.target()?)
            }
            "hang" => What::Hang(self.target()?),
            "driver" => What::Driver {
                code: self.number("the vendor's code, a whole number")?,
                target: self.target()?,
            },
            "out_of_memory" => What::OutOfMemory(self.target()?),
            "unsupported" => What::Unsupported(self.target()?),
            "slow" => self.slow()?,
            "tear" => {
                self.need("state")?;
                What::TearState
            }
            "disk" => {
                self.need("full")?;
                What::DiskFull
            }
            "kill" => {
                self.need("supervisor")?;
                What::KillSupervisor
            }
            _ => match change(word) {
                Some(change) => self.corruption(change)?,
                None => {
                    self.at = start;
                    return Err(self.one_of(WHAT));
                }
            },
        })
    }

    fn slow(&mut self) -> Result<What, SpecError> {
        let factor = self.peek().and_then(|text| text.strip_prefix('x')).and_then(|text| text.parse().ok());
        let factor = factor.filter(|factor: &f64| factor.is_finite() && *factor > 1.0);
        let factor = factor.ok_or_else(|| self.error("a factor above 1, such as `x3`", &[]))?;
        self.at += 1;
        let steps = if self.take("for") { self.number("a number of steps")? } else { 1 };
        self.take("steps");
        Ok(What::Slow { factor, steps })
    }

    /// Where: nothing, `in RANGE [at INDEX]`, `in OPERATOR [in PART]` or `in %VALUE`, then the moment in brackets.
    fn target(&mut self) -> Result<Target, SpecError> {
        let at =
            if self.take("in") || self.take("at") || self.take("of") { self.place()? } else { At::Start };
        let mut moment = Moment::In;
        if self.take("(") {
            moment = match self.peek() {
                Some("before") => Moment::Before,
                Some("in") => Moment::In,
                Some("after") => Moment::After,
                _ => return Err(self.one_of(&["before", "in", "after"])),
            };
            self.at += 1;
            self.need(")")?;
        }
        Ok(Target { at, moment })
    }

    fn place(&mut self) -> Result<At, SpecError> {
        let Some(word) = self.peek() else { return Err(self.error("a range, an operator or %VALUE", &[])) };
        if let Some(value) = word.strip_prefix('%').filter(|value| !value.is_empty()) {
            self.at += 1;
            return Ok(At::Value(value.into()));
        }
        let operator = OPERATORS.iter().any(|record| record.name == word);
        // `accumulate` is a range and an operator: with a part behind it, it is the operator.
        if let Some(range) = Range::ALL.into_iter().find(|range| range.name() == word)
            && !(operator && self.tokens.get(self.at + 1).is_some_and(|token| token.text == "in"))
        {
            self.at += 1;
            let index = if self.take("at") { Some(self.number("an instruction's index")?) } else { None };
            return Ok(At::Range(range, index));
        }
        if !operator {
            let mut words: Vec<&str> = OPERATORS.iter().map(|record| record.name).collect();
            words.extend(Range::ALL.map(Range::name));
            return Err(self.error("`accumulate`, `update`, an operator's name or %VALUE", &words));
        }
        self.at += 1;
        let part = if self.take("in") { Some(self.word("a part of the model")?.to_string()) } else { None };
        Ok(At::Operator { name: word.into(), part })
    }

    fn corruption(&mut self, mut change: Change) -> Result<What, SpecError> {
        self.bit(&mut change)?;
        if self.peek() == Some("at") && self.tokens.get(self.at + 1).is_some_and(|token| token.text == "rest")
        {
            self.at += 2;
            let names = Home::ALL.map(Home::name);
            let home = self.peek().and_then(|word| Home::ALL.into_iter().find(|home| home.name() == word));
            let home = home.ok_or_else(|| self.one_of(&names))?;
            self.at += 1;
            let value = self.word("a value's name")?;
            let value = value.strip_prefix('%').unwrap_or(value).to_string();
            let corruption = self.options(change)?;
            return Ok(What::AtRest { corruption, home, value });
        }
        if !matches!(self.peek(), Some("in" | "of" | "at")) {
            return Err(self.one_of(&["bit", "in", "of", "at rest"]));
        }
        let target = self.target()?;
        if target.moment != Moment::In {
            self.at -= 1;
            return Err(self.error("no moment: wrong numbers come out of the operator itself", &[]));
        }
        let corruption = self.options(change)?;
        Ok(What::Compute { corruption, target })
    }

    fn bit(&mut self, change: &mut Change) -> Result<(), SpecError> {
        if let Change::Flip(bit) | Change::WrongCarry(bit) | Change::MissingCarry(bit) = change
            && self.take("bit")
        {
            let number = self.number("a bit's number, 0 is the lowest")?;
            *bit = Some(number);
        }
        Ok(())
    }

    fn options(&mut self, mut change: Change) -> Result<Corruption, SpecError> {
        let mut corruption = Corruption::one(change);
        loop {
            self.bit(&mut change)?;
            corruption.change = change;
            match self.peek() {
                None | Some(";") => return Ok(corruption),
                Some("compute") => self.at += 1,
                Some("anew") => {
                    self.at += 1;
                    corruption.anew = true;
                }
                Some("count") => {
                    self.at += 1;
                    let count = self.peek().and_then(|text| text.replace(['_', ','], "").parse().ok());
                    let count = count.filter(|count| (1..=100_000).contains(count));
                    corruption.count = count.ok_or_else(|| self.error("a number from 1 to 100000", &[]))?;
                    self.at += 1;
                }
                Some("seed") => {
                    self.at += 1;
                    corruption.seed = self.number("a whole number")?;
                }
                Some("output") => {
                    self.at += 1;
                    corruption.output = self.number("an output's number, counted from 0")?;
                }
                Some("band") => {
                    self.at += 1;
                    let band = self.peek().and_then(|text| text.split_once(".."));
                    let band = band.and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
                    let band =
                        band.filter(|(low, high): &(f64, f64)| 0.0 <= *low && low < high && high.is_finite());
                    corruption.band =
                        Some(band.ok_or_else(|| self.error("a band of sizes such as `1e-3..1e-1`", &[]))?);
                    self.at += 1;
                }
                Some(_) => {
                    return Err(
                        self.one_of(&["bit", "count", "band", "output", "seed", "anew", "compute", ";"])
                    );
                }
            }
        }
    }
}

fn change(word: &str) -> Option<Change> {
    Some(match word {
        "flip" => Change::Flip(None),
        "wrong_carry" => Change::WrongCarry(None),
        "missing_carry" => Change::MissingCarry(None),
        "compound" => Change::Compound,
        "zero_tile" => Change::ZeroTile,
        "stuck_lane" => Change::StuckLane,
        "nan" => Change::Nan,
        "inf" => Change::Infinity,
        _ => return None,
    })
}
