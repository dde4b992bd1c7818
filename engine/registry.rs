//! The operators a pipeline may name, and how each one's parameters are read.
//!
//! The built-in ones come from one visible list; a program that embeds the engine adds its own.

use coea_operators::operator::{Described, Operator, Register};

use crate::{diagnostic::Diagnostics, spec::Block};

/// One operator.
pub struct Entry {
    /// The name in YAML.
    pub name: &'static str,
    /// A pipeline that uses it.
    pub example: &'static str,
    /// The schema of its parameters; its description documents the operator.
    pub schema: fn() -> schemars::Schema,
    parse: fn(&Block) -> Result<Box<dyn Operator>, Diagnostics>,
}

impl Entry {
    /// Reads the operator's parameters.
    ///
    /// # Errors
    /// Every mistake in them, with its place.
    pub fn parse(&self, with: &Block) -> Result<Box<dyn Operator>, Diagnostics> {
        (self.parse)(with)
    }
}

/// The operators by name.
pub struct Registry(Vec<Entry>);

impl Registry {
    /// The built-in operators.
    pub fn built_in() -> Self {
        let mut registry = Registry(Vec::new());
        coea_operators::register(&mut registry);
        registry
    }

    /// The operator of a name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.name == name)
    }

    /// All operators, in the order of the list.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }
}

fn parse<T: Described>(with: &Block) -> Result<Box<dyn Operator>, Diagnostics> {
    Ok(Box::new(with.parse::<T>(T::NAME)?))
}

fn schema<T: Described>() -> schemars::Schema {
    schemars::schema_for!(T)
}

/// An operator of the same name takes the earlier one's place.
impl Register for Registry {
    fn operator<T: Described>(&mut self) {
        let entry = Entry { name: T::NAME, example: T::EXAMPLE, schema: schema::<T>, parse: parse::<T> };
        match self.0.iter_mut().find(|e| e.name == T::NAME) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }
}
