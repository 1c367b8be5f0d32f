//! Writes an interpreter with a defect in it, for `--python`:
//! `cargo run --release -p toprope-defects --example interpreter -- NAME FILE [PYTHON]`; without arguments it lists the defects.

use std::path::Path;
use std::process::ExitCode;
use toprope_defects::{find, known};
use toprope_world::{RealWorld, World, write_durably};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let told = match arguments.as_slice() {
        [] => {
            for defect in known() {
                println!("{:<28} {:<28} {}", defect.name, defect.operator, defect.kinds.join(" or "));
            }
            Ok(())
        }
        [name, file] => written(name, Path::new(file), None),
        [name, file, python] => written(name, Path::new(file), Some(Path::new(python))),
        _ => Err("what is asked for is: NAME FILE [PYTHON]".to_string()),
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn written(name: &str, file: &Path, python: Option<&Path>) -> Result<(), String> {
    let defect = find(name)
        .ok_or_else(|| format!("there is no defect `{name}`; without arguments they are listed"))?;
    let text = defect.interpreter(python).map_err(|error| error.to_string())?;
    let world = RealWorld::new();
    write_durably(world.files(), file, text.as_bytes()).map_err(|error| error.to_string())?;
    executable(file)
}

#[cfg(unix)]
fn executable(file: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(file, permissions).map_err(|error| format!("{}: {error}", file.display()))
}

#[cfg(not(unix))]
fn executable(_: &Path) -> Result<(), String> {
    Ok(())
}
