//! What every part builds with: parameters by name, weights rounded once, linear maps and norms; and the trunk.

use super::{grouped, mla, mlp, moe};
use crate::adapter::{AdaptedModule, AdapterOptions};
use crate::architecture::Architecture;
use crate::error::ModelError;
use crate::parameters::{Kind, Parameter, layer_part, parameters};
use std::collections::HashMap;
use toprope_program::constant::Content;
use toprope_program::operator::{Add, Assemble, Cast, Gather, Matmul, Multiply, RmsNorm, Scale};
use toprope_program::{BuildError, Builder, DType, Dim, Initial, Operand, Role, Shape, Type, ValueId, View};

/// Added to the mean square of a row whose length is computed, so that one of zeros has no infinite inverse.
const LENGTH_EPSILON: f64 = 1e-20;

/// A network under construction.
pub(crate) struct Network<'a> {
    pub architecture: Architecture<'a>,
    pub builder: Builder,
    /// The dtype of activations and of the weights that products read.
    pub dtype: DType,
    /// The dtype that matrices are kept in: f32 where they are trained.
    pub kept: DType,
    /// Tokens of a micro-batch.
    pub rows: Dim,
    positions: usize,
    /// Rows of the decoding caches, where attention reads its keys from them.
    pub cache_rows: Option<usize>,
    parameters: HashMap<String, ValueId>,
    rounded: HashMap<ValueId, ValueId>,
    inputs: HashMap<String, ValueId>,
    rope_table: Option<ValueId>,
    /// What is adapted, where something is.
    adapter: Option<AdapterOptions>,
    /// Adapters by the parameter that they stand beside.
    adapters: HashMap<String, Vec<AdaptedModule>>,
    /// Modules whose rows' lengths are still to be computed, and where one over them goes.
    lengths: Vec<(AdaptedModule, ValueId)>,
    /// What each layer with experts leaves for losses and the bias update, in order.
    pub routed: Vec<Routed>,
}

/// What a layer with experts leaves behind.
pub(crate) struct Routed {
    /// The layer's number.
    pub layer: usize,
    /// Router logits, f32\[T, experts\].
    pub logits: ValueId,
    /// Scores, f32\[T, experts\].
    pub scores: ValueId,
    /// How often each expert was chosen, i32\[experts\].
    pub counts: ValueId,
}

/// What the trunk gives: the main model without its head.
pub(crate) struct Trunk {
    /// The last layer's output after the final norm, \[T, hidden\].
    pub normed: ValueId,
}

