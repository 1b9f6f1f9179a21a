//! Certificates and tokens of a control plane, made anew for each.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// The users that kubeconfigs are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// May do everything.
    Admin,
    /// `system:kube-proxy`: may do what every cluster lets its proxy do.
    Proxy,
}

impl User {
    const ALL: [Self; 2] = [Self::Admin, Self::Proxy];

    fn token(self) -> &'static str {
        match self {
            Self::Admin => "admin-token",
            Self::Proxy => "proxy-token",
        }
    }

    /// A line of the API server's token file.
    fn entry(self) -> String {
        let (name, group) = match self {
            Self::Admin => ("admin", "system:masters"),
            Self::Proxy => ("system:kube-proxy", "system:authenticated"),
        };
        format!("{},{name},{name},{group}\n", self.token())
    }
}

/// The files of one control plane's credentials.
#[derive(Debug)]
pub struct Credentials {
    directory: PathBuf,
}

impl Credentials {
    /// Writes a certificate authority, a certificate for an API server with
    /// these addresses, the key of service accounts, and the tokens.
    pub fn create(directory: &Path, addresses: &[IpAddr]) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;

        let accounts = KeyPair::generate()?;
        let credentials = Self {
            directory: directory.to_owned(),
        };
        let tokens: String = User::ALL.into_iter().map(User::entry).collect();
        for (path, text) in [
            (credentials.authority(), authority.pem()),
            (credentials.certificate(), certificate.pem()),
            (credentials.key(), key.serialize_pem()),
            (credentials.accounts_key(), accounts.serialize_pem()),
            (credentials.accounts_public(), accounts.public_key_pem()),
            (credentials.tokens(), tokens),
        ] {
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(credentials)
    }

    /// The certificate of the authority.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    pub(super) fn certificate(&self) -> PathBuf {
        self.directory.join("apiserver.crt")
    }

    pub(super) fn key(&self) -> PathBuf {
        self.directory.join("apiserver.key")
    }

    pub(super) fn accounts_key(&self) -> PathBuf {
        self.directory.join("service-accounts.key")
    }

    pub(super) fn accounts_public(&self) -> PathBuf {
        self.directory.join("service-accounts.pub")
    }

    pub(super) fn tokens(&self) -> PathBuf {
        self.directory.join("tokens.csv")
    }

    /// Writes the file `name`.kubeconfig: `user` at the API server `server`.
    pub fn kubeconfig(&self, name: &str, user: User, server: SocketAddr) -> Result<PathBuf> {
        let authority = self.authority();
        let token = user.token();
        let text = format!(
            "apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: https://{server}
    certificate-authority: {}
users:
- name: lab
  user:
    token: {token}
contexts:
- name: lab
  context:
    cluster: lab
    user: lab
current-context: lab
",
            authority.display()
        );
        let path = self.directory.join(format!("{name}.kubeconfig"));
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}
