//! `manifest.json`: what a checkpoint is, hashed as a whole.

use super::defect::Defect;
use super::layout::{self, Layout};
use super::snapshot::{DataCursor, Identity, SnapshotHeader, TensorDtype, hash_of_records};
use serde::{Deserialize, Serialize};

/// The version of the checkpoint format that is written and read here. Whatever else changes in another version, the
/// manifest's last two lines and the key `format_version` stay as they are.
pub const FORMAT_VERSION: u32 = 1;

/// The longest manifest that is read: about 200,000 tensors.
pub(super) const MANIFEST_LIMIT_BYTES: u64 = 64 << 20;

const HASH_LINE_START: &str = ",\n  \"manifest_hash\": \"";
const HASH_LINE_END: &str = "\"\n}\n";
const HASH_DIGITS: usize = 64;

/// What a checkpoint holds and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The program that wrote it.
    pub toprope_version: String,
    /// When, as `2026-11-24T08:05:09.042Z`.
    pub created: String,
    /// Run, step, data cursor, identity, device and level.
    pub header: SnapshotHeader,
    /// The hash of the state, over its logical tensors.
    pub state_hash: String,
    /// Every tensor, in the file's order.
    pub tensors: Vec<TensorRecord>,
}

/// A tensor as the manifest lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: TensorDtype,
    /// Its logical shape, row-major.
    pub shape: Vec<u64>,
    /// BLAKE3 of its little-endian bytes, 64 hexadecimal digits.
    pub hash: String,
}

/// The manifest as it is written, without the tensors that follow line by line.
#[derive(Serialize)]
struct Head<'a> {
    format_version: u32,
    toprope_version: &'a str,
    created: &'a str,
    run_id: &'a str,
    step: u64,
    data_cursor: DataCursor,
    identity: &'a Identity,
    device: &'a str,
    level: &'a str,
    state_hash: &'a str,
    state_bytes: u64,
}

/// The manifest as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    format_version: u32,
    toprope_version: String,
    created: String,
    run_id: String,
    step: u64,
    data_cursor: DataCursor,
    identity: Identity,
    device: String,
    level: String,
    state_hash: String,
    state_bytes: u64,
    tensors: Vec<TensorRecord>,
    #[serde(rename = "manifest_hash")]
    _manifest_hash: String,
}

#[derive(Deserialize)]
struct VersionOnly {
    format_version: u32,
}

impl Manifest {
    /// The file's bytes, for a state file of `state_bytes`.
    pub(super) fn to_bytes(&self, state_bytes: u64) -> Result<Vec<u8>, serde_json::Error> {
        let head = Head {
            format_version: FORMAT_VERSION,
            toprope_version: &self.toprope_version,
            created: &self.created,
            run_id: &self.header.run_id,
            step: self.header.step,
            data_cursor: self.header.data_cursor,
            identity: &self.header.identity,
            device: &self.header.device,
            level: &self.header.level,
            state_hash: &self.state_hash,
            state_bytes,
        };
        let head = serde_json::to_string_pretty(&head)?;
        let mut text = head.strip_suffix("\n}").unwrap_or(&head).to_owned();
        text.push_str(",\n  \"tensors\": [");
        for (index, record) in self.tensors.iter().enumerate() {
            text.push_str(if index == 0 { "\n    " } else { ",\n    " });
            text.push_str(&serde_json::to_string(record)?);
        }
        text.push_str("\n  ]");
        let hash = blake3::hash(text.as_bytes()).to_hex();
        text.push_str(HASH_LINE_START);
        text.push_str(&hash);
        text.push_str(HASH_LINE_END);
        Ok(text.into_bytes())
    }

    /// A manifest from a file's bytes with the layout of its state file. Its own hash, its version, the state's hash
    /// and all sizes hold; nothing of the size that it *claims* has been asked for.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<(Self, Layout), Defect> {
        let other_version = || {
            serde_json::from_slice::<VersionOnly>(bytes)
                .ok()
                .filter(|version| version.format_version != FORMAT_VERSION)
                .map(|version| Defect::OtherVersion { found: version.format_version })
        };
        if !own_hash_holds(bytes) {
            return Err(other_version().unwrap_or(Defect::ManifestHash));
        }
        let whole: Whole = match serde_json::from_slice(bytes) {
            Ok(whole) => whole,
            Err(error) => return Err(other_version().unwrap_or_else(|| Defect::Manifest(error.to_string()))),
        };
        if whole.format_version != FORMAT_VERSION {
            return Err(Defect::OtherVersion { found: whole.format_version });
        }
        for pair in whole.tensors.windows(2) {
            let key = |at: usize| layout::order_key(pair[at].dtype, &pair[at].name);
            if key(0) >= key(1) {
                return Err(Defect::Manifest(format!("tensor `{}` is out of order", pair[1].name)));
            }
        }
        if let Some(name) = repeated_name(&whole.tensors) {
            return Err(Defect::Manifest(format!("tensor `{name}` occurs twice")));
        }
        if hash_of_records(&whole.tensors).as_ref() != Some(&whole.state_hash) {
            return Err(Defect::Manifest("`state_hash` is not that of the tensors' hashes".to_owned()));
        }
        let Some(layout) = layout::layout(&whole.tensors, whole.step) else {
            return Err(Defect::Manifest("the tensors' sizes exceed 64 bits".to_owned()));
        };
        if layout.file_bytes != whole.state_bytes {
            return Err(Defect::Manifest(format!(
                "`state_bytes` is {}, but the tensors' sizes make {}",
                whole.state_bytes, layout.file_bytes
            )));
        }
        let header = SnapshotHeader {
            run_id: whole.run_id,
            step: whole.step,
            data_cursor: whole.data_cursor,
            identity: whole.identity,
            device: whole.device,
            level: whole.level,
        };
        let manifest = Self {
            toprope_version: whole.toprope_version,
            created: whole.created,
            header,
            state_hash: whole.state_hash,
            tensors: whole.tensors,
        };
        Ok((manifest, layout))
    }
}

fn own_hash_holds(bytes: &[u8]) -> bool {
    let held = || {
        let rest = bytes.strip_suffix(HASH_LINE_END.as_bytes())?;
        let (rest, hash) = rest.split_at_checked(rest.len().checked_sub(HASH_DIGITS)?)?;
        let hashed = rest.strip_suffix(HASH_LINE_START.as_bytes())?;
        Some(blake3::hash(hashed).to_hex().as_bytes() == hash)
    };
    held().unwrap_or(false)
}

fn repeated_name(records: &[TensorRecord]) -> Option<&str> {
    let mut names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}
