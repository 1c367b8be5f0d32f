//! The emulator, a folder laid out as CANN's with our header in the vendor's places, and the client against both.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use super::{Place, must, write};

/// Libraries that the client links.
const LIBRARIES: [&str; 4] = ["ascendcl", "nnopbase", "opapi", "cann_emulator"];

/// The chip whose branches the client compiles; the emulator's default.
const SOC: &str = "Ascend910B3";

/// Everything; what is up to date stays.
pub fn all(place: &Place, decode: bool) -> Result<(), String> {
    crate::built::built(&place.root)?;
    layout(place)?;
    let mut targets = vec!["ggml", "ggml-cann"];
    if decode {
        targets.push("llama");
    }
    client(place, &targets)?;
    // ggml's own tests need ggml alone; their targets in CMake would build all of llama.cpp first.
    let source = place.source();
    program(place, &source.join("tests/test-backend-ops.cpp"), "test-backend-ops", &[])?;
    if decode {
        program(place, &place.root.join("benches/foreign/greedy.cpp"), "greedy", &["-lllama"])?;
    }
    Ok(())
}

/// Names of the vendor's headers that the client includes.
fn includes(folder: &Path) -> Result<BTreeSet<String>, String> {
    let mut names = BTreeSet::new();
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for entry in entries {
        let path = entry.map_err(|error| format!("{}: {error}", folder.display()))?.path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let named = text.lines().filter_map(|line| line.strip_prefix("#include <acl")?.strip_suffix('>'));
        names.extend(named.map(|name| format!("acl{name}")));
    }
    Ok(names)
}

/// `cann/include` and `cann/lib64`.
fn layout(place: &Place) -> Result<(), String> {
    let (include, lib) = (place.folder.join("cann/include"), place.folder.join("cann/lib64"));
    std::fs::create_dir_all(&lib).map_err(|error| format!("{}: {error}", lib.display()))?;
    let header =
        must("cann-emulator-header", &mut Command::new(place.release.join("examples/cann-emulator-header")))?;
    write(&include.join("cann_emulator.h"), &String::from_utf8_lossy(&header.stdout))?;
    for name in includes(&place.source().join("ggml/src/ggml-cann"))? {
        write(&include.join(name), "#include \"cann_emulator.h\"\n")?;
    }
    for library in LIBRARIES {
        let file = format!("lib{library}.so");
        let (from, part) = (place.release.join(&file), lib.join(format!("{file}.part")));
        // In two steps: a client that runs keeps the library that it has mapped.
        std::fs::copy(&from, &part).map_err(|error| format!("{}: {error}", from.display()))?;
        std::fs::rename(&part, lib.join(file)).map_err(|error| format!("{}: {error}", part.display()))?;
    }
    // The client's link line names it; it uses no symbol of it.
    let empty = lib.join("libacl_op_compiler.so");
    if !empty.exists() {
        let mut compiler = Command::new("g++");
        compiler.args(["-shared", "-x", "c++", "/dev/null", "-o"]).arg(empty);
        must("g++", &mut compiler)?;
    }
    Ok(())
}

/// ggml with its CANN backend, and what else is asked for.
fn client(place: &Place, targets: &[&str]) -> Result<(), String> {
    let bin = place.folder.join("venv/bin");
    let build = place.folder.join("build");
    if !build.join("build.ninja").exists() {
        let mut cmake = Command::new(bin.join("cmake"));
        cmake.arg("-S").arg(place.source()).arg("-B").arg(&build).args(["-G", "Ninja"]);
        cmake.arg(format!("-DCMAKE_MAKE_PROGRAM={}", bin.join("ninja").display()));
        cmake.arg(format!("-DCANN_INSTALL_DIR={}", place.folder.join("cann").display()));
        cmake.arg(format!("-DSOC_TYPE={SOC}"));
        for (name, value) in OPTIONS {
            cmake.arg(format!("-D{name}={value}"));
        }
        must("cmake", &mut cmake)?;
    }
    must("ninja", Command::new(bin.join("ninja")).arg("-C").arg(build).args(targets)).map(drop)
}

/// The CPU backend is built for AVX2 without what this machine may have more: its results do not depend on the machine,
/// and its kernels for AMX crash in this version.
const OPTIONS: [(&str, &str); 16] = [
    ("CMAKE_BUILD_TYPE", "Release"),
    ("CMAKE_C_FLAGS_RELEASE", "-O2"),
    ("CMAKE_CXX_FLAGS_RELEASE", "-O2"),
    ("GGML_CANN", "ON"),
    ("GGML_NATIVE", "OFF"),
    ("GGML_AMX_INT8", "OFF"),
    ("GGML_AVX2", "ON"),
    ("GGML_FMA", "ON"),
    ("GGML_F16C", "ON"),
    ("GGML_CCACHE", "OFF"),
    ("LLAMA_BUILD_TESTS", "OFF"),
    ("LLAMA_BUILD_TOOLS", "OFF"),
    ("LLAMA_BUILD_EXAMPLES", "OFF"),
    ("LLAMA_BUILD_SERVER", "OFF"),
    ("LLAMA_BUILD_APP", "OFF"),
    ("LLAMA_OPENSSL", "OFF"),
];

/// One program against the client's libraries, where its source is newer.
fn program(place: &Place, source: &Path, name: &str, libraries: &[&str]) -> Result<(), String> {
    let folder = place.folder.join("bin");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let made = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    if made(&folder.join(name)) > made(source) {
        return Ok(());
    }
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-O1", "-pthread"]);
    for include in ["ggml/include", "ggml/src", "include"] {
        compiler.arg("-I").arg(place.source().join(include));
    }
    compiler.arg(source).arg("-o").arg(folder.join(name));
    compiler.arg("-L").arg(place.folder.join("build/bin")).args(libraries).args(["-lggml", "-lggml-base"]);
    compiler.arg(format!("-Wl,-rpath-link,{}", place.folder.join("cann/lib64").display()));
    must(name, &mut compiler).map(drop)
}