impl<'a> Network<'a> {
    /// An empty network over `rows` tokens at positions below `positions`.
    pub fn new(
        architecture: Architecture<'a>,
        builder: Builder,
        dtype: DType,
        rows: Dim,
        positions: usize,
    ) -> Network<'a> {
        Network {
            architecture,
            builder,
            dtype,
            kept: DType::F32,
            rows,
            positions,
            cache_rows: None,
            parameters: HashMap::new(),
            rounded: HashMap::new(),
            inputs: HashMap::new(),
            rope_table: None,
            adapter: None,
            adapters: HashMap::new(),
            lengths: Vec::new(),
            routed: Vec::new(),
        }
    }

    /// Declares every parameter as state, in the order of the table.
    pub fn declare_parameters(&mut self, depth_scaled: bool) {
        let std = self.architecture.initializer_range();
        let residual = match depth_scaled {
            true => std / (2.0 * self.architecture.layers() as f64).sqrt(),
            false => std,
        };
        for Parameter { name, shape, kind, .. } in parameters(self.architecture) {
            let initial = match kind {
                Kind::Matrix => Initial::Normal { std },
                Kind::ResidualMatrix => Initial::Normal { std: residual },
                Kind::Norm => Initial::Ones,
                Kind::Bias | Kind::SelectionBias => Initial::Zeros,
            };
            // The router chooses by weights that are not rounded.
            let rounded =
                matches!(kind, Kind::Matrix | Kind::ResidualMatrix) && !name.ends_with(".gate.weight");
            let dtype = if rounded { self.kept } else { DType::F32 };
            let id = self.builder.state(&name, Type::new(dtype, shape), initial);
            self.parameters.insert(name, id);
        }
    }

    /// Declares the adapters' parameters as state, behind the model's; gives them.
    pub fn declare_adapters(&mut self, options: Option<&AdapterOptions>) -> Vec<Parameter> {
        let Some(options) = options else { return Vec::new() };
        self.adapter = Some(options.clone());
        for module in options.modules(self.architecture) {
            self.adapters.entry(module.parameter.clone()).or_default().push(module);
        }
        let declare = |(parameter, initial): (Parameter, Initial)| {
            let r#type = Type::new(DType::F32, parameter.shape.iter().copied());
            let id = self.builder.state(&parameter.name, r#type, initial);
            self.parameters.insert(parameter.name.clone(), id);
            parameter
        };
        options.parameters(self.architecture).into_iter().map(declare).collect()
    }

    /// The state value of a parameter.
    pub fn parameter(&self, name: &str) -> Result<ValueId, ModelError> {
        self.parameters.get(name).copied().ok_or_else(|| ModelError::Tensor {
            name: name.into(),
            reason: "is not in the table of parameters".into(),
        })
    }

    /// The state values of parameters.
    pub fn values_of(&self, parameters: &[Parameter]) -> Result<Vec<ValueId>, ModelError> {
        parameters.iter().map(|parameter| self.parameter(&parameter.name)).collect()
    }

    /// A matrix in the dtype that products read: rounded once for a whole micro-batch.
    pub fn weight(&mut self, name: &str) -> Result<ValueId, ModelError> {
        let master = self.parameter(name)?;
        if self.builder.program().value(master).dtype == self.dtype {
            return Ok(master);
        }
        if let Some(rounded) = self.rounded.get(&master) {
            return Ok(*rounded);
        }
        let rounded =
            self.builder.one(&format!("{name}.rounded"), Cast { output: self.dtype }, [master.into()])?;
        self.rounded.insert(master, rounded);
        Ok(rounded)
    }

    /// An input, declared when it is first asked for.
    pub fn input(&mut self, name: &str, dtype: DType, dim: Dim) -> ValueId {
        if let Some(id) = self.inputs.get(name) {
            return *id;
        }
        let id = self.builder.input(name, dtype, [dim]);
        self.inputs.insert(name.into(), id);
        id
    }

    /// Cosines and sines of all positions.
    pub fn rope_table(&mut self) -> ValueId {
        if let Some(id) = self.rope_table {
            return id;
        }
        let (rope, columns) = self.architecture.rope();
        let shape = [self.positions, 2, columns / 2];
        let content = Content::Rope(rope);
        let id = self.builder.constant("rope_table", Type::new(DType::F32, shape), content);
        self.rope_table = Some(id);
        id
    }

    /// A value's name within the part that is being built.
    pub fn local(&self, name: &str) -> String {
        format!("{}.{name}", self.builder.part())
    }

    /// `x · weightᵀ` for a matrix `[outputs, inputs]`, in the dtype of activations, with its adapters' products added.
    pub fn linear(&mut self, name: &str, x: impl Into<Operand>, weight: &str) -> Result<ValueId, ModelError> {
        let (x, modules) = (x.into(), self.adapters.get(weight).cloned());
        let matrix = self.weight(weight)?;
        let frozen = self.product(name, x.clone(), matrix, self.dtype)?;
        match modules {
            Some(modules) => self.adapted(name, x, frozen, &modules),
            None => Ok(frozen),
        }
    }

    /// A frozen product with what its adapters add, each in the columns of its module.
    fn adapted(
        &mut self,
        name: &str,
        x: Operand,
        frozen: ValueId,
        modules: &[AdaptedModule],
    ) -> Result<ValueId, ModelError> {
        let Some((factor, dora)) = self.adapter.as_ref().map(|options| (options.scale(), options.dora))
        else {
            return Ok(frozen);
        };
        let mut parts: Vec<Operand> = Vec::new();
        for module in modules {
            let (down, up) = (self.weight(&module.down())?, self.weight(&module.up())?);
            let leaf = module.leaf();
            let small = self.product(&format!("{leaf}.lora_A"), x.clone(), down, self.dtype)?;
            let scaled = self.local(&format!("{leaf}.scaled"));
            let small = self.builder.one(&scaled, Scale { factor }, [small.into()])?;
            parts.push(self.product(&format!("{leaf}.lora_B"), small, up, self.dtype)?.into());
        }
        let shape = self.builder.program().value(frozen).shape.clone();
        let whole = self.whole(&shape)?;
        let columns = shape.get(1).and_then(|dim| dim.constant()).unwrap_or_default();
        let window = |row: usize, rows: usize| whole.clone().narrow(1, row, rows);
        let mut views: Vec<View> = modules.iter().map(|module| window(module.row, module.rows)).collect();
        if dora {
            for (part, (module, view)) in parts.iter_mut().zip(modules.iter().zip(&views)) {
                let own = Operand { value: frozen, view: Some(view.clone()) };
                *part = self.stretched(module, own, part.clone())?.into();
            }
            // What has no adapter stays as it is.
            let mut next = 0;
            let adapted = modules.iter().map(|module| (module.row, module.rows));
            for (row, rows) in adapted.chain([(columns, 0)]) {
                if row > next {
                    let view = window(next, row - next);
                    parts.push(Operand { value: frozen, view: Some(view.clone()) });
                    views.push(view);
                }
                next = row + rows;
            }
        }
        let joined = match (parts.as_slice(), modules) {
            ([only], [module]) if only.view.is_none() && module.rows == columns => only.value,
            _ => {
                let operator = Assemble { output: self.dtype, shape, views };
                let name = self.local(&format!("{name}.adapters"));
                self.builder.apply_all(&name, operator, parts)?[0]
            }
        };
        if dora {
            return Ok(joined);
        }
        let sum = self.sum(&format!("{name}.adapted"), frozen, joined)?;
        self.builder.sum_of_products(sum);
        Ok(sum)
    }

    /// The sum of a module's two products with its columns stretched to the lengths that are trained.
    fn stretched(
        &mut self,
        module: &AdaptedModule,
        frozen: Operand,
        added: Operand,
    ) -> Result<ValueId, ModelError> {
        let (leaf, tokens) = (module.leaf(), self.rows);
        let name = |what: &str| format!("{leaf}.{what}");
        let sum = self.local(&name("sum"));
        let sum = self.builder.one(&sum, Add { output: self.dtype }, [frozen, added])?;
        self.builder.sum_of_products(sum);
        // One over the root mean square of each row, written by instructions that autodiff does not see.
        let (rstd, r#type) = (self.local(&name("rstd")), Type::new(DType::F32, [module.rows]));
        let rstd = self.builder.declare(&rstd, r#type, Role::Scratch);
        self.lengths.push((module.clone(), rstd));
        let magnitude = self.parameter(&module.magnitude())?;
        let stretch = self.local(&name("stretch"));
        let operator = Multiply { output: DType::F32 };
        let stretch = self.builder.one(&stretch, operator, [magnitude.into(), rstd.into()])?;
        let factor = 1.0 / (module.columns as f64).sqrt();
        let scaled = self.local(&name("stretch.scaled"));
        let stretch = self.builder.one(&scaled, Scale { factor }, [stretch.into()])?;
        let repeated = self.builder.seen(stretch, |view| view.repeat(0, tokens))?;
        let stretched = self.local(&name("stretched"));
        Ok(self.builder.one(&stretched, Multiply { output: self.dtype }, [sum.into(), repeated])?)
    }

    /// Puts what computes the lengths of rows before everything else. To be called behind autodiff, to which they are constants.
    pub fn compute_lengths(&mut self) -> Result<(), ModelError> {
        let Some(factor) = self.adapter.as_ref().map(AdapterOptions::scale) else { return Ok(()) };
        let mut ones: HashMap<usize, ValueId> = HashMap::new();
        let before = self.builder.instructions();
        for (module, rstd) in std::mem::take(&mut self.lengths) {
            self.builder.set_part(module.part.clone());
            let leaf = module.leaf();
            let name = |network: &Network<'_>, what: &str| network.local(&format!("{leaf}.{what}"));
            let (down, up) = (self.parameter(&module.down())?, self.parameter(&module.up())?);
            let operator = Matmul { output: DType::F32, row_sums: false };
            let product = name(self, "lora");
            let product = self.builder.one(&product, operator, [up.into(), down.into()])?;
            let scaled = name(self, "lora.scaled");
            let scaled = self.builder.one(&scaled, Scale { factor }, [product.into()])?;
            let matrix = self.parameter(&module.parameter)?;
            let own = self.builder.seen(matrix, |view| view.narrow(0, module.row, module.rows))?;
            let merged = name(self, "merged");
            let merged = self.builder.one(&merged, Add { output: DType::F32 }, [own, scaled.into()])?;
            let columns = module.columns;
            let one = *ones.entry(columns).or_insert_with(|| {
                let r#type = Type::new(DType::F32, [columns]);
                self.builder.constant("dora.ones", r#type, Content::Splat { value: 1.0 })
            });
            let r#type = Type::new(DType::F32, [module.rows, columns]);
            let directions = name(self, "directions");
            let directions = self.builder.declare(&directions, r#type, Role::Scratch);
            let operands = vec![merged.into(), one.into()];
            self.builder.apply_to(RmsNorm { epsilon: LENGTH_EPSILON }, operands, vec![directions, rstd])?;
        }
        self.builder.move_to_front(before);
        Ok(())
    }

    /// `x · weightᵀ` with f32 results for a weight as it is.
    pub fn product(
        &mut self,
        name: &str,
        x: impl Into<Operand>,
        weight: ValueId,
        output: DType,
    ) -> Result<ValueId, ModelError> {
        let transposed = self.builder.seen(weight, |view| view.transpose(0, 1))?;
        let name = self.local(name);
        Ok(self.builder.one(&name, Matmul { output, row_sums: false }, [x.into(), transposed])?)
    }

    /// RMSNorm with a parameter as weight.
    pub fn norm(&mut self, name: &str, x: impl Into<Operand>, weight: &str) -> Result<ValueId, ModelError> {
        let (name, weight) = (self.local(name), self.parameter(weight)?);
        let epsilon = self.architecture.rms_norm_eps();
        Ok(self.builder.apply(&name, RmsNorm { epsilon }, [x.into(), weight.into()])?[0])
    }

    /// A linear map's result with its bias added to each row.
    pub fn biased(&mut self, name: &str, x: ValueId, bias: &str) -> Result<ValueId, ModelError> {
        let (name, bias, rows) = (self.local(name), self.parameter(bias)?, self.rows);
        let repeated = self.builder.seen(bias, |view| view.repeat(0, rows))?;
        let sum = self.builder.one(&name, Add { output: self.dtype }, [x.into(), repeated])?;
        self.builder.sum_of_products(sum);
        Ok(sum)
    }

    /// A sum in the dtype of activations.
    pub fn sum(&mut self, name: &str, a: ValueId, b: ValueId) -> Result<ValueId, ModelError> {
        let name = self.local(name);
        Ok(self.builder.one(&name, Add { output: self.dtype }, [a.into(), b.into()])?)
    }

    /// Rows of the embedding, zeros where the token is -1.
    pub fn embedding(&mut self, name: &str, tokens: ValueId) -> Result<ValueId, ModelError> {
        let table = self.parameter("model.embed_tokens.weight")?;
        let name = self.local(name);
        Ok(self.builder.one(&name, Gather { output: self.dtype }, [table.into(), tokens.into()])?)
    }

    /// A dense value seen in another shape of as many elements.
    pub fn reshaped(&self, value: ValueId, shape: Shape) -> Result<Operand, ModelError> {
        Ok(Operand { value, view: Some(self.whole(&shape)?) })
    }

    /// The window that covers a dense value of this shape.
    pub fn whole(&self, shape: &[Dim]) -> Result<View, ModelError> {
        View::dense(shape).ok_or_else(|| {
            let (operator, part) = ("view".into(), self.builder.part().into());
            BuildError { operator, part, reason: "an inner dimension is symbolic".into() }.into()
        })
    }

    /// One layer: attention and feed-forward, each behind a norm and beside the residual stream (V3, figure 2).
    pub fn layer(&mut self, x: ValueId, layer: usize) -> Result<ValueId, ModelError> {
        let (prefix, part) = (format!("model.layers.{layer}"), layer_part(self.architecture, layer));
        self.builder.set_part(format!("{part}.attention"));
        let normed = self.norm("input", x, &format!("{prefix}.input_layernorm.weight"))?;
        let attention = format!("{prefix}.self_attn");
        let attended = match self.architecture {
            Architecture::DeepseekV3(config) => mla::attention(self, config, normed, &attention)?,
            Architecture::Llama(config) => grouped::attention(self, config, normed, &attention)?,
        };
        let x = self.sum("residual", x, attended)?;
        let norm = format!("{prefix}.post_attention_layernorm.weight");
        if let Architecture::DeepseekV3(config) = self.architecture
            && config.has_experts(layer)
        {
            self.builder.set_part(format!("{part}.router"));
            let normed = self.norm("input", x, &norm)?;
            let mixed = moe::experts(self, config, normed, layer)?;
            return self.sum("residual", x, mixed);
        }
        self.builder.set_part(format!("{part}.mlp"));
        let normed = self.norm("input", x, &norm)?;
        let mixed = mlp::gated(self, normed, &format!("{prefix}.mlp"))?;
        self.sum("residual", x, mixed)
    }

    /// The main model up to its head.
    pub fn trunk(&mut self) -> Result<Trunk, ModelError> {
        self.builder.set_part("embedding");
        let tokens = self.input("tokens", DType::I32, self.rows);
        let mut x = self.embedding("tokens", tokens)?;
        for layer in 0..self.architecture.layers() {
            x = self.layer(x, layer)?;
        }
        self.builder.set_part("head");
        let normed = self.norm("input", x, "model.norm.weight")?;
        Ok(Trunk { normed })
    }

    /// Rows of a value by their numbers.
    pub fn picked(&mut self, name: &str, x: ValueId, numbers: ValueId) -> Result<ValueId, ModelError> {
        let name = self.local(name);
        Ok(self.builder.one(&name, Gather { output: self.dtype }, [x.into(), numbers.into()])?)
    }

    /// Logits of the main head for `rows` normed rows, as an output value.
    pub fn logits(&mut self, name: &str, normed: ValueId, rows: Dim) -> Result<(), ModelError> {
        let head = self.weight(self.architecture.head())?;
        let transposed = self.builder.seen(head, |view| view.transpose(0, 1))?;
        let shape = [rows, self.architecture.vocab_size().into()];
        let logits = self.builder.declare(name, Type::new(DType::F32, shape), Role::Output);
        let operator = Matmul { output: DType::F32, row_sums: false };
        self.builder.apply_to(operator, vec![normed.into(), transposed], vec![logits])?;
        Ok(())
    }
}
