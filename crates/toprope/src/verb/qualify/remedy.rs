//! What a change is for somebody who has to make it: a line of their library, a key of a recipe, and the recipe written.

use crate::exit::{Exit, Failure, OrExit};
use std::path::{Path, PathBuf};
use toprope_guard::policy::Level;
use toprope_program::Description;
use toprope_program::variant::Variant;
use toprope_qualify::setting::Setting;
use toprope_qualify::verdict::Change;
use toprope_train::recipe::Recipe;
use toprope_world::{World, write_durably};

/// Variants of a device that an operator may be right in where it is not, the likeliest first.
pub fn variants(device: &str) -> Vec<String> {
    if let Some(level) = device.strip_prefix("cpu") {
        let own = level.strip_prefix(':').unwrap_or_default();
        let levels = ["avx512bf16", "avx512", "avx2", "portable"];
        return levels.iter().filter(|level| **level != own).map(|level| format!("cpu:{level}")).collect();
    }
    // Changes that are settings of the library are told as such, and found by their own experiment.
    let (known, tried): (&[Variant], &[&str]) = if device.starts_with("pytorch:") {
        (toprope_devices::pytorch_variants(), &["attention", "matmul", "mode", "deterministic"])
    } else if is_ascend(device) {
        (toprope_devices::ascend_variants(), &["fused", "launch", "deterministic"])
    } else {
        return Vec::new();
    };
    let (base, chosen) = device.split_once('+').map_or((device, ""), |(base, rest)| (base, rest));
    let chosen: Vec<(&str, &str)> = chosen.split('+').filter_map(|variant| variant.split_once('=')).collect();
    let mut names = Vec::new();
    // Where its library lies is no choice of how it computes.
    let plain: Vec<String> = chosen
        .iter()
        .filter(|(key, _)| *key == "library")
        .map(|(key, value)| format!("+{key}={value}"))
        .collect();
    if chosen.len() > plain.len() {
        names.push(format!("{base}{}", plain.concat()));
    }
    for Variant { key, values, .. } in known {
        if !tried.contains(key) {
            continue;
        }
        let own = chosen.iter().find(|(have, _)| have == key).map(|(_, value)| *value).unwrap_or(values[0]);
        for value in values.iter().filter(|value| **value != own) {
            let mut variant = base.to_string();
            for (have, value) in chosen.iter().filter(|(have, _)| have != key) {
                variant.push_str(&format!("+{have}={value}"));
            }
            variant.push_str(&format!("+{key}={value}"));
            names.push(variant);
        }
    }
    names
}

/// The device on another stream than its default one; none where it has none to choose from.
pub fn on_stream(device: &str) -> Option<String> {
    let streams = ["cuda", "npu", "xpu"].contains(&backend(device));
    (streams && !device.contains("+stream=")).then(|| format!("{device}+stream=side"))
}

/// The line that changes a setting.
pub fn setting_line(setting: Setting, device: &str) -> String {
    if is_ascend(device) {
        return match setting {
            Setting::OperandBits { .. } => {
                "cubeMathType 0 in place of 3, torch.npu.matmul.allow_hf32 = False   (here: +cube=f32)".into()
            }
            Setting::Saturates => {
                "aclrtSetDeviceSatMode(ACL_RT_OVERFLOW_MODE_INFNAN) before streams are made, INF_NAN_MODE_ENABLE=1   (here: +overflow=ieee)"
                    .into()
            }
            Setting::BitsMayDiffer => {
                "aclrtSetSysParamOpt(ACL_OPT_DETERMINISTIC, 1), torch.use_deterministic_algorithms(True)   (here: +deterministic=on)"
                    .into()
            }
            Setting::ReducedSums => "the setting of the device's own library for products".into(),
        };
    }
    match (setting, backend(device)) {
        (Setting::BitsMayDiffer, _) => {
            "torch.use_deterministic_algorithms(True)   (here: +deterministic=on)".into()
        }
        (Setting::Saturates, "npu") => "INF_NAN_MODE_ENABLE=1 in the environment".into(),
        (Setting::Saturates, _) => "the setting of the device's own library for overflow".into(),
        (Setting::OperandBits { .. }, "cuda") => {
            "torch.backends.cuda.matmul.allow_tf32 = False   (here: +tf32=off)".into()
        }
        (Setting::OperandBits { .. }, "npu") => {
            "torch.npu.matmul.allow_hf32 = False   (here: +hf32=off)".into()
        }
        (Setting::OperandBits { .. }, "cpu" | "xpu" | "mps") => {
            "torch.set_float32_matmul_precision(\"highest\")".into()
        }
        (Setting::ReducedSums, "cuda") => {
            "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False   (here: +reduced=off)"
                .into()
        }
        _ => "the setting of the device's own library for products".into(),
    }
}

