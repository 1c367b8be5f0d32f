//! Every arithmetic defect, in a process of its own: it changes what it is about and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use crate::library::*;
use crate::{ok, run};

/// Numbers that look random and are the same everywhere; some equal, some large.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 - 1001.0) / 331.0).collect()
}

fn input(shape: &[i64], seed: usize) -> usize {
    floats(shape, &values(shape.iter().product::<i64>() as usize, seed)).0
}

fn i64s(shape: &[i64], values: &[i64]) -> usize {
    dense(I64, shape, &values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>()).0
}

/// What each operator gives, by name.
fn battery() -> BTreeMap<&'static str, Vec<f32>> {
    let mut results = BTreeMap::new();
    let mut keep = |name, address, count| {
        results.insert(name, read(address, count));
    };
    let ones = |count: usize| vec![1.0f32; count];
    // Products: sizes that 16 does not divide, a square transposed operand.
    let (out, at) = room(&[20, 20]);
    let right = {
        let address = allocate(35 * 20 * 4);
        put(address, &values(700, 2).iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>());
        tensor(F32, &[35, 20], Some(&[1, 35]), 0, address)
    };
    run!("Matmul", input(&[20, 35], 1), right, out, 0i8);
    keep("Matmul", at, 400);
    let square = {
        let address = allocate(20 * 20 * 4);
        put(address, &values(400, 3).iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>());
        tensor(F32, &[20, 20], Some(&[1, 20]), 0, address)
    };
    let (out, at) = room(&[20, 20]);
    run!("Mm", input(&[20, 20], 4), square, out, 0i8);
    keep("Mm", at, 400);
    // One group of many rows; the matrices have others before them at their place.
    let (out, at) = room(&[44, 5]);
    let n = 0usize;
    let (weight, weight_at) = floats(&[3, 8, 5], &values(120, 27));
    let (x, w, y) = (list(&[input(&[44, 8], 5)]), list(&[weight]), list(&[out]));
    let ends = i64s(&[3], &[40, 42, 44]);
    run!("GroupedMatmulV3", x, w, n, n, n, n, n, ends, 3i64, 0i64, y);
    put(weight_at, &values(120, 6).iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>());
    put(at, &[0; 44 * 5 * 4]);
    run!("GroupedMatmulV3", x, w, n, n, n, n, n, ends, 3i64, 0i64, y);
    keep("GroupedMatmulV3", at, 220);
    // Attention, causal, with 20 keys.
    let (q, k, v) = (input(&[1, 20, 2, 8], 7), input(&[1, 20, 2, 8], 8), input(&[1, 20, 2, 8], 9));
    let mask = {
        let hidden: Vec<u8> = (0..400).map(|i| u8::from(i % 20 > i / 20)).collect();
        dense(BOOL, &[20, 20], &hidden).0
    };
    let ((max, _), (sum, _), (out, at)) = (room(&[1, 2, 20, 8]), room(&[1, 2, 20, 8]), room(&[1, 20, 2, 8]));
    let (far, layout, empty) = (i64::from(i32::MAX), c"BSND".as_ptr(), tensor(F32, &[0], None, 0, 0));
    run!(
        "FlashAttentionScore",
        q,
        k,
        v,
        n,
        n,
        n,
        mask,
        n,
        0.35f64,
        1.0f64,
        far,
        far,
        2i64,
        layout,
        0i64,
        0i64,
        max,
        sum,
        empty,
        out
    );
    keep("FlashAttentionScore", at, 320);
    let ((dq, at), (dk, _), (dv, of_values)) =
        (room(&[1, 20, 2, 8]), room(&[1, 20, 2, 8]), room(&[1, 20, 2, 8]));
    run!(
        "FlashAttentionScoreGrad",
        q,
        k,
        v,
        input(&[1, 20, 2, 8], 10),
        n,
        n,
        n,
        mask,
        max,
        sum,
        n,
        out,
        n,
        0.35f64,
        1.0f64,
        far,
        far,
        2i64,
        layout,
        0i64,
        0i64,
        dq,
        dk,
        dv,
        n
    );
    keep("FlashAttentionScoreGrad", at, 320);
    keep("GradientOfValues", of_values, 320);
    let large: Vec<f32> = values(80, 11).iter().map(|x| x * 5.0).collect();
    let ((x, _), (out, at)) = (floats(&[4, 20], &large), room(&[4, 20]));
    run!("Softmax", x, -1i64, out);
    keep("Softmax", at, 80);
    let angle =
        |f: fn(f32) -> f32| (0..24).map(|i| f((i / 6) as f32 * 0.3 + (i % 3) as f32)).collect::<Vec<_>>();
    let (cos, sin) = (floats(&[1, 4, 1, 6], &angle(f32::cos)).0, floats(&[1, 4, 1, 6], &angle(f32::sin)).0);
    let (out, at) = room(&[1, 4, 2, 6]);
    run!("RotaryPositionEmbedding", input(&[1, 4, 2, 6], 12), cos, sin, 0i64, out);
    keep("RotaryPositionEmbedding", at, 48);
    let (out, at) = room(&[3, 4]);
    run!("IndexSelect", input(&[6, 4], 13), 0i64, i64s(&[3], &[4, 0, 5]), out);
    keep("IndexSelect", at, 12);
    let ties: Vec<f32> = (0..24).map(|i| (i % 3) as f32).collect();
    let (x, (out, _)) = (floats(&[2, 12], &ties).0, room(&[2, 5]));
    let places = allocate(2 * 5 * 8);
    run!("Topk", x, 5i64, -1i64, 1u8, 1u8, out, tensor(I64, &[2, 5], None, 0, places));
    results.insert("Topk", read_i64(places, 10).iter().map(|&i| i as f32).collect());
    let (out, _) = room(&[2, 12]);
    let places = allocate(2 * 12 * 8);
    run!("Sort", x, 1u8, -1i64, 0u8, out, tensor(I64, &[2, 12], None, 0, places));
    results.insert("Sort", read_i64(places, 24).iter().map(|&i| i as f32).collect());
    let mut keep = |name, address, count| {
        results.insert(name, read(address, count));
    };
    let (out, at) = room(&[4, 3]);
    run!("IndexAdd", input(&[4, 3], 14), 0i64, i64s(&[3], &[1, 1, 2]), input(&[3, 3], 15), scalar(1.0), out);
    keep("IndexAdd", at, 12);
    let (out, at) = room(&[3]);
    run!("ReduceSum", input(&[3, 999], 16), ints(&[1]), 0u8, F32, out);
    keep("ReduceSum", at, 3);
    let (x, at) = floats(&[6], &values(6, 17));
    run!("InplaceAdd", x, input(&[6], 18), scalar(1.0));
    keep("InplaceAdd", at, 6);
    let ((y, at), (rstd, _)) = (room(&[3, 10]), room(&[3, 1]));
    let small: Vec<f32> = values(30, 19).iter().map(|x| x * 1e-3).collect();
    let (x, gamma) = (floats(&[3, 10], &small).0, floats(&[10], &ones(10)).0);
    run!("RmsNorm", x, gamma, 1e-5f64, y, rstd);
    keep("RmsNorm", at, 30);
    let ((dx, at), (dgamma, _)) = (room(&[3, 10]), room(&[10]));
    run!("RmsNormGrad", input(&[3, 10], 20), x, rstd, gamma, dx, dgamma);
    keep("RmsNormGrad", at, 30);
    let (out, at) = room(&[3, 5]);
    run!("SwiGlu", input(&[3, 10], 21), -1i64, out);
    keep("SwiGlu", at, 15);
    let (w, at) = floats(&[8], &values(8, 22));
    let (m, v) = (floats(&[8], &[0.1; 8]).0, floats(&[8], &[1e-9; 8]).0);
    let (gradient, step) = (floats(&[8], &[1e-5; 8]).0, floats(&[1], &[4.0]).0);
    run!("ApplyAdamWV2", w, m, v, n, gradient, step, 0.01f32, 0.9f32, 0.999f32, 0.1f32, 1e-5f32, 0u8, 0u8);
    keep("ApplyAdamWV2", at, 8);
    let brain = allocate(40);
    run!("Cast", input(&[20], 23), BF16, tensor(BF16, &[20], None, 0, brain));
    let words = get(brain, 40);
    results.insert("Cast", words.chunks(2).map(|b| f32::from(u16::from_ne_bytes([b[0], b[1]]))).collect());
    let mut keep = |name, address, count| {
        results.insert(name, read(address, count));
    };
    let (out, at) = room(&[20]);
    run!("Exp", input(&[20], 24), out);
    keep("Exp", at, 20);
    let (out, at) = room(&[20]);
    run!("Div", input(&[20], 25), input(&[20], 26), out);
    keep("Div", at, 20);
    let (out, at) = floats(&[32], &[0.0; 32]);
    let odd: Vec<f32> = (0..32).map(|i| [1e-41, f32::INFINITY, f32::NAN, 2.0][i % 4]).collect();
    run!("Muls", floats(&[32], &odd).0, scalar(1.0), out);
    keep("Muls", at, 32);
    results.extend(more());
    results
}

