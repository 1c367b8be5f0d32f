//! Summaries as text of at most 100 columns.

use super::{MemorySummary, Summary};
use crate::totals::Totals;
use std::fmt;

/// A number of things with a suffix, as in `671.03 B`.
fn amount(value: u64) -> String {
    scaled(value as f64, 1000.0, &["", "k", "M", "B", "T", "P", "E"], "")
}

/// Floating-point operations, as in `1.25 TFLOP`.
fn flops(value: u64) -> String {
    scaled(value as f64, 1000.0, &["", "k", "M", "G", "T", "P", "E"], "FLOP")
}

/// Bytes, as in `3.50 GiB`.
fn bytes(value: u64) -> String {
    scaled(value as f64, 1024.0, &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"], "B")
}

fn scaled(value: f64, base: f64, prefixes: &[&str], unit: &str) -> String {
    let (mut value, mut index) = (value, 0);
    // What would be printed as 1000.00 moves on to the next prefix.
    while value >= base - 0.005 && index + 1 < prefixes.len() {
        value /= base;
        index += 1;
    }
    let unit = format!("{}{unit}", prefixes[index]);
    match index {
        0 => format!("{value:.0} {unit}").trim_end().into(),
        _ => format!("{value:.2} {unit}"),
    }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "parameters  {} in all, {} activated per token",
            amount(self.main),
            amount(self.activated)
        )?;
        if self.mtp > 0 {
            writeln!(
                f,
                "            beside them {} of prediction modules ({} with the shared embedding and head)",
                amount(self.mtp),
                amount(self.mtp_published)
            )?;
        }
        writeln!(f, "\n{:<16} {:>22} {:>22}", "part", "parameters", "activated")?;
        for part in &self.parts {
            writeln!(
                f,
                "{:<16} {:>22} {:>22}",
                part.part,
                grouped(part.parameters),
                grouped(part.activated)
            )?;
        }
        writeln!(f, "{:<16} {:>22} {:>22}", "main model", grouped(self.main), grouped(self.activated))
    }
}

/// Digits in groups of three.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbols: Vec<String> =
            self.symbols.iter().map(|(name, bound)| format!("{name} <= {bound}")).collect();
        writeln!(f, "program     {:?}, {}, {}, {}", self.name, self.phase, self.dtype, symbols.join(", "))?;
        writeln!(f, "hash        {}", self.hash)?;
        writeln!(
            f,
            "parameters  {} in all, {} activated per token",
            amount(self.totals.main),
            amount(self.totals.activated)
        )?;
        if self.totals.mtp > 0 {
            let (own, published) = (amount(self.totals.mtp), amount(self.totals.mtp_published));
            writeln!(f, "            beside them {own} of prediction modules ({published} as published)")?;
        }
        for range in &self.ranges {
            writeln!(
                f,
                "{:<11} {} operators, {}, {} read and written",
                range.range,
                range.operators,
                flops(range.flops),
                bytes(range.bytes)
            )?;
        }
        let all = self.parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.flops));
        writeln!(
            f,
            "\n{:<16} {:>12} {:>10} {:>14} {:>8} {:>14}",
            "part", "parameters", "operators", "FLOPs", "share", "bytes"
        )?;
        for part in &self.parts {
            writeln!(
                f,
                "{:<16} {:>12} {:>10} {:>14} {:>8} {:>14}",
                part.part,
                if part.parameters == 0 { "-".into() } else { amount(part.parameters) },
                part.operators,
                flops(part.flops),
                percent(part.flops, all),
                bytes(part.bytes)
            )?;
        }
        write!(f, "\n{}", self.memory)?;
        writeln!(f, "\nlargest operators")?;
        for large in &self.largest {
            let name = format!("{} {}", large.part, large.operator);
            let shapes = if large.shapes.len() > 34 {
                format!("{}…", large.shapes.chars().take(33).collect::<String>())
            } else {
                large.shapes.clone()
            };
            writeln!(
                f,
                "  {:<36} {:<34} {:>4} x {:>13}",
                name.chars().take(36).collect::<String>(),
                shapes,
                large.count,
                flops(large.flops)
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for MemorySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let halves = if self.state_halves == 2 { "state, two halves" } else { "state, in place" };
        let rows = [
            (halves, self.state_bytes.saturating_mul(self.state_halves)),
            ("gradients, counters", self.carried_bytes),
            ("inputs, constants", self.host_bytes),
            ("activations", self.scratch_bytes),
            ("total", self.total_bytes),
        ];
        writeln!(f, "{:<20} {:>14}", "memory", "bytes")?;
        for (name, size) in rows {
            writeln!(f, "{:<20} {:>14}", name, bytes(size as u64))?;
        }
        let columns = ["memory by part", "state", "gradients", "inputs", "activations", "total"];
        let [part, rest @ ..] = columns;
        write!(f, "\n{part:<16}")?;
        rest.iter().try_for_each(|name| write!(f, " {name:>13}"))?;
        writeln!(f)?;
        for part in &self.parts {
            let sizes = [
                part.state_bytes,
                part.carried_bytes,
                part.host_bytes,
                part.scratch_bytes,
                part.total_bytes(),
            ];
            write!(f, "{:<16}", part.part)?;
            let shown = |size: usize| if size == 0 { "-".into() } else { bytes(size as u64) };
            sizes.into_iter().try_for_each(|size| write!(f, " {:>13}", shown(size)))?;
            writeln!(f)?;
        }
        Ok(())
    }
}
