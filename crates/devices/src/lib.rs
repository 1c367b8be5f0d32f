//! The registry: opens a device by its name.
