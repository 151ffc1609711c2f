//! What the files say together, and how it differs from what has been told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::document::Contents;
use crate::decode::Key;
use crate::{Event, Problem};

/// The objects of all files. Pure: files go in, events come out.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    files: BTreeMap<Arc<Path>, File>,
    /// Every place where an object is written. The first one counts, so that the order in which files are read or
    /// written makes no difference.
    places: BTreeMap<Key, BTreeMap<Place, Arc<Event>>>,
    /// Objects that are out there, by the event that said so.
    told: BTreeMap<Key, Arc<Event>>,
    /// Places of which it has been told that they do not count.
    doubles: BTreeSet<(Key, Place)>,
    /// Objects that may have changed since the last [`Catalog::settle`].
    touched: BTreeSet<Key>,
    /// Problems that are to be told at the next.
    news: Vec<Problem>,
}

#[derive(Debug, Default)]
struct File {
    keys: BTreeSet<Key>,
    problems: BTreeSet<Problem>,
    /// Whether every document could be read.
    is_whole: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    path: Arc<Path>,
    line: usize,
}

impl Catalog {
    /// Takes in the present contents of a file. An object that a broken file no longer shows stays: it may be in
    /// the part that cannot be read.
    pub(crate) fn load(&mut self, path: &Arc<Path>, contents: Contents) {
        let file = self.files.remove(path).unwrap_or_default();
        let is_whole = contents.broken.is_empty();
        let mut problems: BTreeSet<Problem> = contents.broken.into_iter().collect();
        let mut keys: BTreeSet<Key> =
            contents.objects.iter().map(|(_, decoded)| decoded.key.clone()).collect();
        for key in file.keys.iter().filter(|key| is_whole || keys.contains(key)) {
            self.forget(key, path);
        }
        self.touched.extend(file.keys.union(&keys).cloned());
        if !is_whole {
            keys.extend(file.keys);
        }
        for (line, decoded) in contents.objects {
            let place = Place { path: path.clone(), line };
            problems.extend(decoded.problems);
            self.places.entry(decoded.key).or_default().insert(place, Arc::new(decoded.event));
        }
        self.news.extend(problems.difference(&file.problems).cloned());
        self.files.insert(path.clone(), File { keys, problems, is_whole });
    }

    /// Notes that a file cannot be read as a whole; what it said stays.
    pub(crate) fn unreadable(&mut self, path: &Arc<Path>, problem: Problem) {
        self.load(path, Contents { objects: Vec::new(), broken: vec![problem] });
    }

    /// The files that were taken in, those that could not be read included.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.files.keys()
    }

    /// Whether every document of every file could be read.
    pub(crate) fn is_whole(&self) -> bool {
        self.files.values().all(|file| file.is_whole)
    }

    /// Notes that a file is gone.
    pub(crate) fn remove(&mut self, path: &Arc<Path>) {
        let file = self.files.remove(path).unwrap_or_default();
        file.keys.iter().for_each(|key| self.forget(key, path));
        self.touched.extend(file.keys);
    }

    /// What all that was taken in since the last time changes: problems, then objects. An object that has only
    /// moved to another file is not among them.
    pub(crate) fn settle(&mut self) -> Vec<Event> {
        let mut events: Vec<Event> = std::mem::take(&mut self.news).into_iter().map(Event::Problem).collect();
        for key in std::mem::take(&mut self.touched) {
            events.extend(self.settle_doubles(&key));
            events.extend(self.settle_object(&key));
        }
        events
    }

    fn forget(&mut self, key: &Key, path: &Arc<Path>) {
        if let Some(places) = self.places.get_mut(key) {
            places.retain(|place, _| place.path != *path);
        }
    }

    /// Tells of an object whose first place says something else than what is out there.
    fn settle_object(&mut self, key: &Key) -> Option<Event> {
        let gone = key.gone();
        let desired = self.places.get(key).and_then(|places| places.values().next()).cloned();
        if self.places.get(key).is_some_and(BTreeMap::is_empty) {
            self.places.remove(key);
        }
        match desired.filter(|event| **event != gone) {
            Some(event) if self.told.get(key) == Some(&event) => None,
            Some(event) => {
                self.told.insert(key.clone(), event.clone());
                Some(Event::clone(&event))
            }
            None => self.told.remove(key).map(|_| gone),
        }
    }

    /// Tells once of every place of an object but the first.
    fn settle_doubles(&mut self, key: &Key) -> Vec<Event> {
        let places: Vec<Place> =
            self.places.get(key).into_iter().flatten().map(|(place, _)| place.clone()).collect();
        let Some((first, rest)) = places.split_first() else {
            self.doubles.retain(|(other, _)| other != key);
            return Vec::new();
        };
        self.doubles.retain(|(other, place)| other != key || rest.contains(place));
        let news = rest.iter().filter(|place| self.doubles.insert((key.clone(), (*place).clone())));
        news.map(|place| Event::Problem(double(key, first, place))).collect()
    }
}

