//! Views, parts, caches, sums and digests, against indices and sums written out by hand.

use crate::numbers::{Numbers, floats, integers};
use crate::session::Session;
use toprope_program::check::{CheckLevel, CheckPlan, insert};
use toprope_program::operator::PRODUCT_LIMIT;
use toprope_program::operator::*;
use toprope_program::{
    Builder, CheckMask, DType, Dim, Operator, Phase, Program, Range, Role, Tensor, Type, View, Width,
};
use toprope_reference::evaluate;

fn counting(sizes: &[usize]) -> Tensor {
    let count: usize = sizes.iter().product();
    floats(sizes, &(0..count).map(|i| i as f64).collect::<Vec<_>>())
}

/// What a device reads through a view of a `[4, 6]` value.
fn read_through(through: impl Fn(View) -> View, width: Width) -> Vec<f64> {
    let mut b = Builder::new("view", Phase::Evaluate);
    let x = b.input("x", DType::F32, [4, 6]);
    let seen = b.seen(x, through).unwrap();
    let y = b.one("y", Scale { factor: 1.0 }, [seen]).unwrap();
    b.accumulate("kept", y).unwrap();
    let mut session = Session::new(b.finish(), width);
    session.write("x", &counting(&[4, 6]));
    session.run(Range::Accumulate);
    session.read("kept").data
}

#[test]
fn views_read_what_their_strides_say() {
    for width in [Width::Native, Width::Wide] {
        let transposed: Vec<f64> = (0..6).flat_map(|c| (0..4).map(move |r| f64::from(6 * r + c))).collect();
        assert_eq!(read_through(|v| v.transpose(0, 1), width), transposed);
        assert_eq!(
            read_through(|v| v.narrow(1, 2, 3).narrow(0, 1, 2), width),
            [8.0, 9.0, 10.0, 14.0, 15.0, 16.0]
        );
        assert_eq!(
            read_through(|v| v.narrow(1, 5, 1).drop_axis(1).narrow(0, 0, 2).repeat(0, 3.into()), width),
            [5.0, 11.0, 5.0, 11.0, 5.0, 11.0]
        );
        assert_eq!(
            read_through(|v| v.split(1, 2, 3).transpose(0, 1).narrow(0, 1, 1).narrow(2, 1, 2), width),
            [4.0, 5.0, 10.0, 11.0, 16.0, 17.0, 22.0, 23.0]
        );
    }
}

#[test]
fn a_symbol_below_its_bound_leaves_the_rest_alone() {
    let mut b = Builder::new("symbol", Phase::Evaluate);
    let n = b.symbol("n", 4);
    let x = b.input("x", DType::F32, [Dim::symbolic(n, 2), 3.into()]);
    let indices = b.input("indices", DType::I32, [Dim::symbolic(n, 2)]);
    let operator = ScatterAdd { output: DType::F32, rows: Dim::symbolic(n, 3) };
    let table = b.one("table", operator, [x.into(), indices.into()]).unwrap();
    let shape = vec![Dim::symbolic(n, 3), 3.into()];
    let views = vec![View::dense(&shape).unwrap(); 2];
    let twice =
        b.one("twice", Assemble { output: DType::F32, shape, views }, [table.into(), table.into()]).unwrap();
    let sum = b.one("sum", ColumnSum { output: DType::F32 }, [twice.into()]).unwrap();
    b.accumulate("kept", sum).unwrap();
    let mut session = Session::bound(b.finish(), Width::Native, vec![2]);
    session.write("x", &counting(&[4, 3]));
    session.write("indices", &integers(&[4], &[5, 0, 6, 5]));
    session.run(Range::Accumulate);
    // Row 2 goes to place 6, which is outside of 3·2 rows.
    assert_eq!(session.read("kept").data, [2.0 * 12.0, 2.0 * 15.0, 2.0 * 18.0]);
}

#[test]
fn parts_add_up_where_they_overlap() {
    let view = |offset, shape: [usize; 2], strides: [usize; 2]| View {
        offset,
        shape: shape.map(Dim::from).to_vec(),
        strides: strides.to_vec(),
    };
    let views = vec![view(0, [2, 2], [3, 1]), view(1, [2, 2], [1, 3]), view(5, [1, 3], [0, 0])];
    let operator = Assemble { output: DType::F32, shape: vec![2.into(), 3.into()], views };
    let parts = [
        floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        floats(&[2, 2], &[10.0, 20.0, 30.0, 40.0]),
        counting(&[1, 3]),
    ];
    let y = evaluate(&operator.into(), &parts, true, Width::Native).remove(0);
    assert_eq!(y.data, [1.0, 12.0, 30.0, 3.0, 24.0, 43.0]);
}

