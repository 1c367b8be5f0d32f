//! Running a span of a prepared program on the queue's thread.

use crate::bind::{Output, View, Window};
use crate::fault::{panicked, place};
use crate::kernel::Context;
use crate::level::Level;
use crate::memory::Memory;
use crate::operator::{Task, copy};
use crate::pool::Pool;
use crate::prepare::{Bound, Fusion, Prepared};
use crate::profile::Profile;
use crate::support::support;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;
use toprope_program::{CheckMask, Fault, PreparedId, ProgressWord, Region, Span, Ticket};

/// What computes: threads and instructions.
pub(crate) struct Engine {
    pub(crate) level: Level,
    /// All threads; the queue's is thread 0.
    pub(crate) pool: Pool,
    /// One thread, for work that is not worth waking others for.
    pub(crate) alone: Pool,
}

/// The first bytes of the three buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bases {
    pub(crate) current: *mut u8,
    pub(crate) next: *mut u8,
    pub(crate) work: *mut u8,
}

// SAFETY: addresses; the queue's order says who uses the memory when.
unsafe impl Send for Bases {}

impl Bases {
    fn of(&self, region: Region) -> *mut u8 {
        match region {
            Region::Current => self.current,
            Region::Next => self.next,
            Region::Work => self.work,
        }
    }
}

/// A queued run.
pub(crate) struct Run {
    pub(crate) ticket: Ticket,
    pub(crate) id: PreparedId,
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) bound: Arc<Bound>,
    pub(crate) span: Span,
    pub(crate) bases: Bases,
    pub(crate) first: bool,
    pub(crate) checks: CheckMask,
    pub(crate) workspace: Arc<Memory>,
}

impl Run {
    /// Runs all instructions. A kernel that panics makes a fault that names its place.
    pub(crate) fn execute(
        &self,
        engine: &Engine,
        word: &ProgressWord,
        profile: Option<&Profile>,
    ) -> Result<(), Fault> {
        let at = Cell::new(self.span.from);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.instructions(engine, word, profile, &at)));
        outcome.map_err(|panic| {
            let mut fault = panicked(&*panic);
            let instructions = self.prepared.instructions(self.span.range);
            fault.place =
                instructions.get(at.get()).map(|instruction| place(self.span.range, at.get(), instruction));
            fault
        })
    }

    fn instructions(
        &self,
        engine: &Engine,
        word: &ProgressWord,
        profile: Option<&Profile>,
        at: &Cell<usize>,
    ) {
        let Span { range, from, to } = self.span;
        let instructions = self.prepared.instructions(range);
        let fusions = self.prepared.fusions(range);
        let sums = self.prepared.sums(range);
        let steps = self.bound.steps(range);
        // Kept over the loop, so that an instruction allocates nothing.
        let mut inputs: Vec<View<'_>> = Vec::new();
        let mut outputs: Vec<Output<'_>> = Vec::new();
        for index in from..to {
            at.set(index);
            word.mark(self.ticket, index);
            let (instruction, step) = (&instructions[index], &steps[index]);
            if instruction.check.is_some_and(|bit| !self.checks.fires(bit)) {
                continue;
            }
            // A pair is one only where both halves lie in the span; apart they give the same bits.
            let fused = match fusions[index] {
                Fusion::Absorbed { by } if by >= from => continue,
                Fusion::Into { accumulate, output } if accumulate < to => Some((accumulate, output)),
                _ => None,
            };
            let Ok(execute) = support(&instruction.operator) else { continue };
            let started = profile.map(|_| Instant::now());
            let pool = if step.parallel { &engine.pool } else { &engine.alone };
            let context = Context { pool, level: engine.level };
            inputs.clear();
            for (position, window) in step.inputs.iter().enumerate() {
                if execute.reads(position) {
                    inputs.push(self.input(window, pool));
                } else {
                    // SAFETY: nothing is readable through an empty extent.
                    inputs
                        .push(unsafe { View::new(self.address(window), window.dtype, window.shape.empty()) });
                }
            }
            outputs.clear();
            let wanted = match sums[index] {
                Some(sums) if !self.checks.fires(sums.bit) => sums.others,
                _ => step.outputs.len(),
            };
            outputs.extend(step.outputs.iter().take(wanted).map(|window| self.output(window)));
            if let Some((accumulate, output)) = fused {
                outputs[output] = self.output(&steps[accumulate].outputs[0]);
            }
            let bytes = self.workspace.bytes().saturating_sub(step.staged_bytes);
            // SAFETY: the workspace belongs to the run, and staged operands end where this part begins.
            let workspace = unsafe {
                std::slice::from_raw_parts_mut(
                    self.workspace.address().wrapping_add(step.staged_bytes),
                    bytes,
                )
            };
            execute.run(&mut Task {
                context,
                alone: Context { pool: &engine.alone, level: engine.level },
                inputs: &inputs,
                outputs: &mut outputs,
                workspace,
                first: self.first,
                adds: fused.is_some() && !self.first,
            });
            if let (Some(profile), Some(started)) = (profile, started) {
                profile.add(self.id, range, index, started.elapsed());
            }
        }
    }

    fn address(&self, window: &Window) -> *mut u8 {
        self.bases.of(window.region).wrapping_add(window.offset_bytes)
    }

    /// An operand, copied to the workspace first where its kernel can't read it as it lies.
    fn input<'m>(&self, window: &Window, pool: &Pool) -> View<'m> {
        let address = self.address(window);
        let Some(staged) = window.staged else {
            // SAFETY: the plan and the validator keep the window inside a buffer that was checked to be large enough,
            // and nobody writes it while the instruction runs.
            return unsafe { View::new(address, window.dtype, window.shape) };
        };
        let target = self.workspace.address().wrapping_add(staged.offset_bytes);
        // SAFETY: as above; the staged part of the workspace is this operand's own.
        unsafe {
            let source = View::new(address, window.dtype, staged.source);
            copy::gather(pool, &source, Output::new(target, window.dtype, window.shape));
            View::new(target, window.dtype, window.shape)
        }
    }

    fn output<'m>(&self, window: &Window) -> Output<'m> {
        // SAFETY: the plan gives values that live at the same time distinct places, inside buffers that were checked to
        // be large enough; operands that an output would overwrite were staged.
        unsafe { Output::new(self.address(window), window.dtype, window.shape) }
    }
}
