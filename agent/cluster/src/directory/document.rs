//! One file's text as objects, each with the line it stands at.

use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter, Options, Spanned};

use super::split::{Document, split};
use crate::decode::{Decode, Decoded};
use crate::{Problem, manifest};

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Contents {
    /// Its objects with the lines they start at, in the order of the file.
    pub(crate) objects: Vec<(usize, Decoded)>,
    /// Documents that could not be read at all. Any of them may have been any object.
    pub(crate) broken: Vec<Problem>,
}

/// Reads manifests: YAML or JSON, several documents, and lists as `kubectl get` prints them. Kinds that podway does
/// not look at are passed over. `file` is only the name in what is reported.
pub(crate) fn read(file: &str, text: &str) -> Contents {
    let mut contents = Contents::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for document in split(text) {
        for (line, result) in read_document(document) {
            match result {
                Ok(Some(decoded)) => contents.objects.push((line, decoded)),
                Ok(None) => {}
                Err(message) => contents.broken.push(broken(file, line, message)),
            }
        }
    }
    contents
}

/// The problem of a file that cannot be read from `line` on.
pub(crate) fn broken(file: &str, line: usize, message: impl fmt::Display) -> Problem {
    Problem {
        subject: format!("{file}:{line}"),
        field: String::new(),
        message: format!("{message}; what the file said before stands until it is mended"),
    }
}

/// An object, none for a kind that is not looked at, or why there is none.
type Outcome = Result<Option<Decoded>, String>;

fn read_document(document: Document<'_>) -> Vec<(usize, Outcome)> {
    let whole = |line: usize| (document.line + line).saturating_sub(1).max(document.line);
    match serde_saphyr::from_str_with_options::<Manifest>(document.text, limits()) {
        Err(error) => {
            let error = error.without_snippet();
            let line = error.location().and_then(|location| usize::try_from(location.line()).ok());
            let message = DefaultMessageFormatter.format_message(error).into_owned();
            vec![(whole(line.unwrap_or(1)), Err(message))]
        }
        Ok(Manifest { fields, items: None }) => {
            vec![(document.line + leading(document.text), object(fields))]
        }
        Ok(Manifest { items: Some(items), .. }) => {
            items.0.into_iter().map(|(line, outcome)| (whole(line), outcome)).collect()
        }
    }
}

/// Lines before the first one with content: `---`, comments, blanks.
fn leading(text: &str) -> usize {
    let is_content = |line: &str| {
        let line = line.strip_prefix("---").unwrap_or(line).trim_start();
        !line.is_empty() && !line.starts_with('#')
    };
    text.lines().position(is_content).unwrap_or_default()
}

/// The reader's limits against small texts that expand to large ones stay; those on the size of an honest text go,
/// since one list may hold a whole cluster.
fn limits() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_total_comment_bytes: usize::MAX,
        },
    }
}

fn object(fields: Map<String, Value>) -> Outcome {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        return Err("no Kubernetes object: apiVersion or kind is missing".to_owned());
    };
    match (version, kind) {
        ("v1", "Service") => decode::<manifest::Service>(fields),
        ("discovery.k8s.io/v1", "EndpointSlice") => decode::<manifest::EndpointSlice>(fields),
        ("v1", "Node") => decode::<manifest::Node>(fields),
        ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "ServiceCIDR") => {
            decode::<manifest::ServiceCidr>(fields)
        }
        ("discovery.k8s.io/v1beta1", "EndpointSlice") => {
            Err("discovery.k8s.io/v1beta1 is not read; write discovery.k8s.io/v1".to_owned())
        }
        _ => Ok(None),
    }
}

fn decode<T: Decode + DeserializeOwned>(fields: Map<String, Value>) -> Outcome {
    let manifest: T = serde_path_to_error::deserialize(Value::Object(fields)).map_err(|e| e.to_string())?;
    manifest.decode().map(Some).map_err(|nameless| nameless.to_string())
}

/// A document: an object, or a list of them whose items are decoded one by one while it is read, so that a list of
/// a whole cluster is never in memory as a tree.
struct Manifest {
    fields: Map<String, Value>,
    items: Option<Items>,
}

/// The items of a list with the line that each starts at within its document.
struct Items(Vec<(usize, Outcome)>);

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ManifestVisitor)
    }
}

struct ManifestVisitor;

