//! Spans cut into pieces of one device each.

use std::collections::VecDeque;
use toprope_program::{Bindings, PreparedId, Program, Range, Span, Ticket};

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// The first one.
    Main,
    /// A guest, by its number.
    Guest(usize),
}

/// Instructions behind each other on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) host: Host,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// A run that is not done.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) ticket: Ticket,
    pub(crate) prepared: PreparedId,
    pub(crate) range: Range,
    pub(crate) bindings: Bindings,
    /// What is left of it, the piece under way first.
    pub(crate) pieces: VecDeque<Piece>,
    /// The piece under way, as its device knows it.
    pub(crate) running: Option<Ticket>,
}

/// A span, cut wherever the device changes. An empty one is the first device's.
pub(crate) fn pieces(program: &Program, span: Span, guests: &[&[String]]) -> VecDeque<Piece> {
    let mut pieces: VecDeque<Piece> = VecDeque::new();
    for (offset, instruction) in program.range(span.range)[span.from..span.to].iter().enumerate() {
        let (index, name) = (span.from + offset, instruction.operator.name());
        let guest = guests.iter().position(|operators| operators.iter().any(|operator| operator == name));
        let host = guest.map_or(Host::Main, Host::Guest);
        match pieces.back_mut() {
            Some(piece) if piece.host == host => piece.to = index + 1,
            _ => pieces.push_back(Piece { host, from: index, to: index + 1 }),
        }
    }
    if pieces.is_empty() {
        pieces.push_back(Piece { host: Host::Main, from: span.from, to: span.to });
    }
    pieces
}
