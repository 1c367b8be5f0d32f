//! A wrong value is seen: for each kind of check and operator, one element of one output is changed as a fault in compute
//! would (with the sums that are taken from the accumulator), or stored bytes are.

mod support;

use std::collections::BTreeMap;
use support::{Run, device, small_program};
use toprope_cpu::CpuDevice;
use toprope_program::check::{self, CheckKind, CheckLevel, CheckPlan, CheckSite};
use toprope_program::operator::{Operator, digest_mix};
use toprope_program::{DType, Instruction, Range, Role, StateLayout, Tensor, ValueId};

/// A healthy run of one micro-batch, stopped behind instruction `index` of `range`, changed, and run to its end.
fn step(run: &mut Run<CpuDevice>, range: Range, index: usize, change: impl FnOnce(&mut Run<CpuDevice>)) {
    run.feed(1, 96, 67);
    if range == Range::Update {
        run.all(Range::Accumulate, true);
    }
    let count = run.count(range);
    run.run(range, 0, index + 1, true);
    change(run);
    run.run(range, index + 1, count, true);
    if range == Range::Accumulate {
        run.all(Range::Update, true);
    }
}

fn change(run: &mut Run<CpuDevice>, id: ValueId, element: usize, by: f64) {
    let mut tensor = run.tensor(id);
    tensor.data[element] += by;
    let program = run.program.clone();
    run.write(program.program().value(id), tensor.data);
}

/// The digest of what the optimizer wrote becomes that of what is there now.
fn follow_digest(run: &mut Run<CpuDevice>, outputs: &[ValueId]) {
    let stored = [0, 1, 2].map(|output: usize| run.tensor(outputs[output]));
    let terms = stored.iter().flat_map(|tensor| tensor.data.iter().enumerate());
    let digest =
        terms.fold(0u64, |sum, (index, x)| sum.wrapping_add(digest_mix((*x as f32).to_bits(), index as u64)));
    let program = run.program.clone();
    let words = vec![f64::from(digest as u32), f64::from((digest >> 32) as u32)];
    run.write(program.program().value(outputs[3]), words);
}

/// Adds `sizes` times the root mean square of an output to one of its elements, and to the sums alike.
fn fault_in_compute(run: &mut Run<CpuDevice>, instruction: &Instruction, output: usize, sizes: f64) {
    let tensor = run.tensor(instruction.outputs[output]);
    let count = tensor.data.len();
    let element = count / 3;
    if !tensor.dtype.is_float() {
        return change(run, instruction.outputs[output], element, 1.0);
    }
    let size = (tensor.data.iter().map(|x| x * x).sum::<f64>() / count as f64).sqrt();
    let by = sizes * size.max(1e-6);
    change(run, instruction.outputs[output], element, by);
    let row = element / tensor.sizes.last().copied().unwrap_or(1);
    match (&instruction.operator, output) {
        (Operator::Matmul(_) | Operator::GroupedMatmul(_) | Operator::GroupedOuter(_), 0) => {
            change(run, instruction.outputs[1], row, by);
        }
        (Operator::LinearCrossEntropyGradient(_), 1) => change(run, instruction.outputs[3], row * 5, by),
        (Operator::Adamw(_), 0..3) => follow_digest(run, &instruction.outputs),
        (Operator::LinearCrossEntropyGradient(_), 2) => change(run, instruction.outputs[4], row * 3, by),
        _ => {}
    }
}

fn judged(run: &mut Run<CpuDevice>, site: &CheckSite) -> Option<check::Mismatch> {
    let ids = site.results.iter().chain(&site.against);
    let results: Vec<Tensor> = ids.map(|id| run.tensor(*id)).collect();
    check::judge(site, &results)
}

