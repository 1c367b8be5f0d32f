//! The table of docs/ascend.md against what lowering does with conformance's cases.

use std::collections::{BTreeMap, BTreeSet};
use toprope_ascend::table::{ROWS, VERSIONS, calls};
use toprope_conformance::generate::cases::case;
use toprope_conformance::generate::exemplars::exemplars;

/// Cases of each operator.
const CASES: u64 = 60;

#[test]
fn the_table_says_what_lowering_does() {
    // Fused or not, by operator.
    let mut made: BTreeMap<&str, [BTreeSet<&str>; 2]> = BTreeMap::new();
    for operator in exemplars() {
        for index in 0..CASES {
            let case = case(&operator, 1, index).unwrap();
            for fused in [false, true] {
                for (name, calls) in calls(&case.program, fused) {
                    made.entry(name).or_default()[usize::from(fused)].extend(calls);
                }
            }
        }
    }
    let older: BTreeSet<&str> = VERSIONS.iter().flat_map(|versions| &versions[1..]).copied().collect();
    let mut wrong = Vec::new();
    for row in ROWS {
        let [plain, fused] = made.remove(row.operator).unwrap_or_default();
        let fused: BTreeSet<&str> = fused.difference(&plain).copied().collect();
        for (what, have, want) in [("plain", plain, row.plain), ("fused", fused, row.fused)] {
            let want: BTreeSet<&str> = want.iter().copied().filter(|name| !older.contains(name)).collect();
            if have != want {
                let have: Vec<&str> = have.into_iter().collect();
                wrong.push(format!("{} {what}: &{have:?}", row.operator));
            }
        }
    }
    wrong.extend(made.keys().map(|name| format!("{name} has no row")));
    assert!(wrong.is_empty(), "lowering calls:\n{}", wrong.join("\n"));
}
