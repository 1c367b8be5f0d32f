//! The classes and functions that checkpoints of PyTorch and Megatron-LM name. None is ever called: what they would make is
//! kept as their name and arguments.

/// Names by module.
const NAMES: [(&str, &[&str]); 25] = [
    ("collections", &["OrderedDict", "defaultdict"]),
    ("__builtin__", BUILTINS),
    ("builtins", BUILTINS),
    ("_codecs", &["encode"]),
    ("_io", &["BytesIO"]),
    ("io", &["BytesIO"]),
    ("argparse", &["Namespace"]),
    ("types", &["SimpleNamespace"]),
    ("pathlib", &["PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path"]),
    ("pathlib._local", &["PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path"]),
    ("torch", TORCH),
    ("torch.storage", &["UntypedStorage", "TypedStorage", "_load_from_bytes"]),
    ("torch.serialization", &["_get_layout"]),
    ("torch.nn.parameter", &["Parameter"]),
    ("torch._tensor", &["_rebuild_from_type_v2"]),
    (
        "torch._utils",
        &[
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v3",
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
        ],
    ),
    (
        "torch.distributed.checkpoint.metadata",
        &[
            "Metadata",
            "StorageMeta",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "_MEM_FORMAT_ENCODING",
        ],
    ),
    ("torch.distributed.checkpoint.filesystem", &["_StorageInfo", "_StoragePrefix"]),
    ("torch.distributed._shard.sharded_tensor.metadata", &["TensorProperties", "MEM_FORMAT_ENCODING"]),
    ("numpy", &["ndarray", "dtype"]),
    ("numpy.core.multiarray", &["_reconstruct", "scalar"]),
    ("numpy._core.multiarray", &["_reconstruct", "scalar"]),
    ("megatron.core.rerun_state_machine", &["RerunMode", "RerunState", "RerunDiagnostic", "Call", "Caller"]),
    ("megatron.core.enums", &["ModelType", "Fp8Recipe", "Fp4Recipe"]),
    (
        "megatron.core.transformer.enums",
        &["AttnBackend", "AttnMaskType", "AttnType", "LayerType", "ModelType"],
    ),
];

/// Of Python itself. `getattr` names a member of an enumeration in pickles of Python 3.11.0 to 3.11.6: see [`is_getattr`].
const BUILTINS: &[&str] =
    &["set", "frozenset", "dict", "list", "int", "slice", "complex", "bytearray", "getattr"];

/// Of `torch` itself: dtypes, storages, shapes.
const TORCH: &[&str] = &[
    "Size",
    "device",
    "Tensor",
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "complex64",
    "complex128",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "DoubleStorage",
    "FloatStorage",
    "HalfStorage",
    "BFloat16Storage",
    "ComplexFloatStorage",
    "ComplexDoubleStorage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
];

/// Whether a name is taken.
pub(super) fn is_known(module: &str, name: &str) -> bool {
    NAMES.iter().any(|(of, names)| *of == module && names.contains(&name))
}

/// Whether a name is Python's `getattr`, which is taken with a class that is known and a text alone.
pub(super) fn is_getattr(module: &str, name: &str) -> bool {
    matches!(module, "builtins" | "__builtin__") && name == "getattr"
}
