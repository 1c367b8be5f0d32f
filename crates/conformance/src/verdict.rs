//! What a comparison comes to, counted per operator, with a floor on what must be comparable at all.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use toprope_program::{Description, OPERATORS};

/// What became of one instruction's outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every element that can be compared is within its bound.
    Agree,
    /// An element is outside of its bound, or something else that the contract rules out was seen.
    Differ(String),
    /// No element can be compared, and why.
    Incomparable(String),
}

/// Counts of one operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Instructions that agreed.
    pub agree: u64,
    /// Instructions that differed.
    pub differ: u64,
    /// Instructions that could not be compared at all.
    pub incomparable: u64,
    /// Programs that the device refused at `prepare` because of this operator.
    pub refused: u64,
    /// Elements looked at.
    pub elements: u64,
    /// Elements among them that could not be compared, by reason.
    pub incomparable_elements: BTreeMap<String, u64>,
    /// Rows of routers looked at.
    pub routed_rows: u64,
    /// Rows among them whose choice hangs on less than the tolerance.
    pub tied_rows: u64,
    /// The largest error seen, in units of its bound.
    pub worst: f64,
}

/// A difference, with enough to repeat it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The operator's name.
    pub operator: String,
    /// The case or program, with its seed.
    pub case: String,
    /// What was seen.
    pub finding: String,
    /// The program in the printed form with its head, shrunk where possible.
    pub text: String,
}

/// What must hold besides no difference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Instructions of each operator that must agree.
    pub agree: u64,
    /// Share of elements that may be incomparable, per operator.
    pub incomparable_share: f64,
    /// Share of routed rows that may be tied.
    pub tied_share: f64,
}

impl Default for Floor {
    fn default() -> Floor {
        Floor { agree: 10, incomparable_share: 0.25, tied_share: 0.05 }
    }
}

/// What a suite found out about a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The device that was judged.
    pub device: Description,
    /// The device that it was judged by.
    pub oracle: Description,
    /// The seed that repeats everything.
    pub seed: u64,
    /// One-operator cases that ran.
    pub cases: u64,
    /// Cases with what is no ordinary number that ran.
    #[serde(default)]
    pub special: u64,
    /// Random programs that ran.
    pub programs: u64,
    /// What must hold besides no difference.
    pub floor: Floor,
    /// Counts by operator; every operator of the contract is there.
    pub operators: BTreeMap<String, Tally>,
    /// What differed; the first of each operator is shrunk.
    pub differences: Vec<Difference>,
    /// Properties beyond values that were tried: name, times, and whether the device has them.
    pub properties: BTreeMap<String, Property>,
}

/// A property of the device, such as same bits twice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Property {
    /// How often it was tried.
    pub tried: u64,
    /// How often it did not hold.
    pub failed: u64,
    /// Why it was not tried, where it was not.
    pub absent: Option<String>,
}

impl Tally {
    /// Adds the counts of other instructions of the same operator.
    fn add(&mut self, other: Tally) {
        self.agree += other.agree;
        self.differ += other.differ;
        self.incomparable += other.incomparable;
        self.refused += other.refused;
        self.elements += other.elements;
        self.routed_rows += other.routed_rows;
        self.tied_rows += other.tied_rows;
        self.worst = self.worst.max(other.worst);
        for (reason, count) in other.incomparable_elements {
            *self.incomparable_elements.entry(reason).or_default() += count;
        }
    }
}

impl Report {
    /// An empty report.
    pub fn new(device: Description, oracle: Description, seed: u64, floor: Floor) -> Report {
        let operators = OPERATORS.iter().map(|record| (record.name.to_string(), Tally::default())).collect();
        Report {
            device,
            oracle,
            seed,
            cases: 0,
            special: 0,
            programs: 0,
            floor,
            operators,
            differences: Vec::new(),
            properties: BTreeMap::new(),
        }
    }

    /// What differed, each as a program in the printed form with its values and a name for a file.
    pub fn failures(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let told = self.differences.iter().enumerate().filter(|(_, difference)| !difference.text.is_empty());
        told.map(|(number, difference)| {
            // Names and levels are a worker's answers.
            let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
            let level = plain(self.device.level.split_whitespace().next().unwrap_or("any"));
            let device = plain(&self.device.name);
            let name = format!("{device}-{level}-{}-{number}-{}.txt", self.seed, difference.operator);
            let found = format!("# {} in {}: {}\n", difference.operator, difference.case, difference.finding);
            (name, found + &difference.text)
        })
    }

    /// Adds what another run on the same device found; seed, devices and floor stay.
    pub fn add(&mut self, other: Report) {
        self.cases += other.cases;
        self.special += other.special;
        self.programs += other.programs;
        self.differences.extend(other.differences);
        for (name, tally) in other.operators {
            self.tally(&name).add(tally);
        }
        for (name, property) in other.properties {
            let own = self.property(&name);
            own.tried += property.tried;
            own.failed += property.failed;
            own.absent = own.absent.take().or(property.absent);
        }
    }