fn double(key: &Key, first: &Place, place: &Place) -> Problem {
    Problem {
        subject: format!("{}:{}", place.path.display(), place.line),
        field: String::new(),
        message: format!("{key} is in {}:{} too, which counts; not used", first.path.display(), first.line),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::document::read;
    use super::*;

    fn path(name: &str) -> Arc<Path> {
        Path::new(name).into()
    }

    fn service(name: &str, port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: \
             {port}}}]}}\n---\n"
        )
    }

    fn load(catalog: &mut Catalog, name: &str, text: &str) -> Vec<String> {
        catalog.load(&path(name), read(name, text));
        catalog.settle().iter().map(shown).collect()
    }

    fn remove(catalog: &mut Catalog, name: &str) -> Vec<String> {
        catalog.remove(&path(name));
        catalog.settle().iter().map(shown).collect()
    }

    fn shown(event: &Event) -> String {
        match event {
            Event::Service(name, Some(service)) => format!("{name} {}", service.ports[0].port),
            Event::Service(name, None) => format!("{name} gone"),
            Event::Problem(problem) => problem.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut catalog = Catalog::default();
        let text = service("a", 1) + &service("b", 2);
        assert_eq!(load(&mut catalog, "x.yaml", &text), ["default/a 1", "default/b 2"]);
        assert_eq!(load(&mut catalog, "x.yaml", &text), [""; 0]);
        assert_eq!(load(&mut catalog, "x.yaml", &service("b", 3)), ["default/a gone", "default/b 3"]);
        assert_eq!(remove(&mut catalog, "x.yaml"), ["default/b gone"]);
    }

    #[test]
    fn an_object_that_moves_to_another_file_is_not_told_of() {
        let mut catalog = Catalog::default();
        load(&mut catalog, "a.yaml", &service("a", 1));
        catalog.remove(&path("a.yaml"));
        assert_eq!(load(&mut catalog, "b.yaml", &service("a", 1)), [""; 0]);
    }

    #[test]
    fn what_a_broken_file_no_longer_shows_stays_until_it_is_whole() {
        let mut catalog = Catalog::default();
        load(&mut catalog, "x.yaml", &(service("a", 1) + &service("b", 2)));
        let broken = load(&mut catalog, "x.yaml", &(service("a", 5) + "kind: [\n"));
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken[0].starts_with("x.yaml:6: "), "{broken:?}");
        assert_eq!(broken[1], "default/a 5");
        assert_eq!(load(&mut catalog, "x.yaml", &(service("a", 5) + "kind: [\n")), [""; 0], "told once");
        assert_eq!(load(&mut catalog, "x.yaml", &service("a", 5)), ["default/b gone"]);
    }

    #[test]
    fn of_two_files_with_one_object_the_first_path_counts() {
        let mut catalog = Catalog::default();
        assert_eq!(load(&mut catalog, "b.yaml", &service("a", 2)), ["default/a 2"]);
        let told = load(&mut catalog, "a.yaml", &service("a", 1));
        let double = "b.yaml:1: Service default/a is in a.yaml:1 too, which counts; not used";
        assert_eq!(told, [double, "default/a 1"]);
        assert_eq!(load(&mut catalog, "b.yaml", &service("a", 3)), [""; 0]);
        assert_eq!(remove(&mut catalog, "a.yaml"), ["default/a 3"]);
    }

    fn any_objects() -> impl Strategy<Value = Vec<(u8, u16)>> {
        prop::collection::vec((0u8..4, 1u16..3), 0..4)
    }

    proptest! {
        /// What has been told in sum is what the files say at the end, whatever came before.
        #[test]
        fn told_in_sum_is_told_from_scratch(
            steps in prop::collection::vec((0usize..3, prop::option::of(any_objects())), 1..12),
        ) {
            let names = ["x.yaml", "y.yaml", "z.yaml"];
            let (mut catalog, mut world, mut files) = (Catalog::default(), BTreeMap::new(), BTreeMap::new());
            for (file, content) in steps {
                match &content {
                    None => catalog.remove(&path(names[file])),
                    Some(objects) => {
                        let text: String =
                            objects.iter().map(|(name, port)| service(&format!("s{name}"), *port)).collect();
                        catalog.load(&path(names[file]), read(names[file], &text));
                    }
                }
                files.insert(file, content);
                for event in catalog.settle() {
                    if let Event::Service(name, service) = event {
                        prop_assert_ne!(world.get(&name), Some(&service), "told twice");
                        world.insert(name, service);
                    }
                }
            }
            let mut scratch = BTreeMap::new();
            for (name, port) in files.into_values().flatten().flatten() {
                scratch.entry(format!("default/s{name}")).or_insert(port);
            }
            world.retain(|_, service| service.is_some());
            let told: BTreeMap<String, u16> =
                world.into_iter().map(|(name, service)| (name.to_string(), service.unwrap().ports[0].port)).collect();
            prop_assert_eq!(told, scratch);
        }
    }
}