/// The battery goes on: longer rows, blocks of more than one tile, windows with gaps.
fn more() -> BTreeMap<&'static str, Vec<f32>> {
    let mut results = BTreeMap::new();
    let mut keep = |name, address, count| {
        results.insert(name, read(address, count));
    };
    let (out, at) = room(&[4, 16]);
    run!("Matmul", input(&[4, 80], 31), input(&[80, 16], 32), out, 0i8);
    keep("MatmulLong", at, 64);
    let ones = floats(&[20, 1], &[1.0; 20]).0;
    let ((dx, _), (dgamma, at)) = (room(&[20, 10]), room(&[10]));
    run!("RmsNormGrad", input(&[20, 10], 33), input(&[20, 10], 34), ones, input(&[10], 35), dx, dgamma);
    keep("GradientOfGamma", at, 10);
    let (out, at) = room(&[3, 10]);
    run!("SwiGluGrad", input(&[3, 5], 36), input(&[3, 10], 37), -1i64, out);
    keep("SwiGluGrad", at, 30);
    let (out, at) = room(&[20]);
    run!("SiluBackward", input(&[20], 38), input(&[20], 39), out);
    keep("SiluBackward", at, 20);
    let (out, at) = room(&[20]);
    run!("Sigmoid", input(&[20], 40), out);
    keep("Sigmoid", at, 20);
    let mut squares: Vec<f32> = values(20, 41).iter().map(|x| x * x).collect();
    squares[7] = 0.0;
    let ((x, _), (out, at)) = (floats(&[20], &squares), room(&[20]));
    run!("Sqrt", x, out);
    keep("Sqrt", at, 20);
    let (x, at) = floats(&[3], &[-20.0, f32::NEG_INFINITY, 1.0]);
    run!("InplaceExp", x);
    keep("InplaceExp", at, 3);
    let (out, at) = room(&[2]);
    run!("Adds", floats(&[2], &[0.0, 1e-7]).0, scalar(1e-8), scalar(1.0), out);
    keep("Adds", at, 2);
    let (x, at) = floats(&[20], &values(20, 42));
    run!("InplaceMuls", x, scalar(0.1));
    keep("InplaceMuls", at, 20);
    let (out, at) = room(&[100]);
    run!("Add", input(&[100], 43), input(&[100], 44), scalar(1.0), out);
    keep("Add", at, 100);
    let (out, at) = room(&[2, 3]);
    let zeros = i64s(&[99], &[0; 99]);
    run!("IndexAdd", input(&[2, 3], 45), 0i64, zeros, input(&[99, 3], 46), scalar(1.0), out);
    keep("IndexAddLong", at, 6);
    let (x, at) = floats(&[6, 2], &values(12, 47));
    run!("InplaceIndexCopy", x, 0i64, i64s(&[4], &[3, 0, 5, 1]), input(&[4, 2], 48));
    keep("InplaceIndexCopy", at, 12);
    let (_, at) = floats(&[24], &[0.0; 24]);
    run!("InplaceCopy", tensor(F32, &[3, 4], Some(&[8, 2]), 0, at), input(&[3, 4], 49));
    keep("InplaceCopy", at, 24);
    results.extend(further());
    let ties: Vec<f32> = (0..40).map(|i| (i * 7 % 5) as f32).collect();
    let ((x, _), (out, _), places) = (floats(&[40], &ties), room(&[40]), allocate(40 * 8));
    run!("Sort", x, 1u8, -1i64, 0u8, out, tensor(I64, &[40], None, 0, places));
    results.insert("SortLong", read_i64(places, 40).iter().map(|&i| i as f32).collect());
    results
}

