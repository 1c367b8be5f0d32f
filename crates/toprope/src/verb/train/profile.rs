//! Where the time of a run went.

use toprope_model::packed_cost;
use toprope_program::Range;
use toprope_train::engine::{Engine, Local};

/// Prints it, by operator.
pub(super) fn show(engine: &Local) {
    let (program, profile) = (engine.program().program(), engine.profile());
    let mut rows: Vec<ProfileRow> = Vec::new();
    let ranges = [
        (Range::Accumulate, profile.runs, &profile.accumulate),
        (Range::Update, profile.updates, &profile.update),
    ];
    for (range, runs, times) in ranges {
        for (instruction, seconds) in program.range(range).iter().zip(times) {
            let name = instruction.operator.name();
            let cost = packed_cost(program, instruction);
            let at = rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
                rows.push(ProfileRow { name, ..ProfileRow::default() });
                rows.len() - 1
            });
            let row = &mut rows[at];
            row.calls += runs;
            row.seconds += seconds;
            row.flops += cost.flops as f64 * runs as f64;
            row.bytes += cost.bytes as f64 * runs as f64;
        }
    }
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let total: f64 = rows.iter().map(|row| row.seconds).sum();
    println!(
        "{:<30} {:>8} {:>9} {:>7} {:>9} {:>8}",
        "operator", "calls", "seconds", "share", "GFLOP/s", "GB/s"
    );
    for row in rows {
        println!(
            "{:<30} {:>8} {:>9.3} {:>6.1}% {:>9.1} {:>8.1}",
            row.name,
            row.calls,
            row.seconds,
            100.0 * row.seconds / total,
            row.flops / row.seconds / 1e9,
            row.bytes / row.seconds / 1e9
        );
    }
}

#[derive(Default)]
struct ProfileRow {
    name: &'static str,
    calls: u64,
    seconds: f64,
    flops: f64,
    bytes: f64,
}
