//! The JSON Schema of a pipeline, for editors.
//!
//! placeholder
use serde_json::Value;
/// A type of operator.
#[derive(Clone, Debug)]
pub struct TypeDoc<'a> {
    /// Name.
    pub name: &'a str,
    /// Doc.
    pub doc: &'a str,
    /// Schema.
    pub schema: Value,
}
/// The schema.
pub fn json_schema(_operators: &[TypeDoc<'_>], _connectors: &[TypeDoc<'_>]) -> Value {
    Value::Null
}
