//! What a written object means: the model, and what in it could not be used.
//!
//! Pure, and the same for every source: the API server's defaults are filled in where a file has left them out
//! (contract S34), and an invalid field is skipped alone (S33).

mod endpoint_slice;
mod field;
mod node;
mod service;
mod service_cidr;

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podway_proxy::ObjectName;

use crate::{Event, Problem};

/// An object as the rest of podway sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decoded {
    /// Which object it is.
    pub(crate) key: Key,
    /// The object's event; its object is `None` when the object exists but is not to be looked at (S1, S2).
    pub(crate) event: Event,
    /// Fields that were skipped, in the order of the object.
    pub(crate) problems: Vec<Problem>,
}

/// The identity of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Service(ObjectName),
    EndpointSlice(ObjectName),
    Node(Arc<str>),
    ServiceCidr(Arc<str>),
}

impl Key {
    /// The event that says that the object is gone.
    pub(crate) fn gone(&self) -> Event {
        match self {
            Self::Service(name) => Event::Service(name.clone(), None),
            Self::EndpointSlice(name) => Event::EndpointSlice(name.clone(), None),
            Self::Node(name) => Event::Node(name.clone(), None),
            Self::ServiceCidr(name) => Event::ServiceCidr(name.clone(), None),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
        }
    }
}

/// A written object that the model knows.
pub(crate) trait Decode {
    /// The object's identity, known even where the object itself is not to be looked at.
    ///
    /// # Errors
    /// Without a usable name.
    fn key(&self) -> Result<Key, Nameless>;

    /// The object's meaning.
    ///
    /// # Errors
    /// Without a usable name.
    fn decode(&self) -> Result<Decoded, Nameless>;
}

/// `metadata.name` or `metadata.namespace` cannot name an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata.{field}: {message}")]
pub(crate) struct Nameless {
    field: &'static str,
    message: String,
}

/// Namespace and name; the namespace is `default` where a file leaves it out.
fn object_name(metadata: &ObjectMeta) -> Result<ObjectName, Nameless> {
    let namespace =
        metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    Ok(ObjectName::new(name_part("namespace", Some(namespace))?, plain_name(metadata)?))
}

fn plain_name(metadata: &ObjectMeta) -> Result<&str, Nameless> {
    name_part("name", metadata.name.as_deref())
}

fn name_part<'a>(field: &'static str, value: Option<&'a str>) -> Result<&'a str, Nameless> {
    match value {
        None | Some("") => Err(Nameless { field, message: "missing".to_owned() }),
        Some(value) if value.contains(|letter: char| letter == '/' || letter.is_control()) => {
            Err(Nameless { field, message: format!("{value:?} is no name") })
        }
        Some(value) => Ok(value),
    }
}

/// `metadata.creationTimestamp` in seconds since 1970, 0 when absent.
fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

fn has_label(metadata: &ObjectMeta, label: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

fn label<'a>(metadata: &'a ObjectMeta, label: &str) -> Option<&'a str> {
    let value = metadata.labels.as_ref()?.get(label)?;
    Some(value.as_str()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests;
