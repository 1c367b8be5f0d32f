//! The cases of ggml's operator tests: which there are, what their types are, which are run.

use std::collections::{BTreeMap, BTreeSet};

use super::{Place, must};

/// One case: `ADD(type=f32,…)`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    pub operator: String,
    pub parameters: String,
    /// Whether the client's CANN backend takes it.
    pub supported: bool,
}

impl Case {
    /// As the client names it.
    pub fn name(&self) -> String {
        format!("{}({})", self.operator, self.parameters)
    }

    fn values(&self) -> impl Iterator<Item = &str> {
        self.parameters.split(',').filter_map(|part| Some(part.split_once('=')?.1))
    }

    /// Whether all its types are f32, f16 or integers: neither bf16 nor quantised.
    pub fn plain(&self) -> bool {
        let other = ["bf16", "q1", "q2", "q3", "q4", "q5", "q6", "q8", "iq", "tq", "mxfp", "nvfp"];
        !self.values().any(|value| other.iter().any(|name| value.starts_with(name)))
    }

    /// Whether a size is so large that a sample does without.
    fn large(&self) -> bool {
        let numbers = self.parameters.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
        numbers
            .filter_map(|number| number.parse::<u64>().ok())
            .any(|number| (2048..1 << 30).contains(&number))
    }
}

/// How many cases of a kind a sample has.
pub const SAMPLE: usize = 16;

/// Fields of a line of CSV whose every field is in quotes.
fn fields(line: &str) -> Vec<String> {
    let inside = line.trim().trim_start_matches('"').trim_end_matches('"');
    inside.split("\",\"").map(|field| field.replace("\"\"", "\"")).collect()
}

/// All cases that ggml's tests have, in their order, each once.
pub fn list(place: &Place) -> Result<Vec<Case>, String> {
    let mut program = place.program("test-backend-ops");
    let output =
        must("test-backend-ops support", program.args(["support", "-b", "CANN0", "--output", "csv"]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let names = fields(lines.next().unwrap_or_default());
    let at = |name: &str| {
        names.iter().position(|field| field == name).ok_or_else(|| format!("the list of cases has no {name}"))
    };
    let (operator, parameters, supported) = (at("op_name")?, at("op_params")?, at("supported")?);
    let mut cases: Vec<Case> = Vec::new();
    let mut known = BTreeSet::new();
    for line in lines {
        let fields = fields(line);
        if fields.len() != names.len() {
            return Err(format!("the list of cases has a line of another form: {line}"));
        }
        let case = Case {
            operator: fields[operator].clone(),
            parameters: fields[parameters].clone(),
            supported: fields[supported] == "1",
        };
        if known.insert(case.clone()) {
            cases.push(case);
        }
    }
    if cases.iter().any(|case| case.supported) {
        Ok(cases)
    } else {
        Err("the client's CANN backend takes no case: it found no device".into())
    }
}

/// The cases to run: all in f32 and f16 that the backend takes, or some of each kind, spread over its list.
pub fn choose(listed: &[Case], all: bool) -> Vec<Case> {
    let plain = listed.iter().filter(|case| case.supported && case.plain());
    if all {
        return plain.cloned().collect();
    }
    let mut kinds: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    for case in plain.filter(|case| !case.large()) {
        kinds.entry(&case.operator).or_default().push(case);
    }
    let mut chosen = BTreeSet::new();
    for cases in kinds.values() {
        let count = cases.len().min(SAMPLE);
        chosen.extend((0..count).map(|place| cases[place * cases.len() / count]));
    }
    // In the order of the list: the client runs them so.
    listed.iter().filter(|case| chosen.contains(case)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(parameters: &str) -> Case {
        Case { operator: "ADD".into(), parameters: parameters.into(), supported: true }
    }

    #[test]
    fn types_and_sizes_are_read_from_parameters() {
        assert!(case("type=f32,ne=[10,5,4,3],nr=[1,1,1,1]").plain());
        assert!(case("type_a=f16,type_b=f32,type_idx=i64").plain());
        assert!(!case("type_a=q8_0,type_b=f32").plain());
        assert!(!case("type_a=f32,type_b=bf16").plain());
        assert!(!case("hsk=64,type_K=iq4_nl").plain());
        assert!(case("m=16384,n=1").large());
        assert!(!case("m=16,n=1,fs=1.424500").large());
    }

    #[test]
    fn a_sample_has_each_kind_from_start_to_end() {
        let listed: Vec<Case> = (0..100).map(|number| case(&format!("type=f32,n={number}"))).collect();
        let chosen = choose(&listed, false);
        assert_eq!(chosen.len(), SAMPLE);
        assert_eq!(chosen[0].parameters, "type=f32,n=0");
        assert_eq!(chosen[SAMPLE - 1].parameters, "type=f32,n=93");
        assert_eq!(choose(&listed, true).len(), 100);
    }

    #[test]
    fn a_line_of_the_list_is_split() {
        assert_eq!(
            fields("\"CANN0\",\"ADD\",\"a=[1,2],b=\"\"x\"\"\",\"1\""),
            ["CANN0", "ADD", "a=[1,2],b=\"x\"", "1"]
        );
    }
}
