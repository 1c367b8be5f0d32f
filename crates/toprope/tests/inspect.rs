//! What `inspect` tells: the published sizes, the recipes' stated limits, whose memory it is.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use serde_json::Value;
use std::process::Command;

/// What is printed, and the JSON behind it.
fn inspect(what: &str) -> (String, Value) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_toprope")).args(["inspect", what, "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    let json = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    (told, json)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn deepseek_v3_has_its_published_totals() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/deepseek-v3-671b.json");
    let (told, json) = inspect(file);
    assert!(told.contains("671.03 B in all, 36.63 B activated per token"), "{told}");
    assert!(told.contains("11.61 B of prediction modules"), "{told}");
    assert_eq!(number(&json["main"]), 671_026_419_200);
    assert_eq!((number(&json["activated"]) + 500_000_000) / 1_000_000_000, 37);
}

#[test]
fn recipes_keep_their_stated_limits() {
    for name in ["tiny-dense", "tiny-moe"] {
        let (_, json) = inspect(name);
        let parameters = number(&json["totals"]["main"]) + number(&json["totals"]["mtp"]);
        assert!(parameters <= 100_000, "{name} has {parameters} parameters");
        let flops: u64 = json["ranges"].as_array().unwrap().iter().map(|range| number(&range["flops"])).sum();
        assert!((1_000_000..=50_000_000).contains(&flops), "a step of {name} takes {flops} FLOP");
    }
    for (name, millions) in [("bench-dense", "6.06"), ("bench-moe", "9.45")] {
        let (told, json) = inspect(name);
        assert_eq!(format!("{:.2}", number(&json["totals"]["main"]) as f64 / 1e6), millions, "{name}");
        assert_eq!(number(&json["totals"]["mtp"]), 0, "{name} has no prediction module");
        assert!(told.contains(&format!("{millions} M in all")), "{told}");
    }
}

#[test]
fn memory_is_told_by_part_and_adds_up() {
    for name in ["tiny-moe", "bench-moe"] {
        let (told, json) = inspect(name);
        let memory = &json["memory"];
        let parts = memory["parts"].as_array().unwrap();
        let sum = |key: &str| parts.iter().map(|part| number(&part[key])).sum::<u64>();
        assert_eq!(
            sum("state_bytes"),
            number(&memory["state_bytes"]) * number(&memory["state_halves"]),
            "{name}"
        );
        assert_eq!(sum("carried_bytes"), number(&memory["carried_bytes"]), "{name}");
        assert_eq!(sum("host_bytes"), number(&memory["host_bytes"]), "{name}");
        assert_eq!(sum("scratch_bytes"), number(&memory["scratch_bytes"]), "{name}");
        let all =
            ["state_bytes", "carried_bytes", "host_bytes", "scratch_bytes"].into_iter().map(sum).sum::<u64>();
        assert_eq!(all, number(&memory["total_bytes"]), "{name}");
        // Two halves of a weight and two moments in f32, and one gradient: what the experts have by their number alone.
        let of = |list: &Value, part: &str, key: &str| {
            let found = list.as_array().unwrap().iter().find(|entry| entry["part"] == part);
            number(&found.unwrap_or_else(|| panic!("no part {part}"))[key])
        };
        let experts = of(&json["parts"], "experts", "parameters");
        assert_eq!(of(&memory["parts"], "experts", "state_bytes"), 24 * experts, "{name}");
        assert_eq!(of(&memory["parts"], "experts", "carried_bytes"), 4 * experts, "{name}");
        let gaps =
            parts.iter().find(|part| part["part"] == "gaps").map_or(0, |part| number(&part["scratch_bytes"]));
        assert!(gaps * 5 <= number(&memory["scratch_bytes"]), "{name}: {gaps} bytes between values");
        assert!(told.contains("memory by part"), "{told}");
        for part in parts {
            let name = part["part"].as_str().unwrap();
            assert!(name != "other" && told.lines().any(|line| line.starts_with(name)), "{name}: {told}");
        }
    }
}
