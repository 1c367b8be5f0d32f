//! Operator by operator: which of the vendor's operators it becomes, from whom their prototypes are known, and what that rests
//! on. docs/ascend.md's table is made from this; a test compares it with what lowering does.

use crate::code::{OPERATORS, RUNTIME, Remedy};
use crate::emit::{Constants, Emit, Settings, view};
use crate::ffi::prototype::{Witness, prototype};
use crate::lower::{Site, lower};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use toprope_program::{MemoryPlan, Range, StateLayout, Validated, Width};

/// One operator of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub operator: &'static str,
    /// The vendor's fused operators, which plain ones stand in for.
    pub fused: &'static [&'static str],
    /// The vendor's plain operators that it needs in some form.
    pub plain: &'static [&'static str],
    /// What there is to say.
    pub remark: &'static str,
}

/// Versions of one operator, the newest first: each serves in place of the one before.
pub const VERSIONS: &[&[&str]] = &[
    &["GroupedMatmulV5", "GroupedMatmulV4", "GroupedMatmulV3"],
    &["FlashAttentionScoreV2", "FlashAttentionScore"],
    &["FlashAttentionScoreGradV2", "FlashAttentionScoreGrad"],
];

mod rows;
pub use rows::ROWS;

/// What of the contract a library without some operators cannot run, a line each.
pub(crate) fn lacking(has: &dyn Fn(&str) -> bool) -> Vec<String> {
    let missing = |name: &str| {
        let versions = VERSIONS.iter().find(|versions| versions.contains(&name));
        !has(name) && versions.is_none_or(|versions| !versions.iter().any(|version| has(version)))
    };
    let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in ROWS {
        for name in row.plain.iter().filter(|name| missing(name)) {
            by_name.entry(name).or_default().push(row.operator);
        }
    }
    let line = |(name, operators): (&str, Vec<&str>)| {
        format!("this CANN has no aclnn{name}: refused are {}", operators.join(", "))
    };
    by_name.into_iter().map(line).collect()
}

/// The vendor's operators that each of a program's operators becomes, at its symbols' bounds, with a library that has all of
/// them: by the operator's name.
pub fn calls(program: &Validated, fused: bool) -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let plan = MemoryPlan::new(program, Width::Native, StateLayout::Double);
    let program = program.program();
    let symbols = program.bounds();
    let mut made: BTreeMap<&'static str, BTreeSet<&'static str>> = BTreeMap::new();
    for range in Range::ALL {
        for instruction in program.range(range) {
            let Some((operands, outputs)) = plan.slices(program, instruction, &symbols) else { continue };
            let x: Vec<_> = operands.iter().map(view).collect();
            let y: Vec<_> = outputs.iter().map(view).collect();
            let types = (
                program.concrete_operands(instruction, &symbols),
                program.concrete_outputs(instruction, &symbols),
            );
            for first in [true, false] {
                let mut constants = Constants::default();
                let mut emit = Emit::new(&|_| true, Settings { cube: 0, fused }, &mut constants);
                let site = Site { x: &x, y: &y, types: (&types.0, &types.1), symbols: &symbols, first };
                if lower(&mut emit, &instruction.operator, &site).is_ok() {
                    let names = made.entry(instruction.operator.name()).or_default();
                    names.extend(emit.calls.iter().map(|call| call.prototype.name));
                }
            }
        }
    }
    made
}

/// The page, with tables in place of their marks.
pub fn page() -> String {
    include_str!("page.md")
        .replace("{table}", &table())
        .replace("{variants}", &variants())
        .replace("{codes}", &codes())
}

fn variants() -> String {
    let row = |variant: &toprope_program::variant::Variant| {
        let (default, rest) = variant.values.split_first().map_or(("none", &[][..]), |(a, b)| (*a, b));
        let rest = if variant.values.is_empty() { "a folder".into() } else { rest.join(", ") };
        format!("| `{}` | {default} | {rest} | {} |", variant.key, variant.meaning)
    };
    crate::name::VARIANTS.iter().map(row).collect::<Vec<_>>().join("\n")
}

/// The vendor's numbers by what they call for.
fn codes() -> String {
    let mut by_remedy: Vec<(Remedy, Vec<String>)> = Vec::new();
    for record in RUNTIME.iter().chain(OPERATORS) {
        let name = format!("{} {}", record.code, record.name);
        match by_remedy.iter_mut().find(|(remedy, _)| *remedy == record.remedy) {
            Some((_, names)) => names.push(name),
            None => by_remedy.push((record.remedy, vec![name])),
        }
    }
    let row = |(remedy, names): &(Remedy, Vec<String>)| {
        let sticks = if remedy.is_sticky() { "yes" } else { "no" };
        format!("| {} | {sticks} | {} |", remedy.words(), names.join(", "))
    };
    by_remedy.iter().map(row).collect::<Vec<_>>().join("\n")
}

fn table() -> String {
    let mut text =
        String::from("| operator | fused | plain | witness | remark |\n| --- | --- | --- | --- | --- |\n");
    let list = |names: &[&str]| names.join(", ");
    for record in toprope_program::OPERATORS {
        let Some(row) = ROWS.iter().find(|row| row.operator == record.name) else { continue };
        let witnesses: BTreeSet<Witness> = row
            .fused
            .iter()
            .chain(row.plain)
            .filter_map(|name| prototype(name).map(|prototype| prototype.witness))
            .collect();
        let witnesses: Vec<&str> = witnesses.into_iter().map(Witness::words).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            row.operator,
            list(row.fused),
            list(row.plain),
            witnesses.join("; "),
            row.remark
        );
    }
    text.trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_has_its_row_and_every_call_its_prototype() {
        let names: Vec<&str> = ROWS.iter().map(|row| row.operator).collect();
        assert_eq!(names, toprope_program::OPERATORS.iter().map(|record| record.name).collect::<Vec<_>>());
        for name in ROWS.iter().flat_map(|row| row.fused.iter().chain(row.plain)) {
            assert!(prototype(name).is_some(), "aclnn{name} has no prototype");
        }
    }

    #[test]
    fn what_is_missing_names_what_depends_on_it() {
        assert_eq!(lacking(&|_| true), Vec::<String>::new());
        let found = lacking(&|name| name != "Cumsum" && name != "GroupedMatmulV5");
        assert_eq!(found, ["this CANN has no aclnnCumsum: refused are attention_check, verify"]);
        let found = lacking(&|name| !name.starts_with("GroupedMatmul"));
        assert!(found.iter().all(|line| line.contains("grouped_matmul, grouped_outer")), "{found:?}");
    }
}
