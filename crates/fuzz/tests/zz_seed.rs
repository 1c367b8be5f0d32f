use toprope_program::{MemoryPlan, StateLayout, Width, text, validate};
use toprope_protocol::*;
#[test]
fn seed() {
    let t = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/program/documents")).unwrap();
    let program = text::parse(&t).unwrap();
    let valid = validate(program.clone()).unwrap();
    let plan = MemoryPlan::new(&valid, Width::Native, StateLayout::Double);
    let mut b = vec![1u8];
    let request = Request { id: 3, generation: 2, step: 0, call: Call::Prepare { program: Box::new(program), in_place: false, places: places(&plan) } };
    write_frame(&mut b, &request, &[]).unwrap();
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/protocol/prepare"), b).unwrap();
    let mut b = vec![0u8];
    let fault = toprope_program::Fault::new("cpu".to_string(), toprope_program::FaultKind::Hang { waited_ms: 7 });
    write_frame(&mut b, &Answer { id: 3, generation: 2, outcome: Outcome::Fault { fault: Box::new(fault) } }, &[]).unwrap();
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/protocol/fault"), b).unwrap();
}
