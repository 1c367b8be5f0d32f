//! A published model in place of a recipe's model section: what the recipe says of model and tokenizer may repeat the
//! model's own keys and not contradict them.

use super::{Origin, RecipeError};
use toml::{Table, Value};
use toprope_model::ModelConfig;

/// The published model that a recipe is laid onto.
#[derive(Clone, Debug)]
pub struct Base<'a> {
    /// Where it is and what its weights are.
    pub origin: Origin,
    /// Its configuration.
    pub config: &'a ModelConfig,
}

impl Base<'_> {
    /// Puts the model's own sections into a recipe's table.
    pub(super) fn lay_under(&self, table: &mut Table) -> Result<(), RecipeError> {
        let model = self.origin.model.display();
        let internal =
            |error: toml::ser::Error| RecipeError::of_key("", "model", format!("{model}: {error}"));
        let own = Table::try_from(self.config).map_err(internal)?;
        if let Some(given) = table.get("model").and_then(Value::as_table) {
            for (key, value) in given {
                let reason = match own.get(key) {
                    Some(have) if same(have, value) => continue,
                    Some(have) => format!("is {value}, and that of {model} is {have}"),
                    None => format!("is {value}, and {model} has no such key"),
                };
                let hint = "leave the section [model] out: it is the published model's own";
                return Err(RecipeError::of_key("", &format!("model.{key}"), reason).hint(hint));
            }
        }
        let tokenizer = table.entry("tokenizer").or_insert_with(|| Value::Table(Table::new()));
        if let Some(tokenizer) = tokenizer.as_table_mut() {
            for key in ["kind", "path"] {
                if let Some(given) = tokenizer.get(key).filter(|given| given.as_str() != Some("published")) {
                    let reason = format!("is {given}, and {model} has a tokenizer of its own");
                    let hint = "leave it out; only tokenizer.end_of_document can be given";
                    return Err(RecipeError::of_key("", &format!("tokenizer.{key}"), reason).hint(hint));
                }
            }
            tokenizer.insert("kind".into(), "published".into());
        }
        table.insert("from".into(), Value::Table(Table::try_from(&self.origin).map_err(internal)?));
        table.insert("model".into(), Value::Table(own));
        Ok(())
    }
}

/// Whether two values are the same, integers and floats as numbers.
fn same(have: &Value, given: &Value) -> bool {
    let number = |value: &Value| value.as_float().or_else(|| value.as_integer().map(|number| number as f64));
    match (number(have), number(given)) {
        (Some(have), Some(given)) => have == given,
        _ => have == given,
    }
}
