//! `verify`: results judged by code of its own, stored nowhere. It shares no arithmetic with the operators it judges:
//! other orders of sums, f64 where theirs is f32, an exponential of its own, and certificates where checking is simpler than
//! computing.

mod norm;
mod routing;
mod small;

use super::{Execute, Sizes, Task};
use crate::bind::{Layout, View};
use crate::lanes::Lanes;
use std::sync::atomic::{AtomicU32, Ordering};
use toprope_program::operator::{Operator, Verify};
use toprope_program::{Concrete, Tolerance};

/// 2^-70 of the bound.
const FLOOR: f32 = f32::from_bits((127 - 70) << 23);

/// The largest distance that threads have met.
struct Worst(AtomicU32);

impl Worst {
    fn new() -> Worst {
        Worst(AtomicU32::new(0))
    }

    fn meet(&self, distance: f32) {
        // Not below infinity: infinite or no number. Others are not negative, so their bits are in their order.
        let distance = if distance < f32::INFINITY { distance.max(0.0) } else { f32::INFINITY };
        self.0.fetch_max(distance.to_bits(), Ordering::Relaxed);
    }

    /// A distance from its two sides and its unit.
    fn element(&self, got: f32, want: f64, unit: f64) {
        self.meet(((f64::from(got) - want).abs() / unit) as f32);
    }

    /// What must be so, exactly.
    fn demand(&self, holds: bool) {
        if !holds {
            self.meet(f32::INFINITY);
        }
    }
}

/// The unit of an output's distances: factors of the wanted number and of the magnitude.
#[derive(Clone, Copy)]
struct Unit {
    relative: f64,
    accumulated: f64,
}

impl Unit {
    /// The units of an operator's outputs.
    fn of(verify: &Verify, inputs: &[View<'_>]) -> Vec<Unit> {
        let concrete = |views: &[View<'_>]| -> Vec<Concrete> {
            views.iter().map(|view| Concrete { dtype: view.dtype, sizes: view.sizes().to_vec() }).collect()
        };
        let (inputs, outputs) = inputs.split_at(verify.inputs(inputs.len()));
        let tolerances = verify.of.definition().tolerances(&concrete(inputs), &concrete(outputs));
        let unit = |tolerance: &Tolerance| {
            let (relative, accumulated) = Verify::unit(tolerance);
            Unit { relative, accumulated }
        };
        tolerances.iter().map(unit).collect()
    }

    fn bound(self, want: f64, magnitude: f64) -> f64 {
        self.relative * want.abs() + self.accumulated * magnitude + f64::from(FLOOR)
    }
}

/// What a pass over the elements finds out.
trait Mode: Send + Sync + 'static {
    /// The largest distance, rather than whether one is not below 1.
    const EXACT: bool;
}

/// Whether a distance is not below 1: what is asked always.
struct Quick;

impl Mode for Quick {
    const EXACT: bool = false;
}

/// The largest distance: what is asked where one is not below 1.
struct Exact;

impl Mode for Exact {
    const EXACT: bool = true;
}

/// The largest quotient of pairs of lanes, or a mark of those that are not below 1.
#[derive(Clone, Copy)]
struct Ratio<L>(L);

impl<L: Lanes> Ratio<L> {
    #[inline(always)]
    fn new() -> Ratio<L> {
        Ratio(L::splat(0.0))
    }

    /// Meets `over / under`; neither is negative, and `under` is not 0.
    #[inline(always)]
    fn meet<M: Mode>(&mut self, over: L, under: L) {
        let limit = L::splat(f32::INFINITY);
        if M::EXACT {
            let quotient = over.div(under);
            // Not below infinity: infinite or no number.
            self.0 = quotient.select_less(limit, quotient, limit).max(self.0);
        } else {
            self.0 = over.select_less(under, self.0, limit);
        }
    }

    /// The largest distance; of a quick pass 0 where all are below 1.
    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.largest()
    }
}

impl Execute for Verify {
    fn layout(&self, index: usize) -> Layout {
        match (&*self.of, index) {
            (Operator::RmsNorm(_), 0 | 2) | (Operator::RmsNormGradient(_), 0 | 3 | 4) => Layout::Rows,
            (Operator::ColumnSum(_), 0) => Layout::Rows,
            _ => Layout::Dense,
        }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let shape = |index: usize| sizes.inputs[index].shape.sizes();
        let values = match &*self.of {
            Operator::RmsNormGradient(_) => norm::values(sizes.inputs[2].shape.elements(), shape(1)[0]),
            Operator::Router(router) => routing::choice_values(shape(0)[1], router.groups, sizes.threads),
            Operator::RouterGradient(_) | Operator::BalanceLoss(_) | Operator::BalanceLossGradient(_) => {
                2 * shape(0)[1] * sizes.threads
            }
            Operator::ExpertSort(sort) => sort.experts,
            Operator::ColumnSum(_) => 2 * shape(0)[1],
            Operator::Dot(_) | Operator::GlobalNorm(_) => {
                small::values(sizes.inputs.iter().map(|input| input.shape.elements()))
            }
            _ => 0,
        };
        (values + 1) * size_of::<f64>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        // SAFETY: every bit pattern is an f64, and the middle part is aligned for it.
        let (_, scratch, _) = unsafe { task.workspace.align_to_mut::<f64>() };
        let units = Unit::of(self, task.inputs);
        let (context, inputs) = (task.context, task.inputs);
        let worst = Worst::new();
        match &*self.of {
            Operator::RmsNorm(it) => norm::rms_norm(&context, it, inputs, &units, &worst),
            Operator::RmsNormGradient(_) => norm::gradient(&context, inputs, &units, scratch, &worst),
            Operator::Router(it) => routing::router(&context, it, inputs, &units, scratch, &worst),
            Operator::RouterGradient(it) => routing::gradient(&context, it, inputs, &units, scratch, &worst),
            Operator::BalanceLoss(it) => {
                routing::balance(&context, it.sequence, false, inputs, &units, scratch, &worst);
            }
            Operator::BalanceLossGradient(it) => {
                routing::balance(&context, it.sequence, true, inputs, &units, scratch, &worst);
            }
            Operator::ExpertSort(it) => routing::sort(it, inputs, scratch, &worst),
            Operator::ColumnSum(_) => small::column_sum(inputs, &units, scratch, &worst),
            Operator::Dot(_) => small::dot(&context, inputs, &units, scratch, &worst),
            Operator::GlobalNorm(it) => small::global_norm(&context, it, inputs, &units, scratch, &worst),
            Operator::BiasUpdate(it) => small::bias_update(it, inputs, &units, &worst),
            Operator::Increment(it) => small::increment(it, inputs, &worst),
            // The validator lets nothing else through.
            _ => worst.demand(false),
        }
        task.outputs[0].f32()[0] = f32::from_bits(worst.0.into_inner());
    }
}
