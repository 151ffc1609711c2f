//! Real folders, really watched.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{off_the_loop, run};
use crate::test_folder::TestFolder;
use crate::{DirectoryConfig, Event, Nodes, Wanted};

/// Longer than every wait of the source's own.
const SOON: Duration = Duration::from_secs(10);

/// Longer than the source takes to react when it reacts at all, shorter than its next unasked look.
const A_WHILE: Duration = Duration::from_millis(700);

#[tokio::test]
async fn what_is_there_is_told_and_then_that_it_was_all() {
    let folder = TestFolder::new("all");
    folder.write("a.yaml", &format!("{}---\n{}", service("a", 1), service("b", 2)));
    let node = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}"#;
    folder.write("list.json", &format!(r#"{{"apiVersion": "v1", "kind": "NodeList", "items": [{node}]}}"#));
    folder.write("notes.txt", "not a manifest");
    folder.write(".hidden.yaml", "not: [a manifest");
    folder.write("a.yaml~", "not: [a manifest");
    fs::create_dir(folder.path().join("below.yaml")).unwrap();
    let mut source = Source::follow(folder.path());
    assert_eq!(source.first_list().await, ["default/a 1", "default/b 2", "Node n1"]);
}

#[tokio::test]
async fn an_atomic_rename_and_a_removal_are_followed() {
    let folder = TestFolder::new("rename");
    folder.write("a.yaml", &service("a", 1));
    let mut source = Source::follow(folder.path());
    source.first_list().await;
    fs::rename(folder.write(".a.yaml.new", &service("a", 2)), folder.path().join("a.yaml")).unwrap();
    assert_eq!(source.next().await, "default/a 2");
    fs::rename(folder.path().join("a.yaml"), folder.path().join("b.yaml")).unwrap();
    source.quiet().await;
    fs::remove_file(folder.path().join("b.yaml")).unwrap();
    assert_eq!(source.next().await, "default/a gone");
}

#[tokio::test]
async fn a_half_written_file_is_not_read_before_it_is_closed() {
    let folder = TestFolder::new("half");
    let path = folder.write("a.yaml", &format!("{}---\n{}", service("a", 1), service("b", 1)));
    let mut source = Source::follow(folder.path());
    source.first_list().await;
    let mut file = File::create(&path).unwrap();
    file.write_all(service("a", 2).as_bytes()).unwrap();
    file.flush().unwrap();
    folder.write("other.yaml", &service("c", 1));
    assert_eq!(source.next().await, "default/c 1", "the other file does not wait");
    source.quiet().await;
    file.write_all(format!("---\n{}", service("b", 2)).as_bytes()).unwrap();
    drop(file);
    assert_eq!([source.next().await, source.next().await], ["default/a 2", "default/b 2"]);
}

#[tokio::test]
async fn a_broken_document_is_told_with_its_line_and_costs_nothing_else() {
    let folder = TestFolder::new("broken");
    let path = folder.write("a.yaml", &format!("{}---\n{}", service("a", 1), service("b", 1)));
    let mut source = Source::follow(folder.path());
    source.first_list().await;
    folder.write("a.yaml", &format!("{}---\nkind: [\n", service("a", 2)));
    let problem = source.next().await;
    assert!(problem.starts_with(&format!("problem {}:", path.display())), "{problem}");
    let line: usize = problem.rsplit_once(".yaml:").unwrap().1.split_once(':').unwrap().0.parse().unwrap();
    assert!((6..=7).contains(&line), "{problem}");
    assert_eq!(source.next().await, "default/a 2");
    source.quiet().await;
    folder.write("a.yaml", &service("a", 2));
    assert_eq!(source.next().await, "default/b gone");
    folder.write("a.yaml", "\u{fffd}: 1\nname: ");
    assert!(source.next().await.contains("a.yaml:1: no Kubernetes object"));
    fs::write(&path, b"a: 1\nb: \xff\n").unwrap();
    assert!(source.next().await.contains("a.yaml:2: not UTF-8"));
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_through_its_swap() {
    let folder = TestFolder::new("configmap");
    let root = folder.path();
    let revision = |name: &str, text: &str| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("a.yaml"), text).unwrap();
        symlink(name, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    revision("..1", &service("a", 1));
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    let mut source = Source::follow(root);
    assert_eq!(source.first_list().await, ["default/a 1"]);
    revision("..2", &service("a", 2));
    fs::remove_dir_all(root.join("..1")).unwrap();
    assert_eq!(source.next().await, "default/a 2");
}

#[tokio::test]
async fn a_missing_folder_is_told_and_waited_for_and_costs_nothing() {
    let outer = TestFolder::new("missing");
    let path = outer.path().join("manifests");
    let mut source = Source::follow(&path);
    let problem = source.next().await;
    assert!(problem.starts_with(&format!("problem {}: No such file", path.display())), "{problem}");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), service("a", 1)).unwrap();
    assert_eq!(source.first_list().await, ["default/a 1"]);
    fs::rename(&path, outer.path().join("away")).unwrap();
    fs::remove_dir_all(outer.path().join("away")).unwrap();
    // Within a minute of the same problem: not told again, and nothing is removed.
    source.quiet().await;
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), service("a", 2)).unwrap();
    assert_eq!(source.next().await, "default/a 2");
    fs::write(path.join("a.yaml"), service("a", 3)).unwrap();
    assert_eq!(source.next().await, "default/a 3", "the new folder is watched");
}

