//! The memory plan: every value gets its place before the first step, and the peak is known.

use crate::dtype::Width;
use crate::program::{Instruction, Program, Range};
use crate::shape::{dense_strides, elements, sizes};
use crate::validate::Validated;
use crate::value::{Operand, Role, ValueId};

/// Where the state's two halves lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StateLayout {
    /// The next state lies beside the current one; committing is a flip.
    #[default]
    Double,
    /// The next state takes the current one's place: half the memory, and a death under the update needs a snapshot.
    InPlace,
}

/// Which buffer of the bindings a value lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Region {
    /// `Bindings::current`.
    Current,
    /// `Bindings::next`.
    Next,
    /// `Bindings::work`.
    Work,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The buffer.
    pub region: Region,
    /// Offset of the first byte, a multiple of [`ALIGNMENT_BYTES`].
    pub offset_bytes: usize,
    /// Bytes at the symbols' bounds.
    pub bytes: usize,
}

/// A value that is never used has no place.
pub type Placement = Option<Location>;

/// Every value starts at a multiple of this: a cache line, and the widest vector load.
pub const ALIGNMENT_BYTES: usize = 64;

/// Bytes by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breakdown {
    /// One half of the state.
    pub state_bytes: usize,
    /// Gradients and counters.
    pub carried_bytes: usize,
    /// Inputs, outputs, constants and caches.
    pub host_bytes: usize,
    /// The largest sum of scratch values alive at once, as laid out.
    pub scratch_bytes: usize,
}

/// Where everything lies. Made from a validated program alone, so that it is the same on every device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// How float values are stored.
    pub width: Width,
    /// Whether the state is double.
    pub layout: StateLayout,
    /// A place for each value, by id.
    pub places: Vec<Placement>,
    /// Bytes of a state buffer.
    pub state_bytes: usize,
    /// Bytes of the work buffer.
    pub work_bytes: usize,
    /// What the bytes are for.
    pub breakdown: Breakdown,
}

/// An operand as a device sees it: where it lies and how it is strided, with the symbols bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The buffer and the first byte of the *value*.
    pub location: Location,
    /// Element type.
    pub dtype: crate::DType,
    /// First element of the window, counted from the value's first.
    pub offset: usize,
    /// Sizes, outermost first.
    pub sizes: Vec<usize>,
    /// Strides, in elements.
    pub strides: Vec<usize>,
}

impl Slice {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        elements(&self.sizes)
    }

    /// Whether the elements follow one another without gaps.
    pub fn is_dense(&self) -> bool {
        let mut expected = 1;
        for (size, stride) in self.sizes.iter().zip(&self.strides).rev() {
            if *size != 1 && *stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }
}

fn aligned(bytes: usize) -> usize {
    bytes.div_ceil(ALIGNMENT_BYTES).saturating_mul(ALIGNMENT_BYTES)
}

impl MemoryPlan {
    /// Lays out a program's values. Deterministic.
    pub fn new(program: &Validated, width: Width, layout: StateLayout) -> MemoryPlan {
        let program = program.program();
        let bounds = program.bounds();
        let bytes = |id: ValueId| {
            let value = program.value(id);
            elements(&sizes(&value.shape, &bounds)).saturating_mul(value.dtype.size_bytes(width))
        };
        let mut places: Vec<Placement> = vec![None; program.values.len()];
        let mut breakdown = Breakdown::default();
        let mut work = 0usize;
        for (id, value) in program.values_with_ids() {
            let size = bytes(id);
            let (region, end) = match value.role {
                Role::State { .. } => (Region::Current, &mut breakdown.state_bytes),
                Role::Carried | Role::Input | Role::Output | Role::Constant { .. } | Role::Cache => {
                    (Region::Work, &mut work)
                }
                Role::Next { .. } | Role::Scratch => continue,
            };
            places[id.0 as usize] = Some(Location { region, offset_bytes: *end, bytes: size });
            *end = end.saturating_add(aligned(size));
            if region == Region::Work {
                let part = match value.role {
                    Role::Carried => &mut breakdown.carried_bytes,
                    _ => &mut breakdown.host_bytes,
                };
                *part = part.saturating_add(aligned(size));
            }
        }
        for (id, value) in program.values_with_ids() {
            if let Role::Next { of } = value.role {
                let region = if layout == StateLayout::Double { Region::Next } else { Region::Current };
                places[id.0 as usize] = places[of.0 as usize].map(|current| Location { region, ..current });
            }
        }
        for range in Range::ALL {
            let lifetimes = lifetimes(program, range, &bytes);
            let peak = place_scratch(&lifetimes, work, &mut places);
            breakdown.scratch_bytes = breakdown.scratch_bytes.max(peak - work);
        }
        let work_bytes = work.saturating_add(breakdown.scratch_bytes);
        MemoryPlan { width, layout, places, state_bytes: breakdown.state_bytes, work_bytes, breakdown }
    }

