//! The state before the first step: drawn from a seed, or a published model's weights, which are read when they are asked
//! for, a parameter at a time.

use crate::recipe::Origin;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use toprope_model::ModelConfig;
use toprope_model::adapter::matrix_of_magnitude;
use toprope_model::checkpoint::{Piece, pieces};
use toprope_model::hub::{Hub, HubError};
use toprope_program::shape::{elements, sizes};
use toprope_program::tensor::stored;
use toprope_program::{DType, Initial, Program, Role, Value, Width};
use toprope_world::World;

/// Why there is no state to begin with.
#[derive(Debug, thiserror::Error)]
pub enum InitialError {
    /// The model cannot be read.
    #[error(
        "the run began from a published model, which cannot be read: {}\nhint: put it back, or say where it is now with `toprope train --run RUN --resume --from MODEL`",
        without_hint(.0)
    )]
    Hub(#[from] HubError),
    /// Another model is where the run's model was.
    #[error(
        "{}: its {what} are not those that the run began from\nhint: name the model that it was with --from, or begin a new run",
        path.display()
    )]
    Other {
        /// Where it is.
        path: PathBuf,
        /// `sizes` or `weights`.
        what: &'static str,
    },
}

/// What is wrong with a model, without the advice for somebody who names one.
fn without_hint(error: &HubError) -> String {
    let text = error.to_string();
    text.split("\nhint: ").next().unwrap_or_default().to_string()
}

/// Where the state before the first step comes from.
pub struct InitialState {
    seed: u64,
    published: Option<PublishedWeights>,
}

struct PublishedWeights {
    world: Arc<dyn World>,
    origin: Origin,
    config: ModelConfig,
}

impl InitialState {
    /// Everything is drawn.
    pub fn drawn(seed: u64) -> InitialState {
        InitialState { seed, published: None }
    }

    /// Parameters are those of a published model, of this configuration; what it does not have is drawn.
    pub fn published(seed: u64, world: Arc<dyn World>, origin: Origin, config: ModelConfig) -> InitialState {
        InitialState { seed, published: Some(PublishedWeights { world, origin, config }) }
    }

    /// Hands each value's name and its stored bytes to `take`, one at a time.
    ///
    /// # Errors
    /// The model cannot be read or is another one, or what `take` says.
    pub fn each<E: From<InitialError>>(
        &self,
        program: &Program,
        mut take: impl FnMut(&str, Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut source = self.published.as_ref().map(PublishedWeights::open).transpose()?;
        for (_, value) in program.state() {
            let published = match &mut source {
                Some(source) => source.read(value)?,
                None => None,
            };
            let bytes = published.or_else(|| drawn(value, self.seed));
            if let Some(bytes) = bytes {
                take(&value.name, bytes)?;
            }
        }
        source.map_or(Ok(()), |source| Ok(source.finish()?))
    }
}

/// A state value's stored bytes as they are drawn; none for a value that is no state.
pub fn drawn(value: &Value, seed: u64) -> Option<Vec<u8>> {
    let Role::State { initial } = &value.role else { return None };
    let count = elements(&sizes(&value.shape, &[]));
    // Integers start at zero.
    if *initial == Initial::Zeros || !value.dtype.is_float() {
        return Some(vec![0; count * value.dtype.size_bytes(Width::Native)]);
    }
    Some(stored(value.dtype, Width::Native, &initial.draw(seed, &value.name, count)))
}

/// The model, open: what is read of it is hashed, and the hash must come out as when the run began.
struct Source<'a> {
    weights: &'a PublishedWeights,
    hub: Hub,
    of_parameter: HashMap<String, Vec<Piece>>,
    hashes: BTreeMap<String, blake3::Hash>,
}

impl PublishedWeights {
    fn open(&self) -> Result<Source<'_>, InitialError> {
        let hub = Hub::open(self.world.files(), &self.origin.model)?;
        if *hub.config() != self.config {
            return Err(InitialError::Other { path: self.origin.model.clone(), what: "sizes" });
        }
        hub.check_copies((&self.config).into())?;
        let mut of_parameter: HashMap<String, Vec<Piece>> = HashMap::new();
        for piece in pieces(&self.config) {
            of_parameter.entry(piece.parameter.clone()).or_default().push(piece);
        }
        Ok(Source { weights: self, hub, of_parameter, hashes: BTreeMap::new() })
    }
}

impl Source<'_> {
    /// A parameter's stored bytes; none for a value that the model does not have.
    fn read(&mut self, value: &Value) -> Result<Option<Vec<u8>>, InitialError> {
        if let Some(matrix) = matrix_of_magnitude(&value.name) {
            return self.lengths(&matrix);
        }
        let Some(pieces) = self.of_parameter.get(&value.name) else { return Ok(None) };
        let size = value.dtype.size_bytes(Width::Native);
        let mut bytes = Vec::with_capacity(elements(&sizes(&value.shape, &[])) * size);
        for piece in pieces {
            let numbers = self.hub.read(piece)?;
            let begin = bytes.len();
            for part in numbers.chunks(PART_ELEMENTS) {
                bytes.extend(stored(value.dtype, Width::Native, part));
            }
            // Hashed is what the model has, not what it is rounded to.
            let hash = match value.dtype {
                DType::F32 => blake3::hash(&bytes[begin..]),
                _ => hash_of(&numbers),
            };
            self.hashes.insert(piece.name.clone(), hash);
        }
        Ok(Some(bytes))
    }

    /// The lengths of a published matrix's rows, as stored.
    fn lengths(&self, matrix: &str) -> Result<Option<Vec<u8>>, InitialError> {
        let piece = self.of_parameter.values().flatten().find(|piece| piece.name == matrix);
        let Some((piece, columns)) = piece.and_then(|piece| Some((piece, *piece.shape.last()?))) else {
            return Ok(None);
        };
        let numbers = self.hub.read(piece)?;
        let length =
            |row: &[f32]| row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32;
        Ok(Some(numbers.chunks_exact(columns.max(1)).flat_map(|row| length(row).to_le_bytes()).collect()))
    }

    fn finish(self) -> Result<(), InitialError> {
        let origin = &self.weights.origin;
        if hash_of_all(&self.hashes) == origin.weights {
            return Ok(());
        }
        Err(InitialError::Other { path: origin.model.clone(), what: "weights" })
    }
}

fn hash_of(numbers: &[f32]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for part in numbers.chunks(PART_ELEMENTS) {
        hasher.update(&stored(DType::F32, Width::Native, part));
    }
    hasher.finalize()
}

/// Elements that are converted at once.
const PART_ELEMENTS: usize = 1 << 18;

/// BLAKE3, in hexadecimal, over each published tensor's name and the hash of its f32 numbers, by name.
fn hash_of_all(hashes: &BTreeMap<String, blake3::Hash>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, hash) in hashes {
        hasher.update(name.as_bytes()).update(b"\n").update(hash.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The hash of all weights of a model, in whatever format they are stored; `seen` is told of each tensor.
///
/// # Errors
/// A tensor cannot be read.
pub fn weights_hash(hub: &Hub, mut seen: impl FnMut(&str)) -> Result<String, HubError> {
    let mut hashes = BTreeMap::new();
    hub.each::<HubError>(hub.config().into(), |piece, numbers| {
        hashes.insert(piece.name.clone(), hash_of(numbers));
        seen(&piece.name);
        Ok(())
    })?;
    Ok(hash_of_all(&hashes))
}
