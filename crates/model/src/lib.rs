//! Models as program builders: DeepSeek-V3, Llama, Qwen2. Knows nothing of guards, recipes' files or devices.

pub mod adapter; // small matrices beside frozen ones
pub mod architecture; // which of them, and what they share
pub mod checkpoint; // our tensors to and from the published ones
pub mod config; // Hugging Face's keys
mod cost; // what an instruction costs where rows are packed sequences
pub mod deepseek_v3; // the builders
pub mod error; // what can be wrong
pub mod hub; // published models: Hugging Face folders, GGUF
pub mod inspect; // a program at a glance
pub mod llama; // Llama's and Qwen2's keys
pub mod parameters; // the table of all parameters
mod parts; // attention, experts, prediction modules, optimizer
pub mod rope_scaling; // stretched rotary frequencies
pub mod totals; // parameter counts without building anything
pub mod training_options; // what a training step needs beside the configuration

pub use adapter::AdapterOptions;
pub use architecture::{Architecture, ModelConfig};
pub use config::DeepseekV3Config;
pub use cost::packed_cost;
pub use error::ModelError;
pub use llama::LlamaConfig;
pub use rope_scaling::RopeScaling;
pub use training_options::{AdamwOptions, MuonOptions, TrainingOptions};