    /// Bytes of all buffers: the peak that a device needs, without its own workspace.
    pub fn total_bytes(&self) -> usize {
        let halves = if self.layout == StateLayout::Double { 2 } else { 1 };
        self.state_bytes.saturating_mul(halves).saturating_add(self.work_bytes)
    }

    /// Where a value lies.
    pub fn place(&self, id: ValueId) -> Placement {
        self.places.get(id.0 as usize).copied().flatten()
    }

    /// An operand with the symbols bound. `None` for a value that has no place, which validation rules out for operands.
    pub fn slice(&self, program: &Program, operand: &Operand, symbols: &[usize]) -> Option<Slice> {
        let value = program.value(operand.value);
        let location = self.place(operand.value)?;
        Some(match &operand.view {
            None => Slice {
                location,
                dtype: value.dtype,
                offset: 0,
                sizes: sizes(&value.shape, symbols),
                strides: dense_strides(&value.shape)?,
            },
            Some(view) => Slice {
                location,
                dtype: value.dtype,
                offset: view.offset,
                sizes: sizes(&view.shape, symbols),
                strides: view.strides.clone(),
            },
        })
    }

    /// The operands and outputs of an instruction, with the symbols bound.
    pub fn slices(
        &self,
        program: &Program,
        instruction: &Instruction,
        symbols: &[usize],
    ) -> Option<(Vec<Slice>, Vec<Slice>)> {
        let operands =
            instruction.operands.iter().map(|operand| self.slice(program, operand, symbols)).collect();
        let outputs =
            instruction.outputs.iter().map(|id| self.slice(program, &(*id).into(), symbols)).collect();
        Option::zip(operands, outputs)
    }
}

/// A scratch value's bytes and the instructions between which it lives, both ends included.
struct Lifetime {
    id: ValueId,
    bytes: usize,
    first: usize,
    last: usize,
}

fn lifetimes(program: &Program, range: Range, bytes: &dyn Fn(ValueId) -> usize) -> Vec<Lifetime> {
    let mut first: Vec<Option<usize>> = vec![None; program.values.len()];
    let mut last = vec![0usize; program.values.len()];
    for (index, instruction) in program.range(range).iter().enumerate() {
        let reads = instruction.operands.iter().map(|operand| operand.value);
        for id in reads.chain(instruction.outputs.iter().copied()) {
            if program.value(id).role == Role::Scratch {
                first[id.0 as usize].get_or_insert(index);
                last[id.0 as usize] = index;
            }
        }
    }
    let mut lifetimes: Vec<Lifetime> = program
        .values_with_ids()
        .filter_map(|(id, _)| {
            let first = first[id.0 as usize]?;
            Some(Lifetime { id, bytes: aligned(bytes(id)), first, last: last[id.0 as usize] })
        })
        .collect();
    // Largest first packs best; ties keep their order so that the plan is deterministic.
    lifetimes.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.first.cmp(&b.first)).then(a.id.cmp(&b.id)));
    lifetimes
}

/// Greedy by size (Pisarchyk and Lee, arXiv 2001.03288): each value takes the lowest gap among those that live at the same
/// time. Returns the end of the highest.
fn place_scratch(lifetimes: &[Lifetime], base: usize, places: &mut [Placement]) -> usize {
    let mut peak = base;
    let mut placed: Vec<(usize, usize, usize, usize)> = Vec::with_capacity(lifetimes.len());
    for lifetime in lifetimes {
        let mut offset = base;
        // `placed` is kept sorted by offset.
        for &(start, end, first, last) in &placed {
            if last < lifetime.first || lifetime.last < first {
                continue;
            }
            if start >= offset && start - offset >= lifetime.bytes {
                break;
            }
            offset = offset.max(end);
        }
        let end = offset.saturating_add(lifetime.bytes);
        peak = peak.max(end);
        let at = placed.partition_point(|entry| entry.0 <= offset);
        placed.insert(at, (offset, end, lifetime.first, lifetime.last));
        places[lifetime.id.0 as usize] =
            Some(Location { region: Region::Work, offset_bytes: offset, bytes: lifetime.bytes });
    }
    peak
}
