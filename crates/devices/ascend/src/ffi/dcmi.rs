//! The vendor's library of the driver's management interface (`libdcmi.so`): health, temperature, errors of memory. Its facts are
//! from the header that Ascend/mind-cluster carries under Apache-2.0, in our own words.

use super::library::Libraries;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;

/// Errors of a kind of memory since the driver counts them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct EccCounts {
    enabled: c_int,
    single_bit: c_uint,
    double_bit: c_uint,
    total_single_bit: c_uint,
    total_double_bit: c_uint,
    single_bit_isolated_pages: c_uint,
    double_bit_isolated_pages: c_uint,
    single_bit_next_isolated_pages: c_uint,
    double_bit_next_isolated_pages: c_uint,
}

/// High-bandwidth memory among the kinds.
const HBM: c_int = 2;

/// Bytes of a version as text.
const VERSION_BYTES: usize = 64;

/// The library, initialised.
#[derive(Debug)]
pub(crate) struct Dcmi {
    libraries: Libraries,
}

/// What was answered of one device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answers {
    /// 0 is well, and the higher the worse.
    pub(crate) alarm: Option<u32>,
    /// °C.
    pub(crate) temperature: Option<i32>,
    /// Corrected and uncorrected errors of the HBM in all.
    pub(crate) errors: Option<(u32, u32)>,
}

type Open = unsafe extern "C" fn() -> c_int;
type Version = unsafe extern "C" fn(*mut c_char, c_int) -> c_int;
type Place = unsafe extern "C" fn(*mut c_int, *mut c_int, c_uint) -> c_int;
type Health = unsafe extern "C" fn(c_int, c_int, *mut c_uint) -> c_int;
type Temperature = unsafe extern "C" fn(c_int, c_int, *mut c_int) -> c_int;
type Ecc = unsafe extern "C" fn(c_int, c_int, c_int, *mut EccCounts) -> c_int;

impl Dcmi {
    /// Loads and initialises the library from a folder, or from the loader's path.
    pub(crate) fn load(folder: Option<&Path>) -> Result<Dcmi, String> {
        let libraries = Libraries::one("libdcmi.so", folder)?;
        let dcmi = Dcmi { libraries };
        let open = dcmi.function("dcmi_init")?;
        // SAFETY: the header's prototype.
        let code = unsafe { std::mem::transmute::<*const c_void, Open>(open)() };
        if code == 0 { Ok(dcmi) } else { Err(format!("dcmi_init answers {code}")) }
    }

    /// Whether it is the emulator's.
    pub(crate) fn is_emulator(&self) -> bool {
        self.libraries.symbol("dcmiEmulatorVersion").is_some()
    }

    fn function(&self, name: &str) -> Result<*const c_void, String> {
        self.libraries.symbol(name).ok_or_else(|| format!("libdcmi.so has no {name}"))
    }

    /// The library's version.
    pub(crate) fn version(&self) -> Option<String> {
        let function = self.function("dcmi_get_dcmi_version").ok()?;
        let mut text = [0u8; VERSION_BYTES];
        // SAFETY: the header's prototype; the place has as many bytes as are told.
        let code = unsafe {
            std::mem::transmute::<*const c_void, Version>(function)(
                text.as_mut_ptr().cast(),
                VERSION_BYTES as c_int,
            )
        };
        let end = text.iter().position(|byte| *byte == 0)?;
        (code == 0).then(|| String::from_utf8_lossy(&text[..end]).into_owned())
    }

    /// What is told of the device with this number among the process's.
    ///
    /// # Errors
    /// The device is not known to it.
    pub(crate) fn ask(&self, index: u32) -> Result<Answers, String> {
        let (mut card, mut chip) = (0, 0);
        let place = self.function("dcmi_get_card_id_device_id_from_logicid")?;
        // SAFETY: the header's prototype; both places are ours.
        let code = unsafe { std::mem::transmute::<*const c_void, Place>(place)(&mut card, &mut chip, index) };
        if code != 0 {
            return Err(format!("DCMI knows no device {index}: {code}"));
        }
        let mut answers = Answers::default();
        if let Ok(function) = self.function("dcmi_get_device_health") {
            let mut alarm = 0;
            // SAFETY: as above.
            let code =
                unsafe { std::mem::transmute::<*const c_void, Health>(function)(card, chip, &mut alarm) };
            answers.alarm = (code == 0).then_some(alarm);
        }
        if let Ok(function) = self.function("dcmi_get_device_temperature") {
            let mut degrees = 0;
            // SAFETY: as above.
            let code = unsafe {
                std::mem::transmute::<*const c_void, Temperature>(function)(card, chip, &mut degrees)
            };
            answers.temperature = (code == 0).then_some(degrees);
        }
        if let Ok(function) = self.function("dcmi_get_device_ecc_info") {
            let mut counts = EccCounts::default();
            // SAFETY: as above.
            let code =
                unsafe { std::mem::transmute::<*const c_void, Ecc>(function)(card, chip, HBM, &mut counts) };
            let counted = code == 0 && counts.enabled != 0;
            answers.errors = counted.then_some((counts.total_single_bit, counts.total_double_bit));
        }
        Ok(answers)
    }
}
