//! Python's pickles as data, and nothing else: a reader that calls nothing, imports nothing and knows the few names that
//! checkpoints of PyTorch need. A name that is not among them is refused before anything that follows it is read.
//!
//! An object is kept as what the pickle says of it: the name of its class or function, the arguments, the state.

mod globals; // names that are taken
mod machine; // opcode by opcode

use crate::error::FormatError;
use std::path::Path;

/// The most dimensions of a tensor: PyTorch's own limit. A pickle may hold one list of sizes a thousand times.
const DIMENSIONS_MAX: usize = 64;

/// A value among a pickle's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(u32);

/// A value. Others that it holds stand beside it, so that a pickle that holds itself is no trouble.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    /// `None`.
    Nothing,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// An integer of more than 64 bits, or a float: nothing here needs to know which.
    Number,
    /// Bytes: nothing here needs to know which.
    Bytes,
    /// A text.
    Text(String),
    /// A list, a tuple or a set.
    Items(Vec<Id>),
    /// A dictionary.
    Pairs(Vec<(Id, Id)>),
    /// A class or function by its module and name.
    Global(String, String),
    /// What a class or function would make.
    Object {
        /// The class or function.
        made_by: Id,
        /// Its arguments.
        arguments: Id,
        /// What it is then told to be.
        state: Option<Id>,
        /// Entries of a dictionary that are then put into it.
        pairs: Vec<(Id, Id)>,
    },
    /// What lies outside the pickle.
    Outside(Id),
}

/// A pickle that was read.
#[derive(Debug)]
pub(crate) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    /// Reads one.
    ///
    /// # Errors
    /// It is cut off or damaged, or asks for what is not among [`globals`].
    pub(crate) fn read(path: &Path, place: &str, bytes: &[u8]) -> Result<Pickle, FormatError> {
        machine::read(path, place, bytes)
    }

    /// The whole.
    pub(crate) fn root(&self) -> Id {
        self.root
    }

    /// A value.
    pub(crate) fn node(&self, id: Id) -> &Node {
        self.nodes.get(id.0 as usize).unwrap_or(&Node::Nothing)
    }

    /// The text of a value.
    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A value as a count or an offset.
    pub(crate) fn size(&self, id: Id) -> Option<u64> {
        match self.node(id) {
            Node::Integer(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The items of a list, a tuple, or an object made of one, as `torch.Size` is.
    pub(crate) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Items(items) => Some(items),
            Node::Object { arguments, .. } => match self.node(*arguments) {
                Node::Items(one) => match self.node(*one.first()?) {
                    Node::Items(items) => Some(items),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// The items of a list of at most [`DIMENSIONS_MAX`], each as a size.
    pub(crate) fn sizes(&self, id: Id) -> Option<Vec<u64>> {
        self.items(id)
            .filter(|items| items.len() <= DIMENSIONS_MAX)?
            .iter()
            .map(|item| self.size(*item))
            .collect()
    }

    /// The entries of a dictionary or of an object that is one, as `OrderedDict` is.
    pub(crate) fn pairs(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Pairs(pairs) | Node::Object { pairs, .. } => Some(pairs),
            _ => None,
        }
    }

    /// Module and name of a class or function.
    pub(crate) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global(module, name) => Some((module, name)),
            _ => None,
        }
    }

    /// The name of what made an object, and its arguments.
    pub(crate) fn made(&self, id: Id) -> Option<(&str, &[Id])> {
        match self.node(id) {
            Node::Object { made_by, arguments, .. } => {
                let (_, name) = self.global(*made_by)?;
                let arguments = match self.node(*arguments) {
                    Node::Items(items) => items.as_slice(),
                    _ => &[],
                };
                Some((name, arguments))
            }
            _ => None,
        }
    }

    /// A field of an object of the class `class`.
    pub(crate) fn field(&self, id: Id, class: &str, name: &str) -> Option<Id> {
        match self.node(id) {
            Node::Object { state: Some(state), .. } if self.made(id)?.0 == class => self.entry(*state, name),
            _ => None,
        }
    }

    /// The value under a key that is a text.
    pub(crate) fn entry(&self, id: Id, name: &str) -> Option<Id> {
        self.pairs(id)?.iter().find(|(key, _)| self.text(*key) == Some(name)).map(|(_, value)| *value)
    }
}