impl<'de> Visitor<'de> for ManifestVisitor {
    type Value = Manifest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Manifest, A::Error> {
        let mut manifest = Manifest { fields: Map::new(), items: None };
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                manifest.items = map.next_value::<Option<Items>>()?.or(Some(Items(Vec::new())));
            } else {
                manifest.fields.insert(key, map.next_value()?);
            }
        }
        Ok(manifest)
    }
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ItemsVisitor)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Items;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Map<String, Value>>>()? {
            let line = usize::try_from(item.referenced.line()).unwrap_or(1);
            items.push((line, object(item.value)));
        }
        Ok(Items(items))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Event;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  \
                           clusterIP: 10.96.0.7\n  ports: [{port: 80}]\n";

    fn subjects(contents: &Contents) -> Vec<&str> {
        contents.broken.iter().map(|problem| problem.subject.as_str()).collect()
    }

    #[test]
    fn a_broken_document_is_named_by_its_line_and_the_others_are_read() {
        let text = format!("{SERVICE}---\n# a comment\nkind: Service\n  bad: [indent\n---\n{SERVICE}");
        let contents = read("shop.yaml", &text);
        assert_eq!(contents.objects.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 12]);
        assert_eq!(subjects(&contents), ["shop.yaml:10"], "{:?}", contents.broken);
        assert!(!contents.broken[0].message.contains(" line "), "{}", contents.broken[0].message);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_by_its_path() {
        let contents = read("a.yaml", &SERVICE.replace("{port: 80}", "{port: http}"));
        assert_eq!(subjects(&contents), ["a.yaml:1"]);
        let message = &contents.broken[0].message;
        assert!(message.starts_with("spec.ports[0].port: invalid type: string"), "{message}");
    }

    #[test]
    fn lists_are_read_item_by_item_in_any_order_of_their_fields() {
        let item =
            "- kind: Service\n  apiVersion: v1\n  metadata: {name: web}\n  spec: {clusterIP: 10.96.0.7}\n";
        let text = format!(
            "# list\napiVersion: v1\nitems:\n{item}- kind: Pod\n  apiVersion: v1\n- kind: Node\n  apiVersion: \
             v1\n{item}kind: List\n"
        );
        let contents = read("list.yaml", &text);
        assert_eq!(contents.objects.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [4, 12]);
        assert_eq!(subjects(&contents), ["list.yaml:10"]);
        assert!(contents.broken[0].message.starts_with("metadata.name: missing"), "{:?}", contents.broken);
    }

    #[test]
    fn json_is_read_with_tabs_too() {
        let node = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}"#;
        let text = format!(
            "{{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"NodeList\",\n\t\"items\": [\n\t\t{node}\n\t]\n}}\n"
        );
        let contents = read("nodes.json", &text);
        assert_eq!(contents.broken, []);
        assert!(matches!(contents.objects[..], [(5, Decoded { event: Event::Node(_, Some(_)), .. })]));
    }

    #[test]
    fn kinds_that_are_not_looked_at_are_passed_over_and_what_is_no_object_is_named() {
        let foreign = "apiVersion: serving.knative.dev/v1\nkind: Service\nspec: {ports: 7}\n";
        assert_eq!(read("a.yaml", foreign), Contents::default());
        assert_eq!(subjects(&read("a.yaml", "replicas: 3\n")), ["a.yaml:1"]);
        assert_eq!(subjects(&read("a.yaml", "--- \n\njust a text\n")), ["a.yaml:3"]);
        let old = "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n";
        assert_eq!(subjects(&read("a.yaml", old)), ["a.yaml:1"]);
    }

    #[test]
    fn a_text_that_expands_without_end_is_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let below = vec![format!("*a{}", level - 1); 9].join(",");
            bomb += &format!("a{level}: &a{level} [{below}]\n");
        }
        assert_eq!(read("bomb.yaml", &bomb).broken.len(), 1);
        assert_eq!(read("deep.yaml", &"[".repeat(100_000)).broken.len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "([-a:|\\[\\]{}&*!%'\",# \t]{0,12}\n){0,12}") {
            read("any.yaml", &text);
        }

        #[test]
        fn any_cut_of_a_manifest_is_read_without_a_panic(cut in 0..SERVICE.len()) {
            read("cut.yaml", &SERVICE[..cut]);
        }
    }
}