#[test]
fn append_writes_rows_that_lie_inside() {
    for (position, want) in [
        (1, [0.5, 0.5, 0.0, 1.0, 2.0, 3.0, 0.5, 0.5]),
        (3, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 1.0]),
        (-1, [2.0, 3.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        (4, [0.5; 8]),
        (i32::MIN, [0.5; 8]),
    ] {
        let mut b = Builder::new("append", Phase::Decode);
        let cache = b.declare("cache", Type::new(DType::Bf16, [4, 2]), Role::Cache);
        let rows = b.input("rows", DType::Bf16, [2, 2]);
        let at = b.input("position", DType::I32, [1]);
        b.apply_to(Append {}, vec![cache.into(), rows.into(), at.into()], vec![cache]).unwrap();
        let mut session = Session::new(b.finish(), Width::Native);
        session.write("cache", &Tensor { dtype: DType::Bf16, sizes: vec![4, 2], data: vec![0.5; 8] });
        session.write("rows", &Tensor { dtype: DType::Bf16, ..counting(&[2, 2]) });
        session.write("position", &integers(&[1], &[position]));
        session.run(Range::Accumulate);
        assert_eq!(session.read("cache").data, want, "position {position}");
    }
}

#[test]
fn the_first_micro_batch_overwrites_and_later_ones_add() {
    let mut b = Builder::new("accumulate", Phase::Evaluate);
    let x = b.input("x", DType::F32, [2]);
    let n = b.input("n", DType::I32, [2]);
    b.accumulate("x.sum", x).unwrap();
    b.accumulate("n.sum", n).unwrap();
    // Buffers begin full of NaN: the first micro-batch must not read them.
    let mut session = Session::new(b.finish(), Width::Native);
    for (first, x, n, x_sum, n_sum) in [
        (true, 1.5, i32::MAX, 1.5, f64::from(i32::MAX)),
        (false, 0.25, 2, 1.75, f64::from(i32::MIN) + 1.0),
        (false, 2f64.powi(-40), -5, 1.75, f64::from(i32::MAX) - 3.0),
        (true, -3.0, 7, -3.0, 7.0),
    ] {
        session.bindings.first = first;
        session.write("x", &floats(&[2], &[x, -x]));
        session.write("n", &integers(&[2], &[n, 0]));
        session.run(Range::Accumulate);
        assert_eq!(session.read("x.sum").data, [x_sum, -x_sum]);
        assert_eq!(session.read("n.sum").data[0], n_sum);
    }
}

/// The record's formula, written out once more.
fn digest_by_hand(words: impl IntoIterator<Item = u32>) -> u64 {
    let mix = |word: u64| {
        let mut z = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let term = |(i, bits): (usize, u32)| {
        let key = (mix(u64::MAX - (i % 512) as u64) % (1 << 32)) | 1;
        (mix((i / 512) as u64) | 1).wrapping_mul(key).wrapping_mul(u64::from(bits))
    };
    words.into_iter().enumerate().map(term).fold(0, u64::wrapping_add)
}

fn word_pair(tensor: &Tensor) -> u64 {
    assert_eq!((tensor.dtype, &tensor.sizes[..]), (DType::U32, &[2][..]));
    tensor.data[0] as u64 | (tensor.data[1] as u64) << 32
}

#[test]
fn digests_are_those_of_the_stored_bits() {
    let mut numbers = Numbers::new(3);
    for dtype in DType::ALL {
        let exact: Vec<f64> = match dtype {
            DType::I32 => vec![-1.0, 7.0, f64::from(i32::MIN)],
            DType::U32 => vec![0.0, f64::from(u32::MAX), 9.0],
            DType::F32 | DType::Bf16 => {
                [numbers.tensor(dtype, &[1300]).data, vec![-0.0, f64::INFINITY, 1e-40]].concat()
            }
        };
        let x = Tensor { dtype, sizes: vec![exact.len()], data: exact };
        let stored = Tensor::rounded(dtype, &x.sizes, x.data.clone()).to_bytes(Width::Native);
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let want = digest_by_hand(stored.chunks(dtype.size_bytes(Width::Native)).map(word));
        for width in [Width::Native, Width::Wide] {
            // In wide mode too the digest is of the value rounded to its dtype.
            let y = evaluate(&Digest {}.into(), std::slice::from_ref(&x), true, width).remove(0);
            assert_eq!(word_pair(&y), want, "{dtype}");
        }
    }
}

#[test]
fn adamw_gives_the_digest_of_its_own_outputs() {
    let mut numbers = Numbers::new(4);
    let operator = Adamw { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.01, digests: true };
    let mut operands: Vec<Tensor> = (0..4)
        .map(|_| Tensor::rounded(DType::F32, &[3, 5], numbers.tensor(DType::F32, &[3, 5]).data))
        .collect();
    operands[3].data.iter_mut().for_each(|v| *v = v.abs());
    operands.extend([floats(&[1], &[1.0]), floats(&[3], &[0.125, 0.5, 0.25])]);
    let outputs = evaluate(&operator.into(), &operands, true, Width::Native);
    let sum = outputs[..3].iter().fold(0u64, |sum, output| {
        sum.wrapping_add(digest_by_hand(output.data.iter().map(|x| (*x as f32).to_bits())))
    });
    assert_eq!(word_pair(&outputs[3]), sum);
    let read = |index: usize| digest_by_hand(operands[index].data.iter().map(|x| (*x as f32).to_bits()));
    assert_eq!(word_pair(&outputs[4]), [0, 2, 3].map(read).into_iter().fold(0, u64::wrapping_add));
    assert_eq!(word_pair(&outputs[5]), read(1));
}

#[test]
fn random_bits_follow_philox() {
    let key = Tensor { dtype: DType::U32, sizes: vec![2], data: vec![f64::from(u32::MAX), 5.0] };
    let counter = Tensor { dtype: DType::U32, sizes: vec![1], data: vec![9.0] };
    let operator = RandomBits { stream: 3, shape: vec![2.into(), 5.into()] };
    let y = evaluate(&operator.into(), &[key, counter], true, Width::Wide).remove(0);
    let want: Vec<f64> = (0..3u32)
        .flat_map(|block| toprope_program::philox::block([block, 0, 9, 3], [u32::MAX, 5]))
        .take(10)
        .map(f64::from)
        .collect();
    assert_eq!((y.sizes, y.data), (vec![2, 5], want));
}

#[test]
fn ties_go_to_the_lower_index_and_nan_comes_last() {
    let nan = f64::NAN;
    let router = |top_k, groups, top_groups| -> Operator {
        Router { scoring: Scoring::Sigmoid, top_k, groups, top_groups, normalize: true, scale: 2.0 }.into()
    };
    let choose = |operator: &Operator, logits: &[f64]| {
        let operands = [floats(&[1, 4], logits), floats(&[4], &[0.0; 4])];
        evaluate(operator, &operands, true, Width::Native)
    };
    let outputs = choose(&router(3, 1, 1), &[1.0, 2.0, 1.0, 1.0]);
    assert_eq!(outputs[1].data, [1.0, 0.0, 2.0]);
    assert_eq!(outputs[3].data, [1.0, 1.0, 1.0, 0.0]);
    let sum: f64 = outputs[2].data.iter().sum();
    assert!((sum - 2.0).abs() < 1e-6, "{sum}");
    assert_eq!(choose(&router(3, 1, 1), &[nan, -9.0, nan, -8.0])[1].data, [3.0, 1.0, 0.0]);
    // Groups tie as well; a group with a NaN loses to one without.
    assert_eq!(choose(&router(2, 2, 1), &[1.0, 2.0, 2.0, 1.0])[1].data, [1.0, 0.0]);
    assert_eq!(choose(&router(2, 2, 1), &[9.0, nan, -2.0, -1.0])[1].data, [3.0, 2.0]);
    // Two logits that differ, and do not as f32 scores.
    assert_eq!(choose(&router(1, 1, 1), &[0.0, 40.0, 50.0, 0.0])[1].data, [1.0]);
}

#[test]
fn a_norm_that_is_not_finite_gives_factor_0() {
    let operator: Operator = GlobalNorm { clip: 1.0 }.into();
    for (gradients, norm, factor) in [
        (vec![3.0, 4.0], 5.0, 1.0 / (5.0 + 1e-6)),
        (vec![0.3, 0.4], 0.5, 1.0),
        (vec![f64::INFINITY, 0.0], f64::INFINITY, 0.0),
        (vec![f64::NAN, 0.0], f64::NAN, 0.0),
        (vec![3e38, 3e38], f64::INFINITY, 0.0),
    ] {
        let operands = [floats(&[1], &gradients[..1]), floats(&[1], &gradients[1..])];
        let outputs = evaluate(&operator, &operands, true, Width::Native);
        assert!(outputs[0].data[0].is_nan() == norm.is_nan());
        assert!(norm.is_nan() || outputs[0].data[0] == f64::from(norm as f32));
        assert_eq!(outputs[1].data[0], f64::from(factor as f32), "{gradients:?}");
    }
}

#[test]
fn rows_are_sorted_by_expert_and_stay_in_order() {
    let operator = ExpertSort { experts: 4 };
    let indices = integers(&[3, 2], &[3, 1, 1, 0, 1, 3]);
    let outputs = evaluate(&operator.into(), &[indices], true, Width::Native);
    assert_eq!(outputs[0].data, [1.0, 0.0, 1.0, 2.0, 0.0, 2.0]);
    assert_eq!(outputs[1].data, [4.0, 1.0, 2.0, 0.0, 3.0, 5.0]);
    assert_eq!(outputs[2].data, [0.0, 1.0, 4.0, 4.0, 6.0]);
}

#[test]
fn the_bias_moves_by_the_sign_alone() {
    let operands = [floats(&[4], &[0.0, 1.0, -1.0, 0.5]), integers(&[4], &[4, 2, 9, 1])];
    let y = evaluate(&BiasUpdate { rate: 0.25 }.into(), &operands, true, Width::Native).remove(0);
    assert_eq!(y.data, [0.0, 1.25, -1.25, 0.75]);
}

fn checked_product() -> Program {
    let mut b = Builder::new("checked", Phase::Evaluate);
    let a = b.input("a", DType::F32, [9, 33]);
    let c = b.input("b", DType::F32, [17, 33]);
    let turned = b.seen(c, |v| v.transpose(0, 1)).unwrap();
    let y = b.one("y", Matmul { output: DType::F32, row_sums: false }, [a.into(), turned]).unwrap();
    b.accumulate("kept", y).unwrap();
    let mut program = b.finish();
    assert_eq!(insert(&mut program, &CheckPlan { level: CheckLevel::Full }).len(), 1);
    program
}

#[test]
fn checks_fire_by_their_bit_and_pass_on_good_data() {
    let mut numbers = Numbers::new(6);
    let mut session = Session::new(checked_product(), Width::Native);
    for (name, sizes) in [("a", [9, 33]), ("b", [17, 33])] {
        let exact = numbers.tensor(DType::F32, &sizes).data;
        session.write(name, &Tensor::rounded(DType::F32, &sizes, exact));
    }
    session.run(Range::Accumulate);
    let product = session.read("kept");
    assert!(session.read("y.check").data[0].is_nan(), "the check did not fire, so nothing was written");
    session.bindings.checks = CheckMask::all(1);
    session.run(Range::Accumulate);
    let worst = session.read("y.check").data[0];
    assert!((0.0..=PRODUCT_LIMIT).contains(&worst), "{worst}");
    assert_eq!(session.read("kept"), product, "a check changes nothing");
}

#[test]
fn a_flipped_bit_is_far_above_the_limit() {
    let mut numbers = Numbers::new(7);
    let (a, b) = (numbers.tensor(DType::F32, &[5, 40]), numbers.tensor(DType::F32, &[40, 8]));
    let product: Operator = Matmul { output: DType::F32, row_sums: true }.into();
    let row_sums = evaluate(&product, &[a.clone(), b.clone()], true, Width::Native).remove(1);
    let worst = |row_sums: Tensor| {
        let operands = [a.clone(), b.clone(), row_sums];
        evaluate(&ProductCheck::default().into(), &operands, true, Width::Native)[0].data[0]
    };
    assert!(worst(row_sums.clone()) <= PRODUCT_LIMIT);
    let mut flipped = row_sums.clone();
    flipped.data[3] = f64::from(f32::from_bits((flipped.data[3] as f32).to_bits() ^ 1 << 20));
    assert!(worst(flipped) > 100.0 * PRODUCT_LIMIT);
    let mut lost = row_sums;
    lost.data[0] = f64::NAN;
    assert_eq!(worst(lost), f64::INFINITY);
}

#[test]
fn a_check_lets_an_integer_pass_that_wrapped() {
    let of = Operator::from(Increment { by: i32::MAX });
    for width in [Width::Native, Width::Wide] {
        let counter = integers(&[1], &[40]);
        let next = evaluate(&of, std::slice::from_ref(&counter), false, width).remove(0);
        assert_eq!(next.data, [f64::from(40_i32.wrapping_add(i32::MAX))]);
        let check = Operator::from(Verify { of: Box::new(of.clone()) });
        let worst = evaluate(&check, &[counter, next], false, width).remove(0);
        assert_eq!(worst.data, [0.0], "{width:?}");
    }
}
