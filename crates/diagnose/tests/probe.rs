//! A probe says of an instruction what lockstep says of it in its program.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use toprope_conformance::generate::{cases, exemplars::exemplars, programs};
use toprope_conformance::lockstep::Lockstep;
use toprope_conformance::mutant::{Mutant, MutantDevice};
use toprope_conformance::values::{Regime, draw};
use toprope_conformance::{Reproducer, Verdict};
use toprope_diagnose::Probe;
use toprope_program::operator::Matmul;
use toprope_program::{DType, Device, Range, Type};

/// Random programs in lockstep; each instruction's probe, made of the oracle's values, is judged the same.
fn probes_judge_as_lockstep_does(mut subject: Box<dyn Device>) -> (u64, u64) {
    let mut oracle = support::oracle();
    let (mut judged, mut wrong) = (0, 0);
    for seed in 0..12 {
        let generated = programs::program(seed).unwrap();
        let program = generated.program.program();
        let mut held = draw(program, &generated.symbols, generated.seed, Regime::Normal);
        let mut lockstep = Lockstep::open(
            subject.as_mut(),
            &mut oracle,
            &generated.program,
            &generated.symbols,
            held.clone(),
        )
        .unwrap();
        for range in Range::ALL {
            for index in 0..program.range(range).len() {
                let step = lockstep.step(subject.as_mut(), &mut oracle, range, index, true).unwrap();
                let probe = Probe::at(program, range, index, &generated.symbols, &held, true)
                    .unwrap_or_else(|error| panic!("seed {seed} {range:?} {index}: {error}"));
                let exact = probe.exact(&mut oracle).unwrap();
                let outcome = probe.run(subject.as_mut()).unwrap();
                let judgement = probe.judge(&exact, &outcome);
                let differs = |verdict: &Verdict| matches!(verdict, Verdict::Differ(_));
                assert_eq!(
                    differs(&judgement.verdict),
                    differs(&step.judgement.verdict),
                    "seed {seed} {range:?} {index} {}: {:?} and {:?}",
                    step.operator,
                    judgement.verdict,
                    step.judgement.verdict
                );
                judged += 1;
                wrong += u64::from(differs(&judgement.verdict));
                for (id, want) in program.range(range)[index].outputs.iter().zip(exact.want) {
                    let rounded = toprope_program::Tensor::rounded(want.dtype, &want.sizes, want.data);
                    held[id.0 as usize] = Some(rounded);
                }
            }
        }
        lockstep.close(subject.as_mut(), &mut oracle).unwrap();
    }
    (judged, wrong)
}

#[test]
fn probes_of_a_right_device_agree() {
    let (judged, wrong) = probes_judge_as_lockstep_does(Box::new(support::cpu()));
    assert!(judged > 200 && wrong == 0, "{wrong} of {judged}");
}

#[test]
fn probes_of_a_wrong_device_differ_where_lockstep_says_so() {
    let mutant = MutantDevice::new(Box::new(support::reference()), Mutant::StuckLane);
    let (judged, wrong) = probes_judge_as_lockstep_does(Box::new(mutant));
    assert!(judged > 200 && wrong > 0, "{wrong} of {judged}");
}

/// Every case of every operator is a probe, also dense, and its reproducer reads back as the same.
#[test]
fn every_operator_is_a_probe_of_its_own() {
    let (mut oracle, mut subject) = (support::oracle(), support::cpu());
    let mut dense = 0;
    for operator in exemplars() {
        for index in 0..6 {
            let case = cases::case(&operator, 1, index).unwrap();
            let program = case.program.program();
            let mut held = draw(program, &case.symbols, case.seed, Regime::Normal);
            for (at, instruction) in program.accumulate.iter().enumerate() {
                let probe =
                    Probe::at(program, Range::Accumulate, at, &case.symbols, &held, index % 2 == 0).unwrap();
                let exact = probe.exact(&mut oracle).unwrap();
                if instruction.operator.name() == operator.name() {
                    for probe in [probe.clone(), probe.dense().unwrap()] {
                        let judgement = probe.check(&mut subject, &mut oracle).unwrap();
                        assert!(
                            !matches!(judgement.verdict, Verdict::Differ(_)),
                            "{}: {judgement:?}\n{}",
                            case.name,
                            probe.reproducer("any", "")
                        );
                        dense += u64::from(!probe.has_views());
                        let text = probe.reproducer("any", "").to_string();
                        let back = Reproducer::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
                        assert_eq!(&back.program, probe.program().program());
                        assert!(back.first_difference(&mut subject, &mut oracle).is_none());
                    }
                }
                for (id, want) in instruction.outputs.iter().zip(exact.want) {
                    let rounded = toprope_program::Tensor::rounded(want.dtype, &want.sizes, want.data);
                    held[id.0 as usize] = Some(rounded);
                }
            }
        }
    }
    assert!(dense >= 300, "{dense}");
}

#[test]
fn an_operator_at_given_shapes_is_a_probe_and_grows() {
    let types = [Type::new(DType::F32, [3usize, 5]), Type::new(DType::F32, [5usize, 7])];
    let operator = Matmul { output: DType::F32, row_sums: false }.into();
    let probe = Probe::of(&operator, &types, 1, Regime::Normal, true).unwrap();
    let judgement = probe.check(&mut support::cpu(), &mut support::oracle()).unwrap();
    assert_eq!((judgement.verdict, judgement.elements), (Verdict::Agree, 21));
    assert!(judgement.accuracy[0].unwrap().subject.count == 21);
    let larger = probe.resized(&|_, _, n| if n == 5 { 64 } else { n }, 2, Regime::Normal).unwrap();
    assert_eq!(larger.elements(), 3 * 64 + 64 * 7 + 21);
    assert!(probe.resized(&|value, _, n| if value == 0 { n + 1 } else { n }, 2, Regime::Normal).is_none());
    let wrong = Probe::of(&operator, &types[..1], 1, Regime::Normal, true).unwrap_err().to_string();
    assert!(wrong.contains("`matmul` does not take these operands"), "{wrong}");
}
