//! `toprope devices`: what is there.

use crate::exit::{Exit, Failure};
use crate::progress::bytes;
use std::path::PathBuf;
use toprope_devices::OpenOptions;
use toprope_program::variant::Variant;

/// Lists the devices that can be opened.
pub fn run(python: Option<PathBuf>, json: bool) -> Result<Exit, Failure> {
    let options = OpenOptions { python, ..OpenOptions::default() };
    let mut descriptions = Vec::new();
    let listed = toprope_devices::list().into_iter();
    let listed = listed.map(|listed| (listed.name.to_string(), listed.description));
    let further = toprope_devices::further().into_iter().map(|name| (name, "another of its kind"));
    for (name, description) in listed.chain(further) {
        println!("{name:<12} {description}");
        let device = match toprope_devices::open(&name, &options) {
            Ok(device) => device,
            Err(error) => {
                println!("{:<12} cannot be opened: {error}", "");
                continue;
            }
        };
        let mut d = device.describe();
        let memory = d.memory_bytes.map_or("memory unknown".into(), bytes);
        println!("{:<12} {}, level {}, {} thread(s), {memory}", "", d.hardware, d.level, d.units);
        if d.emulated {
            println!("{:<12} emulated: not the chip that it names", "");
        }
        if name.starts_with("ascend:") {
            let told = d.versions.iter().filter(|(what, _)| what != "toprope-ascend");
            let told: Vec<String> = told.map(|(what, version)| format!("{what} {version}")).collect();
            println!("{:<12} {}", "", told.join(", "));
            match toprope_devices::ascend_health(&name) {
                Ok((line, found)) => {
                    println!("{:<12} {line}", "");
                    d.health.extend(found);
                }
                Err(reason) => println!("{:<12} health unknown: {reason}", ""),
            }
        }
        for problem in &d.health {
            println!("{:<12} problem: {problem}", "");
        }
        descriptions.push(d);
    }
    match toprope_devices::torch_chips(options.python.as_deref()) {
        Ok(chips) => {
            chips.iter().for_each(|chip| println!("{:<16} {}, by your torch", chip.name, chip.hardware))
        }
        Err(error) => println!("{:<12} chips of your torch: {error}", ""),
    }
    show("pytorch", "pytorch:cpu+attention=sdpa-math", toprope_devices::pytorch_variants());
    show("ascend", "ascend:0+cube=hf32", toprope_devices::ascend_variants());
    if json {
        println!("{}", serde_json::json!({ "devices": descriptions }));
    }
    Ok(Exit::Done)
}

/// What can be chosen of a family of devices.
fn show(family: &str, example: &str, variants: &[Variant]) {
    println!("\nvariants of {family} devices, as in {example} (the default stands first):");
    for Variant { key, values, meaning } in variants {
        let values = if values.is_empty() { "DIR".into() } else { values.join(", ") };
        println!("  {key:<14} {values}: {meaning}");
    }
}
