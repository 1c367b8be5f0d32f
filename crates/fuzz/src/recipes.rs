//! Recipes and program text.

use toprope_program::{MemoryPlan, StateLayout, Width, text, validate};
use toprope_train::recipe;

/// A recipe.
pub(crate) fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(recipe) = recipe::parse("fuzz.toml", text, &[]) {
        let _ = recipe.training_options();
    }
    // The first line as what --set is given.
    if let Some((set, rest)) = text.split_once('\n') {
        let _ = recipe::parse("fuzz.toml", rest, &[set.to_string()]);
    }
}

/// A program as it is printed. What is valid is printed again the same, and has a place for everything.
pub(crate) fn program(bytes: &[u8]) {
    let Ok(written) = std::str::from_utf8(bytes) else { return };
    let Ok(program) = text::parse(written) else { return };
    let Ok(valid) = validate(program) else { return };
    let printed = text::print(valid.program());
    let again = text::parse(&printed).map(|program| text::print(&program));
    assert_eq!(again.ok().as_deref(), Some(printed.as_str()), "it is not what was printed");
    for layout in [StateLayout::Double, StateLayout::InPlace] {
        let _ = MemoryPlan::new(&valid, Width::Native, layout);
    }
}
