//! Numbers from the environment. A value that is none is told by every call, with its mend.

use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use crate::code;
use crate::fault::Fault;

/// What the environment says, or what stands where it says nothing.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `CANN_EMULATOR_DEVICES`: how many devices there are.
    pub devices: i32,
    /// `CANN_EMULATOR_MEMORY`: bytes of each.
    pub memory: usize,
    /// `CANN_EMULATOR_LATENCY_US`: the least time of an operator, in microseconds.
    pub latency: Duration,
    /// `CANN_EMULATOR_BANDWIDTH`: bytes a second between host and device; none: as fast as it goes.
    pub bandwidth: Option<f64>,
}

impl Settings {
    fn plain() -> Settings {
        Settings { devices: 1, memory: 16 << 30, latency: Duration::ZERO, bandwidth: None }
    }

    fn read() -> Result<Settings, String> {
        let plain = Settings::plain();
        let bandwidth: Option<f64> = number("CANN_EMULATOR_BANDWIDTH")?;
        Ok(Settings {
            devices: number("CANN_EMULATOR_DEVICES")?.unwrap_or(plain.devices),
            memory: number("CANN_EMULATOR_MEMORY")?.unwrap_or(plain.memory),
            latency: number("CANN_EMULATOR_LATENCY_US")?.map_or(plain.latency, Duration::from_micros),
            bandwidth: bandwidth.filter(|&bandwidth| bandwidth > 0.0),
        })
    }
}

fn number<T: FromStr>(name: &str) -> Result<Option<T>, String> {
    match std::env::var(name) {
        Ok(text) => match text.trim().parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(format!("{name} is {text:?}: a number is needed, or unset it")),
        },
        Err(_) => Ok(None),
    }
}

fn read() -> &'static Result<Settings, String> {
    static SETTINGS: OnceLock<Result<Settings, String>> = OnceLock::new();
    SETTINGS.get_or_init(Settings::read)
}

/// The settings; the plain ones where the environment's were refused.
pub fn settings() -> Settings {
    read().clone().unwrap_or_else(|_| Settings::plain())
}

/// An error where the environment's settings were refused.
pub fn check() -> Result<(), Fault> {
    match read() {
        Ok(_) => Ok(()),
        Err(why) => Err(Fault::new(code::INVALID_PARAM, why.clone())),
    }
}
