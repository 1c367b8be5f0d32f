//! The same bits: whatever the number of threads, the level, the cut into spans, and where the state lies.

mod support;

use support::{Run, assert_same, device, small_program};
use toprope_cpu::{CpuDevice, Level};
use toprope_program::{DType, Range, StateLayout};

fn fresh(level: Option<Level>, threads: usize, dtype: DType) -> Run<CpuDevice> {
    Run::new(device(level, threads), small_program(dtype), StateLayout::Double)
}

#[test]
fn threads_do_not_change_a_bit() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut want = fresh(None, 1, dtype);
        want.step();
        let want = want.results();
        for threads in [2, 3, 5] {
            let mut got = fresh(None, threads, dtype);
            got.step();
            assert_same(&format!("{dtype}, {threads} threads"), &got.results(), &want);
        }
    }
}

#[test]
fn levels_without_matrix_instructions_agree_to_the_bit() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut want = fresh(Some(Level::Portable), 2, dtype);
        want.step();
        let want = want.results();
        for level in [Level::Avx2, Level::Avx512] {
            if !level.is_available() {
                println!("not run: this machine has no {level}");
                continue;
            }
            let mut got = fresh(Some(level), 2, dtype);
            got.step();
            assert_same(&format!("{dtype} at {level}"), &got.results(), &want);
        }
    }
}

/// A span that holds one half of a fused pair runs it apart.
#[test]
fn one_instruction_at_a_time_gives_the_bits_of_a_whole_range() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut want = fresh(None, 2, dtype);
        want.step();
        let want = want.results();
        for width in [1, 7] {
            let mut got = fresh(None, 2, dtype);
            for (range, seed) in [(Range::Accumulate, 1), (Range::Accumulate, 2), (Range::Update, 0)] {
                if seed > 0 {
                    got.feed(seed, 96, 67);
                }
                let count = got.count(range);
                for from in (0..count).step_by(width) {
                    got.run(range, from, count.min(from + width), seed == 1);
                }
            }
            assert_same(&format!("{dtype}, spans of {width}"), &got.results(), &want);
        }
    }
}

#[test]
fn state_in_place_gives_the_bits_of_a_double_one() {
    let mut double = fresh(None, 2, DType::F32);
    double.step();
    let mut in_place = Run::new(device(None, 2), small_program(DType::F32), StateLayout::InPlace);
    in_place.step();
    assert_same("in place", &in_place.results(), &double.results());
}

/// Fewer sequences than the bound, and back.
#[test]
fn another_binding_of_the_symbols_does_not_disturb() {
    let mut want = fresh(None, 2, DType::Bf16);
    want.step();
    let mut got = fresh(None, 2, DType::Bf16);
    let bounds = got.symbols.clone();
    assert_eq!(bounds, [3]);
    for sequences in [1, 2] {
        got.symbols = vec![sequences];
        got.feed(9, 96, 67);
        got.all(Range::Accumulate, true);
    }
    got.symbols = bounds;
    got.step();
    assert_same("after smaller bindings", &got.results(), &want.results());
}
