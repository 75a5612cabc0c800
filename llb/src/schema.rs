//! What the messages look like, read from their descriptors.
//!
//! Digests and cache keys depend on things the generated structs do not keep: unknown fields, which member
//! of a oneof goes last, proto names with their case. The code that needs them works on wire data and
//! consults this table instead.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use prost::Message as _;

use crate::error::Error;

/// A set of message and enum types.
#[derive(Debug, Default)]
pub struct Schema {
    messages: Vec<MessageType>,
    enums: Vec<EnumType>,
    names: HashMap<String, usize>,
}

/// One message type.
#[derive(Debug)]
pub(crate) struct MessageType {
    pub(crate) full_name: String,
    /// In declaration order, which is the order of Go's struct fields.
    pub(crate) fields: Vec<Field>,
    /// Positions in `fields` in the order canonical bytes have them.
    pub(crate) wire_order: Vec<usize>,
    /// Positions in `fields` by number, sorted.
    by_number: Vec<(u32, usize)>,
}

/// One field.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) json_name: String,
    pub(crate) kind: Kind,
    pub(crate) shape: Shape,
    /// Position among the oneofs of the message.
    pub(crate) oneof: Option<i32>,
}

/// How often a field occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Single,
    Repeated,
    Map,
}

/// The type of a field's values. The position of a message or enum is that in the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Enum(usize),
    String,
    Bytes,
    Message(usize),
}

/// One enum type: names by number.
#[derive(Debug, Default)]
pub(crate) struct EnumType {
    pub(crate) names: HashMap<i32, String>,
}

impl Schema {
    /// Reads an encoded `FileDescriptorSet`.
    ///
    /// # Errors
    /// [`Error::Schema`] if it does not decode or uses field types that BuildKit's protocols do not have.
    pub fn parse(descriptors: &[u8]) -> Result<Self, Error> {
        let set = descriptor::FileSet::decode(descriptors).map_err(|e| Error::Schema(e.to_string()))?;
        let mut found = Vec::new();
        let mut schema = Self::default();
        let mut enum_names = HashMap::new();
        for file in &set.file {
            let prefix = if file.package.is_empty() { String::new() } else { format!(".{}", file.package) };
            collect(&prefix, &file.message_type, &file.enum_type, &mut found, &mut |name, e| {
                enum_names.insert(name, schema.enums.len());
                let names = e.value.iter().map(|v| (v.number, v.name.clone())).collect();
                schema.enums.push(EnumType { names });
            });
        }
        for (position, (name, _)) in found.iter().enumerate() {
            schema.names.insert(name.trim_start_matches('.').to_owned(), position);
        }
        let map_entries: HashMap<&str, bool> = found
            .iter()
            .map(|(name, m)| (name.as_str(), m.options.as_ref().is_some_and(|o| o.map_entry)))
            .collect();
        let mut messages = Vec::with_capacity(found.len());
        for (name, message) in &found {
            let mut fields = Vec::with_capacity(message.field.len());
            for field in &message.field {
                let kind = kind_of(field, &schema.names, &enum_names)?;
                let entry = map_entries.get(field.type_name.as_str()).copied().unwrap_or_default();
                let shape = match (field.label == descriptor::LABEL_REPEATED, entry) {
                    (true, true) => Shape::Map,
                    (true, false) => Shape::Repeated,
                    (false, _) => Shape::Single,
                };
                fields.push(Field {
                    number: u32::try_from(field.number).unwrap_or_default(),
                    name: field.name.clone(),
                    json_name: field.json_name.clone(),
                    kind,
                    shape,
                    oneof: field.oneof_index,
                });
            }
            messages.push(MessageType::new(name.trim_start_matches('.').to_owned(), fields));
        }
        schema.messages = messages;
        Ok(schema)
    }

    /// Returns the schema of the messages in [`crate::pb`].
    pub fn llb() -> &'static Arc<Self> {
        static SCHEMA: OnceLock<Arc<Schema>> = OnceLock::new();
        SCHEMA.get_or_init(|| {
            // The descriptors are compiled in, and a test decodes every message with them.
            Arc::new(Self::parse(crate::FILE_DESCRIPTOR_SET).unwrap_or_default())
        })
    }

    pub(crate) fn find(&self, full_name: &str) -> Result<usize, Error> {
        self.names.get(full_name).copied().ok_or_else(|| Error::Schema(format!("no message `{full_name}`")))
    }

    pub(crate) fn message(&self, position: usize) -> Result<&MessageType, Error> {
        self.messages.get(position).ok_or_else(|| Error::Schema(format!("no message type {position}")))
    }

    pub(crate) fn enum_name(&self, position: usize, value: i32) -> Option<&str> {
        self.enums.get(position)?.names.get(&value).map(String::as_str)
    }
}

