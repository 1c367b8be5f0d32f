//! Pages of `docs/` that are made from the program itself: `cargo xtask docs` writes them, and a test compares.

use crate::exit::{Exit, Failure};
use std::fmt::Write;
use toprope_program::operator::Occurs;
use toprope_program::{Invariant, OPERATORS, Slot};

/// Prints one page.
pub fn run(page: &str) -> Result<Exit, Failure> {
    let text = match page {
        "ascend" => toprope_devices::ascend_page(),
        "operators" => operators(),
        "exit-codes" => exit_codes(),
        "journal" => toprope_guard::journal::page(),
        other => {
            return Err(Failure::new(
                Exit::Usage,
                format!("no page `{other}`; there are: ascend, operators, exit-codes, journal"),
            ));
        }
    };
    print!("{text}");
    Ok(Exit::Done)
}

fn slots(slots: &[Slot]) -> String {
    let one = |slot: &Slot| {
        let mark = match slot.occurs {
            Occurs::Once => "",
            Occurs::Optional => "?",
            Occurs::Many => "…",
        };
        format!("`{}{mark}` {:?} {}", slot.name, slot.accepts, slot.shape)
    };
    slots.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn operators() -> String {
    let mut page =
        String::from("# Operators\n\nMade by `cargo xtask docs` from the contract; do not edit.\n\n");
    // Writing to a String cannot fail.
    let _ =
        writeln!(page, "{} operators. `?` marks an optional operand, `…` one or more.\n", OPERATORS.len());
    for record in OPERATORS {
        let check = match record.invariant {
            Invariant::Identity(identity) => identity,
            Invariant::Recompute => "recompute",
        };
        let _ = writeln!(
            page,
            "## {}\n\n{}\n\n- reads: {}\n- writes: {}\n- meaning: {}\n- numerics: {}\n- gradient: {}\n- check: {}\n- source: {}\n",
            record.name,
            record.summary,
            slots(record.operands),
            slots(record.outputs),
            record.formula,
            record.numerics,
            record.gradient,
            check,
            record.source
        );
    }
    page
}

fn exit_codes() -> String {
    let mut page = String::from(
        "# Exit codes\n\nMade by `cargo xtask docs`; do not edit.\n\n| code | meaning |\n| --- | --- |\n",
    );
    for exit in Exit::ALL {
        let _ = writeln!(page, "| {} | {} |", exit.code(), exit.meaning());
    }
    page
}
