//! An image as an OCI archive: one layer, and the documents that describe it.
//! The same files always make the same archive.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{cache, exec};

/// The description of an image besides its files.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Settings {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    /// Variables, as `NAME=VALUE`.
    pub(crate) environment: Vec<String>,
}

impl Settings {
    /// The settings in a Containerfile, where they are lists.
    pub(crate) fn of_containerfile(text: &str) -> Result<Self> {
        let list = |instruction: &str| {
            let Some(list) = text.lines().find_map(|line| line.strip_prefix(instruction)) else {
                return Ok(Vec::new());
            };
            serde_json::from_str(list).with_context(|| format!("{instruction} has no list: {list}"))
        };
        Ok(Self {
            entrypoint: list("ENTRYPOINT ")?,
            command: list("CMD ")?,
            environment: Vec::new(),
        })
    }
}

/// Makes the archive `output` of the files in `root`. Its name minus the ending
/// is that of a folder to work in.
pub(crate) fn write(root: &Path, settings: &Settings, tag: &str, output: &Path) -> Result<()> {
    let folder = output.with_extension("partial");
    cache::remove(&folder)?;
    let blobs = folder.join("blobs/sha256");
    cache::create(&blobs)?;

    let layer = blobs.join("layer");
    exec::output(tar(&layer, root).arg("."))?;
    let layer = keep(&blobs, &layer)?;
    let config = document(&blobs, &config(settings, &layer))?;
    let manifest = document(&blobs, &manifest(&config, &layer))?;
    let index = index(&manifest, tag);
    for (name, value) in [
        ("index.json", index),
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
    ] {
        fs::write(folder.join(name), value.to_string()).with_context(|| format!("write {name}"))?;
    }
    exec::output(tar(output, &folder).args(["blobs", "index.json", "oci-layout"]))?;
    cache::remove(&folder)
}

/// Something in an archive.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn describe(&self, kind: &str) -> Value {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": self.digest,
            "size": self.size,
        })
    }
}

/// tar that says nothing of this machine and of now.
fn tar(archive: &Path, folder: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--mtime=@0", "--numeric-owner"])
        .args(["--owner=0", "--group=0", "--create", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(folder);
    tar
}

/// Gives a file the name that its contents ask for.
fn keep(blobs: &Path, file: &Path) -> Result<Blob> {
    let size = fs::metadata(file).context("measure a blob")?.len();
    let sum = exec::output(Command::new("sha256sum").arg(file))?;
    let sum = sum.split_whitespace().next().unwrap_or_default().to_owned();
    fs::rename(file, blobs.join(&sum)).context("name a blob")?;
    let digest = format!("sha256:{sum}");
    Ok(Blob { digest, size })
}

fn document(blobs: &Path, value: &Value) -> Result<Blob> {
    let file = blobs.join("document");
    fs::write(&file, value.to_string()).context("write a blob")?;
    keep(blobs, &file)
}

fn config(settings: &Settings, layer: &Blob) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": settings.entrypoint,
            "Cmd": settings.command,
            "Env": settings.environment,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    })
}

fn manifest(config: &Blob, layer: &Blob) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.describe("config.v1+json"),
        "layers": [layer.describe("layer.v1.tar")],
    })
}

fn index(manifest: &Blob, tag: &str) -> Value {
    let mut entry = manifest.describe("manifest.v1+json");
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    json!({"schemaVersion": 2, "manifests": [entry]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_from_the_containerfile() {
        let text = "FROM scratch\nCOPY a /a\nENTRYPOINT [\"/a\"]\nCMD [\"run\", \"fast\"]\n";
        let settings = Settings::of_containerfile(text).unwrap();
        assert_eq!(settings.entrypoint, ["/a"]);
        assert_eq!(settings.command, ["run", "fast"]);
        assert!(Settings::of_containerfile("CMD run\n").is_err());
    }

    #[test]
    fn the_same_files_make_the_same_archive() {
        let folder = tempfile::tempdir().unwrap();
        let archives = ["one", "two"].map(|name| {
            let root = folder.path().join(name);
            cache::create(&root).unwrap();
            fs::write(root.join("program"), "text").unwrap();
            let output = folder.path().join(format!("{name}.tar"));
            write(&root, &Settings::default(), "localhost/a:1", &output).unwrap();
            fs::read(output).unwrap()
        });
        assert_eq!(archives[0], archives[1]);
        assert!(!folder.path().join("one.partial").exists());
    }

    #[test]
    fn the_index_names_the_image() {
        let digest = "sha256:00".to_owned();
        let index = index(&Blob { digest, size: 1 }, "localhost/a:1");
        let annotations = &index["manifests"][0]["annotations"];
        assert_eq!(
            annotations["org.opencontainers.image.ref.name"],
            "localhost/a:1"
        );
    }
}
