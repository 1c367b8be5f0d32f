//! The machine that pickles are written for, opcode by opcode (Python's `pickletools` describes each), without the ones that
//! checkpoints do not use. Every opcode takes at least a byte of the file and makes at most one value, so memory is bounded by
//! the file's length, and by [`NODES_MAX`] of each thing that is kept.

use super::globals::{is_getattr, is_known};
use super::{Id, Node, Pickle};
use crate::error::FormatError;
use std::collections::BTreeMap;
use std::path::Path;

/// The most values that are kept, and places on the stack, marks and things remembered: ten times what the metadata of the
/// largest models has.
const NODES_MAX: usize = 1 << 24;
/// The newest version of the format.
const PROTOCOL_MAX: u8 = 5;

pub(super) fn read(path: &Path, place: &str, bytes: &[u8]) -> Result<Pickle, FormatError> {
    let machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
    };
    machine.run().map_err(|(at, stop)| {
        let place = format!("{place}, byte {at}");
        match stop {
            Stop::Wrong(reason) => FormatError::Malformed { path: path.to_owned(), place, reason },
            Stop::Foreign(what) => FormatError::Foreign { path: path.to_owned(), place, what },
        }
    })
}

enum Stop {
    Wrong(String),
    Foreign(String),
}

impl From<&str> for Stop {
    fn from(reason: &str) -> Stop {
        Stop::Wrong(reason.into())
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Lengths of the stack at marks.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
}

impl Machine<'_> {
    fn run(mut self) -> Result<Pickle, (usize, Stop)> {
        loop {
            let at = self.at;
            match self.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Pickle { nodes: self.nodes, root }),
                Err(stop) => return Err((at, stop)),
            }
        }
    }

    /// One opcode; the whole where it was the last.
    fn step(&mut self) -> Result<Option<Id>, Stop> {
        let [opcode] = self.array()?;
        match opcode {
            0x80 => {
                let [version] = self.array()?;
                if version > PROTOCOL_MAX {
                    return Err(Stop::Wrong(format!("version {version} of the format is not known")));
                }
            }
            // A frame's length says how much to read at once, and nothing else.
            0x95 => drop(self.array::<8>()?),
            b'.' => {
                let root = self.pop()?;
                if !self.stack.is_empty() {
                    return Err("it ends with values left over".into());
                }
                return Ok(Some(root));
            }
            b'(' => {
                room(self.marks.len(), "marks")?;
                self.marks.push(self.stack.len());
            }
            b'0' => {
                // A mark is popped where it is on top.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?;
                self.place(top)?;
            }
            b'N' => self.push(Node::Nothing)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Integer(value.into()))?;
            }
            b'K' => {
                let [value] = self.array()?;
                self.push(Node::Integer(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Node::Integer(value.into()))?;
            }
            0x8a => {
                let [length] = self.array()?;
                self.long(length.into())?;
            }
            0x8b => {
                let length = u32::from_le_bytes(self.array()?);
                self.long(length.into())?;
            }
            b'G' => {
                self.array::<8>()?;
                self.push(Node::Number)?;
            }
            0x8c => {
                let [length] = self.array()?;
                self.text(length.into())?;
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                self.text(length.into())?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.array()?);
                self.text(length)?;
            }
            b'C' | b'U' => {
                let [length] = self.array()?;
                self.binary(length.into())?;
            }
            b'B' | b'T' => {
                let length = u32::from_le_bytes(self.array()?);
                self.binary(length.into())?;
            }
            0x8e | 0x96 => {
                let length = u64::from_le_bytes(self.array()?);
                self.binary(length)?;
            }
            b']' | b')' | 0x8f => self.push(Node::Items(Vec::new()))?,
            b'}' => self.push(Node::Pairs(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b'l' | b't' | 0x91 => {
                let items = self.since_mark()?;
                self.push(Node::Items(items))?;
            }
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let from = self.depth(count)?;
                let items = self.stack.split_off(from);
                self.push(Node::Items(items))?;
            }
            b'd' => {
                let pairs = paired(&self.since_mark()?)?;
                self.push(Node::Pairs(pairs))?;
            }
            b's' => {
                let from = self.depth(2)?;
                let items = self.stack.split_off(from);
                self.set(&items)?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(&items)?;
            }
            b'h' => {
                let [index] = self.array()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index)?;
            }
            b'q' => {
                let [index] = self.array()?;
                self.memoize(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.array()?);
                self.memoize(index)?;
            }
            0x94 => {
                let index = u32::try_from(self.memo.len()).map_err(|_| "it remembers too much")?;
                self.memoize(index)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.node(module), self.node(name)) {
                    (Node::Text(module), Node::Text(name)) => {
                        let (module, name) = (module.clone(), name.clone());
                        self.global(module, name)?;
                    }
                    _ => return Err("a class or function is named by what is no text".into()),
                }
            }
            b'R' | 0x81 => {
                let (arguments, made_by) = (self.pop()?, self.pop()?);
                self.object(made_by, arguments)?;
            }
            0x92 => {
                let (_named, arguments, made_by) = (self.pop()?, self.pop()?, self.pop()?);
                self.object(made_by, arguments)?;
            }
            b'b' => {
                let (told, object) = (self.pop()?, self.top()?);
                match self.node_mut(object) {
                    Some(Node::Object { state, .. }) => *state = Some(told),
                    _ => return Err("what is no object is told its state".into()),
                }
            }
            b'Q' => {
                let outside = self.pop()?;
                self.push(Node::Outside(outside))?;
            }
            other => return Err(foreign(other)),
        }
        Ok(None)
    }

    fn take(&mut self, count: u64) -> Result<&[u8], Stop> {
        let left = self.bytes.get(self.at..).unwrap_or_default();
        let taken = usize::try_from(count).ok().and_then(|count| left.get(..count));
        let taken = taken.ok_or_else(|| {
            Stop::Wrong(format!("it ends {} bytes on, and {count} more are announced", left.len()))
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    /// A text up to the end of the line.
    fn line(&mut self) -> Result<String, Stop> {
        let left = self.bytes.get(self.at..).unwrap_or_default();
        let end = left.iter().position(|byte| *byte == b'\n').ok_or("it ends within a name")?;
        let line = String::from_utf8_lossy(&left[..end]).into_owned();
        self.at += end + 1;
        Ok(line)
    }

    fn push(&mut self, node: Node) -> Result<(), Stop> {
        room(self.nodes.len(), "values")?;
        let id = Id(self.nodes.len() as u32);
        self.nodes.push(node);
        self.place(id)
    }

    /// Puts a value that is there onto the stack.
    fn place(&mut self, id: Id) -> Result<(), Stop> {
        room(self.stack.len(), "places on its stack")?;
        self.stack.push(id);
        Ok(())
    }

    /// Where the topmost `count` values begin; those below the last mark are not among them.
    fn depth(&self, count: usize) -> Result<usize, Stop> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(count).filter(|from| *from >= floor);
        Ok(from.ok_or("it takes more values than it made")?)
    }

    fn pop(&mut self) -> Result<Id, Stop> {
        self.depth(1)?;
        Ok(self.stack.pop().ok_or("it takes more values than it made")?)
    }

    fn top(&self) -> Result<Id, Stop> {
        self.depth(1)?;
        Ok(self.stack.last().copied().ok_or("it takes more values than it made")?)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, Stop> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn node(&self, id: Id) -> &Node {
        self.nodes.get(id.0 as usize).unwrap_or(&Node::Nothing)
    }

    fn node_mut(&mut self, id: Id) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize)
    }

    /// An integer of any length, lowest byte first, in two's complement.
    fn long(&mut self, length: u64) -> Result<(), Stop> {
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|byte| byte & 128 != 0);
        let node = if bytes.len() <= 8 {
            let mut whole = [if negative { 255 } else { 0 }; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            Node::Integer(i64::from_le_bytes(whole))
        } else {
            Node::Number
        };
        self.push(node)
    }

    fn text(&mut self, length: u64) -> Result<(), Stop> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Node::Text(text))
    }

    fn binary(&mut self, length: u64) -> Result<(), Stop> {
        self.take(length)?;
        self.push(Node::Bytes)
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Stop> {
        let list = self.top()?;
        match self.node_mut(list) {
            Some(Node::Items(into)) => into.extend_from_slice(items),
            // An object may be a list too; none that is looked at here is.
            Some(Node::Object { .. }) => {}
            _ => return Err("what is no list is appended to".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), Stop> {
        let new = paired(items)?;
        let into = self.top()?;
        match self.node_mut(into) {
            Some(Node::Pairs(pairs) | Node::Object { pairs, .. }) => pairs.extend(new),
            _ => return Err("what is no dictionary gets an entry".into()),
        }
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), Stop> {
        let id = self.memo.get(&index).copied();
        self.place(id.ok_or_else(|| Stop::Wrong(format!("it recalls {index}, which it never kept")))?)
    }

    fn memoize(&mut self, index: u32) -> Result<(), Stop> {
        let top = self.top()?;
        room(self.memo.len(), "things to remember")?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn global(&mut self, module: String, name: String) -> Result<(), Stop> {
        if !is_known(&module, &name) {
            return Err(Stop::Foreign(format!("`{module}.{name}`")));
        }
        self.push(Node::Global(module, name))
    }

    fn object(&mut self, made_by: Id, arguments: Id) -> Result<(), Stop> {
        let Node::Global(module, name) = self.node(made_by) else {
            return Err("what is no class or function makes an object".into());
        };
        if is_getattr(module, name) {
            // A name that is not known was refused when it was asked for; a class's member by its name is data.
            let of = match self.node(arguments) {
                Node::Items(items) => items.as_slice(),
                _ => &[],
            };
            let is_member = match of {
                [class, member] => {
                    matches!(self.node(*class), Node::Global(module, name) if !is_getattr(module, name))
                        && matches!(self.node(*member), Node::Text(_))
                }
                _ => false,
            };
            if !is_member {
                return Err(Stop::Foreign("`getattr` of more than a class's member by its name".into()));
            }
        }
        self.push(Node::Object { made_by, arguments, state: None, pairs: Vec::new() })
    }
}

/// Refuses what is more than is taken.
fn room(there: usize, what: &str) -> Result<(), Stop> {
    if there >= NODES_MAX {
        return Err(Stop::Wrong(format!("it has more than the {NODES_MAX} {what} that are taken")));
    }
    Ok(())
}

fn paired(items: &[Id]) -> Result<Vec<(Id, Id)>, Stop> {
    if !items.len().is_multiple_of(2) {
        return Err("a key has no value".into());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// An opcode that checkpoints do not use, by its name.
fn foreign(opcode: u8) -> Stop {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'g' => "GET",
        b'p' => "PUT",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return Stop::Wrong(format!("{opcode:#04x} is no opcode of a pickle")),
    };
    Stop::Foreign(format!("the opcode {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Pickle, String> {
        super::read(Path::new("file"), "`data.pkl`", bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_what_was_written() {
        // {'a': [1, -2, 2**40, None, True], 'b': ('x', 1.5)}, as protocol 2 writes it.
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xff\x8a\x06\x00\x00\x00\x00\x00\x01N\x88eX\x01\x00\x00\x00bq\x03X\x01\x00\x00\x00xq\x04G?\xf8\x00\x00\x00\x00\x00\x00\x86q\x05u.";
        let pickle = read(bytes).unwrap();
        let a = pickle.items(pickle.entry(pickle.root(), "a").unwrap()).unwrap();
        let nodes: Vec<&Node> = a.iter().map(|id| pickle.node(*id)).collect();
        assert_eq!(
            nodes,
            [
                &Node::Integer(1),
                &Node::Integer(-2),
                &Node::Integer(1 << 40),
                &Node::Nothing,
                &Node::Bool(true)
            ]
        );
        let b = pickle.items(pickle.entry(pickle.root(), "b").unwrap()).unwrap();
        assert_eq!((pickle.text(b[0]), pickle.node(b[1])), (Some("x"), &Node::Number));
    }

    #[test]
    fn what_would_run_something_is_refused_by_name() {
        for (bytes, word) in [
            (&b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."[..], "`os.system`"),
            (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "`builtins.eval`"),
            (b"\x80\x02ctorch\nload\n.", "`torch.load`"),
            (b"\x80\x02cbuiltins\ngetattr\ncbuiltins\ngetattr\nX\x01\x00\x00\x00a\x86R.", "`getattr`"),
            (b"\x80\x02c__builtin__\ngetattr\nX\x01\x00\x00\x00aX\x01\x00\x00\x00a\x86R.", "`getattr`"),
            (b"\x80\x02cbuiltins\ngetattr\nctorch\nSize\nK\x01\x86R.", "`getattr`"),
            (b"\x80\x02cbuiltins\ngetattr\nctorch\nSize\n\x85R.", "`getattr`"),
            (b"\x80\x02cbuiltins\ngetattr\nctorch\nSize\nX\x01\x00\x00\x00aN\x87R.", "`getattr`"),
            (b"\x80\x02cbuiltins\ngetattr\nNR.", "`getattr`"),
            (b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n", "`os.system`"),
            (b"(S'ls'\nios\nsystem\n.", "STRING"),
            (b"(ios\nsystem\n.", "INST"),
            (b"(o.", "OBJ"),
            (b"\x82\x01.", "EXT1"),
            (b"Pfoo\n.", "PERSID"),
        ] {
            let message = read(bytes).unwrap_err();
            assert!(message.contains(word) && message.contains("nothing was run"), "{message}");
        }
    }

    #[test]
    fn what_is_damaged_is_one_error_with_its_place() {
        for (bytes, word) in [
            (&b""[..], "byte 0"),
            (b"\x80\x09.", "version 9"),
            (b"\x80\x02X\xff\xff\xff\xffa.", "announced"),
            (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", "announced"),
            (b"\x80\x02R.", "more values than it made"),
            (b"\x80\x02NNR.", "no class or function makes"),
            // A member is no class: nothing can be made with it.
            (
                b"\x80\x02cbuiltins\ngetattr\nctorch\nSize\nX\x01\x00\x00\x00a\x86R)R.",
                "no class or function makes",
            ),
            (b"\x80\x02h\x07.", "recalls 7"),
            (b"\x80\x02Nb.", "more values"),
            (b"\x80\x02NNb.", "is told its state"),
            (b"\x80\x02NNa.", "no list"),
            (b"\x80\x02}(Nu.", "a key has no value"),
            (b"\x80\x02t.", "a mark is missing"),
            (b"\x80\x02N(\x85.", "more values"),
            (b"\x80\x02NN.", "left over"),
            (b"\x80\x02\xff", "no opcode"),
            (b"\x80\x02cos", "within a name"),
        ] {
            let message = read(bytes).unwrap_err();
            assert!(message.contains(word) && message.starts_with("file: `data.pkl`, byte"), "{message}");
        }
    }

    /// An enumeration's member as Python 3.11.0 to 3.11.6 writes it, by protocol 2 and by protocol 4.
    #[test]
    fn a_member_of_an_enumeration_is_data() {
        for bytes in [
            &b"\x80\x02c__builtin__\ngetattr\ncmegatron.core.enums\nModelType\nX\x01\x00\x00\x00a\x86q\x00R."[..],
            b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x13megatron.core.enums\x8c\x09ModelType\x93\x8c\x01a\x86R.",
        ] {
            let pickle = read(bytes).unwrap();
            let (name, arguments) = pickle.made(pickle.root()).unwrap();
            assert_eq!((name, pickle.text(arguments[1])), ("getattr", Some("a")));
            assert_eq!(pickle.global(arguments[0]), Some(("megatron.core.enums", "ModelType")));
        }
    }

    /// A byte each: what is kept has an end long before the file has.
    #[test]
    fn what_is_kept_is_bounded() {
        let many = |head: &[u8], opcode: u8| {
            let mut bytes = head.to_vec();
            bytes.resize(NODES_MAX + head.len() + 1, opcode);
            read(&bytes).unwrap_err()
        };
        for (head, opcode, what) in [
            (&b""[..], b'(', "marks"),
            (b"N", b'2', "places on its stack"),
            (b"N", 0x94, "things to remember"),
        ] {
            let message = many(head, opcode);
            assert!(message.contains(&format!("more than the {NODES_MAX} {what}")), "{message}");
        }
    }

    #[test]
    fn a_list_that_holds_itself_is_no_trouble() {
        let pickle = read(b"\x80\x02]q\x00h\x00a.").unwrap();
        assert_eq!(pickle.items(pickle.root()), Some(&[pickle.root()][..]));
    }
}
