//! stub
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {}
