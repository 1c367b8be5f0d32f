//! One binary for all targets; `TOPROPE_FUZZ_TARGET` names the one that is driven. It is built and run by `cargo xtask fuzz`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static ENTRY: OnceLock<fn(&[u8])> = OnceLock::new();

fn chosen() -> fn(&[u8]) {
    // The runtime's hook ends the process at any panic, also at those of a library that are caught; without it, it ends at
    // those that are not.
    drop(std::panic::take_hook());
    let name = std::env::var("TOPROPE_FUZZ_TARGET").unwrap_or_default();
    let names: Vec<&str> = toprope_fuzz::TARGETS.iter().map(|target| target.name).collect();
    match toprope_fuzz::target(&name) {
        Some(target) => target.entry,
        None => panic!("TOPROPE_FUZZ_TARGET is {name:?}; choose one of {names:?}"),
    }
}

fuzz_target!(|bytes: &[u8]| {
    ENTRY.get_or_init(chosen)(bytes);
});