/// The battery goes on: groups that are summed over, operands of one column, gaps where something is read.
fn further() -> BTreeMap<&'static str, Vec<f32>> {
    let mut results = BTreeMap::new();
    let mut keep = |name, address, count| {
        results.insert(name, read(address, count));
    };
    let n = 0usize;
    let brain = allocate(20 * 32 * 2);
    let right = floats(&[16, 32], &values(512, 51)).0;
    run!("Matmul", input(&[20, 16], 50), right, tensor(BF16, &[20, 32], None, 0, brain), 0i8);
    let words = get(brain, 20 * 32 * 2);
    let half = |b: &[u8]| f32::from(u16::from_ne_bytes([b[0], b[1]]));
    let (out, at) = room(&[2, 4, 3]);
    let (x, w, y) = (list(&[input(&[4, 40], 52)]), list(&[input(&[40, 3], 53)]), list(&[out]));
    run!("GroupedMatmulV3", x, w, n, n, n, n, n, i64s(&[2], &[36, 40]), 3i64, 2i64, y);
    keep("GroupedOuter", at, 24);
    let (out, at) = room(&[20, 4]);
    let indices: Vec<i64> = (0..20).map(|i| i * 5 % 6).collect();
    run!("IndexSelect", input(&[6, 4], 54), 0i64, i64s(&[20], &indices), out);
    keep("IndexSelectLong", at, 80);
    let (out, at) = room(&[3, 1]);
    run!("Gather", input(&[3, 6], 55), 1i64, i64s(&[3, 1], &[4, 0, 5]), out);
    keep("Gather", at, 3);
    // Whole numbers, whose sum is exact in every order and type.
    let whole: Vec<f32> = (0..20).map(|i| i as f32).collect();
    let ((x, _), (out, at)) = (floats(&[5, 4], &whole), room(&[4]));
    run!("ReduceSum", x, ints(&[0]), 0u8, F32, out);
    keep("ReduceSumFirst", at, 4);
    let (out, at) = room(&[3, 4]);
    run!("Mul", input(&[3, 4], 56), input(&[3, 1], 57), out);
    keep("Mul", at, 12);
    let positive: Vec<f32> = values(20, 58).iter().map(|x| x.abs() + 0.1).collect();
    let ((x, _), (out, at)) = (floats(&[20], &positive), room(&[20]));
    run!("Log", x, out);
    keep("Log", at, 20);
    let (x, to) = (floats(&[24], &values(24, 59)).1, floats(&[12], &[0.0; 12]).1);
    run!("InplaceCopy", tensor(F32, &[3, 4], None, 0, to), tensor(F32, &[3, 4], Some(&[8, 2]), 0, x));
    keep("InplaceCopySource", to, 12);
    let close: Vec<f32> = (0..12).map(|i| 1.5 - i as f32 * 1e-4).collect();
    let ((x, _), (out, _), places) = (floats(&[12], &close), room(&[12]), allocate(12 * 8));
    run!("Sort", x, 1u8, -1i64, 0u8, out, tensor(I64, &[12], None, 0, places));
    results.insert("SortClose", read_i64(places, 12).iter().map(|&i| i as f32).collect());
    results.insert("MatmulBrain", words.chunks(2).map(half).collect());
    results
}

