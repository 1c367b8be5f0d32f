//! Models as program builders: DeepSeek-V3.
