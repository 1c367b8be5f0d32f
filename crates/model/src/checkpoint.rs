//! Our tensors to and from the published ones. Stacking is along the outermost axes, so that each published tensor is a
//! contiguous run of elements of one of ours, whatever the dtype: the mapping is a list of such runs.

use crate::architecture::Architecture;
use crate::error::ModelError;
use crate::parameters::{Parameter, parameters};
use std::collections::BTreeMap;
use toprope_program::Tensor;

/// A published tensor and where its elements lie in one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The published name.
    pub name: String,
    /// The published shape.
    pub shape: Vec<usize>,
    /// The name of our parameter.
    pub parameter: String,
    /// The first element within our parameter, row-major.
    pub offset_elements: usize,
}

impl Piece {
    /// A parameter that is published as it is.
    pub(crate) fn whole(parameter: &Parameter) -> Piece {
        let (name, shape) = (parameter.name.clone(), parameter.shape.clone());
        Piece { parameter: name.clone(), name, shape, offset_elements: 0 }
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1usize, |product, size| product.saturating_mul(*size))
    }
}

/// Every published tensor of a configuration, in the order of our parameters and of their elements.
pub fn pieces<'a>(architecture: impl Into<Architecture<'a>>) -> Vec<Piece> {
    let architecture = architecture.into();
    let mut pieces = Vec::new();
    for parameter in parameters(architecture) {
        let (name, shape) = (&parameter.name, &parameter.shape);
        let names = if let Some((prefix, suffix)) = name.split_once("gate_up_proj.") {
            published(prefix, shape, &[&format!("gate_proj.{suffix}"), &format!("up_proj.{suffix}")])
        } else if let Some((prefix, suffix)) = name.split_once("down_proj.") {
            published(prefix, shape, &[&format!("down_proj.{suffix}")])
        } else if let (Some((prefix, suffix)), Architecture::Llama(config)) =
            (name.split_once("qkv_proj."), architecture)
        {
            let rows = ["q_proj", "k_proj", "v_proj"].into_iter().zip(config.projection_rows());
            rows.map(|(matrix, rows)| {
                let shape = [&[rows], &shape[1..]].concat();
                (format!("{prefix}{matrix}.{suffix}"), shape)
            })
            .collect()
        } else {
            vec![(name.clone(), shape.clone())]
        };
        let mut offset_elements = 0;
        for (name, shape) in names {
            let piece = Piece { name, shape, parameter: parameter.name.clone(), offset_elements };
            offset_elements = offset_elements.saturating_add(piece.elements());
            pieces.push(piece);
        }
    }
    pieces
}

/// Names and shapes of what a stack of experts `[E, rows, columns]`, a matrix `[rows, columns]` or a bias `[rows]` consists
/// of.
fn published(prefix: &str, shape: &[usize], matrices: &[&str]) -> Vec<(String, Vec<usize>)> {
    let parts = matrices.len().max(1);
    let (experts, each) = match *shape {
        [experts, rows, columns] => (Some(experts), vec![rows / parts, columns]),
        [rows, columns] => (None, vec![rows / parts, columns]),
        [rows] => (None, vec![rows / parts]),
        _ => return Vec::new(),
    };
    let mut names = Vec::new();
    for expert in 0..experts.unwrap_or(1) {
        let prefix = experts.map_or(prefix.to_string(), |_| format!("{prefix}{expert}."));
        names.extend(matrices.iter().map(|matrix| (format!("{prefix}{matrix}"), each.clone())));
    }
    names
}

/// Stacks published tensors into ours. All of a configuration's must be there with their shapes; others are ignored, as
/// published files carry copies of the embedding and the head with each prediction module.
pub fn fuse<'a>(
    architecture: impl Into<Architecture<'a>>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let architecture = architecture.into();
    let mut fused: BTreeMap<String, Tensor> = BTreeMap::new();
    let shapes: BTreeMap<String, Vec<usize>> =
        parameters(architecture).into_iter().map(|parameter| (parameter.name, parameter.shape)).collect();
    for piece in pieces(architecture) {
        let tensor = checked(tensors, &piece.name, &piece.shape)?;
        let Some(shape) = shapes.get(&piece.parameter) else { continue };
        let whole = fused.entry(piece.parameter).or_insert_with(|| Tensor {
            dtype: tensor.dtype,
            sizes: shape.clone(),
            data: Vec::new(),
        });
        if whole.dtype != tensor.dtype {
            return Err(ModelError::Tensor {
                name: piece.name,
                reason: format!("is {}, and its neighbours in the stack are {}", tensor.dtype, whole.dtype),
            });
        }
        // Pieces come in the order of their elements.
        whole.data.extend_from_slice(&tensor.data);
    }
    Ok(fused)
}

/// Takes ours apart into published tensors.
pub fn split<'a>(
    architecture: impl Into<Architecture<'a>>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let architecture = architecture.into();
    let mut published = BTreeMap::new();
    for parameter in parameters(architecture) {
        checked(tensors, &parameter.name, &parameter.shape)?;
    }
    for piece in pieces(architecture) {
        let Some(tensor) = tensors.get(&piece.parameter) else { continue };
        let run = piece.offset_elements..piece.offset_elements.saturating_add(piece.elements());
        let data = tensor.data.get(run).unwrap_or_default().to_vec();
        published.insert(piece.name, Tensor { dtype: tensor.dtype, sizes: piece.shape, data });
    }
    Ok(published)
}

fn checked<'a>(
    tensors: &'a BTreeMap<String, Tensor>,
    name: &str,
    shape: &[usize],
) -> Result<&'a Tensor, ModelError> {
    let Some(tensor) = tensors.get(name) else {
        return Err(ModelError::Tensor {
            name: name.into(),
            reason: format!("is missing; the configuration asks for it with shape {shape:?}"),
        });
    };
    let elements = shape.iter().fold(1usize, |product, size| product.saturating_mul(*size));
    if tensor.sizes != shape || tensor.data.len() != elements {
        return Err(ModelError::Tensor {
            name: name.into(),
            reason: format!("has shape {:?}; the configuration asks for {shape:?}", tensor.sizes),
        });
    }
    Ok(tensor)
}