impl MessageType {
    fn new(full_name: String, fields: Vec<Field>) -> Self {
        let mut wire_order: Vec<usize> = (0..fields.len()).collect();
        wire_order.sort_by_key(|&i| fields.get(i).map(|f| (f.oneof.is_some(), f.number)));
        let mut by_number: Vec<_> = fields.iter().enumerate().map(|(i, f)| (f.number, i)).collect();
        by_number.sort_unstable();
        Self { full_name, fields, wire_order, by_number }
    }

    pub(crate) fn field(&self, number: u32) -> Option<(usize, &Field)> {
        let place = self.by_number.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        let (_, position) = *self.by_number.get(place)?;
        Some((position, self.fields.get(position)?))
    }

    pub(crate) fn position(&self, name: &str) -> Result<usize, Error> {
        self.fields
            .iter()
            .position(|f| f.name == name)
            .ok_or_else(|| Error::Schema(format!("`{}` has no field `{name}`", self.full_name)))
    }
}

fn collect<'a>(
    prefix: &str,
    messages: &'a [descriptor::Message],
    enums: &'a [descriptor::Enum],
    found: &mut Vec<(String, &'a descriptor::Message)>,
    add_enum: &mut impl FnMut(String, &'a descriptor::Enum),
) {
    for e in enums {
        add_enum(format!("{prefix}.{}", e.name), e);
    }
    for message in messages {
        let name = format!("{prefix}.{}", message.name);
        found.push((name.clone(), message));
        collect(&name, &message.nested_type, &message.enum_type, found, add_enum);
    }
}

fn kind_of(
    field: &descriptor::Field,
    messages: &HashMap<String, usize>,
    enums: &HashMap<String, usize>,
) -> Result<Kind, Error> {
    let unknown = || Error::Schema(format!("field `{}` has unsupported type {}", field.name, field.r#type));
    Ok(match field.r#type {
        3 => Kind::Int64,
        4 => Kind::Uint64,
        5 => Kind::Int32,
        8 => Kind::Bool,
        9 => Kind::String,
        11 => Kind::Message(*messages.get(field.type_name.trim_start_matches('.')).ok_or_else(unknown)?),
        12 => Kind::Bytes,
        13 => Kind::Uint32,
        14 => Kind::Enum(*enums.get(&field.type_name).ok_or_else(unknown)?),
        _ => return Err(unknown()),
    })
}

/// The parts of `google/protobuf/descriptor.proto` that are read here.
mod descriptor {
    pub(super) const LABEL_REPEATED: i32 = 3;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct FileSet {
        #[prost(message, repeated, tag = "1")]
        pub(super) file: Vec<File>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct File {
        #[prost(string, tag = "2")]
        pub(super) package: String,
        #[prost(message, repeated, tag = "4")]
        pub(super) message_type: Vec<Message>,
        #[prost(message, repeated, tag = "5")]
        pub(super) enum_type: Vec<Enum>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Message {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) field: Vec<Field>,
        #[prost(message, repeated, tag = "3")]
        pub(super) nested_type: Vec<Message>,
        #[prost(message, repeated, tag = "4")]
        pub(super) enum_type: Vec<Enum>,
        #[prost(message, optional, tag = "7")]
        pub(super) options: Option<MessageOptions>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MessageOptions {
        #[prost(bool, tag = "7")]
        pub(super) map_entry: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Field {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(int32, tag = "3")]
        pub(super) number: i32,
        #[prost(int32, tag = "4")]
        pub(super) label: i32,
        #[prost(int32, tag = "5")]
        pub(super) r#type: i32,
        #[prost(string, tag = "6")]
        pub(super) type_name: String,
        #[prost(int32, optional, tag = "9")]
        pub(super) oneof_index: Option<i32>,
        #[prost(string, tag = "10")]
        pub(super) json_name: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Enum {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) value: Vec<EnumValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct EnumValue {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(int32, tag = "2")]
        pub(super) number: i32,
    }
}
