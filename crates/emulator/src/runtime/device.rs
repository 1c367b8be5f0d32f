//! Devices: what each has lost, and the figures it tells of itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::code::{self, After};
use crate::fault::Fault;
use crate::registry::lock;
use crate::runtime::stream::STREAMS;
use crate::settings::settings;

/// A bad piece of device memory, as `aclrtGetMemUceInfo` tells it.
#[derive(Clone, Copy)]
pub struct BadMemory {
    pub address: usize,
    pub length: usize,
}

/// A fault that was seen but is told later.
struct Delayed {
    fault: Fault,
    tasks_left: u64,
}

#[derive(Default)]
struct State {
    poison: Option<Fault>,
    stopped: bool,
    bad: Vec<BadMemory>,
    delayed: Vec<Delayed>,
}

/// One emulated NPU.
pub struct Device {
    pub index: i32,
    state: Mutex<State>,
    /// Counted up by a forced reset: whatever hangs or waits for an older one gives up.
    generation: AtomicU64,
    launches: AtomicU64,
    saturates: AtomicBool,
    vanished: AtomicBool,
    pub deterministic: AtomicBool,
}

/// All devices.
pub fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let new = |index| Device {
            index,
            state: Mutex::default(),
            generation: AtomicU64::new(0),
            launches: AtomicU64::new(0),
            saturates: AtomicBool::new(only_saturates()),
            vanished: AtomicBool::new(false),
            deterministic: AtomicBool::new(false),
        };
        (0..settings().devices).map(new).collect()
    })
}

/// The chip's name: `CANN_EMULATOR_SOC`, Ascend910B3 where it says nothing.
pub fn soc() -> &'static str {
    static SOC: OnceLock<String> = OnceLock::new();
    SOC.get_or_init(|| std::env::var("CANN_EMULATOR_SOC").unwrap_or_else(|_| "Ascend910B3".into()))
}

/// Chips of the 910A and 310P class know no other mode.
pub fn only_saturates() -> bool {
    ["Ascend910A", "Ascend910P", "Ascend310P"].iter().any(|old| soc().starts_with(old))
        || soc() == "Ascend910B"
}

/// Whether the chip has bf16 (from 910B1 on).
pub fn has_bf16() -> bool {
    !only_saturates()
}

/// The device of a number.
pub fn device(index: i32) -> Result<&'static Device, Fault> {
    let all = devices();
    let found = usize::try_from(index).ok().and_then(|index| all.get(index));
    found.ok_or_else(|| {
        Fault::new(code::INVALID_DEVICEID, format!("device {index}: there are {} (from 0 on)", all.len()))
    })
}

impl Device {
    /// An error where the device is lost or stopped.
    pub fn usable(&self) -> Result<(), Fault> {
        let state = lock(&self.state);
        if let Some(fault) = &state.poison {
            let text = format!("{}; the device stays lost until aclrtResetDeviceForce", fault.text);
            return Err(Fault { text, ..fault.clone() });
        }
        if state.stopped {
            return Err(Fault::new(
                code::DEVICE_TASK_ABORT,
                format!("device {} is in stop state after aclrtDeviceTaskAbort: reset it", self.index),
            ));
        }
        Ok(())
    }

    /// As [`Device::usable`], but with the code that memory and streams are refused with on a lost device.
    pub fn usable_for_resources(&self) -> Result<(), Fault> {
        self.usable().map_err(|fault| Fault { code: code::DRV_INTERNAL_ERROR, ..fault })
    }

    /// Whether the device is lost.
    pub fn lost(&self) -> bool {
        lock(&self.state).poison.is_some()
    }

    /// Takes a fault in: a sticky one loses the device.
    pub fn suffer(&self, fault: &Fault) {
        if fault.after == After::Sticky {
            let mut state = lock(&self.state);
            state.poison.get_or_insert_with(|| fault.clone());
            drop(state);
            for stream in STREAMS.all() {
                stream.nudge();
            }
        }
    }

    /// Keeps a fault back until `tasks` more have run.
    pub fn delay(&self, fault: Fault, tasks: u64) {
        lock(&self.state).delayed.push(Delayed { fault, tasks_left: tasks });
    }

    /// A task has run: gives out a fault whose time has come, said to be `task`'s.
    pub fn task_ran(&self, task: &str) -> Result<(), Fault> {
        let mut state = lock(&self.state);
        if state.delayed.is_empty() {
            return Ok(());
        }
        for delayed in &mut state.delayed {
            delayed.tasks_left = delayed.tasks_left.saturating_sub(1);
        }
        let Some(due) = state.delayed.iter().position(|delayed| delayed.tasks_left == 0) else {
            return Ok(());
        };
        let mut fault = state.delayed.swap_remove(due).fault;
        fault.text = format!("{task}: {}", fault.text);
        Err(fault)
    }

    /// `aclrtDeviceTaskAbort`: everything queued is dropped, later work is refused.
    pub fn stop(&self) {
        lock(&self.state).stopped = true;
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// A forced reset: what was lost is back, unless the device vanished.
    pub fn revive(&self) -> Result<(), Fault> {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.vanished.load(Ordering::SeqCst) {
            let text = format!("device {} does not answer: it has vanished", self.index);
            return Err(Fault::new(207004, text));
        }
        *lock(&self.state) = State::default();
        Ok(())
    }

    /// A plain reset ends the stop state.
    pub fn restart(&self) {
        lock(&self.state).stopped = false;
    }

    /// Which life the device is in.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The device is gone for good.
    pub fn vanish(&self) {
        self.vanished.store(true, Ordering::SeqCst);
    }

    /// Whether it is gone for good.
    pub fn has_vanished(&self) -> bool {
        self.vanished.load(Ordering::SeqCst)
    }

    /// Adds bad memory.
    pub fn spoil(&self, bad: BadMemory) {
        lock(&self.state).bad.push(bad);
    }

    /// What memory is bad.
    pub fn bad_memory(&self) -> Vec<BadMemory> {
        lock(&self.state).bad.clone()
    }

    /// Repairs what is in the list; with no bad memory left a memory error is over.
    pub fn repair(&self, addresses: &[usize]) {
        let mut state = lock(&self.state);
        state.bad.retain(|bad| !addresses.contains(&bad.address));
        let memory = |fault: &Fault| [code::DEVICE_MEM_ERROR, 507054].contains(&fault.code);
        if state.bad.is_empty() && state.poison.as_ref().is_some_and(memory) {
            state.poison = None;
        }
    }

    /// Counts an operator's launch; answers its number, from 1 on.
    pub fn launched(&self) -> u64 {
        self.launches.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The simulated temperature in °C: from 45 it nears 95 as operators are launched (half the way in 2,000).
    pub fn temperature(&self) -> f64 {
        let launches = self.launches.load(Ordering::SeqCst) as f64;
        45.0 + 50.0 * (1.0 - (-launches / 2000.0 * std::f64::consts::LN_2).exp())
    }

    /// Whether overflows become the largest number and NaN 0.
    pub fn saturates(&self) -> bool {
        self.saturates.load(Ordering::Relaxed)
    }

    /// Sets the mode of overflows.
    pub fn set_saturation(&self, on: bool) -> Result<(), Fault> {
        if !on && only_saturates() {
            let text = format!("{} knows saturation alone, not INF_NAN mode", soc());
            return Err(Fault::new(code::FEATURE_NOT_SUPPORT, text));
        }
        self.saturates.store(on, Ordering::Relaxed);
        Ok(())
    }
}
