//! JSON objects, read strictly.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A struct that is read from an object only. The code that serde derives would also take an array for it, in
/// which each field is known by its place alone.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OnlyMap(PhantomData)).map(Self)
    }
}

struct OnlyMap<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields<'a> {
        name: String,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }

    #[test]
    fn a_struct_is_read_from_an_object_and_not_from_an_array() {
        let array = r#"["x",[1]]"#;
        assert!(serde_json::from_str::<Fields<'_>>(array).is_ok(), "serde reads it");
        let error = serde_json::from_str::<Object<Fields<'_>>>(array).err().expect("a refusal").to_string();
        assert!(error.contains("expected an object"), "{error}");
        let read = serde_json::from_str::<Object<Fields<'_>>>(r#"{"name":"x","data":[ 1 ]}"#);
        let Object(Fields { name, data }) = read.expect("an object");
        assert_eq!((name.as_str(), data.map(RawValue::get)), ("x", Some("[ 1 ]")));
        for wrong in [r#"{"name":"x","other":1}"#, r#"{"name":"x","name":"y"}"#, "7", "null", "{}x"] {
            assert!(serde_json::from_str::<Object<Fields<'_>>>(wrong).is_err(), "{wrong}");
        }
    }
}
