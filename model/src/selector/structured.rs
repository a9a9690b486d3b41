//! The structured form of a selector, as in Kubernetes' `metav1.LabelSelector`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    Place, Requirement, Selector, SelectorError, Test, checked_key, checked_value, value_set,
};
use crate::labels::Labels;

/// `{matchLabels: {…}, matchExpressions: […]}`: everything in it must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels that must have exactly these values.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub match_labels: Labels,
    /// Further conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelSelectorRequirement {
    /// The label's key.
    pub key: String,
    /// How the key's value relates to `values`.
    pub operator: Operator,
    /// At least one value for `In` and `NotIn`; none for `Exists` and `DoesNotExist`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// The operators of the structured form. `<` and `>` exist only in the string form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The label is present and its value is one of `values`.
    In,
    /// The label is absent, or its value is none of `values`.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        })
    }
}

impl TryFrom<LabelSelector> for Selector {
    type Error = SelectorError;

    fn try_from(structured: LabelSelector) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in &structured.match_labels {
            let place = || Place::Field("matchLabels".to_owned());
            let value = checked_value(key, value, place)?;
            let test = Test::In(Box::new([value]));
            requirements.push(Requirement {
                key: checked_key(key, place)?,
                test,
            });
        }
        for (index, expression) in structured.match_expressions.iter().enumerate() {
            requirements.push(requirement(index, expression)?);
        }
        Self::from_requirements(requirements)
    }
}

fn requirement(
    index: usize,
    expression: &LabelSelectorRequirement,
) -> Result<Requirement, SelectorError> {
    let place = |rest: &str| Place::Field(format!("matchExpressions[{index}]{rest}"));
    let LabelSelectorRequirement {
        key,
        operator,
        values,
    } = expression;
    let misfit = |needs| SelectorError::Values {
        place: place(".values"),
        key: key.clone(),
        operator: *operator,
        needs,
    };
    let key = checked_key(key, || place(".key"))?;
    let values = values
        .iter()
        .enumerate()
        .map(|(n, value)| checked_value(&key, value, || place(&format!(".values[{n}]"))))
        .collect::<Result<Vec<_>, _>>()?;
    let test = match operator {
        Operator::In | Operator::NotIn if values.is_empty() => {
            return Err(misfit("at least one value"));
        }
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
            return Err(misfit("no values"));
        }
        Operator::In => Test::In(value_set(values)),
        Operator::NotIn => Test::NotIn(value_set(values)),
        Operator::Exists => Test::Exists,
        Operator::DoesNotExist => Test::Absent,
    };
    Ok(Requirement { key, test })
}

impl Selector {
    /// The structured form, or `None` when the selector compares with `<` or `>`, which has none.
    pub fn to_structured(&self) -> Option<LabelSelector> {
        let mut structured = LabelSelector::default();
        for Requirement { key, test } in self.0.iter() {
            let (operator, values) = match test {
                Test::In(values) => (Operator::In, values.as_ref()),
                Test::NotIn(values) => (Operator::NotIn, values.as_ref()),
                Test::Exists => (Operator::Exists, &[][..]),
                Test::Absent => (Operator::DoesNotExist, &[][..]),
                Test::GreaterThan(_) | Test::LessThan(_) => return None,
            };
            match (operator, values) {
                // A second value for the same key (`x=a,x=b`) finds no room in a map.
                (Operator::In, [value]) if !structured.match_labels.contains_key(key.as_ref()) => {
                    structured
                        .match_labels
                        .insert(key.to_string(), value.to_string());
                }
                _ => structured.match_expressions.push(LabelSelectorRequirement {
                    key: key.to_string(),
                    operator,
                    values: values.iter().map(ToString::to_string).collect(),
                }),
            }
        }
        Some(structured)
    }
}
