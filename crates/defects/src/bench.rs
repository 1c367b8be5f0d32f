//! One worker in which one defect after the other is switched on: Python and torch start once.

use crate::{Defect, inserted, with_defects};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use toprope_protocol::remote::RemoteDevice;
use toprope_pytorch::{OpenOptions, PyTorchError, open_with};
use toprope_world::{SharedRegion, World};

/// Bytes of the region that says which defect is on.
const SWITCH_BYTES: usize = 64;

/// A worker and its switch.
pub struct Bench {
    device: RemoteDevice,
    switch: Switch,
}

/// Says which defect of a worker is on, for programs that are prepared from then on.
pub struct Switch {
    region: Arc<SharedRegion>,
    defects: Vec<Defect>,
}

impl Switch {
    /// Puts this defect in, or none. One that the worker does not know is none.
    pub fn put(&self, defect: Option<&Defect>) {
        let place = defect.and_then(|wanted| self.defects.iter().position(|known| known == wanted));
        if let Some(word) = self.region.word(0) {
            word.store(place.map_or(0, |place| place as u64 + 1), Ordering::SeqCst);
        }
    }
}

impl Bench {
    /// Starts a worker that knows these defects, all of [`crate::known`] or all of [`crate::held_out`], none of them on.
    ///
    /// # Errors
    /// There is no interpreter, it has no torch, or there is no shared memory for the switch.
    pub fn open(
        world: &dyn World,
        defects: Vec<Defect>,
        options: &OpenOptions<'_>,
    ) -> Result<Bench, PyTorchError> {
        let file = defects.first().map_or("", |defect| defect.file);
        let command = with_defects(&inserted(file, "switched_by_host()"), options.python)?;
        let switch = world.shared_memory().create("toprope-defect", SWITCH_BYTES).map_err(|error| {
            let kind = toprope_program::FaultKind::Lost { reason: error.to_string(), for_good: false };
            PyTorchError::Fault { fault: Box::new(toprope_program::Fault::new("pytorch:cpu", kind)) }
        })?;
        // The switch is the last region.
        let regions: Vec<_> = options.regions.iter().cloned().chain([switch.clone()]).collect();
        let options = OpenOptions { regions: &regions, ..*options };
        let device = open_with(world, "pytorch:cpu", &command, &options)?;
        Ok(Bench { device, switch: Switch { region: switch, defects } })
    }

    /// The device, for programs that are prepared from now on, with this defect or with none.
    pub fn with(&mut self, defect: Option<&Defect>) -> &mut RemoteDevice {
        self.switch.put(defect);
        &mut self.device
    }

    /// The two apart, for who takes devices whole.
    pub fn split(self) -> (RemoteDevice, Switch) {
        (self.device, self.switch)
    }
}
