//! Who may do what in a cluster: a certificate authority, tokens of the users
//! that the control plane and the nodes are, and a kubeconfig for each.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{addresses, place::node_name, spec::Spec};
use crate::{
    cache::{self, Cache},
    exec,
};

/// Where the API server listens.
pub(crate) const API_PORT: u16 = 6443;

/// The files, all in one folder.
pub(crate) struct Credentials {
    folder: PathBuf,
}

/// A user of the API server.
struct User {
    /// Also its token, which none but this cluster takes.
    file: String,
    name: String,
    group: &'static str,
}

fn user(file: &str, name: &str, group: &'static str) -> User {
    User {
        file: file.to_owned(),
        name: name.to_owned(),
        group,
    }
}

fn users(spec: &Spec) -> Vec<User> {
    let mut users = vec![
        user("admin", "admin", "system:masters"),
        user("controllers", "system:kube-controller-manager", ""),
        user("scheduler", "system:kube-scheduler", ""),
        user("proxy", "system:kube-proxy", ""),
        user("flannel", "flannel", "system:masters"),
    ];
    for (number, _) in spec.nodes() {
        let node = node_name(number);
        users.push(user(&node, &format!("system:node:{node}"), "system:nodes"));
    }
    users
}

impl Credentials {
    pub(crate) fn of(folder: &Path) -> Self {
        Self {
            folder: folder.join("credentials"),
        }
    }

    pub(crate) fn create(&self, cache: &Cache, spec: &Spec) -> Result<()> {
        cache::create(&self.folder)?;
        let users = users(spec);
        self.write("tokens.csv", &tokens(&users))?;
        let server = SocketAddr::new(addresses::control_plane(spec.families.first), API_PORT);
        for user in &users {
            let text = kubeconfig(server, &self.authority(), &user.file).to_string();
            self.write(&format!("{}.kubeconfig", user.file), &text)?;
        }
        self.sign(cache, spec)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// The kubeconfig of a user.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.file(&format!("{user}.kubeconfig"))
    }

    /// Makes the authority, and what it signs.
    fn sign(&self, cache: &Cache, spec: &Spec) -> Result<()> {
        let openssl = |arguments: &[&str]| {
            let mut openssl = Command::new("openssl");
            openssl.current_dir(&self.folder).args(arguments);
            exec::step(&cache.log("cluster"), &mut openssl)
        };
        let key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-noenc",
        ];
        let authority = [
            &[
                "req",
                "-x509",
                "-days",
                "365",
                "-subj",
                "/CN=tandem-cluster",
            ],
            &key[..],
            &["-keyout", "ca.key", "-out", "ca.crt"],
        ];
        openssl(&authority.concat())?;
        let signed = [
            ("apiserver", "/CN=kube-apiserver", server_names(spec)),
            // What kubelets let in that the API server relays.
            (
                "kubelet-client",
                "/O=system:masters/CN=kube-apiserver-kubelet-client",
                "DNS:kube-apiserver".to_owned(),
            ),
        ];
        for (name, subject, names) in signed {
            let names = format!("subjectAltName={names}");
            let (key_file, certificate) = (format!("{name}.key"), format!("{name}.crt"));
            let request = [
                &[
                    "req", "-x509", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "365",
                ],
                &key[..],
                &["-subj", subject, "-addext", &names],
                &["-addext", "extendedKeyUsage=serverAuth,clientAuth"],
                &["-addext", "basicConstraints=critical,CA:FALSE"],
                &["-keyout", &key_file, "-out", &certificate],
            ];
            openssl(&request.concat())?;
        }
        openssl(&["genrsa", "-out", "accounts.key", "2048"])?;
        openssl(&[
            "rsa",
            "-in",
            "accounts.key",
            "-pubout",
            "-out",
            "accounts.pub",
        ])
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let file = self.file(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }
}

/// The API server's file of tokens.
fn tokens(users: &[User]) -> String {
    users.iter().fold(String::new(), |mut text, user| {
        let User { file, name, group } = user;
        let _ = writeln!(text, "{file},{name},{name},{group}");
        text
    })
}

fn kubeconfig(server: SocketAddr, authority: &Path, token: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "cluster",
            "cluster": {"server": format!("https://{server}"), "certificate-authority": authority},
        }],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
        "current-context": "context",
    })
}

/// The names and addresses that clients know the API server by.
fn server_names(spec: &Spec) -> String {
    let local: [IpAddr; 2] = [[127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into()];
    let addresses = spec
        .families
        .list()
        .flat_map(|family| {
            [
                addresses::control_plane(family),
                addresses::api_service(family),
            ]
        })
        .chain(local)
        .map(|address| format!("IP:{address}"));
    let service = "kubernetes.default.svc.cluster.local";
    let names = service
        .match_indices('.')
        .map(|(end, _)| &service[..end])
        .chain([service, "localhost"])
        .map(|name| format!("DNS:{name}"));
    addresses.chain(names).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::spec::{Cni, Proxy};

    fn spec() -> Spec {
        let families = "ipv6,ipv4".parse().unwrap();
        Spec::new(2, families, Cni::Ptp, Proxy::Tandem, &[]).unwrap()
    }

    #[test]
    fn each_node_is_a_user_of_its_own() {
        let tokens = tokens(&users(&spec()));
        for line in [
            "node-1,system:node:node-1,system:node:node-1,system:nodes",
            "node-2,system:node:node-2,system:node:node-2,system:nodes",
            "admin,admin,admin,system:masters",
        ] {
            assert!(tokens.lines().any(|other| other == line), "{tokens}");
        }
    }

    #[test]
    fn a_kubeconfig_puts_brackets_around_an_ipv6_address() {
        let server = SocketAddr::new(addresses::control_plane(spec().families.first), API_PORT);
        let config = kubeconfig(server, Path::new("/ca.crt"), "admin");
        let server = &config["clusters"][0]["cluster"]["server"];
        assert_eq!(server, "https://[fd00:30::a]:6443");
    }

    #[test]
    fn the_api_servers_certificate_names_all_its_names() {
        let names = server_names(&spec());
        for name in [
            "IP:10.96.0.1",
            "IP:fd00:10:96::1",
            "IP:172.30.0.10",
            "IP:fd00:30::a",
            "DNS:kubernetes",
            "DNS:kubernetes.default.svc",
        ] {
            assert!(names.split(',').any(|other| other == name), "{names}");
        }
    }
}
