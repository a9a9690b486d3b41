//! `recovery:` of a service: what is done about a container that stays unhealthy.

use std::fmt;
use std::time::Duration;

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::Span;

/// `restart`, or a map that says when and how often too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovery {
    /// What is done.
    pub action: RecoveryAction,
    /// How long an endpoint has to fail without a pause until its container is restarted: 30 s.
    pub after: Option<Span>,
    /// Restarts of one container in an hour at most: 5.
    pub budget: Option<u32>,
}

/// What can be done about a container that stays unhealthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryAction {
    /// As `docker restart` does: its stop signal, its stop time-out, and a start.
    #[default]
    Restart,
    /// Written by a newer version than this; nothing is done here.
    #[serde(other)]
    Unsupported,
}

impl Recovery {
    /// How long an endpoint fails until its container is restarted.
    pub fn after(&self) -> Duration {
        self.after.map_or(Duration::from_secs(30), |s| s.0)
    }

    /// Restarts of one container in an hour at most.
    pub fn budget(&self) -> u32 {
        self.budget.unwrap_or(5)
    }
}

impl Serialize for Recovery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.after.is_none() && self.budget.is_none() {
            return self.action.serialize(serializer);
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("action", &self.action)?;
        if let Some(after) = &self.after {
            map.serialize_entry("after", after)?;
        }
        if let Some(budget) = &self.budget {
            map.serialize_entry("budget", budget)?;
        }
        map.end()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    action: RecoveryAction,
    #[serde(default)]
    after: Option<Span>,
    #[serde(default)]
    budget: Option<u32>,
}

impl<'de> Deserialize<'de> for Recovery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Recovery;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`restart`, or a map with action, after and budget")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Recovery, E> {
                let action = RecoveryAction::deserialize(de::value::StrDeserializer::new(text))?;
                Ok(Recovery {
                    action,
                    ..Recovery::default()
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Recovery, A::Error> {
                let fields = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Recovery {
                    action: fields.action,
                    after: fields.after,
                    budget: fields.budget,
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}
