//! The header that the emulator prints: it declares every exported function, and C and C++ compilers take it.

use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn the_header_declares_exactly_what_is_exported() {
    let header = cann_emulator::header::text();
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|line| line.ends_with(");"))
        .filter_map(|line| line.split('(').next()?.rsplit([' ', '*']).next())
        .collect();
    let exported: BTreeSet<&str> =
        ["ascendcl", "nnopbase", "opapi"].into_iter().flat_map(cann_emulator::entry::names).collect();
    assert_eq!(declared, exported);
}

#[test]
fn compilers_take_the_header() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cann.h"), cann_emulator::header::text()).unwrap();
    let source = folder.path().join("client.c");
    std::fs::write(&source, "#include \"cann.h\"\nint main(void) { return aclrtSetDevice(0); }\n").unwrap();
    // Rust needs a C compiler to link anything, so there is one; the same file is C++ too.
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    for language in [["-x", "c"], ["-x", "c++"]] {
        let mut command = Command::new(&compiler);
        command.args(language).args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only"]).arg(&source);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        // A machine with C alone says so; CI's has both.
        let lacks = text.contains("cc1plus");
        assert!(output.status.success() || (lacks && language[1] == "c++"), "{language:?}: {text}");
    }
}
