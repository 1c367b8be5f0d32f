//! What can be said of a published model that is refused: `inspect` shows it before the reason.

use super::describe::{Stored, stored};
use super::{CONFIG_BYTES_MAX, HubError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use toprope_formats::{Folder, Gguf, Value};
use toprope_world::Files;

/// A folder or file whose headers hold, whatever it computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sketch {
    /// `safetensors` or `GGUF`.
    pub format: &'static str,
    /// As the model calls it.
    pub architecture: Option<String>,
    /// Tensors, elements and bytes by the format that they are stored in.
    pub stored: BTreeMap<String, Stored>,
}

impl Sketch {
    /// Reads headers alone.
    ///
    /// # Errors
    /// They do not hold, or cannot be read.
    pub fn of(files: &dyn Files, path: &Path) -> Result<Sketch, HubError> {
        if files.is_file(path)? {
            let gguf = Gguf::open(files, path)?;
            let architecture = gguf.metadata.get("general.architecture").and_then(Value::as_text);
            let architecture = architecture.map(str::to_string);
            return Ok(Sketch { format: "GGUF", architecture, stored: stored(&gguf.tensors) });
        }
        let folder = Folder::open(files, path)?;
        let config = files.read(&path.join("config.json"), CONFIG_BYTES_MAX)?;
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        let architecture = config["architectures"][0].as_str().or(config["model_type"].as_str());
        let architecture = architecture.map(str::to_string);
        Ok(Sketch { format: "safetensors", architecture, stored: stored(&folder.tensors) })
    }
}

impl fmt::Display for Sketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "format        {}", self.format)?;
        if let Some(architecture) = &self.architecture {
            writeln!(f, "architecture  {architecture}")?;
        }
        for (name, stored) in &self.stored {
            writeln!(f, "stored        {name}: {stored}")?;
        }
        Ok(())
    }
}
