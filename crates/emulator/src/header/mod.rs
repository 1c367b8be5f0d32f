//! Declarations of everything that the emulator exports but the driver's `dcmi` functions, as one C header: made from the tables that dispatch, so that a C or
//! C++ client can be compiled without the vendor's files.

mod prototypes;

use std::fmt::Write;

use crate::operator::{self, Operator};
use prototypes::{ASCENDCL, NNOPBASE, Prototype, SINGLE};

/// Types that are handles, and enums whose names clients use.
const TYPES: &str = r#"typedef int32_t aclError;
typedef int32_t aclnnStatus;
typedef struct aclTensor aclTensor;
typedef struct aclScalar aclScalar;
typedef struct aclIntArray aclIntArray;
typedef struct aclFloatArray aclFloatArray;
typedef struct aclBoolArray aclBoolArray;
typedef struct aclTensorList aclTensorList;
typedef struct aclScalarList aclScalarList;
typedef struct aclOpExecutor aclOpExecutor;
typedef void *aclrtContext;
typedef void *aclrtStream;
typedef void *aclrtEvent;
typedef void *aclrtDrvMemHandle;
typedef void *aclmdlRI;

#define ACL_SUCCESS 0
#define ACL_EVENT_SYNC 1u

typedef enum {
    ACL_DT_UNDEFINED = -1, ACL_FLOAT = 0, ACL_FLOAT16 = 1, ACL_INT8 = 2, ACL_INT32 = 3, ACL_UINT8 = 4, ACL_INT16 = 6,
    ACL_UINT16 = 7, ACL_UINT32 = 8, ACL_INT64 = 9, ACL_UINT64 = 10, ACL_DOUBLE = 11, ACL_BOOL = 12, ACL_STRING = 13,
    ACL_COMPLEX64 = 16, ACL_COMPLEX128 = 17, ACL_BF16 = 27, ACL_INT4 = 29, ACL_UINT1 = 30, ACL_COMPLEX32 = 33
} aclDataType;

typedef enum {
    ACL_FORMAT_UNDEFINED = -1, ACL_FORMAT_NCHW = 0, ACL_FORMAT_NHWC = 1, ACL_FORMAT_ND = 2, ACL_FORMAT_NC1HWC0 = 3,
    ACL_FORMAT_FRACTAL_Z = 4, ACL_FORMAT_FRACTAL_NZ = 29, ACL_FORMAT_NCDHW = 30, ACL_FORMAT_NCL = 47
} aclFormat;

typedef enum {
    ACL_MEMCPY_HOST_TO_HOST = 0, ACL_MEMCPY_HOST_TO_DEVICE = 1, ACL_MEMCPY_DEVICE_TO_HOST = 2,
    ACL_MEMCPY_DEVICE_TO_DEVICE = 3, ACL_MEMCPY_DEFAULT = 4
} aclrtMemcpyKind;

typedef enum {
    ACL_MEM_MALLOC_HUGE_FIRST = 0, ACL_MEM_MALLOC_HUGE_ONLY = 1, ACL_MEM_MALLOC_NORMAL_ONLY = 2
} aclrtMemMallocPolicy;

typedef enum {
    ACL_DDR_MEM = 0, ACL_HBM_MEM = 1, ACL_DDR_MEM_HUGE = 2, ACL_DDR_MEM_NORMAL = 3, ACL_HBM_MEM_HUGE = 4,
    ACL_HBM_MEM_NORMAL = 5
} aclrtMemAttr;

typedef enum { ACL_MEM_HANDLE_TYPE_NONE = 0 } aclrtMemHandleType;
typedef enum { ACL_MEM_ALLOCATION_TYPE_PINNED = 0 } aclrtMemAllocationType;
typedef enum { ACL_MEM_LOCATION_TYPE_HOST = 0, ACL_MEM_LOCATION_TYPE_DEVICE = 1 } aclrtMemLocationType;
typedef enum {
    ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM = 0, ACL_RT_MEM_ALLOC_GRANULARITY_RECOMMENDED = 1
} aclrtMemGranularityOptions;
typedef enum { ACL_MODEL_RI_CAPTURE_MODE_GLOBAL = 0 } aclmdlRICaptureMode;

typedef struct {
    uint32_t id;
    aclrtMemLocationType type;
} aclrtMemLocation;

typedef struct {
    aclrtMemHandleType handleType;
    aclrtMemAllocationType allocationType;
    aclrtMemAttr memAttr;
    aclrtMemLocation location;
    uint64_t reserve;
} aclrtPhysicalMemProp;
"#;

fn declare(text: &mut String, library: &str, prototypes: &[Prototype]) {
    let _ = writeln!(text, "\n/* {library} */");
    for (result, name, arguments) in prototypes {
        let space = if result.ends_with('*') { "" } else { " " };
        let arguments = if arguments.is_empty() { "void" } else { arguments };
        let _ = writeln!(text, "{result}{space}{name}({arguments});");
    }
}

fn phases(operator: &Operator) -> String {
    let arguments = operator.parameters.iter().map(|(name, kind)| {
        let space = if kind.ends_with('*') { "" } else { " " };
        format!("{kind}{space}{}, ", name.trim_end_matches('_'))
    });
    format!(
        "aclnnStatus {}({}uint64_t *workspaceSize, aclOpExecutor **executor);\n\
         aclnnStatus {}(void *workspace, uint64_t workspaceSize, aclOpExecutor *executor, aclrtStream stream);\n",
        operator.planner,
        arguments.collect::<String>(),
        operator.function
    )
}

/// The header.
#[must_use]
pub fn text() -> String {
    let mut text = String::from(
        "/* Declarations of the CANN emulator's functions, printed by cann-emulator-header. Not the vendor's files: prototypes\n   \
         and numbers are facts, and what is missing here is missing in the emulator. */\n\
         #pragma once\n#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n\n\
         #ifdef __cplusplus\nextern \"C\" {\n#endif\n\n",
    );
    text.push_str(TYPES);
    declare(&mut text, "libascendcl.so", ASCENDCL);
    declare(&mut text, "libnnopbase.so", NNOPBASE);
    declare(&mut text, "libopapi.so", SINGLE);
    for operator in operator::all() {
        text.push_str(&phases(operator));
    }
    text.push_str("\n#ifdef __cplusplus\n}\n#endif\n");
    text
}