#[tokio::test]
async fn one_file_can_be_followed_and_its_neighbours_are_not() {
    let folder = TestFolder::new("file");
    let path = folder.write("a.yaml", &service("a", 1));
    folder.write("b.yaml", &service("b", 1));
    let mut source = Source::follow(&path);
    assert_eq!(source.first_list().await, ["default/a 1"]);
    fs::rename(folder.write("new", &service("a", 2)), &path).unwrap();
    assert_eq!(source.next().await, "default/a 2");
}

#[tokio::test]
async fn a_link_to_somewhere_else_is_seen_without_being_watched() {
    let (folder, elsewhere) = (TestFolder::new("link"), TestFolder::new("elsewhere"));
    let target = elsewhere.write("a.yaml", &service("a", 1));
    symlink(&target, folder.path().join("a.yaml")).unwrap();
    let mut source = Source::follow(folder.path());
    assert_eq!(source.first_list().await, ["default/a 1"]);
    elsewhere.write("a.yaml", &service("a", 2));
    assert_eq!(source.next().await, "default/a 2");
    fs::remove_file(&target).unwrap();
    let problem = source.next().await;
    assert!(problem.contains("No such file") && problem.contains("stands"), "{problem}");
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let folder = TestFolder::new("ends");
    let mut source = Source::follow(folder.path());
    source.first_list().await;
    let Source { events, task } = source;
    drop(events);
    timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_broken_document_at_the_start_withholds_that_the_list_is_complete() {
    let folder = TestFolder::new("partial");
    let path = folder.write("a.yaml", &format!("{}---\nkind: [\n", service("a", 1)));
    folder.write("b.yaml", &service("b", 1));
    folder.age("a.yaml");
    folder.age("b.yaml");
    let mut source = Source::follow(folder.path());
    let told = source.until("Partial(Node)").await;
    assert!(told[0].starts_with(&format!("problem {}:", path.display())), "{told:?}");
    let good = ["default/a 1", "default/b 1", "Partial(Service)", "Partial(EndpointSlice)", "Partial(Node)"];
    assert_eq!(told[1..], good);
    folder.write("b.yaml", &service("b", 2));
    assert_eq!(source.next().await, "default/b 2");
    tokio::time::sleep(Duration::from_secs(2)).await;
    source.quiet().await;
    folder.write("a.yaml", &service("a", 1));
    assert_eq!(source.until("synced Node").await, ["synced Service", "synced EndpointSlice", "synced Node"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_at_the_start_withholds_it_too_until_it_can_or_is_gone() {
    let folder = TestFolder::new("unread");
    symlink("/nowhere/a.yaml", folder.path().join("a.yaml")).unwrap();
    let mut source = Source::follow(folder.path());
    let told = source.until("Partial(Node)").await;
    assert!(told[0].contains("No such file"), "{told:?}");
    source.quiet().await;
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    assert_eq!(source.until("synced Node").await.len(), 3);
}

#[tokio::test]
async fn a_file_that_comes_back_as_it_was_counts_again() {
    let (folder, elsewhere) = (TestFolder::new("back"), TestFolder::new("volume"));
    let (volume, away) = (elsewhere.path().join("volume"), elsewhere.path().join("away"));
    fs::create_dir(&volume).unwrap();
    elsewhere.write("volume/a.yaml", &service("a", 1));
    symlink(volume.join("a.yaml"), folder.path().join("a.yaml")).unwrap();
    folder.write("b.yaml", "kind: [\n");
    let mut source = Source::follow(folder.path());
    source.until("Partial(Node)").await;
    fs::rename(&volume, &away).unwrap();
    assert!(source.next().await.contains("No such file"));
    fs::rename(&away, &volume).unwrap();
    folder.write("b.yaml", &service("b", 1));
    assert_eq!(source.until("synced Node").await.len(), 4);
}

#[tokio::test]
async fn a_file_that_is_being_written_at_the_start_is_not_taken_for_whole() {
    let folder = TestFolder::new("writing");
    let mut file = File::create(folder.path().join("a.yaml")).unwrap();
    file.write_all(service("a", 1).as_bytes()).unwrap();
    let mut source = Source::follow(folder.path());
    let told = source.until("Partial(Node)").await;
    assert_eq!(told[0], "default/a 1");
    file.write_all(format!("---\n{}", service("b", 1)).as_bytes()).unwrap();
    drop(file);
    let told = source.until("synced Node").await;
    assert_eq!(told, ["default/b 1", "synced Service", "synced EndpointSlice", "synced Node"]);
}

#[tokio::test]
async fn old_files_are_a_complete_list_at_once() {
    let folder = TestFolder::new("old");
    folder.write("a.yaml", &service("a", 1));
    folder.age("a.yaml");
    let mut source = Source::follow(folder.path());
    let told = source.until("synced Node").await;
    assert_eq!(told, ["default/a 1", "synced Service", "synced EndpointSlice", "synced Node"]);
}

#[tokio::test]
async fn s1_only_what_is_wanted_is_told() {
    let folder = TestFolder::new("wanted");
    let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    folder.write("a.yaml", &format!("{}---\n{}---\n{}", service("a", 1), node("n1"), node("n2")));
    folder.age("a.yaml");
    let told = |services, nodes, last| {
        let mut source = Source::follow_for(folder.path(), Wanted { services, nodes, service_cidrs: false });
        async move { source.until(last).await }
    };
    assert_eq!(told(false, Nodes::All, "synced Node").await, ["Node n1", "Node n2", "synced Node"]);
    let services = ["default/a 1", "synced Service", "synced EndpointSlice"];
    assert_eq!(told(true, Nodes::None, "synced EndpointSlice").await, services);
    let own = told(true, Nodes::Only("n2".into()), "synced Node").await;
    assert_eq!(own, ["default/a 1", "Node n2", "synced Service", "synced EndpointSlice", "synced Node"]);
}

#[tokio::test]
async fn s10_the_ranges_of_services_are_read_from_files_too() {
    let folder = TestFolder::new("ranges");
    let range = "kind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [10.96.0.0/12]}\n";
    folder.write("a.yaml", &format!("apiVersion: networking.k8s.io/v1\n{range}"));
    folder.age("a.yaml");
    let wanted = Wanted { services: false, nodes: Nodes::None, service_cidrs: true };
    let mut source = Source::follow_for(folder.path(), wanted);
    let told = [source.next().await, source.next().await];
    assert_eq!(told, ["ServiceCidr(\"kubernetes\", Some([10.96.0.0/12]))", "synced ServiceCidr"]);
}

#[tokio::test]
async fn a_panic_of_a_look_comes_out_of_the_source() {
    let task = tokio::spawn(async { off_the_loop(|| -> () { panic!("a bug") }).await.is_ok() });
    assert!(task.await.unwrap_err().is_panic());
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: \
         {port}}}]}}\n"
    )
}