    /// The counts of an operator.
    pub fn tally(&mut self, operator: &str) -> &mut Tally {
        self.operators.entry(operator.to_string()).or_default()
    }

    /// A property's counts.
    pub fn property(&mut self, name: &str) -> &mut Property {
        self.properties.entry(name.to_string()).or_default()
    }

    /// Everything that speaks against the device, a line each; empty where it passed. Operators that it refuses count
    /// neither way: whether they are needed is for the caller to say.
    pub fn objections(&self) -> Vec<String> {
        let mut objections: Vec<String> = Vec::new();
        for (name, tally) in &self.operators {
            let incomparable: u64 = tally.incomparable_elements.values().sum();
            if tally.differ > 0 {
                objections.push(format!("{name}: {} of {} differ", tally.differ, tally.agree + tally.differ));
            }
            if tally.refused == 0 && tally.agree < self.floor.agree {
                objections
                    .push(format!("{name}: only {} agree, {} are needed", tally.agree, self.floor.agree));
            }
            if incomparable as f64 > self.floor.incomparable_share * tally.elements as f64 {
                objections
                    .push(format!("{name}: {incomparable} of {} elements incomparable", tally.elements));
            }
            if tally.tied_rows as f64 > self.floor.tied_share * tally.routed_rows as f64 {
                objections.push(format!("{name}: {} of {} rows tied", tally.tied_rows, tally.routed_rows));
            }
        }
        for (name, property) in &self.properties {
            if property.failed > 0 {
                objections.push(format!("{name}: failed {} of {} times", property.failed, property.tried));
            }
        }
        objections
    }

    /// Operators that the device refused.
    pub fn refused(&self) -> Vec<&str> {
        self.operators.iter().filter(|(_, tally)| tally.refused > 0).map(|(name, _)| name.as_str()).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, oracle) = (&self.device, &self.oracle);
        writeln!(
            f,
            "{} {} against {}: seed {}, {} cases, {} special, {} programs",
            device.name, device.level, oracle.name, self.seed, self.cases, self.special, self.programs
        )?;
        writeln!(
            f,
            "{:<30} {:>7} {:>7} {:>7} {:>7} {:>9} {:>7}  incomparable elements",
            "operator", "agree", "differ", "incomp", "refused", "elements", "worst"
        )?;
        for (name, tally) in &self.operators {
            let reasons: Vec<String> = tally
                .incomparable_elements
                .iter()
                .map(|(reason, count)| format!("{count} {reason}"))
                .collect();
            writeln!(
                f,
                "{:<30} {:>7} {:>7} {:>7} {:>7} {:>9} {:>7.3}  {}",
                name,
                tally.agree,
                tally.differ,
                tally.incomparable,
                tally.refused,
                tally.elements,
                tally.worst,
                reasons.join(", ")
            )?;
            if tally.routed_rows > 0 {
                writeln!(f, "{:<30} {} of {} rows tied", "", tally.tied_rows, tally.routed_rows)?;
            }
        }
        for (name, property) in &self.properties {
            match &property.absent {
                Some(reason) => writeln!(f, "{name}: not tried: {reason}")?,
                None => {
                    writeln!(f, "{name}: held {} of {}", property.tried - property.failed, property.tried)?
                }
            }
        }
        for difference in &self.differences {
            writeln!(
                f,
                "\n{} in {}: {}\n{}",
                difference.operator, difference.case, difference.finding, difference.text
            )?;
        }
        let objections = self.objections();
        if objections.is_empty() {
            writeln!(f, "passed")
        } else {
            writeln!(f, "failed:\n  {}", objections.join("\n  "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let device = Description {
            name: "any".into(),
            hardware: String::new(),
            level: String::new(),
            versions: Vec::new(),
            dtypes: Vec::new(),
            memory_bytes: None,
            units: 1,
            deterministic: true,
            emulated: false,
            health: Vec::new(),
        };
        Report::new(device.clone(), device, 1, Floor { agree: 2, ..Floor::default() })
    }

    #[test]
    fn reports_add_up() {
        let (mut all, mut more) = (report(), report());
        for (report, worst) in [(&mut all, 0.25), (&mut more, 0.5)] {
            report.programs = 3;
            report.property("same bits").tried = 2;
            let tally = report.tally("add");
            (tally.agree, tally.elements, tally.worst) = (1, 8, worst);
            *tally.incomparable_elements.entry("overflow".into()).or_default() = 1;
        }
        assert!(all.objections().iter().any(|objection| objection.starts_with("add: only 1")));
        more.tally("scale").differ = 1;
        all.add(more);
        assert_eq!((all.programs, all.property("same bits").tried), (6, 4));
        let tally = all.tally("add").clone();
        assert_eq!((tally.agree, tally.elements, tally.worst), (2, 16, 0.5));
        assert_eq!(tally.incomparable_elements["overflow"], 2);
        assert!(!all.objections().iter().any(|objection| objection.starts_with("add:")));
        assert!(all.objections().iter().any(|objection| objection.starts_with("scale: 1 of 1 differ")));
    }
}
