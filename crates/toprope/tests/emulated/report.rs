//! The report's `repro_aclnn.cpp`: compiled against headers that state the used prototypes only, it shows the emulator's defect
//! without Toprope, and passes where the defect is off.

use crate::support::{device, library, told, toprope};
use std::path::Path;
use std::process::{Command, Output};

/// Set where a C++ compiler is promised: a test that is skipped fails.
const REQUIRED: &str = "TOPROPE_CXX_REQUIRED";

/// The prototypes that the program uses of `acl.h`, as facts: docs/ascend.md tells from where.
const ACL: &str = r#"#pragma once
#include <stddef.h>
#include <stdint.h>
extern "C" {
typedef int aclError;
typedef void *aclrtStream;
typedef enum { ACL_FLOAT = 0, ACL_INT32 = 3, ACL_INT16 = 6, ACL_INT64 = 9, ACL_BOOL = 12, ACL_BF16 = 27 } aclDataType;
typedef enum { ACL_FORMAT_ND = 2 } aclFormat;
typedef enum { ACL_MEM_MALLOC_HUGE_FIRST = 0 } aclrtMemMallocPolicy;
typedef enum { ACL_MEMCPY_HOST_TO_DEVICE = 1, ACL_MEMCPY_DEVICE_TO_HOST = 2 } aclrtMemcpyKind;
typedef enum { ACL_RT_OVERFLOW_MODE_SATURATION = 0, ACL_RT_OVERFLOW_MODE_INFNAN = 1 } aclrtFloatOverflowMode;
typedef enum { ACL_OPT_DETERMINISTIC = 0 } aclSysParamOpt;
aclError aclInit(const char *);
aclError aclFinalize();
const char *aclGetRecentErrMsg();
aclError aclrtSetDevice(int32_t);
aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode);
aclError aclrtSetSysParamOpt(aclSysParamOpt, int64_t);
aclError aclrtCreateStream(aclrtStream *);
aclError aclrtSynchronizeStream(aclrtStream);
aclError aclrtMalloc(void **, size_t, aclrtMemMallocPolicy);
aclError aclrtMemcpy(void *, size_t, const void *, size_t, aclrtMemcpyKind);
}
"#;

/// The same of `acl_meta.h`.
const META: &str = r#"#pragma once
#include "acl/acl.h"
extern "C" {
typedef struct aclTensor aclTensor;
typedef struct aclScalar aclScalar;
typedef struct aclIntArray aclIntArray;
typedef struct aclTensorList aclTensorList;
typedef struct aclOpExecutor aclOpExecutor;
aclTensor *aclCreateTensor(const int64_t *, uint64_t, aclDataType, const int64_t *, int64_t, aclFormat, const int64_t *,
                           uint64_t, void *);
aclScalar *aclCreateScalar(void *, aclDataType);
aclIntArray *aclCreateIntArray(const int64_t *, uint64_t);
aclTensorList *aclCreateTensorList(const aclTensor *const *, uint64_t);
}
"#;

fn ran(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether there is a compiler; where there is none it says so, and fails where one was promised.
fn has_compiler() -> bool {
    let there = Command::new("g++").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        assert!(std::env::var_os(REQUIRED).is_none(), "there is no g++");
        eprintln!("SKIPPED, NOTHING WAS TESTED: there is no g++");
    }
    there
}

/// Compiles the program with the line that stands at its head.
fn compiled(folder: &Path, source: &str) {
    let include = folder.join("include");
    for (name, text) in [("acl/acl.h", ACL), ("aclnn/acl_meta.h", META)] {
        let path = include.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let line = source.lines().find(|line| line.contains("g++ ")).unwrap();
    let line = line
        .trim_start_matches('/')
        .replace("$ASCEND_HOME_PATH/include", include.to_str().unwrap())
        .replace("$ASCEND_HOME_PATH/lib64", library().to_str().unwrap());
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    let output = ran(command.args(words).args(["-Wall", "-Wextra", "-Werror"]).current_dir(folder));
    assert!(output.status.success(), "{line}\n{}", shown(&output));
}

fn shows(operator: &str, defect: &str, extra: &[&str], only: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let name = device("");
    let mut arguments = vec!["report", "tiny-moe", "--operator", operator, "--device", &name];
    arguments.extend(["--against", "cpu", "--step", "0", "--out", "report.tar.gz"]);
    arguments.extend(extra);
    let report = toprope(folder.path(), defect, &arguments);
    assert!(report.status.success(), "{}\n{}", told(&report), String::from_utf8_lossy(&report.stderr));
    let unpacked = ran(Command::new("tar").args(["-xzf", "report.tar.gz"]).current_dir(folder.path()));
    assert!(unpacked.status.success(), "{}", shown(&unpacked));
    let inside = folder.path().join(format!("toprope-report-{operator}"));
    let source = std::fs::read_to_string(inside.join("repro_aclnn.cpp")).unwrap();
    let page = std::fs::read_to_string(inside.join("README.md")).unwrap();
    assert!(page.contains("repro_aclnn.cpp"), "{page}");
    if let Some(only) = only {
        assert!(
            source.starts_with(&format!("// `{operator}` on ascend:0 by CANN alone: 1 call(s), {only}."))
        );
    }
    compiled(&inside, &source);
    let run = |defect: &str| {
        let mut command = Command::new("./repro_aclnn");
        command.env("LD_LIBRARY_PATH", library()).env("CANN_EMULATOR_DEFECTS", defect);
        ran(command.arg("3").current_dir(&inside))
    };
    let (wrong, right) = (run(defect), run(""));
    println!("{defect}: {}\nwithout it: {}", shown(&wrong).trim_end(), shown(&right).trim_end());
    assert_eq!(wrong.status.code(), Some(1), "{}", shown(&wrong));
    assert!(shown(&wrong).contains("3 of 3 run(s) are wrong"), "{}", shown(&wrong));
    assert_eq!(right.status.code(), Some(0), "{}", shown(&right));
}

#[test]
fn a_product_that_is_one_call_is_shown_without_toprope() {
    if has_compiler() {
        shows("matmul", "matmul.bf16_accumulate", &[], Some("aclnnMatmul"));
    }
}

/// An operator of several calls, with constants of the host among them.
#[test]
fn a_gradient_that_is_several_calls_is_shown_without_toprope() {
    if has_compiler() {
        shows("rms_norm_gradient", "norm.gradient_mean", &[], None);
        shows("expert_sort", "sort.unstable", &[], None);
    }
}
