//! The defects of one call.

use std::time::Instant;

use crate::code;
use crate::defect::execute_timeout;
use crate::defect::rule::Options;
use crate::fault::Fault;
use crate::runtime::stream::Stream;
use crate::settings::settings;

/// What is wrong with one call of an operator.
pub struct Active {
    on: Vec<(&'static str, Options)>,
    /// It never ends.
    pub hang: bool,
    /// It ends with this.
    pub fault: Option<Fault>,
    launch: u64,
    began: std::sync::OnceLock<Instant>,
}

/// SplitMix64's finalizer.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A number that a seed and a counter give.
pub fn random(seed: u64, counter: u64) -> u64 {
    mix(mix(seed) ^ counter)
}

impl Active {
    /// Nothing wrong with the launch of this number.
    pub fn new(launch: u64) -> Self {
        Active { on: Vec::new(), hang: false, fault: None, launch, began: std::sync::OnceLock::new() }
    }

    /// Adds a defect.
    pub fn add(&mut self, name: &'static str, options: Options) {
        self.on.push((name, options));
    }

    /// Whether a defect is on.
    pub fn has(&self, name: &str) -> bool {
        self.on.iter().any(|&(on, _)| on == name)
    }

    /// The options of a defect that is on.
    pub fn options(&self, name: &str) -> Option<&Options> {
        self.on.iter().find(|&&(on, _)| on == name).map(|(_, options)| options)
    }

    /// A number for this call, by the seed of the first defect.
    pub fn random(&self, salt: u64) -> u64 {
        let seed = self.on.first().map_or(0, |(_, options)| options.seed);
        random(seed ^ salt, self.launch)
    }

    /// Hangs or fails, where a rule says so.
    pub fn begin(&self, stream: &Stream, function: &str) -> Result<(), Fault> {
        let began = *self.began.get_or_init(Instant::now);
        if self.hang {
            let mut expired = false;
            stream.wait_until(function, || {
                expired = began.elapsed() > execute_timeout();
                expired
            })?;
            let text = format!("EZ9999: it ran longer than {} s", execute_timeout().as_secs());
            return Err(Fault::new(code::AICORE_TIMEOUT, text));
        }
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Makes a slow operator slow, and any as slow as the settings say.
    pub fn finish(&self, stream: &Stream) -> Result<(), Fault> {
        let Some(began) = self.began.get() else { return Ok(()) };
        let took = began.elapsed();
        let factor = self.options("any.slow").map_or(1.0, |options| options.factor.clamp(1.0, 1e6));
        let end = *began + took.mul_f64(factor).max(settings().latency);
        if Instant::now() >= end {
            return Ok(());
        }
        stream.wait_until("any.slow", || Instant::now() >= end)
    }
}
