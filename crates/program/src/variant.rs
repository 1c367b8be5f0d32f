//! Variants in a device's name, as in `ascend:0+cube=hf32+launch=sync`. A `+` begins one: commas separate fallbacks, and shells
//! leave it alone.

/// What can be chosen of a device, and what it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The word before `=`.
    pub key: &'static str,
    /// The words that may follow, the default first; none where any word may.
    pub values: &'static [&'static str],
    /// One line on what it changes.
    pub meaning: &'static str,
}

/// Reads the variants of a name behind its first `+`, each `key=value`: for each of `known` what was chosen, and nothing where
/// the name is silent.
///
/// # Errors
/// No such variant, a value that it does not have, or one given twice: what would be right, in words.
pub fn choose<'a>(
    known: &[Variant],
    parts: impl Iterator<Item = &'a str>,
) -> Result<Vec<Option<&'a str>>, String> {
    let mut chosen = vec![None; known.len()];
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let Some(at) = known.iter().position(|variant| variant.key == key) else {
            let keys: Vec<&str> = known.iter().map(|variant| variant.key).collect();
            return Err(format!("there is no variant `{key}`; there is {}", keys.join(", ")));
        };
        let values = known[at].values;
        if values.is_empty() && value.is_empty() {
            return Err(format!("`{key}` needs a value, as in +{key}=…"));
        }
        if !values.is_empty() && !values.contains(&value) {
            return Err(format!("`{key}` is one of {}", values.join(", ")));
        }
        if chosen[at].replace(value).is_some() {
            return Err(format!("`{key}` is given twice"));
        }
    }
    Ok(chosen)
}
