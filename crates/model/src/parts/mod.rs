//! The parts that programs are built from.

mod grouped; // grouped-query attention
pub(crate) mod losses; // heads and what is minimised
mod mla; // multi-head latent attention
mod mlp; // the gated feed-forward layer
mod moe; // routed and shared experts
mod mtp; // prediction modules
mod muon; // matrices moved along their orthogonalised momentum
pub(crate) mod network; // what all parts build with, and the trunk
pub(crate) mod optimizer; // gradients to the next state
