//! What checks found, as alarms.

use crate::decide::{Alarm, Suspect};
use std::collections::HashMap;
use toprope_program::check::{CheckKind, CheckSite, Mismatch, judge};
use toprope_program::shape::sizes;
use toprope_program::{CheckMask, FaultKind, Outputs, Place, Program, Range, Tensor, ValueId, Width};

/// The judge of a run's checks. Digests that later ones are held against are kept on this side: what lies in a worker's
/// memory may have died with it.
pub struct Judge {
    sites: Vec<CheckSite>,
    /// Digests that the last `update` of the committed step told, by value.
    told: HashMap<ValueId, Tensor>,
}

impl Judge {
    /// A judge of these checks.
    pub fn new(sites: Vec<CheckSite>) -> Judge {
        Judge { sites, told: HashMap::new() }
    }

    /// The checks.
    pub fn sites(&self) -> &[CheckSite] {
        &self.sites
    }

    /// A worker has taken its state in: what other workers told of bits at rest does not bind it.
    pub fn forget(&mut self) {
        self.told.clear();
    }

    /// Judges the checks of a range that fired.
    pub fn judge(&self, program: &Program, range: Range, mask: &CheckMask, outputs: &Outputs) -> Vec<Alarm> {
        let read = |id: &ValueId| {
            let value = program.value(*id);
            Tensor::from_bytes(value.dtype, &sizes(&value.shape, &[]), Width::Native, outputs.bytes(*id)?)
        };
        let mut alarms = Vec::new();
        for site in self.sites.iter().filter(|site| mask.fires(site.bit)) {
            // What was carried from one range to the other is known to be whole once the other has begun.
            let judged = if site.kind == CheckKind::Carried { Range::Update } else { site.range };
            if judged != range {
                continue;
            }
            let mut values: Vec<Tensor> = site.results.iter().filter_map(read).collect();
            if site.kind == CheckKind::State {
                // Told a step earlier; nothing was, right after a restore, where the supervisor has digested all of it.
                let against: Option<Vec<Tensor>> =
                    site.against.iter().map(|id| self.told.get(id).cloned()).collect();
                let Some(against) = against else { continue };
                values.extend(against);
            } else {
                values.extend(site.against.iter().filter_map(read));
            }
            if let Some(mismatch) = judge(site, &values) {
                alarms.push(alarm(site, mismatch));
            }
        }
        alarms
    }

    /// A step was committed whose `update` gave these outputs.
    pub fn committed(&mut self, program: &Program, outputs: &Outputs) {
        let ids = self.sites.iter().filter(|site| site.kind == CheckKind::State);
        let ids: Vec<ValueId> = ids.flat_map(|site| site.against.iter().copied()).collect();
        for id in ids {
            let value = program.value(id);
            let shape = sizes(&value.shape, &[]);
            let tensor = outputs
                .bytes(id)
                .and_then(|bytes| Tensor::from_bytes(value.dtype, &shape, Width::Native, bytes));
            if let Some(tensor) = tensor {
                self.told.insert(id, tensor);
            }
        }
    }
}

fn alarm(site: &CheckSite, Mismatch { error, tolerance }: Mismatch) -> Alarm {
    let checked = &site.checked;
    let kind = FaultKind::Mismatch { operator: checked.operator.clone(), error, tolerance };
    let place = Place {
        range: checked.range,
        index: checked.index,
        operator: checked.operator.clone(),
        part: checked.part.clone(),
    };
    let suspect = match site.kind {
        CheckKind::Carried => Suspect::Carried,
        CheckKind::State => Suspect::State,
        CheckKind::Product
        | CheckKind::Replay
        | CheckKind::Verify
        | CheckKind::Attention
        | CheckKind::Loss => Suspect::Compute,
    };
    Alarm { kind, place: Some(place), suspect }
}
