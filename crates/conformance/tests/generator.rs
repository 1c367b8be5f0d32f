//! Generated programs are valid, parse back, and repeat.

use std::collections::BTreeMap;
use toprope_conformance::generate::{cases, exemplars::exemplars, programs};
use toprope_program::{OPERATORS, hash, json, text};

#[test]
fn a_thousand_programs_validate_and_parse_back_to_the_same_hash() {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut instructions, mut differentiated, mut failures) = (0, 0, Vec::new());
    for seed in 0..1000 {
        let generated = programs::program(seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let program = generated.program.program();
        let printed = text::print(program);
        let parsed = text::parse(&printed).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{printed}"));
        assert!(&parsed == program, "seed {seed} parses back to another program:\n{printed}");
        assert_eq!(hash::program_hash(&parsed), generated.program.hash(), "seed {seed}");
        let parsed = json::parse(&json::print(program).unwrap()).unwrap();
        assert_eq!(hash::program_hash(&parsed), generated.program.hash(), "seed {seed}");
        assert_eq!(text::print(programs::program(seed).unwrap().program.program()), printed, "seed {seed}");
        for (name, count) in generated.counts {
            *counts.entry(name).or_default() += count;
            instructions += count;
        }
        differentiated += u64::from(printed.contains("loss_sum"));
        failures.extend(generated.undifferentiated);
    }
    println!(
        "{instructions} instructions, {differentiated} with gradients, {} without: {:?}",
        failures.len(),
        failures
    );
    for record in OPERATORS {
        let count = counts.get(record.name).copied().unwrap_or(0);
        println!("{:<30} {count}", record.name);
        assert!(count >= 30, "{} occurs only {count} times", record.name);
    }
    assert!(differentiated >= 300, "only {differentiated} programs have gradients");
    assert!(failures.len() <= 40, "{} programs could not be differentiated", failures.len());
}

#[test]
fn cases_of_every_operator_contain_it() {
    for operator in exemplars() {
        for index in 0..40 {
            let case = cases::case(&operator, 7, index).unwrap_or_else(|error| panic!("{error}"));
            let there =
                case.program.program().accumulate.iter().any(|i| i.operator.name() == operator.name());
            assert!(there, "{}", case.name);
        }
    }
}
