//! A real directory, watched for real: the only tests here that wait for the
//! kernel. They wait for the change itself, never for time to pass.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{
    model::ObjectKey,
    source::{Change, Update},
};

fn service(name: &str, ip: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: {ip}}}}}\n"
    )
}

/// One change as text: `+name address` or `-name`.
fn text(change: &Change) -> Vec<String> {
    let name = |key: &ObjectKey| key.name().to_owned();
    match change {
        Change::Service(Update::Apply(parsed)) => {
            let ips = parsed
                .state
                .clone()
                .usable()
                .map(|service| service.cluster_ips);
            let ip = ips.and_then(|ips| ips.v4).map(|ip| ip.to_string());
            vec![format!("+{} {}", name(&parsed.key), ip.unwrap_or_default())]
        }
        Change::Service(Update::Delete(key)) => vec![format!("-{}", name(key))],
        Change::Service(Update::Missing(keys)) => {
            keys.iter().map(|key| format!("-{}", name(key))).collect()
        }
        Change::Service(Update::Relist(list)) => list
            .iter()
            .map(|parsed| format!("={}", name(&parsed.key)))
            .collect(),
        Change::EndpointSlice(_) | Change::Node(_) | Change::ServiceCidr(_) => Vec::new(),
    }
}

fn texts(batch: &Batch) -> Vec<String> {
    batch.iter().flat_map(text).collect()
}

/// A directory that is read step by step, without waiting.
struct Steps {
    folder: TempDir,
    watch: Watch,
    directory: Directory,
}

impl Steps {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self {
            watch: Watch::new(folder.path()).expect("inotify"),
            directory: Directory::new(folder.path().to_owned(), Metrics::default()),
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// By rename, so that every version is another inode.
    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("create the folder");
        let temporary = path.with_extension("new");
        fs::write(&temporary, text).expect("write");
        fs::rename(temporary, path).expect("rename");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("remove");
    }

    fn step(&mut self) -> Vec<String> {
        texts(
            &self
                .directory
                .list_changes(Some(&self.watch))
                .expect("readable"),
        )
    }
}

#[tokio::test]
async fn reads_all_manifests_below_the_directory() {
    let mut steps = Steps::new();
    steps.write("a.yaml", &service("a", "10.0.0.1"));
    steps.write("deep/er/b.yml", &service("b", "10.0.0.2"));
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"}}"#;
    steps.write("c.json", json);
    steps.write("notes.txt", &service("d", "10.0.0.4"));
    steps.write(".hidden.yaml", &service("e", "10.0.0.5"));
    steps.write("..data/f.yaml", &service("f", "10.0.0.6"));
    steps.write("bad.yaml", "kind: [");
    let batch = steps
        .directory
        .list_all(Some(&steps.watch))
        .expect("readable");
    assert_eq!(texts(&batch), ["=a", "=b", "=c"]);
    assert_eq!(batch.len(), 4, "every kind has been listed");
}

#[tokio::test]
async fn follows_changes_and_only_those() {
    let mut steps = Steps::new();
    steps.write("a.yaml", &service("a", "10.0.0.1"));
    steps.write("b.yaml", &service("b", "10.0.0.2"));
    assert_eq!(steps.step(), ["+a 10.0.0.1", "+b 10.0.0.2"]);
    assert_eq!(steps.step(), [""; 0]);

    steps.write("b.yaml", &service("b", "10.0.0.3"));
    steps.write("new/c.yaml", &service("c", "10.0.0.4"));
    steps.remove("a.yaml");
    assert_eq!(steps.step(), ["-a", "+b 10.0.0.3", "+c 10.0.0.4"]);

    fs::remove_dir_all(steps.path("new")).expect("remove");
    steps.write("b.yaml", "");
    assert_eq!(steps.step(), ["-b", "-c"]);
}

/// An object that moves to another file is never gone.
#[tokio::test]
async fn objects_may_move_between_files() {
    let mut steps = Steps::new();
    steps.write("z.yaml", &service("a", "10.0.0.1"));
    steps.step();
    steps.remove("z.yaml");
    steps.write("a.yaml", &service("a", "10.0.0.2"));
    assert_eq!(steps.step(), ["+a 10.0.0.2"]);
}

#[tokio::test]
async fn of_copies_the_first_file_counts() {
    let mut steps = Steps::new();
    steps.write("1.yaml", &service("a", "10.0.0.1"));
    steps.write("2.yaml", &service("a", "10.0.0.2"));
    assert_eq!(steps.step(), ["+a 10.0.0.1"]);
    steps.write("2.yaml", &service("a", "10.0.0.3"));
    assert_eq!(steps.step(), [""; 0]);
    // The other copy has not changed, but now it counts.
    steps.remove("1.yaml");
    assert_eq!(steps.step(), ["+a 10.0.0.3"]);
    steps.write("1.yaml", &service("a", "10.0.0.4"));
    assert_eq!(steps.step(), ["+a 10.0.0.4"]);
}

/// The objects of a file stay in force when it can no longer be read.
#[tokio::test]
async fn a_bad_file_keeps_its_objects() {
    let mut steps = Steps::new();
    let (a, b) = (service("a", "10.0.0.1"), service("b", "10.0.0.2"));
    steps.write("all.yaml", &format!("{a}---\n{b}"));
    steps.step();

    steps.write(
        "all.yaml",
        &format!("{}---\nkind: [", service("a", "10.0.0.9")),
    );
    assert_eq!(steps.step(), ["+a 10.0.0.9"]);
    steps.write("all.yaml", "\0kind: [");
    assert_eq!(steps.step(), [""; 0]);
    fs::write(steps.path("all.yaml"), b"\xff\xff").expect("write");
    assert_eq!(steps.step(), [""; 0]);

    steps.write("all.yaml", &b);
    assert_eq!(steps.step(), ["-a", "+b 10.0.0.2"]);
}

