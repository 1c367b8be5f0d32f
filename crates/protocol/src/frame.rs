//! Frames: two lengths of 4 bytes (little endian) for head and payload, the head as JSON, the payload as it is.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};

/// No head is longer: a program of some thousand operators has about a megabyte.
const HEAD_BYTES_MAX: u32 = 256 << 20;

/// No payload is longer.
const PAYLOAD_BYTES_MAX: u32 = 1 << 31;

/// A frame as it came.
#[derive(Debug)]
pub struct Incoming<T> {
    /// The head.
    pub head: T,
    /// What followed it.
    pub payload: Vec<u8>,
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side closed the pipe between two frames.
    #[error("the pipe was closed")]
    Closed,
    /// The pipe broke, or ended inside a frame.
    #[error("the pipe broke: {0}")]
    Broken(#[from] io::Error),
    /// A length that no frame has.
    #[error("a frame of {head} + {payload} bytes is not one of this protocol")]
    Length {
        /// Bytes of the head.
        head: u32,
        /// Bytes of the payload.
        payload: u32,
    },
    /// The head is not what this side understands.
    #[error("a frame's head cannot be read: {0}")]
    Head(#[from] serde_json::Error),
}

/// Writes a frame and flushes it.
///
/// # Errors
/// The pipe is closed, or the frame is too long.
pub fn write_frame(to: &mut dyn Write, head: &impl Serialize, payload: &[u8]) -> Result<(), FrameError> {
    let json = serde_json::to_vec(head)?;
    let lengths = (u32::try_from(json.len()), u32::try_from(payload.len()));
    let (Ok(head), Ok(payload_bytes)) = lengths else {
        return Err(FrameError::Length { head: u32::MAX, payload: u32::MAX });
    };
    if head > HEAD_BYTES_MAX || payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(FrameError::Length { head, payload: payload_bytes });
    }
    let mut bytes = Vec::with_capacity(8 + json.len());
    bytes.extend(head.to_le_bytes());
    bytes.extend(payload_bytes.to_le_bytes());
    bytes.extend(json);
    to.write_all(&bytes)?;
    to.write_all(payload)?;
    to.flush()?;
    Ok(())
}

/// Reads a frame. Memory grows with what really comes, not with what a length says.
///
/// # Errors
/// The pipe is closed or broken; the bytes are no frame.
pub fn read_frame<T: DeserializeOwned>(from: &mut dyn Read) -> Result<Incoming<T>, FrameError> {
    let mut lengths = [0; 8];
    let mut got = 0;
    while got < lengths.len() {
        match from.read(&mut lengths[got..]) {
            Ok(0) if got == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let word =
        |at: usize| u32::from_le_bytes([lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]]);
    let (head, payload) = (word(0), word(4));
    if head > HEAD_BYTES_MAX || payload > PAYLOAD_BYTES_MAX {
        return Err(FrameError::Length { head, payload });
    }
    let json = read_bytes(from, head)?;
    let payload = read_bytes(from, payload)?;
    Ok(Incoming { head: serde_json::from_slice(&json)?, payload })
}

fn read_bytes(from: &mut dyn Read, count: u32) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(count.min(1 << 20) as usize);
    let got = from.take(u64::from(count)).read_to_end(&mut bytes)?;
    if got < count as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Call, Outcome, Request};
    use proptest::prelude::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let request = Request { id: 7, generation: 3, step: 1, call: Call::Write { buffer: 1, offset: 64 } };
        write_frame(&mut bytes, &request, payload).unwrap();
        bytes
    }

    #[test]
    fn frames_come_back_and_a_closed_pipe_is_told_from_a_broken_one() {
        let bytes = [frame(b"abc"), frame(b"")].concat();
        let mut from = bytes.as_slice();
        let first = read_frame::<Request>(&mut from).unwrap();
        assert_eq!((first.head.id, first.payload.as_slice()), (7, b"abc".as_slice()));
        read_frame::<Request>(&mut from).unwrap();
        assert!(matches!(read_frame::<Request>(&mut from), Err(FrameError::Closed)));
        let whole = frame(b"abc");
        for cut in 1..whole.len() {
            let torn = read_frame::<Request>(&mut &whole[..cut]);
            assert!(matches!(torn, Err(FrameError::Broken(_))), "cut at {cut}");
        }
    }

    #[test]
    fn absurd_lengths_are_refused_before_memory_is_asked_for() {
        let bytes = [u32::MAX.to_le_bytes(), 0u32.to_le_bytes()].concat();
        let refused = read_frame::<Answer>(&mut bytes.as_slice());
        assert!(matches!(refused, Err(FrameError::Length { .. })));
    }

    #[test]
    fn answers_are_plain_json() {
        let answer = Answer { id: 1, generation: 2, outcome: Outcome::Buffer { buffer: 3 } };
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(text, r#"{"id":1,"generation":2,"outcome":"buffer","buffer":3}"#);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            // Small lengths, so that some of them get as far as the JSON.
            let mut framed = vec![bytes.len() as u8, 0, 0, 0, 0, 0, 0, 0];
            framed.extend(&bytes);
            let _ = read_frame::<Answer>(&mut framed.as_slice());
            let _ = read_frame::<Answer>(&mut bytes.as_slice());
        }
    }
}