fn is_ascend(device: &str) -> bool {
    device.starts_with("ascend:")
}

/// Whether a device's name asks for products that keep all bits of their operands, in every call by itself.
pub fn asks_for_exact_products(device: &str) -> bool {
    is_ascend(device) && !device.contains("+cube=hf32")
}

fn backend(device: &str) -> &str {
    let rest = device.strip_prefix("pytorch:").unwrap_or_default();
    rest.split([':', '+']).next().unwrap_or_default()
}

/// The device with the settings that were found turned off, where its name can say so.
pub fn without(device: &str, settings: &[Setting]) -> String {
    let mut parts: Vec<String> = device.split('+').map(ToString::to_string).collect();
    for setting in settings {
        let (key, value) = match (setting, backend(device)) {
            (Setting::OperandBits { .. }, _) if is_ascend(device) => ("cube", "f32"),
            (Setting::Saturates, _) if is_ascend(device) => ("overflow", "ieee"),
            (Setting::OperandBits { .. }, "cuda") => ("tf32", "off"),
            (Setting::OperandBits { .. }, "npu") => ("hf32", "off"),
            (Setting::ReducedSums, "cuda") => ("reduced", "off"),
            (Setting::BitsMayDiffer, _) => ("deterministic", "on"),
            _ => continue,
        };
        parts.retain(|part| !part.starts_with(&format!("{key}=")));
        parts.push(format!("{key}={value}"));
    }
    parts.join("+")
}

/// A change in words.
pub fn told(change: &Change, device: &str) -> String {
    let cost = |cost: &Option<f64>, what: &str| match cost {
        Some(times) => format!("{what} takes {times:.2} times as long"),
        None => format!("what {what} costs was not measured"),
    };
    match change {
        Change::Variant { device, operators, cost: times } => {
            format!("--device {device}, where {}; {}", agree(operators), cost(times, "a step"))
        }
        Change::Precision { dtype, operators, cost: times } => {
            format!(
                "training.dtype = \"{dtype}\", where {}; {}",
                agree(operators),
                cost(times, "the largest product")
            )
        }
        Change::Setting { setting } => format!("{}: {}", setting.told(), setting_line(*setting, device)),
        Change::Guarded { rate } => format!(
            "guard.level = \"full\" and a fallback: up to {:.1e} of runs are faulty, each is to be caught and repeated",
            rate
        ),
        Change::Recovered { goodput } => format!(
            "the guard, which is there by default: {} fault{} in {} steps, goodput {:.0} %",
            goodput.faults,
            if goodput.faults == 1 { "" } else { "s" },
            goodput.steps,
            100.0 * goodput.share
        ),
        Change::Unchecked { operators } => {
            format!("guard.level = \"off\": the device is wrong in the checks {}", list(operators))
        }
    }
}

fn agree(operators: &[String]) -> String {
    format!("{} agree{}", list(operators), if operators.len() == 1 { "s" } else { "" })
}

fn list(operators: &[String]) -> String {
    operators.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The recipe with the changes in it.
pub fn applied(recipe: &Recipe, changes: &[Change], device: &str, trusted: &str) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.description = format!("{} (as qualified on {device})", recipe.description);
    let mut name = device.to_string();
    let settings: Vec<Setting> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Setting { setting } => Some(*setting),
            _ => None,
        })
        .collect();
    for change in changes {
        match change {
            Change::Variant { device, .. } => name.clone_from(device),
            Change::Precision { dtype, .. } => recipe.training.dtype = *dtype,
            Change::Guarded { .. } => recipe.guard.level = Level::Full,
            Change::Unchecked { .. } => recipe.guard.level = Level::Off,
            Change::Setting { .. } | Change::Recovered { .. } => {}
        }
    }
    recipe.device = Some(without(&name, &settings));
    recipe.fallback = if trusted == name { Vec::new() } else { vec![trusted.to_string()] };
    recipe
}

