//! JSON as the protocols here mean it.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

/// A structure that was written as a JSON object. serde's derived structures also take an array with the members in
/// order, which no protocol here means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(OnlyMap(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Pair {
        a: u8,
        b: Option<Object<Inner>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        c: u8,
    }

    #[test]
    fn an_array_is_no_object_at_any_depth() {
        let read = serde_json::from_str::<Object<Pair>>;
        let Object(pair) = read(r#"{"a":1,"b":{"c":2},"more":[]}"#).unwrap();
        assert_eq!((pair.a, pair.b.unwrap().0.c), (1, 2));
        assert!(read("[1,null]").unwrap_err().to_string().contains("expected a JSON object"));
        assert!(read(r#"{"a":1,"b":[2]}"#).unwrap_err().to_string().contains("expected a JSON object"));
        assert!(read(r#"{"b":null}"#).unwrap_err().to_string().contains("missing field `a`"));
    }
}
