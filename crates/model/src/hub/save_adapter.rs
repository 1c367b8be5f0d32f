//! Adapters as a folder that PEFT opens: `adapter_config.json` and `adapter_model.safetensors`.

use super::error::HubError;
use super::save::{Extra, whole_or_nothing, write_extras};
use crate::adapter::{ALL_LINEAR, AdapterOptions};
use crate::architecture::Architecture;
use std::collections::BTreeSet;
use std::path::Path;
use toprope_formats::SafetensorsWriter;
use toprope_world::Files;

/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Writes a folder with the adapters of a configuration, in F32, and `extras`. `base` is the model that they stand beside.
/// It appears whole or not at all.
///
/// # Errors
/// Something of that name is there, a tensor cannot be given, or the system refuses.
pub fn save_adapter<E: From<HubError>>(
    files: &dyn Files,
    folder: &Path,
    architecture: Architecture<'_>,
    options: &AdapterOptions,
    base: &str,
    extras: &[Extra],
    mut tensor: impl FnMut(&str) -> Result<Vec<f32>, E>,
) -> Result<usize, E> {
    let parameters = options.parameters(architecture);
    let count = parameters.len();
    whole_or_nothing::<E>(files, folder, |aside| {
        let config = config(architecture, options, base);
        let text = serde_json::to_string_pretty(&config).unwrap_or_default();
        let config = Extra { name: "adapter_config.json", bytes: text.into_bytes() };
        write_extras(files, aside, extras.iter().chain([&config]))?;
        let published = |name: &str| format!("{PREFIX}{name}");
        let announced: Vec<_> = parameters
            .iter()
            .map(|(parameter, _)| (published(&parameter.name), parameter.shape.clone()))
            .collect();
        let path = aside.join(WEIGHTS);
        let mut writer = SafetensorsWriter::create(files, &path, &announced).map_err(HubError::from)?;
        for (parameter, _) in &parameters {
            let numbers = tensor(&parameter.name)?;
            writer.write(&path, &published(&parameter.name), &numbers).map_err(HubError::from)?;
        }
        Ok(writer.finish(&path).map_err(HubError::from)?)
    })?;
    Ok(count)
}

fn config(architecture: Architecture<'_>, options: &AdapterOptions, base: &str) -> serde_json::Value {
    let modules = options.modules(architecture);
    // PEFT's own `all-linear` may be more than ours.
    let targets: Vec<&str> = match options.targets.iter().any(|target| target == ALL_LINEAR) {
        true => modules.iter().map(|module| module.leaf()).collect::<BTreeSet<_>>().into_iter().collect(),
        false => options.targets.iter().map(String::as_str).collect(),
    };
    serde_json::json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "use_rslora": false,
        "use_dora": options.dora,
        "init_lora_weights": true,
        "inference_mode": true,
        "modules_to_save": null,
    })
}
