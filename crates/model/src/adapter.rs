//! Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): beside a frozen matrix `W` a product of two small ones is
//! trained, `y = x · Wᵀ + α/r · (x · Aᵀ) · Bᵀ` with `A` \[r, inputs\] and `B` \[outputs, r\]. Which matrices have one is
//! said by the names of the published modules, as in PEFT.
//!
//! DoRA (Liu et al., arXiv 2402.09353) scales each row of the sum to a length `m` that is trained too:
//! `y = m/‖W + α/r · B · A‖ ∘ (x · Wᵀ + α/r · (x · Aᵀ) · Bᵀ)`. No gradient flows through the lengths (section 4.3).

use crate::architecture::Architecture;
use crate::checkpoint::pieces;
use crate::error::{ModelError, key};
use crate::parameters::{Kind, Parameter, parameters};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use toprope_program::Initial;

/// What is adapted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterOptions {
    /// Rank of the product: the rows of `A`.
    pub rank: usize,
    /// The product is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Modules by the end of their names, as in `q_proj` or `layers.0.self_attn.q_proj`; `all-linear` is every one that can
    /// be adapted.
    pub targets: Vec<String>,
    /// Whether the lengths of rows are trained apart from their directions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dora: bool,
}

/// Every module that can be adapted, as a target.
pub const ALL_LINEAR: &str = "all-linear";

/// What is behind a module's name in the name of its rows' lengths.
const MAGNITUDE: &str = ".lora_magnitude_vector";

/// The published matrix whose rows' lengths a parameter begins with, where it is one of lengths.
pub fn matrix_of_magnitude(parameter: &str) -> Option<String> {
    parameter.strip_suffix(MAGNITUDE).map(|module| format!("{module}.weight"))
}

/// A published matrix with an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptedModule {
    /// The published module, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Our parameter that holds its matrix.
    pub parameter: String,
    /// The first row of it there.
    pub row: usize,
    /// Its outputs.
    pub rows: usize,
    /// Its inputs.
    pub columns: usize,
    /// The part of the model that it belongs to.
    pub part: String,
}

impl AdaptedModule {
    /// The name of `A`, \[rank, columns\].
    pub fn down(&self) -> String {
        format!("{}.lora_A.weight", self.name)
    }

    /// The name of `B`, \[rows, rank\].
    pub fn up(&self) -> String {
        format!("{}.lora_B.weight", self.name)
    }

    /// The name of `m`, \[rows\].
    pub fn magnitude(&self) -> String {
        format!("{}{MAGNITUDE}", self.name)
    }

