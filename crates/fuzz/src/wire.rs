//! The worker protocol, both ways.

use toprope_program::{MemoryPlan, StateLayout, Width, validate};
use toprope_protocol::{Answer, Call, Request, places, read_frame, write_frame};

/// Frames of requests or of answers: the first byte says which.
pub(crate) fn protocol(bytes: &[u8]) {
    let Some((first, mut rest)) = bytes.split_first() else { return };
    if first % 2 == 0 {
        while let Ok(frame) = read_frame::<Answer>(&mut rest) {
            let mut again = Vec::new();
            let written = write_frame(&mut again, &frame.head, &frame.payload);
            assert!(written.is_ok(), "{:?} cannot be written", frame.head);
        }
        return;
    }
    while let Ok(frame) = read_frame::<Request>(&mut rest) {
        if let Call::Prepare { program, in_place, places: told } = frame.head.call {
            let Ok(program) = validate(*program) else { continue };
            let layout = if in_place { StateLayout::InPlace } else { StateLayout::Double };
            let _ = places(&MemoryPlan::new(&program, Width::Native, layout)) == told;
        }
    }
}