/// Writes the recipe where nothing is, and gives its path.
pub fn write(
    world: &dyn World,
    recipe: &Recipe,
    asked: Option<&Path>,
    description: &Description,
) -> Result<PathBuf, Failure> {
    let text = recipe.to_toml().or_exit(Exit::Internal)?;
    let safe = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
    };
    let path = match asked {
        Some(path) => path.to_path_buf(),
        None => {
            let base = format!("{}-on-{}", safe(&recipe.name), safe(&description.name));
            let numbered = |n: u32| match n {
                1 => PathBuf::from(format!("{base}.toml")),
                n => PathBuf::from(format!("{base}-{n}.toml")),
            };
            (1..1000).map(numbered).find(|path| !path.exists()).unwrap_or_else(|| numbered(1000))
        }
    };
    if path.exists() {
        return Err(Failure::new(
            Exit::Run,
            format!(
                "{} is there already; nothing is overwritten\nhint: name another file with --write",
                path.display()
            ),
        ));
    }
    write_durably(world.files(), &path, text.as_bytes()).or_exit(Exit::Run)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use toprope_train::recipe::{built_in, parse};

    #[test]
    fn a_written_recipe_is_read_again_with_its_device_and_the_same_numbers() {
        let recipe = parse("tiny-moe", built_in("tiny-moe").unwrap(), &[]).unwrap();
        let changes = [
            Change::Variant {
                device: "cpu:portable".into(),
                operators: vec!["matmul".into()],
                cost: Some(2.0),
            },
            Change::Guarded { rate: 0.001 },
        ];
        let written = applied(&recipe, &changes, "cpu", "reference");
        assert_eq!(written.hash(), recipe.hash());
        let back = parse("written", &written.to_toml().unwrap(), &[]).unwrap();
        assert_eq!(back, written);
        assert_eq!(
            (back.device.as_deref(), back.fallback.as_slice()),
            (Some("cpu:portable"), &["reference".to_string()][..])
        );
        assert_eq!(back.guard.level, Level::Full);
    }

    #[test]
    fn a_setting_is_turned_off_in_the_name_where_the_name_can_say_so() {
        let tf32 = Setting::OperandBits { bits: 10 };
        assert_eq!(
            without("pytorch:cuda:0+tf32=on+mode=compile", &[tf32]),
            "pytorch:cuda:0+mode=compile+tf32=off"
        );
        assert_eq!(without("pytorch:cpu", &[tf32]), "pytorch:cpu");
        assert!(setting_line(tf32, "pytorch:cuda:0").contains("allow_tf32 = False"));
        assert!(setting_line(tf32, "pytorch:npu:1").contains("allow_hf32 = False"));
        let all = [Setting::OperandBits { bits: 11 }, Setting::Saturates, Setting::BitsMayDiffer];
        assert_eq!(
            without("ascend:0+overflow=saturate+cube=hf32+library=cann", &all),
            "ascend:0+library=cann+cube=f32+overflow=ieee+deterministic=on"
        );
    }

    #[test]
    fn variants_leave_the_device_itself_out() {
        assert!(!variants("cpu:avx2").contains(&"cpu:avx2".to_string()));
        let torch = variants("pytorch:cpu+attention=sdpa-math");
        assert_eq!(torch[0], "pytorch:cpu");
        assert!(torch.contains(&"pytorch:cpu+attention=plain".to_string()), "{torch:?}");
        assert!(!torch.contains(&"pytorch:cpu+attention=sdpa-math".to_string()));
        assert_eq!(on_stream("pytorch:npu:1").as_deref(), Some("pytorch:npu:1+stream=side"));
        assert_eq!((on_stream("pytorch:cpu"), on_stream("cpu")), (None, None));
        assert_eq!(
            variants("ascend:1"),
            ["ascend:1+deterministic=off", "ascend:1+fused=off", "ascend:1+launch=sync"]
        );
        assert_eq!(
            variants("ascend:0+cube=hf32+library=cann"),
            [
                "ascend:0+library=cann",
                "ascend:0+cube=hf32+library=cann+deterministic=off",
                "ascend:0+cube=hf32+library=cann+fused=off",
                "ascend:0+cube=hf32+library=cann+launch=sync"
            ]
        );
    }
}
