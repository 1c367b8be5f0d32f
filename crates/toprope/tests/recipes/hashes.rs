//! Golden hashes of the recipes' programs, and their forms.

use crate::support::program;
use toprope_program::{hash, json, text};
use toprope_train::recipe::{BUILT_IN, parse};

/// Written by this test's message where a change was meant.
const GOLDEN: &str = include_str!("hashes.txt");

#[test]
fn programs_are_as_they_were() {
    let mut found = String::new();
    for (name, text) in BUILT_IN {
        let recipe = parse(name, text, &[]).unwrap();
        found += &format!("{name} {}\n", program(&recipe).hash());
    }
    assert_eq!(found, GOLDEN, "if the change was meant, hashes.txt is now:\n{found}");
}

#[test]
fn programs_parse_back_from_text_and_json() {
    for (name, recipe) in BUILT_IN {
        let program = program(&parse(name, recipe, &[]).unwrap());
        let from_text = text::parse(&text::print(program.program())).unwrap();
        assert_eq!(&from_text, program.program(), "{name}");
        assert_eq!(hash::program_hash(&from_text), program.hash(), "{name}");
        let from_json = json::parse(&json::print(program.program()).unwrap()).unwrap();
        assert_eq!(&from_json, program.program(), "{name}");
        assert_eq!(hash::program_hash(&from_json), program.hash(), "{name}");
    }
}