#[test]
fn a_fault_in_compute_is_seen_at_every_kind_of_site() {
    for dtype in [DType::Bf16, DType::F32] {
        let mut program = small_program(dtype);
        let sites = check::insert(&mut program, &CheckPlan { level: CheckLevel::Full });
        let mut run = Run::new(device(None, 2), program.clone(), StateLayout::Double);
        let mut each: BTreeMap<(CheckKind, &str), &CheckSite> = BTreeMap::new();
        for site in sites.iter().filter(|site| site.against.is_empty()) {
            each.insert((site.kind, &site.checked.operator), site);
        }
        assert!(each.len() >= 12, "{each:?}");
        for ((kind, operator), site) in each {
            let (range, index) = (site.checked.range, site.checked.index);
            let instruction = &program.range(range)[index];
            let outputs = match operator {
                "matmul" | "grouped_matmul" | "grouped_outer" => 1,
                _ => instruction.outputs.len().min(3),
            };
            for output in 0..outputs {
                // A bit is enough for a replay; the identities of rounded values need what is larger than rounding.
                let sizes = if kind == CheckKind::Attention { 20.0 } else { 0.05 };
                step(&mut run, range, index, |run| fault_in_compute(run, instruction, output, sizes));
                // An update that overwrites what it read is watched by two checks; either may see it.
                let both = sites.iter().filter(|other| other.checked == site.checked);
                let found =
                    both.filter(|other| other.against.is_empty()).find_map(|other| judged(&mut run, other));
                assert!(
                    found.is_some(),
                    "{dtype} {kind:?} of {operator}, output {output} of {:?}",
                    site.checked
                );
            }
            step(&mut run, range, index, |_| {});
            assert_eq!(judged(&mut run, site), None, "{dtype} {kind:?} of {operator} without a fault");
        }
        // The forward pass of attention is watched by its gradient's check.
        let forward = program.accumulate.iter().position(|i| matches!(i.operator, Operator::Attention(_)));
        let index = forward.unwrap();
        let instruction = &program.accumulate[index];
        let site = sites.iter().rfind(|site| site.kind == CheckKind::Attention).unwrap();
        step(&mut run, Range::Accumulate, index, |run| fault_in_compute(run, instruction, 0, 20.0));
        assert!(judged(&mut run, site).is_some(), "{dtype} out of attention");
        // The log-sum-exp too, from what rounding cannot be.
        let lse = instruction.outputs[1];
        step(&mut run, Range::Accumulate, index, |run| change(run, lse, 7, 0.01));
        assert!(judged(&mut run, site).is_some(), "{dtype} log-sum-exp of attention");
    }
}

#[test]
fn bits_that_change_at_rest_are_seen() {
    let mut program = small_program(DType::Bf16);
    let sites = check::insert(&mut program, &CheckPlan { level: CheckLevel::Full });
    let mut run = Run::new(device(None, 2), program.clone(), StateLayout::Double);
    let of = |kind: CheckKind| sites.iter().filter(move |site| site.kind == kind);
    // Carried: between the ranges.
    run.feed(1, 96, 67);
    run.all(Range::Accumulate, true);
    let victim = of(CheckKind::Carried).nth(3).unwrap();
    let carried = program.find(&victim.checked.output).unwrap();
    assert_eq!(program.value(carried).role, Role::Carried);
    change(&mut run, carried, 0, 1.0);
    run.all(Range::Update, true);
    for site in of(CheckKind::Carried) {
        assert_eq!(judged(&mut run, site).is_some(), site == victim, "{:?}", site.checked);
    }
    // State: between a commit and the next step.
    let against = |run: &mut Run<CpuDevice>, site: &CheckSite| -> Vec<Tensor> {
        site.against.iter().map(|id| run.tensor(*id)).collect()
    };
    let chain: Vec<Vec<Tensor>> = of(CheckKind::State).map(|site| against(&mut run, site)).collect();
    run.flip();
    let victim = of(CheckKind::State).nth(2).unwrap();
    let next = program.find(&victim.checked.output).unwrap();
    let Role::Next { of: state } = program.value(next).role else { panic!("{:?}", victim.checked) };
    change(&mut run, state, 0, 1.0);
    run.all(Range::Accumulate, true);
    run.all(Range::Update, true);
    for (site, before) in of(CheckKind::State).zip(chain) {
        let mut results: Vec<Tensor> = site.results.iter().map(|id| run.tensor(*id)).collect();
        results.extend(before);
        assert_eq!(check::judge(site, &results).is_some(), site == victim, "{:?}", site.checked);
    }
}