/// A mounted `ConfigMap`: links to files in a folder that is swapped.
#[tokio::test]
async fn follows_links_to_files() {
    use std::os::unix::fs::symlink;
    let mut steps = Steps::new();
    steps.write("..1/a.yaml", &service("a", "10.0.0.1"));
    steps.write("..2/a.yaml", &service("a", "10.0.0.2"));
    symlink("..1", steps.path("..data")).expect("link");
    symlink("..data/a.yaml", steps.path("a.yaml")).expect("link");
    assert_eq!(steps.step(), ["+a 10.0.0.1"]);

    symlink("..2", steps.path("..tmp")).expect("link");
    fs::rename(steps.path("..tmp"), steps.path("..data")).expect("rename");
    assert_eq!(steps.step(), ["+a 10.0.0.2"]);
}

/// Links that lead in a circle, and folders behind them: the others are read,
/// and what was there before the circle stays.
#[tokio::test]
async fn what_cannot_be_looked_at_harms_only_itself() {
    use std::os::unix::fs::symlink;
    let mut steps = Steps::new();
    steps.write("a.yaml", &service("a", "10.0.0.1"));
    steps.write("b.yaml", &service("b", "10.0.0.2"));
    steps.write("c/c.yaml", &service("c", "10.0.0.3"));
    symlink("loop.yaml", steps.path("loop.yaml")).expect("link");
    assert_eq!(steps.step(), ["+a 10.0.0.1", "+b 10.0.0.2", "+c 10.0.0.3"]);

    steps.remove("a.yaml");
    symlink("a.yaml", steps.path("a.yaml")).expect("link");
    steps.write("b.yaml", &service("b", "10.0.0.4"));
    assert_eq!(steps.step(), ["+b 10.0.0.4"]);

    steps.remove("a.yaml");
    assert_eq!(steps.step(), ["-a"]);
}

/// The source of a directory whose files are links to files elsewhere, and
/// which is a link itself.
#[tokio::test]
async fn changes_behind_links_are_followed() {
    use std::os::unix::fs::symlink;
    let steps = Steps::new();
    steps.write("elsewhere/a.yaml", &service("a", "10.0.0.1"));
    steps.write("2/b.yaml", &service("b", "10.0.0.1"));
    fs::create_dir(steps.path("1")).expect("a folder");
    symlink("../elsewhere/a.yaml", steps.path("1/a.yaml")).expect("link");
    symlink("1", steps.path("current")).expect("link");
    let (sender, mut receiver) = crate::source::channel();
    let root = steps.path("current");
    tokio::spawn(async move { run(&root, sender, Metrics::default()).await });
    let mut next = async || {
        let batch = timeout(Duration::from_secs(10), receiver.recv()).await;
        texts(&batch.expect("in time").expect("a change"))
    };
    assert_eq!(next().await, ["=a"]);

    fs::write(
        steps.path("elsewhere/a.yaml"),
        service("a", "10.0.0.2") + "# in place",
    )
    .expect("write");
    assert_eq!(next().await, ["+a 10.0.0.2"]);
    steps.write("elsewhere/a.yaml", &service("a", "10.0.0.3"));
    assert_eq!(next().await, ["+a 10.0.0.3"]);

    symlink("2", steps.path("next")).expect("link");
    fs::rename(steps.path("next"), steps.path("current")).expect("rename");
    assert_eq!(next().await, ["-a", "+b 10.0.0.1"]);
    steps.write("2/b.yaml", &service("b", "10.0.0.4"));
    assert_eq!(next().await, ["+b 10.0.0.4"]);
}

#[tokio::test]
async fn a_directory_that_is_gone_forgets_nothing() {
    let mut steps = Steps::new();
    steps.write("a.yaml", &service("a", "10.0.0.1"));
    steps.step();
    let aside = steps.folder.path().with_extension("aside");
    fs::rename(steps.folder.path(), &aside).expect("rename");
    let error = steps
        .directory
        .list_changes(Some(&steps.watch))
        .expect_err("gone");
    assert!(
        error
            .to_string()
            .contains(&*steps.folder.path().to_string_lossy())
    );
    fs::rename(aside, steps.folder.path()).expect("rename");
    assert_eq!(steps.step(), [""; 0]);
}

/// End to end: the first lists, then changes as they happen.
#[tokio::test]
async fn runs_until_nobody_listens() {
    let steps = Steps::new();
    steps.write("a.yaml", &service("a", "10.0.0.1"));
    let (sender, mut receiver) = crate::source::channel();
    let root = steps.folder.path().to_owned();
    let source = tokio::spawn(async move { run(&root, sender, Metrics::default()).await });
    let first = receiver.recv().await.expect("lists");
    assert_eq!(texts(&first), ["=a"]);

    steps.write("b.yaml", &service("b", "10.0.0.2"));
    let second = receiver.recv().await.expect("a change");
    assert_eq!(texts(&second), ["+b 10.0.0.2"]);

    drop(receiver);
    steps.remove("a.yaml");
    source.await.expect("no panic").expect("no error");
}

#[tokio::test]
async fn a_missing_directory_is_an_error_at_the_start() {
    let (sender, _receiver) = crate::source::channel();
    let error = run(Path::new("/nonexistent"), sender, Metrics::default()).await;
    let error = error.expect_err("nothing to read");
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}
