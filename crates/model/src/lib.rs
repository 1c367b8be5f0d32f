//! Models as program builders: DeepSeek-V3. Knows nothing of guards, recipes' files or devices.

pub mod checkpoint; // our tensors to and from the published ones
pub mod config; // Hugging Face's keys
mod cost; // what an instruction costs where rows are packed sequences
pub mod deepseek_v3; // the builders
pub mod error; // what can be wrong
pub mod inspect; // a program at a glance
pub mod parameters; // the table of all parameters
mod parts; // attention, experts, prediction modules, optimizer
pub mod totals; // parameter counts without building anything
pub mod training_options; // what a training step needs beside the configuration

pub use config::{DeepseekV3Config, RopeScaling};
pub use cost::packed_cost;
pub use error::ModelError;
pub use training_options::{AdamwOptions, TrainingOptions};
