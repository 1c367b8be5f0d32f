//! The on_fault command, as a real process.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;
use toprope_guard::hook::{Hook, HookWarning};
use toprope_world::testing::MemoryWorld;
use toprope_world::{RealWorld, World};

const LONG: Duration = Duration::from_secs(60);

fn fault() -> Map<String, Value> {
    let fault =
        json!({"event": "fault", "class": "lost", "step": 7, "reason": "it's \"gone\"; $(exit 1)\u{0}"});
    fault.as_object().unwrap().clone()
}

#[test]
fn the_command_is_told_the_run_and_the_fault() {
    let world = RealWorld::new();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let command = format!("printf '%s\\n%s' \"$TOPROPE_RUN\" \"$TOPROPE_FAULT\" > '{}'", out.display());
    let mut hook = Hook::new(command, folder.path()).with_limit(LONG);
    hook.fault(&world, &fault()).unwrap();
    assert!(hook.finish(&world).is_empty());
    let text = std::fs::read_to_string(out).unwrap();
    let (run, line) = text.split_once('\n').unwrap();
    assert_eq!(Path::new(run), folder.path());
    assert_eq!(serde_json::from_str::<Value>(line).unwrap(), Value::Object(fault()));
}

#[test]
fn what_goes_wrong_is_a_warning() {
    let world = RealWorld::new();
    let mut hook = Hook::new("exit 3", Path::new("/")).with_limit(LONG);
    hook.fault(&world, &fault()).unwrap();
    let warnings = hook.finish(&world);
    assert!(warnings.iter().any(|warning| warning.to_string().contains("exit code 3")), "{warnings:?}");

    // One that would take for ever is ended, whenever that is noticed.
    let mut hook = Hook::new("exec sleep 100000", Path::new("/")).with_limit(Duration::ZERO);
    hook.fault(&world, &fault()).unwrap();
    let warnings = hook.finish(&world);
    assert!(matches!(warnings[..], [HookWarning::TooLong { .. }]), "{warnings:?}");

    // A world without processes.
    let mut hook = Hook::new("true", Path::new("/"));
    assert!(matches!(hook.fault(&MemoryWorld::default(), &fault()), Err(HookWarning::Process(_))));
}

#[test]
fn a_storm_of_faults_starts_a_few_commands_only() {
    let world = RealWorld::new();
    let mut hook = Hook::new("exec sleep 100000", Path::new("/")).with_limit(Duration::ZERO);
    for _ in 0..10 {
        hook.fault(&world, &fault()).unwrap();
    }
    let warnings = hook.finish(&world);
    let ended = warnings.iter().filter(|warning| matches!(warning, HookWarning::TooLong { .. })).count();
    assert_eq!(ended, 4);
    assert!(
        warnings.iter().any(|warning| matches!(warning, HookWarning::TooMany { count: 6 })),
        "{warnings:?}"
    );
}

#[test]
fn a_fault_with_a_long_message_still_pages() {
    let world = RealWorld::new();
    let mut line = fault();
    line.insert("message".to_owned(), "x".repeat(500_000).into());
    let mut hook = Hook::new(
        "case $TOPROPE_FAULT in *'\"step\":7'*shortened*) exit 0;; *) exit 1;; esac",
        Path::new("/"),
    )
    .with_limit(LONG);
    hook.fault(&world, &line).unwrap();
    let warnings = hook.finish(&world);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(world.clock().wall() > Duration::ZERO);
}
