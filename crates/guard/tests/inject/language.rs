//! Schedules as text.

use proptest::prelude::*;
use toprope_guard::inject::*;
use toprope_program::{OPERATORS, Range};

fn moment() -> impl Strategy<Value = Moment> {
    prop_oneof![Just(Moment::Before), Just(Moment::In), Just(Moment::After)]
}

fn name() -> impl Strategy<Value = String> {
    "[a-z]{1,8}(\\.[0-9]{1,2})?(\\.[a-z_]{1,8})?"
}

fn at() -> impl Strategy<Value = At> {
    let range = prop_oneof![Just(Range::Accumulate), Just(Range::Update)];
    let operator = (0..OPERATORS.len(), proptest::option::of(name())).prop_map(|(index, part)| {
        let name = OPERATORS[index].name.to_string();
        // `accumulate` alone is the range.
        match (name.as_str(), part) {
            ("accumulate", None) => At::Range(Range::Accumulate, None),
            (_, part) => At::Operator { name, part },
        }
    });
    prop_oneof![
        (range, proptest::option::of(0..1000usize)).prop_map(|(range, index)| At::Range(range, index)),
        operator,
        name().prop_map(At::Value),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    (prop_oneof![Just(At::Start), at()], moment()).prop_map(|(at, moment)| Target { at, moment })
}

fn change() -> impl Strategy<Value = Change> {
    let bit = || proptest::option::of(0..64u32);
    prop_oneof![
        bit().prop_map(Change::Flip),
        bit().prop_map(Change::WrongCarry),
        bit().prop_map(Change::MissingCarry),
        Just(Change::Compound),
        Just(Change::ZeroTile),
        Just(Change::StuckLane),
        Just(Change::Nan),
        Just(Change::Infinity),
    ]
}

fn corruption() -> impl Strategy<Value = Corruption> {
    let band = proptest::option::of((0.0..1.0f64, 1.0..1e9f64));
    (change(), 1..=100_000usize, any::<u64>(), band, 0..4usize, any::<bool>()).prop_map(
        |(change, count, seed, band, output, anew)| Corruption { change, count, seed, band, output, anew },
    )
}

fn what() -> impl Strategy<Value = What> {
    let home = (0..Home::ALL.len()).prop_map(|index| Home::ALL[index]);
    prop_oneof![
        target().prop_map(What::Die),
        Just(What::DieWhileAnswering),
        Just(What::DieInSnapshot),
        target().prop_map(What::Hang),
        (any::<i64>(), target()).prop_map(|(code, target)| What::Driver { code, target }),
        target().prop_map(What::OutOfMemory),
        target().prop_map(What::Unsupported),
        (1.001..100.0f64, any::<u64>()).prop_map(|(factor, steps)| What::Slow { factor, steps }),
        (corruption(), at()).prop_map(|(corruption, at)| {
            What::Compute { corruption, target: Target { at, moment: Moment::In } }
        }),
        (corruption(), home, name())
            .prop_map(|(corruption, home, value)| { What::AtRest { corruption, home, value } }),
        Just(What::TearState),
        Just(What::DiskFull),
        Just(What::KillSupervisor),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let device = proptest::option::of("[a-z]{1,6}(:[0-9])?");
    let fault = (any::<u64>(), device, any::<bool>(), what())
        .prop_map(|(step, device, always, what)| Entry::Fault(Scheduled { step, device, always, what }));
    let classes = proptest::sample::subsequence(RandomClass::ALL.to_vec(), 1..=RandomClass::ALL.len());
    let random = (any::<u64>(), 0.0..=1.0f64, classes)
        .prop_map(|(seed, rate, classes)| Entry::Random(RandomFaults { seed, rate, classes }));
    prop_oneof![9 => fault, 1 => random]
}

proptest! {
    #[test]
    fn what_a_schedule_prints_parses_back(entries in proptest::collection::vec(entry(), 0..5)) {
        let schedule = Schedule { entries };
        let text = schedule.to_string();
        prop_assert_eq!(parse(&text).map_err(|error| format!("{text}: {error}")), Ok(schedule));
    }

    #[test]
    fn no_text_makes_the_reader_panic(
        words in proptest::collection::vec("step|die|in|random|flip|at|rest|[0-9]{1,3}|:|;|\\(|seed=|[a-zé#=.%\n]{0,4}", 0..20),
    ) {
        let _ = parse(&words.join(" "));
    }
}

#[test]
fn the_readable_forms_are_read() {
    for text in [
        "step 12: die in accumulate at 40 (after)",
        "step 5: hang at matmul",
        "step 7 device cpu always: flip bit 30 of matmul in layers.1 count 1 compute",
        "step 9: driver 507015",
        "step 3: out_of_memory; step 4: nan in rms_norm",
        "step 6: slow x3 for 5",
        "step 8: die while answering # a comment",
        "step 8: die in update\nstep 10: die in snapshot\n\n",
        "step 11: tear state",
        "step 11 device cuda:0: flip at rest state model.norm.weight bit 3",
        "step 20: disk full",
        "step 25: kill supervisor",
        "random seed=7 rate=0.05 classes=lost,hang",
    ] {
        let schedule = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(parse(&schedule.to_string()), Ok(schedule), "{text}");
    }
}

#[test]
fn errors_name_the_place_what_was_expected_and_the_nearest_word() {
    for (text, line, column, expected, nearest) in [
        ("stepp 3: die", 1, 1, "`step` or `random`", Some("step")),
        ("step x: die", 1, 6, "the step's number", None),
        ("step 3: dye", 1, 9, "`die`", Some("die")),
        ("step 3 die", 1, 8, "`:`", None),
        ("step 1: die\nstep 3: nan in matmull", 2, 16, "an operator's name", Some("matmul")),
        ("step 3: flip bit 3", 1, 19, "`of`", None),
        ("step 3: flip of matmul count 0", 1, 30, "1 to 100000", None),
        ("step 3: flip of matmul count 100001", 1, 30, "1 to 100000", None),
        ("step 3: slow 3", 1, 14, "a factor above 1", None),
        ("step 3: slow x0.5", 1, 14, "a factor above 1", None),
        ("step 3: flip at rest stat x", 1, 22, "`state`", Some("state")),
        ("step 3: nan in matmul band 3..1", 1, 28, "a band", None),
        ("step 3: nan in matmul (after)", 1, 29, "no moment", None),
        ("random rate=2", 1, 8, "from 0 to 1", None),
        ("random classes=lost,hangs", 1, 8, "classes=", Some("hang")),
        ("step 3: die in update (soon)", 1, 24, "`before`", None),
        ("step 3: disk", 1, 13, "`full`", None),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
        assert!(error.expected.contains(expected), "{text}: {error}");
        assert_eq!(error.nearest.as_deref(), nearest, "{text}: {error}");
    }
}
