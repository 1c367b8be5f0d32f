//! `toprope devices`: what is there.

use crate::exit::{Exit, Failure};
use crate::progress::bytes;
use std::path::PathBuf;
use toprope_devices::OpenOptions;

/// Lists the devices that can be opened.
pub fn run(python: Option<PathBuf>, json: bool) -> Result<Exit, Failure> {
    let options = OpenOptions { python, ..OpenOptions::default() };
    let mut descriptions = Vec::new();
    for listed in toprope_devices::list() {
        println!("{:<12} {}", listed.name, listed.description);
        let device = match toprope_devices::open(listed.name, &options) {
            Ok(device) => device,
            Err(error) => {
                println!("{:<12} cannot be opened: {error}", "");
                continue;
            }
        };
        let d = device.describe();
        let memory = d.memory_bytes.map_or("memory unknown".into(), bytes);
        println!("{:<12} {}, level {}, {} thread(s), {memory}", "", d.hardware, d.level, d.units);
        if d.emulated {
            println!("{:<12} emulated: not the chip that it names", "");
        }
        for problem in &d.health {
            println!("{:<12} problem: {problem}", "");
        }
        descriptions.push(d);
    }
    println!(
        "\nvariants of pytorch devices, as in pytorch:cpu+attention=sdpa-math (the default stands first):"
    );
    for (key, values, meaning) in toprope_devices::pytorch_variants() {
        println!("  {key:<14} {}: {meaning}", values.join(", "));
    }
    if json {
        println!("{}", serde_json::json!({ "devices": descriptions }));
    }
    Ok(Exit::Done)
}