    /// The last word of its name.
    pub fn leaf(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

impl AdapterOptions {
    /// What the product is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Checks the options, and that they fit the configuration.
    ///
    /// # Errors
    /// The key that does not fit.
    pub fn validate(&self, architecture: Architecture<'_>) -> Result<(), ModelError> {
        if self.rank == 0 {
            return Err(key("adapter.rank", "is 0", "choose a rank such as 8 or 16"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            let mend = "it must be a positive number, such as twice the rank";
            return Err(key("adapter.alpha", format!("is {}", self.alpha), mend));
        }
        let all = adaptable(architecture);
        let leaves: BTreeSet<&str> = all.iter().map(AdaptedModule::leaf).collect();
        let leaves = leaves.into_iter().collect::<Vec<_>>().join(", ");
        if self.targets.is_empty() {
            return Err(key(
                "adapter.targets",
                "is empty",
                format!("name some of {leaves}, or {ALL_LINEAR}"),
            ));
        }
        if let Some(none) =
            self.targets.iter().find(|target| !all.iter().any(|module| matches(&module.name, target)))
        {
            let mend = format!("name some of {leaves}, or {ALL_LINEAR}");
            return Err(key(
                "adapter.targets",
                format!("`{none}` matches no module that can be adapted"),
                mend,
            ));
        }
        if let Some(narrow) =
            self.modules(architecture).iter().find(|module| self.rank > module.rows.min(module.columns))
        {
            let reason =
                format!("is {}, and `{}` is {} x {}", self.rank, narrow.name, narrow.rows, narrow.columns);
            return Err(key("adapter.rank", reason, "a rank above both sizes is no low one; lower it"));
        }
        Ok(())
    }

    /// The modules that have an adapter, in the order of the parameters.
    pub fn modules(&self, architecture: Architecture<'_>) -> Vec<AdaptedModule> {
        let mut modules = adaptable(architecture);
        modules.retain(|module| self.targets.iter().any(|target| matches(&module.name, target)));
        modules
    }

    /// Adds a module's product to its matrix \[rows, columns\], in f64, and gives its rows the lengths that were trained, where
    /// there are any.
    pub fn merge(
        &self,
        module: &AdaptedModule,
        matrix: &mut [f32],
        down: &[f32],
        up: &[f32],
        lengths: Option<&[f32]>,
    ) {
        let (scale, columns) = (self.scale(), module.columns.max(1));
        let rows = matrix.chunks_exact_mut(columns).zip(up.chunks_exact(self.rank.max(1)));
        let mut sums = vec![0.0; columns];
        for (index, (row, factors)) in rows.enumerate() {
            sums.fill(0.0);
            for (at, factor) in factors.iter().enumerate() {
                match down.get(at * columns..(at + 1) * columns) {
                    Some(small) => {
                        for (sum, small) in sums.iter_mut().zip(small) {
                            *sum += f64::from(*factor) * f64::from(*small);
                        }
                    }
                    None => sums.fill(f64::NAN),
                }
            }
            for (sum, weight) in sums.iter_mut().zip(&*row) {
                *sum = f64::from(*weight) + scale * *sum;
            }
            let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
            let stretch = match lengths {
                Some(lengths) if length > 0.0 => {
                    f64::from(lengths.get(index).copied().unwrap_or(f32::NAN)) / length
                }
                _ => 1.0,
            };
            for (weight, sum) in row.iter_mut().zip(&sums) {
                *weight = (stretch * sum) as f32;
            }
        }
    }

    /// The parameters of all adapters with what they hold at first: `A` normal with the deviation of PEFT's uniform
    /// distribution, `B` zero, so that training begins at the published model.
    pub(crate) fn parameters(&self, architecture: Architecture<'_>) -> Vec<(Parameter, Initial)> {
        let mut list = Vec::new();
        for module in self.modules(architecture) {
            let parameter = |name: String, shape: Vec<usize>| Parameter {
                name,
                shape,
                kind: Kind::Matrix,
                part: module.part.clone(),
                key: "adapter.rank",
            };
            let std = 1.0 / (3.0 * module.columns as f64).sqrt();
            let down = parameter(module.down(), vec![self.rank, module.columns]);
            list.push((down, Initial::Normal { std }));
            list.push((parameter(module.up(), vec![module.rows, self.rank]), Initial::Zeros));
            if self.dora {
                let lengths =
                    Parameter { kind: Kind::Norm, ..parameter(module.magnitude(), vec![module.rows]) };
                list.push((lengths, Initial::Ones));
            }
        }
        list
    }
}

fn matches(module: &str, target: &str) -> bool {
    target == ALL_LINEAR
        || module.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The modules that can be adapted: the linear maps of the main model's layers. Embedding and head are shared or read by one
/// operator with the loss. Of a model with experts they are those of attention alone: transformers keeps experts as stacks, and
/// PEFT takes every `gate_proj`, `up_proj` and `down_proj` of such a model, dense layers' too, for a part of one.
fn adaptable(architecture: Architecture<'_>) -> Vec<AdaptedModule> {
    let table: HashMap<String, Parameter> =
        parameters(architecture).into_iter().map(|parameter| (parameter.name.clone(), parameter)).collect();
    let layers: Vec<String> =
        (0..architecture.layers()).map(|layer| format!("model.layers.{layer}.")).collect();
    let stacked = architecture.experts_per_token() > 0;
    let mut modules = Vec::new();
    for piece in pieces(architecture) {
        let (Some(parameter), Some(name), &[rows, columns]) =
            (table.get(&piece.parameter), piece.name.strip_suffix(".weight"), piece.shape.as_slice())
        else {
            continue;
        };
        let matrix = matches!(parameter.kind, Kind::Matrix | Kind::ResidualMatrix);
        let in_a_layer = layers.iter().any(|prefix| name.starts_with(prefix.as_str()));
        if !matrix || !in_a_layer || parameter.shape.len() != 2 || (stacked && name.contains(".mlp.")) {
            continue;
        }
        modules.push(AdaptedModule {
            name: name.to_string(),
            parameter: piece.parameter,
            row: piece.offset_elements / columns.max(1),
            rows,
            columns,
            part: parameter.part.clone(),
        });
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dora: bool) -> AdapterOptions {
        AdapterOptions { rank: 1, alpha: 2.0, targets: vec!["q_proj".into()], dora }
    }

    fn module(rows: usize, columns: usize) -> AdaptedModule {
        let (name, part) = ("m.q_proj".to_string(), "m".to_string());
        AdaptedModule { parameter: format!("{name}.weight"), name, row: 0, rows, columns, part }
    }

    #[test]
    fn merging_adds_the_product_and_gives_rows_their_lengths() {
        let (down, up) = ([1.0, 0.0], [0.5, 0.0]);
        let mut matrix = [3.0, 0.0, 0.0, 1.0];
        options(false).merge(&module(2, 2), &mut matrix, &down, &up, None);
        assert_eq!(matrix, [4.0, 0.0, 0.0, 1.0]);
        let mut matrix = [3.0, 3.0, 0.0, 0.0];
        options(true).merge(&module(2, 2), &mut matrix, &down, &up, Some(&[10.0, 7.0]));
        // A row of zeros has no direction.
        assert_eq!(matrix, [8.0, 6.0, 0.0, 0.0]);
    }

    /// Beside plain sums, element by element.
    #[test]
    fn a_product_of_any_rank_is_added() {
        let (rows, columns, rank) = (5, 7, 3);
        let options = AdapterOptions { rank, ..options(false) };
        let number = |at: usize| ((at * 37 % 23) as f32 - 11.0) / 8.0;
        let matrix: Vec<f32> = (0..rows * columns).map(number).collect();
        let down: Vec<f32> = (0..rank * columns).map(|at| number(at + 5)).collect();
        let up: Vec<f32> = (0..rows * rank).map(|at| number(at + 11)).collect();
        let mut merged = matrix.clone();
        options.merge(&module(rows, columns), &mut merged, &down, &up, None);
        for (at, have) in merged.iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let terms =
                (0..rank).map(|k| f64::from(up[row * rank + k]) * f64::from(down[k * columns + column]));
            let want = f64::from(matrix[at]) + options.scale() * terms.sum::<f64>();
            assert_eq!(*have, want as f32, "{row}, {column}");
        }
        // What is missing of `A` is no number.
        options.merge(&module(rows, columns), &mut merged, &down[1..], &up, None);
        assert!(merged.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn targets_are_whole_words_at_the_end_of_a_name() {
        for (target, want) in [
            ("q_proj", true),
            ("layers.0.self_attn.q_proj", true),
            ("model.layers.0.self_attn.q_proj", true),
            ("all-linear", true),
            ("proj", false),
            ("attn.q_proj", false),
            ("q_proj.weight", false),
            ("", false),
        ] {
            assert_eq!(matches("model.layers.0.self_attn.q_proj", target), want, "{target:?}");
        }
    }
}
