//! Building, differentiating, printing, validating and planning a small program.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use toprope_program::autodiff::differentiate;
use toprope_program::operator::*;
use toprope_program::recompute::Recompute;
use toprope_program::*;

fn linear_step(recompute: Recompute) -> Program {
    let mut b = Builder::new("linear", Phase::Train);
    let sequences = b.symbol("sequences", 4);
    let rows = Dim::symbolic(sequences, 8);
    let embed = b.state("embed", Type::new(DType::F32, [32, 6]), Initial::Normal { std: 0.02 });
    let weight = b.state("weight", Type::new(DType::F32, [12, 6]), Initial::Normal { std: 0.02 });
    let down = b.state("down", Type::new(DType::F32, [6, 6]), Initial::Normal { std: 0.02 });
    let head = b.state("head", Type::new(DType::F32, [32, 6]), Initial::Normal { std: 0.02 });
    let scale = b.state("norm", Type::new(DType::F32, [6]), Initial::Ones);
    let tokens = b.input("tokens", DType::I32, [rows]);
    let targets = b.input("targets", DType::I32, [rows]);
    let weights = b.input("loss_scale", DType::F32, [1]);
    b.set_part("body");
    let x = b.one("x", Gather { output: DType::F32 }, [embed.into(), tokens.into()]).unwrap();
    let n = b.one("n", RmsNorm { epsilon: 1e-6 }, [x.into(), scale.into()]).unwrap();
    let w = b.seen(weight, |v| v.transpose(0, 1)).unwrap();
    let up = b.one("up", Matmul { output: DType::F32, row_sums: false }, [n.into(), w]).unwrap();
    let h = b.one("h", Swiglu {}, [up.into()]).unwrap();
    let d = b.seen(down, |v| v.transpose(0, 1)).unwrap();
    let y = b.one("y", Matmul { output: DType::F32, row_sums: false }, [h.into(), d]).unwrap();
    let r = b.one("r", Add { output: DType::F32 }, [x.into(), y.into()]).unwrap();
    b.set_part("head");
    let loss = b.apply("loss", LinearCrossEntropy {}, [r.into(), head.into(), targets.into()]).unwrap()[0];
    let repeated = b.seen(weights, |v| v.repeat(0, rows).drop_axis(1)).unwrap();
    let total = b.one("total", Dot {}, [loss.into(), repeated]).unwrap();
    let state = [embed, weight, down, head, scale];
    let gradients = differentiate(&mut b, total, &state, recompute).unwrap();
    b.accumulate("loss_total", total).unwrap();
    let mut sums = Vec::new();
    for (id, gradient) in state.iter().zip(gradients) {
        let name = format!("{}.sum", b.program().value(*id).name);
        sums.push(b.accumulate(&name, gradient.unwrap()).unwrap());
    }
    b.set_range(Range::Update);
    b.set_part("optimizer");
    let norm = b
        .apply_all("norm_of_gradients", GlobalNorm { clip: 1.0 }, sums.iter().map(|s| (*s).into()).collect())
        .unwrap();
    let rates = b.input("rates", DType::F32, [3]);
    for (id, sum) in state.iter().zip(sums) {
        let (name, r#type) = (b.program().value(*id).name.clone(), b.program().value(*id).r#type());
        let m = b.state(&format!("{name}.m"), r#type.clone(), Initial::Zeros);
        let v = b.state(&format!("{name}.v"), r#type, Initial::Zeros);
        let next = [b.next(*id), b.next(m), b.next(v)];
        let adamw = Adamw { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, digests: false };
        let operands = vec![(*id).into(), sum.into(), m.into(), v.into(), norm[1].into(), rates.into()];
        b.apply_to(adamw, operands, next.to_vec()).unwrap();
    }
    b.finish()
}

#[test]
fn a_step_validates_and_prints_and_parses_back() {
    for recompute in [Recompute::Nothing, Recompute::Elementwise, Recompute::Products] {
        let program = linear_step(recompute);
        let printed = text::print(&program);
        let parsed = text::parse(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
        assert_eq!(parsed, program, "{printed}");
        let from_json = json::parse(&json::print(&program).unwrap()).unwrap();
        assert_eq!(from_json, program);
        let validated = validate(program).unwrap_or_else(|defects| panic!("{defects:#?}\n{printed}"));
        assert_eq!(hash::program_hash(&parsed), validated.hash());
        assert!(printed.contains("linear_cross_entropy_gradient"));
        assert!(!printed.contains("= linear_cross_entropy("), "the gradient's loss supersedes the forward's");
    }
}

#[test]
fn values_alive_together_do_not_overlap() {
    let program = validate(linear_step(Recompute::Elementwise)).unwrap();
    let plan = MemoryPlan::new(&program, Width::Native, StateLayout::Double);
    let program = program.program();
    let mut last = vec![0; program.values.len()];
    let mut first = vec![usize::MAX; program.values.len()];
    for (index, instruction) in program.accumulate.iter().enumerate() {
        for id in instruction.operands.iter().map(|o| o.value).chain(instruction.outputs.iter().copied()) {
            last[id.0 as usize] = index;
            first[id.0 as usize] = first[id.0 as usize].min(index);
        }
    }
    for (a, value) in program.values_with_ids().filter(|(_, value)| value.role == Role::Scratch) {
        for (b, _) in program.values_with_ids().filter(|(b, _)| *b != a) {
            let (i, j) = (a.0 as usize, b.0 as usize);
            let (Some(x), Some(y)) = (plan.place(a), plan.place(b)) else { continue };
            let alive =
                program.value(b).role != Role::Scratch || (first[i] <= last[j] && first[j] <= last[i]);
            let apart = x.region != y.region
                || x.offset_bytes + x.bytes <= y.offset_bytes
                || y.offset_bytes + y.bytes <= x.offset_bytes;
            assert!(
                !alive || first[i] == usize::MAX || apart,
                "{} and {}",
                value.name,
                program.value(b).name
            );
        }
    }
}

#[test]
fn checks_do_not_change_the_hash() {
    let mut program = linear_step(Recompute::Nothing);
    let hash = hash::program_hash(&program);
    let sites = check::insert(&mut program, &check::CheckPlan { level: check::CheckLevel::Full });
    assert!(sites.len() >= 4);
    let validated = validate(program).unwrap_or_else(|defects| panic!("{defects:#?}"));
    assert_eq!(validated.hash(), hash);
}

#[test]
fn defects_are_listed_with_their_places() {
    let text = "program \"x\" train\nsymbol n <= 4\ninput %a: f32[8*n, 4]\ninput %b: f32[5, 3]\noutput %never: f32[1]\n\
        accumulate {\n %c: f32[8*n, 3] = matmul(%a, %b) {\"output\":\"f32\"}\n \
        %d: f32[8*n, 9] = add(%a@0[8*n, 9][4, 1], %a@0[8*n, 9][4, 1]) {\"output\":\"f32\"}\n \
        %f: f32[8*n, 4] = add(%a, %g2) {\"output\":\"f32\"}\n %g2: f32[8*n, 4] = add(%a, %a) {\"output\":\"f32\"}\n}\n";
    let error = text::parse(text).unwrap_err();
    assert_eq!((error.line, error.reason.as_str()), (9, "%g2 is not declared"));
    let text = text.replace("%g2", "%never");
    let text = text.replace("%never: f32[8*n, 4] = add(%a, %a)", "%h: f32[8*n, 4] = add(%a, %a)");
    let defects = validate(text::parse(&text).unwrap()).unwrap_err();
    let listed = defects.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for expected in [
        "accumulate 0 `matmul`: the columns of a must equal the rows of b",
        "accumulate 1 `add`: a view of %a leaves it",
        "accumulate 2 `add`: a and b must have the same shape",
        "%never: is never written",
    ] {
        assert!(listed.contains(expected), "{expected} not in\n{listed}");
    }
}

/// A loss that is used twice: its gradient is computed from itself, so the gradient's loss cannot take its place.
#[test]
fn a_loss_that_enters_its_own_gradient_stays() {
    let mut b = Builder::new("squared", Phase::Train);
    let x = b.input("x", DType::F32, [4, 3]);
    let head = b.state("head", Type::new(DType::F32, [5, 3]), Initial::Normal { std: 0.02 });
    let targets = b.input("targets", DType::I32, [4]);
    let loss = b.apply("loss", LinearCrossEntropy {}, [x.into(), head.into(), targets.into()]).unwrap()[0];
    let total = b.one("total", Dot {}, [loss.into(), loss.into()]).unwrap();
    let gradient = differentiate(&mut b, total, &[head], Recompute::Nothing).unwrap()[0].unwrap();
    b.accumulate("head.sum", gradient).unwrap();
    let program = validate(b.finish()).unwrap_or_else(|defects| panic!("{defects:#?}"));
    let printed = text::print(program.program());
    assert!(printed.contains("= linear_cross_entropy("), "{printed}");
}

/// The example of the page that other languages are written from.
#[test]
fn the_program_of_the_worker_protocols_page_is_one() {
    let page = include_str!("../../../docs/worker-protocol.md");
    let (_, behind) = page.split_once("```json program\n").unwrap();
    let (example, _) = behind.split_once("```").unwrap();
    let program = json::parse(example).unwrap();
    validate(program.clone()).unwrap();
    // Every key that a program has is in it.
    let again: serde_json::Value = serde_json::from_str(&json::print(&program).unwrap()).unwrap();
    let told: serde_json::Value = serde_json::from_str(example).unwrap();
    assert_eq!(again, told);
    assert_eq!(text::parse(&text::print(&program)).unwrap(), program);
    // The page names every role and every way to begin.
    for role in [
        "state", "next", "constant", "input", "carried", "scratch", "output", "cache", "zeros", "ones",
        "normal",
    ] {
        assert!(page.contains(&format!("\"{role}\"")), "{role}");
    }
}