struct Source {
    events: Receiver<Event>,
    task: JoinHandle<()>,
}

impl Source {
    fn follow(path: &Path) -> Self {
        Self::follow_for(path, Wanted { service_cidrs: false, ..Wanted::everything() })
    }

    fn follow_for(path: &Path, wanted: Wanted) -> Self {
        let (sender, events) = mpsc::channel(8);
        let task = tokio::spawn(run(DirectoryConfig { path: path.to_owned() }, wanted, sender));
        Self { events, task }
    }

    async fn next(&mut self) -> String {
        let event =
            timeout(SOON, self.events.recv()).await.expect("an event in time").expect("a running source");
        shown(&event)
    }

    /// The events up to the last kind that is synced, but not that there was a part before, which new files make.
    async fn first_list(&mut self) -> Vec<String> {
        let mut list = Vec::new();
        loop {
            match self.next().await {
                event if event == "synced Node" => return list,
                event if event.starts_with("synced") || event.starts_with("Partial") => {}
                event => list.push(event),
            }
        }
    }

    /// The events up to this.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        while told.last().is_none_or(|event| event != last) {
            told.push(self.next().await);
        }
        told
    }

    async fn quiet(&mut self) {
        if let Ok(event) = timeout(A_WHILE, self.events.recv()).await {
            panic!("unexpected: {event:?}");
        }
    }
}

fn shown(event: &Event) -> String {
    match event {
        Event::Service(name, Some(service)) => format!("{name} {}", service.ports[0].port),
        Event::Service(name, None) => format!("{name} gone"),
        Event::Node(name, Some(_)) => format!("Node {name}"),
        Event::Synced(kind) => format!("synced {kind:?}"),
        Event::Problem(problem) => format!("problem {problem}"),
        other => format!("{other:?}"),
    }
}
