//! A deserializer over JSON values that refuses unknown fields and knows where it is.

use serde::de::{self, Deserializer, EnumAccess, Unexpected, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use super::failure::{Failure, Shown, Step, listed, not_a_struct, one_of, unexpected};
use super::key::KeyDeserializer;

/// Reads one value.
pub(super) struct ValueDeserializer(Value);

impl ValueDeserializer {
    pub(super) fn new(value: Value) -> Self {
        Self(value)
    }
}

impl<'de> Deserializer<'de> for ValueDeserializer {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => {
                if let Some(number) = number.as_u64() {
                    visitor.visit_u64(number)
                } else if let Some(number) = number.as_i64() {
                    visitor.visit_i64(number)
                } else if let Some(number) = number.as_f64() {
                    visitor.visit_f64(number)
                } else {
                    Err(de::Error::invalid_type(
                        Unexpected::Other("number"),
                        &visitor,
                    ))
                }
            }
            Value::String(text) => visitor.visit_string(text),
            Value::Array(items) => visit_list(items, visitor),
            Value::Object(map) => visit_map(map, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match self.0 {
            Value::Object(map) => {
                // Before anything is read: a misspelt field is the reason why another is missing.
                if let Some(key) = map.keys().find(|key| !fields.contains(&key.as_str())) {
                    return Err(de::Error::unknown_field(key, fields));
                }
                visit_map(map, visitor)
            }
            other => Err(not_a_struct(&other, fields)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let (variant, content) = match self.0 {
            Value::String(variant) => (variant, None),
            Value::Object(map) if map.len() == 1 => match map.into_iter().next() {
                Some((variant, content)) => (variant, Some(content)),
                None => return Err(one_of(variants, 0)),
            },
            Value::Object(map) => {
                let stranger = map.keys().find(|key| !variants.contains(&key.as_str()));
                return Err(match stranger {
                    Some(key) => de::Error::unknown_field(key, variants),
                    None => one_of(variants, map.len()),
                });
            }
            other => {
                let found = Shown(unexpected(&other)).to_string();
                return Err(Failure::new(format!(
                    "invalid type: {found}, expected {}",
                    listed(variants)
                )));
            }
        };
        if content.is_some() && !variants.contains(&variant.as_str()) {
            return Err(de::Error::unknown_field(&variant, variants));
        }
        visitor.visit_enum(Enum { variant, content })
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_any(visitor)
    }

    /// Only what nobody knows is ignored. `deserialize_struct` has refused it with a hint already, unless
    /// the struct is read through a visitor of the type's own, which hides the names of its fields.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Failure> {
        Err(Failure::new("unknown field".to_owned()))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        unit unit_struct seq tuple tuple_struct map identifier
    }
}

fn visit_list<'de, V: Visitor<'de>>(items: Vec<Value>, visitor: V) -> Result<V::Value, Failure> {
    let mut list = List {
        items: items.into_iter(),
        next: 0,
    };
    let value = visitor.visit_seq(&mut list)?;
    match list.items.len() {
        0 => Ok(value),
        surplus => Err(Failure::new(format!(
            "expected {} values, found {}",
            list.next,
            list.next + surplus
        ))),
    }
}

struct List {
    items: std::vec::IntoIter<Value>,
    next: usize,
}

impl<'de> de::SeqAccess<'de> for List {
    type Error = Failure;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failure> {
        let Some(item) = self.items.next() else {
            return Ok(None);
        };
        let index = self.next;
        self.next += 1;
        let value = seed.deserialize(ValueDeserializer(item));
        value
            .map(Some)
            .map_err(|failure| failure.under(Step::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

fn visit_map<'de, V: Visitor<'de>>(
    map: Map<String, Value>,
    visitor: V,
) -> Result<V::Value, Failure> {
    visitor.visit_map(Entries {
        entries: map.into_iter(),
        current: None,
    })
}

struct Entries {
    entries: serde_json::map::IntoIter,
    current: Option<(String, Value)>,
}

impl<'de> de::MapAccess<'de> for Entries {
    type Error = Failure;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        let Some((key, value)) = self.entries.next() else {
            return Ok(None);
        };
        self.current = Some((key.clone(), value));
        seed.deserialize(KeyDeserializer(key)).map(Some)
    }

    fn next_value_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<T::Value, Failure> {
        let Some((key, value)) = self.current.take() else {
            return Err(Failure::new(
                "a value was asked for before its key".to_owned(),
            ));
        };
        let value = seed.deserialize(ValueDeserializer(value));
        value.map_err(|failure| failure.under(Step::Key(key)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

struct Enum {
    variant: String,
    content: Option<Value>,
}

impl<'de> EnumAccess<'de> for Enum {
    type Error = Failure;
    type Variant = Content;

    fn variant_seed<V: de::DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Content), Failure> {
        let value = seed.deserialize(KeyDeserializer(self.variant.clone()))?;
        Ok((
            value,
            Content {
                variant: self.variant,
                value: self.content,
            },
        ))
    }
}

/// What stands behind a variant's name; nothing when the enum was written as a string.
struct Content {
    variant: String,
    value: Option<Value>,
}

impl Content {
    fn read<T>(
        self,
        read: impl FnOnce(ValueDeserializer) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match self.value {
            Some(value) => read(ValueDeserializer(value))
                .map_err(|failure| failure.under(Step::Key(self.variant))),
            None => Err(Failure::new(format!(
                "`{0}` needs a value: write `{0}: …` instead of a string",
                self.variant
            ))),
        }
    }
}

impl<'de> VariantAccess<'de> for Content {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        match self.value {
            None | Some(Value::Null) => Ok(()),
            Some(Value::Object(map)) if map.is_empty() => Ok(()),
            Some(other) => Err(Failure::new(format!(
                "invalid type: {}, expected nothing",
                Shown(unexpected(&other))
            ))
            .under(Step::Key(self.variant))),
        }
    }

    fn newtype_variant_seed<T: de::DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, Failure> {
        self.read(|value| seed.deserialize(value))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Failure> {
        self.read(|value| value.deserialize_tuple(len, visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.read(|value| value.deserialize_struct("", fields, visitor))
    }
}