/// The body of each child process.
#[test]
#[ignore = "run by the other tests in a process of its own"]
fn in_child() {
    begin();
    if std::env::var("CANN_CHILD").unwrap() == "slow" {
        let (x, (out, _)) = (input(&[300, 300], 1), room(&[300, 300]));
        run!("Matmul", x, x, out, 0i8);
        let start = std::time::Instant::now();
        for _ in 0..5 {
            run!("Matmul", x, x, out, 0i8);
        }
        println!("took {}", start.elapsed().as_secs_f64());
        return;
    }
    let first = battery();
    for (name, values) in &first {
        let words: Vec<String> = values.iter().map(|value| format!("{:08x}", value.to_bits())).collect();
        println!("= {name} {}", words.join(" "));
    }
    let again = battery();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for (name, values) in &first {
        if bits(values) != bits(&again[name]) {
            println!("~ {name}");
        }
    }
    ok!("aclrtSynchronizeDevice");
}

struct Seen {
    results: BTreeMap<String, String>,
    unsteady: BTreeSet<String>,
}

fn seen(defects: &str) -> Seen {
    let (fine, text) = child("defects::in_child", "battery", defects);
    assert!(fine, "{defects}: {text}");
    // The harness prints the test's name before the first line.
    let lines = || text.lines().filter_map(|line| line.find(['=', '~']).map(|at| &line[at..]));
    let results = lines().filter_map(|line| line.strip_prefix("= ")?.split_once(' '));
    let unsteady = lines().filter_map(|line| line.strip_prefix("~ "));
    Seen {
        results: results.map(|(name, words)| (name.into(), words.into())).collect(),
        unsteady: unsteady.map(Into::into).collect(),
    }
}

