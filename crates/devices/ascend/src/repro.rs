//! One instruction as a C++ program that needs CANN alone: the vendor's calls with their arguments, strides and formats as this
//! device makes them, and a comparison with the exact result. It is what goes to the vendor.

use crate::call::{Argument, Call, Number, Space, View};
use crate::device::cann::Cann;
use crate::emit::Constants;
use crate::ffi::abi::Element;
use crate::name::{Name, NameError};
use crate::plan::{Lowering, lowering};
use std::collections::BTreeMap;
use std::fmt::Write;
use toprope_program::{Location, MemoryPlan, Range, Region, StateLayout, Tensor, Validated, ValueId, Width};

/// An instruction with its operands and what it must give.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// A program of one instruction in its `accumulate`.
    pub program: &'a Validated,
    /// A number for each symbol.
    pub symbols: &'a [usize],
    /// Whether it runs as part of a first micro-batch.
    pub first: bool,
    /// The operands' values by id, whole.
    pub values: &'a [Option<Tensor>],
    /// The exact result of each output.
    pub want: &'a [Tensor],
    /// How far each element may lie from it; none for an output that must be exact.
    pub bounds: &'a [Option<Vec<f64>>],
    /// What is wrong, for the head of the file.
    pub remark: &'a str,
}

/// Why there is no such program.
#[derive(Debug, thiserror::Error)]
pub enum ReproError {
    /// The device's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The case is no program of one instruction with a value for each operand.
    #[error("the case is no program of one instruction with all of its operands: {0}")]
    Case(String),
    /// The operator is not lowered.
    #[error("{0}")]
    Lacking(String),
}

/// Bytes that stand in memory before a run: as f32 and as bf16 a number that nobody computes.
const FILLED: u32 = 0x5A;

const HEAD: &str = include_str!("repro/head.cpp");
const TAIL: &str = include_str!("repro/tail.cpp");

/// The program's source. `name` is the device's with its variants; where it finds a CANN, that one's versions of operators are called,
/// else the newest.
///
/// # Errors
/// The name is none, the case is none, or the operator is not lowered with this CANN.
pub fn source(name: &str, case: &Case<'_>) -> Result<String, ReproError> {
    let parsed = Name::parse(name)?;
    let cann = crate::device::open::loaded(name);
    let plan = MemoryPlan::new(case.program, Width::Native, StateLayout::Double);
    let program = case.program.program();
    let [instruction] = program.range(Range::Accumulate) else {
        return Err(ReproError::Case("it has another number of instructions".into()));
    };
    let mut constants = Constants::default();
    let has = |operator: &str| cann.as_deref().is_none_or(|cann: &Cann| cann.operators.has(operator));
    let both = (program, &plan);
    let lowered =
        lowering(&has, parsed.settings(), both, instruction, case.symbols, case.first, &mut constants)
            .map_err(ReproError::Lacking)?;
    let mut text = String::new();
    head(&mut text, name, instruction.operator.name(), case.remark, &lowered.calls);
    text.push_str(HEAD);
    prototypes(&mut text, &lowered.calls);
    settings(&mut text, &parsed);
    let place =
        |id: ValueId| plan.place(id).ok_or_else(|| ReproError::Case(format!("%{} has no place", id.0)));
    values(&mut text, case, &plan, &lowered, &constants, &place)?;
    expected(&mut text, case, &place)?;
    calls(&mut text, &lowered.calls);
    text.push_str(TAIL);
    Ok(text)
}

/// Adds a line; writing to a String does not fail.
macro_rules! line {
    ($text:expr, $($rest:tt)*) => {{
        let _ = writeln!($text, $($rest)*);
    }};
}

fn head(text: &mut String, name: &str, operator: &str, remark: &str, calls: &[Call]) {
    let mut names: Vec<String> = Vec::new();
    for call in calls {
        let name = format!("aclnn{}", call.prototype.name);
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    let variants = name.split('+').filter(|part| !part.starts_with("library=")).collect::<Vec<_>>().join("+");
    line!(
        text,
        "// `{operator}` on {variants} by CANN alone: {} call(s), {}.",
        calls.len(),
        names.join(", ")
    );
    line!(text, "// {}", remark.replace('\n', "\n// "));
    line!(text, "//");
    line!(
        text,
        "//   g++ -std=c++17 -O1 repro_aclnn.cpp -o repro_aclnn -I$ASCEND_HOME_PATH/include -L$ASCEND_HOME_PATH/lib64 -lascendcl -lnnopbase -lopapi"
    );
    line!(text, "//   ./repro_aclnn [RUNS [DEVICE]]");
    line!(text, "//");
    line!(text, "// In place of -lopapi, CANN 8.5 and newer: -lopapi_math -lopapi_nn -lopapi_transformer.");
    line!(
        text,
        "// It ends with 1 where a run is wrong, with 0 where all are right, with 2 where CANN refuses.\n"
    );
}

/// The vendor's functions that are called, declared here: headers of operators move from version to version.
fn prototypes(text: &mut String, calls: &[Call]) {
    let used: BTreeMap<&str, &Call> = calls.iter().map(|call| (call.prototype.name, call)).collect();
    line!(text, "extern \"C\" {{");
    for (name, call) in used {
        let kinds: Vec<&str> = call.prototype.parameters.iter().map(|kind| c_type(kind)).collect();
        line!(
            text,
            "int32_t aclnn{name}GetWorkspaceSize({}, uint64_t *, aclOpExecutor **);",
            kinds.join(", ")
        );
        line!(text, "int32_t aclnn{name}(void *, uint64_t, aclOpExecutor *, aclrtStream);");
    }
    line!(text, "}}\n");
}

/// The C type of a kind of parameter.
fn c_type(kind: &str) -> &'static str {
    match kind {
        "Tensor" => "aclTensor *",
        "TensorList" => "aclTensorList *",
        "Scalar" => "aclScalar *",
        "IntArray" => "aclIntArray *",
        "Str" => "char *",
        "I64" => "int64_t",
        "I8" => "int8_t",
        "Type" => "aclDataType",
        "Bool" => "bool",
        _ => "double",
    }
}

