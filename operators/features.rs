//! Sparse user features as bucket ids: what the encoder's feature token is made of.
//!
//! Buckets are declared or fitted, and then frozen with the model. A missing or unknown value has a
//! bucket of its own (0), so a user is never refused for a gap in a profile.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    row::{Row, Value},
    schema::{Schema, Type},
};

/// One feature of a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// The column of the users.
    pub column: String,
    /// For numbers: ascending lower edges of the buckets. Without edges, eight buckets of equal
    /// share are fitted; text takes one bucket per value seen often enough.
    #[serde(default)]
    pub edges: Vec<f64>,
}

/// Users a text value needs for a bucket of its own.
const MIN_USERS: usize = 5;
/// Buckets fitted for a number without declared edges.
const QUANTILES: usize = 8;

/// The buckets of one column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Buckets {
    /// Value → bucket from 1.
    Names(BTreeMap<Value, u32>),
    /// Lower edges; bucket = number of edges not above the value, plus 1.
    Edges(Vec<f64>),
}

/// Fitted buckets of all features.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FeatureTable(Vec<(usize, Buckets)>);

/// The features of a schema when none are declared: every text, truth value and number.
pub fn all_features(schema: &Schema) -> Vec<Feature> {
    let usable = |ty: &Type| matches!(ty, Type::Bool | Type::Text | Type::U64 | Type::I64 | Type::F64);
    let columns = schema.columns.iter().filter(|c| usable(&c.ty));
    columns.map(|c| Feature { column: c.name.clone(), edges: vec![] }).collect()
}

impl FeatureTable {
    /// Fits the buckets; `columns` are the features' places in the rows.
    pub fn fit(features: &[Feature], columns: &[usize], rows: &[Row]) -> Self {
        let fit = |(feature, column): (&Feature, &usize)| (*column, fit_buckets(feature, *column, rows));
        FeatureTable(features.iter().zip(columns).map(fit).collect())
    }

    /// Bucket ids of a user, one per feature; 0 where the value is missing or unknown.
    pub fn buckets(&self, row: Option<&Row>) -> Vec<u32> {
        let bucket = |(column, buckets): &(usize, Buckets)| {
            let value = row.and_then(|row| row.get(*column)).unwrap_or(&Value::Null);
            match buckets {
                Buckets::Names(names) => names.get(value).copied().unwrap_or(0),
                Buckets::Edges(edges) => value.as_f64().map_or(0, |number| place(edges, number)),
            }
        };
        self.0.iter().map(bucket).collect()
    }

    /// Number of buckets per feature, the one for missing values not counted.
    pub fn sizes(&self) -> Vec<usize> {
        let size = |buckets: &Buckets| match buckets {
            Buckets::Names(names) => names.len(),
            Buckets::Edges(edges) => edges.len() + 1,
        };
        self.0.iter().map(|(_, buckets)| size(buckets)).collect()
    }
}

fn place(edges: &[f64], number: f64) -> u32 {
    1 + edges.iter().take_while(|edge| **edge <= number).count() as u32
}

fn fit_buckets(feature: &Feature, column: usize, rows: &[Row]) -> Buckets {
    if !feature.edges.is_empty() {
        return Buckets::Edges(feature.edges.clone());
    }
    let values: Vec<&Value> =
        rows.iter().filter_map(|row| row.get(column)).filter(|v| **v != Value::Null).collect();
    let numbers: Vec<f64> = values.iter().filter_map(|v| v.as_f64()).collect();
    if numbers.len() == values.len() && !numbers.is_empty() {
        return Buckets::Edges(quantiles(numbers));
    }
    let mut users: BTreeMap<&Value, usize> = BTreeMap::new();
    values.into_iter().for_each(|value| *users.entry(value).or_default() += 1);
    let frequent = users.into_iter().filter(|(_, n)| *n >= MIN_USERS).map(|(value, _)| value.clone());
    Buckets::Names(frequent.zip(1..).collect())
}

fn quantiles(mut numbers: Vec<f64>) -> Vec<f64> {
    numbers.sort_by(f64::total_cmp);
    let mut edges: Vec<f64> = (1..QUANTILES).map(|q| numbers[q * numbers.len() / QUANTILES]).collect();
    edges.dedup();
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_fitted_and_missing_values_have_their_own() {
        let row = |age: u64, job: &str| Row::from([Value::U64(age), Value::text(job)]);
        let mut rows: Vec<Row> =
            (0..80).map(|age| row(age, if age % 2 == 0 { "nurse" } else { "cook" })).collect();
        rows.push(row(30, "astronaut"));
        let feature = |column: &str, edges: &[f64]| Feature { column: column.into(), edges: edges.to_vec() };
        let table = FeatureTable::fit(&[feature("age", &[]), feature("job", &[])], &[0, 1], &rows);
        assert_eq!(table.sizes(), [8, 2]);
        assert_eq!(table.buckets(Some(&row(0, "cook"))), [1, 1]);
        assert_eq!(table.buckets(Some(&row(79, "nurse"))), [8, 2]);
        assert_eq!(table.buckets(Some(&row(79, "astronaut"))), [8, 0]);
        assert_eq!(table.buckets(None), [0, 0]);
        let declared = FeatureTable::fit(&[feature("age", &[18.0, 35.0])], &[0], &rows);
        assert_eq!(declared.buckets(Some(&row(17, ""))), [1]);
        assert_eq!(declared.buckets(Some(&row(18, ""))), [2]);
        assert_eq!(declared.buckets(Some(&row(99, ""))), [3]);
    }
}