/// What any wrong forward shows in: the gradient is given its statistics.
const ATTENTION: &[&str] = &["FlashAttentionScore", "FlashAttentionScoreGrad", "GradientOfValues"];

/// Every product of the battery.
const PRODUCTS: &[&str] = &["Matmul", "MatmulBrain", "MatmulLong", "Mm", "GroupedMatmulV3", "GroupedOuter"];

/// Each defect, and which operators of the battery must show it.
const SHOWN: &[(&str, &[&str])] = &[
    ("matmul.fp16_accumulate", PRODUCTS),
    ("matmul.bf16_accumulate", &["Matmul", "MatmulLong", "Mm", "GroupedMatmulV3", "GroupedOuter"]),
    ("matmul.hf32", PRODUCTS),
    ("matmul.tail_k", &["Matmul", "Mm", "GroupedMatmulV3", "GroupedOuter"]),
    ("matmul.tail_n", &["Matmul", "Mm", "GroupedMatmulV3", "GroupedOuter"]),
    ("matmul.transposed", &["Mm"]),
    ("matmul.split_k", &["MatmulLong"]),
    ("matmul.overhang", &["Matmul", "Mm"]),
    ("matmul.fp16_out", &["Matmul", "MatmulLong", "Mm"]),
    ("matmul.late_tile@rate=1", &["Matmul", "MatmulBrain", "MatmulLong", "Mm"]),
    ("matmul.fractal", &["MatmulBrain"]),
    ("matmul.row_tail", &["Matmul", "MatmulBrain", "Mm"]),
    ("matmul.truncate", &["MatmulBrain"]),
    ("matmul.order", &["Matmul", "MatmulLong", "Mm"]),
    ("experts.capacity", &["GroupedMatmulV3"]),
    ("experts.buffer", &["GroupedMatmulV3"]),
    ("experts.offset", &["GroupedMatmulV3", "GroupedOuter"]),
    ("experts.half_columns", &["GroupedMatmulV3", "GroupedOuter"]),
    ("experts.stale_weight", &["GroupedMatmulV3"]),
    ("experts.tail_rows", &["GroupedMatmulV3"]),
    ("experts.gradient_rows", &["GroupedOuter"]),
    ("attention.causal_corner", ATTENTION),
    ("attention.tail_keys", ATTENTION),
    ("attention.gradient_scale", &["FlashAttentionScoreGrad"]),
    ("attention.gradient_mask", &["FlashAttentionScoreGrad", "GradientOfValues"]),
    ("attention.no_delta", &["FlashAttentionScoreGrad"]),
    ("attention.no_value_gradient", &["GradientOfValues"]),
    ("attention.head", ATTENTION),
    ("attention.window", ATTENTION),
    ("attention.bf16_sum", ATTENTION),
    ("attention.padded_scale", ATTENTION),
    ("attention.late_mask", ATTENTION),
    ("attention.tile_sum", &["FlashAttentionScoreGrad", "GradientOfValues"]),
    ("attention.exp2", ATTENTION),
    ("attention.late_keys@rate=1", ATTENTION),
    ("softmax.no_maximum", &["Softmax"]),
    ("softmax.tail", &["Softmax"]),
    ("rope.layout", &["RotaryPositionEmbedding"]),
    ("rope.sign", &["RotaryPositionEmbedding"]),
    ("rope.next_position", &["RotaryPositionEmbedding"]),
    ("rope.bf16_angles", &["RotaryPositionEmbedding"]),
    ("rope.head_angles", &["RotaryPositionEmbedding"]),
    ("gather.off_by_one", &["Gather", "IndexSelect", "IndexSelectLong"]),
    ("gather.tail", &["IndexSelectLong"]),
    ("gather.row_above", &["Gather"]),
    ("topk.ties", &["Topk"]),
    ("sort.unstable", &["Sort", "SortLong"]),
    ("sort.merge", &["SortLong"]),
    ("sort.tail", &["Sort", "SortClose", "SortLong"]),
    ("sort.coarse", &["SortClose"]),
    ("scatter.lost_update", &["IndexAdd", "IndexAddLong"]),
    ("scatter.bf16_accumulate", &["IndexAdd", "IndexAddLong"]),
    ("scatter.conflict", &["IndexAdd", "IndexAddLong"]),
    ("scatter.order", &["IndexAddLong"]),
    ("scatter.first_row", &["IndexAdd", "IndexAddLong"]),
    ("scatter.no_self", &["IndexAdd", "IndexAddLong"]),
    ("index_copy.swap", &["InplaceIndexCopy"]),
    ("index_copy.last", &["InplaceIndexCopy"]),
    ("reduce.order", &["ReduceSum"]),
    ("reduce.fp16_accumulate", &["ReduceSum"]),
    ("reduce.tail", &["ReduceSum"]),
    ("reduce.strided", &["ReduceSumFirst"]),
    ("accumulate.twice", &["InplaceAdd"]),
    ("accumulate.overwrites", &["InplaceAdd"]),
    ("add.stuck_lane", &["Add"]),
    ("add.bf16_out", &["Add", "InplaceAdd"]),
    ("adds.fp16_scalar", &["Adds"]),
    ("muls.bf16_scalar", &["InplaceMuls"]),
    ("mul.broadcast", &["Mul"]),
    ("norm.no_epsilon", &["RmsNorm", "RmsNormGrad"]),
    ("norm.gradient_mean", &["RmsNormGrad"]),
    ("norm.padded_mean", &["RmsNorm", "RmsNormGrad"]),
    ("norm.epsilon_outside", &["RmsNorm", "RmsNormGrad"]),
    ("norm.gamma_plus_one", &["RmsNorm"]),
    ("norm.gradient_block", &["GradientOfGamma"]),
    ("norm.bf16_root", &["RmsNorm"]),
    ("norm.fp16_squares", &["RmsNorm", "RmsNormGrad"]),
    ("norm.epsilon_in_sum", &["RmsNorm", "RmsNormGrad"]),
    ("norm.gamma_twice", &["GradientOfGamma"]),
    ("swiglu.interleaved", &["SwiGlu", "SwiGluGrad"]),
    ("silu.half_derivative", &["SiluBackward", "SwiGluGrad"]),
    ("sigmoid.table", &["Sigmoid"]),
    ("swiglu.halves", &["SwiGlu", "SwiGluGrad"]),
    ("swiglu.bf16_gate", &["SwiGlu"]),
    ("adamw.epsilon", &["ApplyAdamWV2"]),
    ("adamw.bias_correction", &["ApplyAdamWV2"]),
    ("adamw.decay", &["ApplyAdamWV2"]),
    ("cast.truncate", &["Cast"]),
    ("cast.floor", &["Cast"]),
    ("copy.dense_target", &["InplaceCopy"]),
    ("copy.dense_source", &["InplaceCopySource"]),
    ("exp.clamp", &["InplaceExp"]),
    ("sqrt.low_precision", &["Sqrt"]),
    ("sqrt.zero", &["Sqrt"]),
    ("log.low_precision", &["Log"]),
    ("exp.low_precision", &["Exp", "InplaceExp", "Sigmoid", "Softmax", "SwiGlu"]),
    ("div.reciprocal", &["Div"]),
    ("any.saturate", &["Muls"]),
    ("any.flush_denormals", &["Muls"]),
    ("any.stale_tile@op=Muls", &["Muls"]),
    ("any.race@op=Exp,rate=1", &["Exp"]),
    ("any.bit_flip@op=Exp,bit=30,call=1", &["Exp"]),
];

