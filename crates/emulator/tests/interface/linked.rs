//! A C program that is linked against the three libraries, as foreign clients are.

use std::process::Command;

/// Prototypes as facts, in our own words.
const PROGRAM: &str = r#"
#include <stdint.h>
#include <stdio.h>
extern int aclInit(const char *);
extern int aclrtSetDevice(int32_t);
extern int aclrtMalloc(void **, size_t, int);
extern int aclrtMemcpy(void *, size_t, const void *, size_t, int);
extern int aclrtSynchronizeDevice(void);
extern const char *aclGetRecentErrMsg(void);
extern void *aclCreateTensor(const int64_t *, uint64_t, int, const int64_t *, int64_t, int, const int64_t *, uint64_t, void *);
extern int aclDestroyTensor(const void *);
extern int aclnnNegGetWorkspaceSize(const void *, void *, uint64_t *, void **);
extern int aclnnNeg(void *, uint64_t, void *, void *);

int main(void) {
    float values[3] = {1, -2, 3};
    int64_t shape[1] = {3};
    void *memory, *executor;
    uint64_t size;
    if (aclInit(0) || aclrtSetDevice(0) || aclrtMalloc(&memory, 12, 0) || aclrtMemcpy(memory, 12, values, 12, 1)) return 1;
    void *x = aclCreateTensor(shape, 1, 0, 0, 0, 2, shape, 1, memory);
    if (!x || aclnnNegGetWorkspaceSize(x, x, &size, &executor) || size) return 2;
    if (aclnnNeg(0, 0, executor, 0) || aclDestroyTensor(x)) return 3;
    if (aclrtSynchronizeDevice() || aclrtMemcpy(values, 12, memory, 12, 2)) return 4;
    if (aclnnNeg(0, 0, executor, 0) == 0) return 5;
    printf("%g %g %g | %s\n", values[0], values[1], values[2], aclGetRecentErrMsg());
    return 0;
}
"#;

#[test]
fn a_c_program_links_against_the_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("client.c"), folder.path().join("client"));
    std::fs::write(&source, PROGRAM).unwrap();
    let executable = std::env::current_exe().unwrap();
    let libraries = executable.parent().unwrap();
    // Rust needs a C compiler to link anything, so there is one.
    let compiled = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(libraries)
        .args(["-lascendcl", "-lnnopbase", "-lopapi"])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output = Command::new(&program).env("LD_LIBRARY_PATH", libraries).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}: {text}", output.status);
    assert!(text.starts_with("-1 2 -3 | aclnnNeg: 561103"), "{text}");
}
