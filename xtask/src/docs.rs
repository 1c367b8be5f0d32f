//! Pages made from the program: written here, compared by `tidy`.

use crate::built::built;
use std::path::Path;
use std::process::Command;

/// Page and file.
pub const PAGES: [(&str, &str); 4] = [
    ("ascend", "docs/ascend.md"),
    ("operators", "docs/operators.md"),
    ("exit-codes", "docs/exit-codes.md"),
    ("journal", "docs/journal.md"),
];

/// What the binary prints for a page.
pub fn page(binary: &Path, name: &str) -> Result<Vec<u8>, String> {
    let output = Command::new(binary)
        .args(["docs", name])
        .output()
        .map_err(|error| format!("cannot run {}: {error}", binary.display()))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("page {name}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// Writes all pages.
pub fn write(root: &Path) -> Result<(), String> {
    let binary = built(root)?.join("toprope");
    for (name, file) in PAGES {
        let text = page(&binary, name)?;
        std::fs::write(root.join(file), text).map_err(|error| format!("{file}: {error}"))?;
        println!("wrote {file}");
    }
    Ok(())
}