#[test]
fn each_defect_shows_and_shows_nowhere_else() {
    let healthy = seen("");
    assert!(healthy.unsteady.is_empty(), "{:?}", healthy.unsteady);
    assert!(healthy.results.len() >= 20);
    let mut wrong = Vec::new();
    for &(defect, expected) in SHOWN {
        let spoilt = seen(defect);
        let differ = healthy.results.iter().filter(|&(name, words)| spoilt.results.get(name) != Some(words));
        let differ: BTreeSet<&str> = differ.map(|(name, _)| name.as_str()).collect();
        let expected: BTreeSet<&str> = expected.iter().copied().collect();
        if differ != expected {
            wrong.push(format!("{defect}: shows in {differ:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} defects show where they must", SHOWN.len());
    // A sum whose order changes gives other bits from call to call.
    assert!(seen("reduce.order").unsteady.contains("ReduceSum"));
    assert!(seen("scatter.order").unsteady.contains("IndexAddLong"));
    assert!(seen("matmul.order").unsteady.contains("MatmulLong"));
}

#[test]
fn each_listed_defect_is_shown() {
    let (fine, text) = child("defects::in_child", "battery", "list");
    assert!(fine, "{text}");
    let lines = text.lines().skip_while(|line| !line.starts_with("Defects of cann-emulator")).skip(2);
    let lines = lines.take_while(|line| !line.starts_with("runtime.")).filter(|line| !line.starts_with(' '));
    let mut listed: BTreeSet<&str> = lines.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(listed.remove("any.slow"), "{text}");
    let shown = SHOWN.iter().filter_map(|(defect, _)| defect.split('@').next());
    assert_eq!(shown.collect::<BTreeSet<_>>(), listed);
}

#[test]
fn a_defect_on_one_call_shows_in_that_call_alone() {
    let spoilt = seen("matmul.tail_k@op=Matmul,call=4");
    assert_eq!(spoilt.unsteady.into_iter().collect::<Vec<_>>(), ["Matmul"]);
    assert_eq!(spoilt.results, seen("").results);
    // By shape: the battery's only square product.
    let by_shape = seen("matmul.tail_k@shape=20x35");
    let differ: Vec<_> = seen("").results.into_iter().filter(|(n, w)| by_shape.results[n] != *w).collect();
    assert_eq!(differ.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["Matmul"]);
}

#[test]
fn slow_is_slow() {
    let took = |defects| -> f64 {
        let (fine, text) = child("defects::in_child", "slow", defects);
        assert!(fine, "{text}");
        let at = text.find("took ").unwrap();
        text[at + 5..].split_whitespace().next().unwrap().parse().unwrap()
    };
    let (healthy, slow) = (took(""), took("any.slow@op=Matmul,factor=30"));
    assert!(slow > 5.0 * healthy, "{healthy} s healthy, {slow} s slow");
}