fn settings(text: &mut String, name: &Name) {
    line!(text, "// What is chosen before the first operator.");
    line!(text, "static void settings() {{");
    let mode = if name.ieee() { "ACL_RT_OVERFLOW_MODE_INFNAN" } else { "ACL_RT_OVERFLOW_MODE_SATURATION" };
    line!(text, "    // A chip that knows one mode only refuses the other.");
    line!(text, "    aclrtSetDeviceSatMode({mode});");
    if name.deterministic() {
        line!(text, "    aclrtSetSysParamOpt(ACL_OPT_DETERMINISTIC, 1);");
    }
    line!(text, "}}\n");
}

fn space_of(region: Region) -> Space {
    match region {
        Region::Current => Space::Current,
        Region::Next => Space::Next,
        Region::Work => Space::Work,
    }
}

fn words(bytes: &[u8]) -> String {
    let word = |chunk: &[u8]| {
        let mut four = [0; 4];
        four[..chunk.len()].copy_from_slice(chunk);
        format!("{:#x}u", u32::from_le_bytes(four))
    };
    bytes.chunks(4).map(word).collect::<Vec<_>>().join(", ")
}

/// What memory holds before a run: the operands, what the host writes once, and elsewhere what must be overwritten.
fn values(
    text: &mut String,
    case: &Case<'_>,
    plan: &MemoryPlan,
    lowered: &Lowering,
    constants: &Constants,
    place: &dyn Fn(ValueId) -> Result<Location, ReproError>,
) -> Result<(), ReproError> {
    line!(text, "static void values() {{");
    // Room behind each part, as an allocator would leave it.
    let sizes = [
        (Space::Current, plan.state_bytes),
        (Space::Next, plan.state_bytes),
        (Space::Work, plan.work_bytes),
        (Space::Scratch, lowered.scratch_bytes),
        (Space::Constants, constants.bytes.len()),
    ];
    for (space, bytes) in sizes.iter().filter(|(_, bytes)| *bytes > 0) {
        line!(text, "    before[{}].assign({bytes}, {FILLED:#x});", *space as usize);
    }
    let program = case.program.program();
    let [instruction] = program.range(Range::Accumulate) else { return Ok(()) };
    let mut seen = Vec::new();
    for operand in &instruction.operands {
        if seen.contains(&operand.value) {
            continue;
        }
        seen.push(operand.value);
        let value = program.value(operand.value);
        let tensor = case.values.get(operand.value.0 as usize).and_then(Option::as_ref);
        let tensor = tensor.ok_or_else(|| ReproError::Case(format!("%{} has no value", value.name)))?;
        let location = place(operand.value)?;
        let bytes = tensor.to_bytes(Width::Native);
        line!(text, "    // {} {}{:?}", value.name, value.dtype.name(), tensor.sizes);
        line!(
            text,
            "    put({}, {}, {{{}}}, {});",
            space_of(location.region) as usize,
            location.offset_bytes,
            words(&bytes),
            bytes.len()
        );
    }
    if !constants.bytes.is_empty() {
        line!(text, "    // Index ramps and the like.");
        line!(
            text,
            "    put({}, 0, {{{}}}, {});",
            Space::Constants as usize,
            words(&constants.bytes),
            constants.bytes.len()
        );
    }
    line!(text, "}}\n");
    Ok(())
}

fn number(x: f64) -> String {
    match x {
        x if x.is_nan() => "NAN".into(),
        x if x.is_infinite() => if x > 0.0 { "INFINITY" } else { "-INFINITY" }.into(),
        x => format!("{x:e}"),
    }
}

fn expected(
    text: &mut String,
    case: &Case<'_>,
    place: &dyn Fn(ValueId) -> Result<Location, ReproError>,
) -> Result<(), ReproError> {
    let program = case.program.program();
    let [instruction] = program.range(Range::Accumulate) else { return Ok(()) };
    line!(text, "// The exact result, computed in f64, and how far each element may lie from it.");
    line!(text, "static std::vector<Output> expected() {{");
    line!(text, "    return {{");
    let list = |data: &[f64]| data.iter().map(|x| number(*x)).collect::<Vec<_>>().join(", ");
    for (at, (id, want)) in instruction.outputs.iter().zip(case.want).enumerate() {
        let value = program.value(*id);
        let location = place(*id)?;
        let bound = case.bounds.get(at).and_then(Option::as_ref);
        // What must be exact is the exact number rounded once.
        let want = match bound {
            None => Tensor::rounded(value.dtype, &want.sizes, want.data.iter().copied()).data,
            Some(_) => want.data.clone(),
        };
        line!(
            text,
            "        {{\"{}\", \"{}\", {}, {}, {{{}}}, {{{}}}}},",
            value.name,
            value.dtype.name(),
            space_of(location.region) as usize,
            location.offset_bytes,
            list(&want),
            bound.map_or_else(String::new, |bound| list(bound))
        );
    }
    line!(text, "    }};");
    line!(text, "}}\n");
    Ok(())
}

fn element(element: Element) -> &'static str {
    match element {
        Element::F32 => "ACL_FLOAT",
        Element::I32 => "ACL_INT32",
        Element::I16 => "ACL_INT16",
        Element::I64 => "ACL_INT64",
        Element::Bool => "ACL_BOOL",
        Element::Bf16 => "ACL_BF16",
    }
}

fn sizes(sizes: &[usize]) -> String {
    sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn tensor(view: &View) -> String {
    format!(
        "tensor({}, {}, {}, {{{}}}, {{{}}}, {}, {})",
        view.space as usize,
        view.byte,
        element(view.element),
        sizes(&view.sizes),
        sizes(&view.strides),
        view.offset,
        view.reach()
    )
}

fn argument(argument: &Argument) -> String {
    match argument {
        Argument::Tensor(view) => tensor(view),
        Argument::Tensors(views) => {
            format!("list({{{}}})", views.iter().map(tensor).collect::<Vec<_>>().join(", "))
        }
        Argument::Absent => "nullptr".into(),
        Argument::Scalar(Number::F32(x)) => match x {
            x if x.is_finite() => format!("scalar(static_cast<float>({x:e}))"),
            x => format!("scalar(static_cast<float>({}))", number(f64::from(*x))),
        },
        Argument::Scalar(Number::I64(x)) => format!("scalar(static_cast<int64_t>({}))", integer(*x)),
        Argument::Ints(numbers) => {
            format!("numbers({{{}}})", numbers.iter().map(|x| integer(*x)).collect::<Vec<_>>().join(", "))
        }
        Argument::I64(x) => integer(*x),
        Argument::I8(x) => format!("static_cast<int8_t>({x})"),
        Argument::Type(of) => element(*of).into(),
        Argument::Bool(x) => x.to_string(),
        Argument::F64(x) => number(*x),
        Argument::Text(word) => {
            format!("const_cast<char *>(\"{}\")", word.to_string_lossy().escape_default())
        }
    }
}

/// The least number of 64 bits has no literal of its own in C.
fn integer(x: i64) -> String {
    if x == i64::MIN { "INT64_MIN".into() } else { format!("INT64_C({x})") }
}

fn calls(text: &mut String, calls: &[Call]) {
    line!(text, "static void calls(aclrtStream stream) {{");
    line!(text, "    uint64_t bytes = 0;");
    line!(text, "    aclOpExecutor *executor = nullptr;");
    for (at, call) in calls.iter().enumerate() {
        let name = call.prototype.name;
        let given: Vec<String> = call.arguments.iter().map(argument).collect();
        line!(text, "    // {} of {}", at + 1, calls.len());
        line!(text, "    DO(aclnn{name}GetWorkspaceSize(");
        line!(text, "        {}, &bytes, &executor));", given.join(",\n        "));
        line!(text, "    DO(aclnn{name}(room(bytes), bytes, executor, stream));");
    }
    line!(text, "    DO(aclrtSynchronizeStream(stream));");
    line!(text, "}}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use toprope_program::DType;

    #[test]
    fn numbers_are_read_back_as_they_were() {
        for x in [0.1, -1.5e-310, f64::MAX, 3.0] {
            assert_eq!(number(x).parse::<f64>(), Ok(x));
        }
        assert_eq!([number(f64::NAN), number(f64::NEG_INFINITY)], ["NAN", "-INFINITY"]);
        assert_eq!(words(&[1, 2, 3, 4, 5]), "0x4030201u, 0x5u");
        assert_eq!(integer(i64::MIN), "INT64_MIN");
    }

    /// What `head.cpp` tells apart.
    #[test]
    fn every_type_of_the_contract_is_read() {
        assert_eq!(DType::ALL.map(DType::name), ["f32", "bf16", "i32", "u32"]);
    }
}
