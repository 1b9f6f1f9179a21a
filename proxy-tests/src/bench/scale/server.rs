//! An API server with many Services, as far as an agent asks.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

/// A server that ends with the process.
pub(super) struct Server {
    address: SocketAddr,
    cluster: Arc<Cluster>,
}

struct Cluster {
    services: usize,
    endpoints: usize,
    nodes: usize,
    sent: AtomicU64,
    version: AtomicU64,
    /// Those who watch EndpointSlices.
    watches: Mutex<Vec<mpsc::Sender<String>>>,
}

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

impl Server {
    /// Listens on the loopback of the caller's network namespace.
    pub(super) fn start(services: usize, endpoints: usize, nodes: usize) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let cluster = Arc::new(Cluster {
            services,
            endpoints,
            nodes,
            sent: AtomicU64::new(0),
            version: AtomicU64::new(1_000_000),
            watches: Mutex::default(),
        });
        let shared = Arc::clone(&cluster);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let cluster = Arc::clone(&shared);
                // One that hangs up is no loss.
                thread::spawn(move || cluster.answer(stream));
            }
        });
        Ok(Self { address, cluster })
    }

    pub(super) fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]
users: [{{name: u, user: {{}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
",
            self.address
        )
    }

    /// Bytes that were sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.cluster.sent.load(Ordering::Relaxed)
    }

    /// Replaces so many pods in each second for a while. Returns how many it could.
    pub(super) fn churn(&self, pods_per_second: u64, time: Duration) -> u32 {
        let end = Instant::now() + time;
        let Some(interval) =
            Duration::from_secs(1).checked_div(u32::try_from(pods_per_second).unwrap_or(0))
        else {
            thread::sleep(time);
            return 0;
        };
        let (mut next, mut replaced_pods) = (Instant::now(), 0);
        while Instant::now() < end {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next += interval;
            replaced_pods += 1;
            let cluster = &self.cluster;
            let service = fastrand::usize(..cluster.services);
            let replaced = fastrand::usize(..cluster.endpoints);
            let pod = fastrand::u16(0x8000..);
            for family in FAMILIES {
                let slice = cluster.slice(service, family, Some((replaced, pod)));
                let line = format!("{}\n", json!({"type": "MODIFIED", "object": slice}));
                let mut watches = cluster
                    .watches
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                watches.retain(|watch| watch.send(line.clone()).is_ok());
            }
        }
        replaced_pods
    }
}

impl Cluster {
    fn answer(&self, stream: TcpStream) -> Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        for line in lines.by_ref() {
            if line?.is_empty() {
                break;
            }
        }
        let mut stream = Chunks {
            stream,
            sent: &self.sent,
        };
        stream.begin()?;
        let is_initial = request.contains("sendInitialEvents=true");
        let path = request.split(['?', ' ']).nth(1).unwrap_or_default();
        let changes = mpsc::channel();
        if path.ends_with("/endpointslices") {
            let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
            watches.push(changes.0.clone());
        }
        if is_initial {
            for number in 0..self.services {
                if path.ends_with("/services") {
                    stream.event("ADDED", &self.service(number))?;
                } else if path.ends_with("/endpointslices") {
                    for family in FAMILIES {
                        stream.event("ADDED", &self.slice(number, family, None))?;
                    }
                }
            }
            stream.event("BOOKMARK", &self.bookmark(true))?;
        }
        loop {
            match changes.1.recv_timeout(Duration::from_mins(1)) {
                Ok(line) => stream.write(&line)?,
                Err(_) => stream.event("BOOKMARK", &self.bookmark(false))?,
            }
        }
    }

    fn version(&self) -> String {
        self.version.fetch_add(1, Ordering::Relaxed).to_string()
    }

    fn bookmark(&self, ends_list: bool) -> Value {
        let mut metadata = json!({"resourceVersion": self.version(), "creationTimestamp": null});
        if ends_list {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        json!({"kind": "Service", "apiVersion": "v1", "metadata": metadata})
    }

    /// As the API server sends one that `kubectl apply` made.
    fn service(&self, number: usize) -> Value {
        let v4 = Ipv4Addr::from(0x0a60_0000 + 10 + u32::try_from(number).unwrap_or(0));
        let v6 = Ipv6Addr::from(0xfd00_0096 << 96 | (10 + number as u128));
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": format!("service-{number}"),
                "namespace": format!("load-{}", number % 100),
                "uid": format!("8f0d5b2e-5a0f-4b0f-9a55-{number:012x}"),
                "resourceVersion": self.version(),
                "creationTimestamp": "2026-08-01T10:00:00Z",
                "labels": {"app": format!("service-{number}"), "group": "load"},
                "managedFields": [managed("kubectl-client-side-apply", &json!({
                    "f:metadata": {"f:labels": {".": {}, "f:app": {}, "f:group": {}}},
                    "f:spec": {"f:internalTrafficPolicy": {}, "f:ipFamilyPolicy": {},
                        "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {},
                            "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}},
                        "f:selector": {}, "f:sessionAffinity": {}, "f:type": {}},
                }))],
            },
            "spec": {
                "clusterIP": v4, "clusterIPs": [v4.to_string(), v6.to_string()],
                "internalTrafficPolicy": "Cluster",
                "ipFamilies": FAMILIES, "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
                "selector": {"app": format!("service-{number}")},
                "sessionAffinity": "None", "type": "ClusterIP",
            },
            "status": {"loadBalancer": {}},
        })
    }

    /// As the controller makes one; one of its pods may have another address than at first.
    fn slice(&self, service: usize, family: &str, replaced: Option<(usize, u16)>) -> Value {
        let endpoints = (0..self.endpoints).map(|at| {
            let number = service * self.endpoints + at;
            let node = number % self.nodes;
            let mut pod = u32::try_from(number / self.nodes).unwrap_or(0) + 2;
            if let Some((_, other)) = replaced.filter(|(place, _)| *place == at) {
                pod = other.into();
            }
            let node_part = u32::try_from(node).unwrap_or(0);
            let address = if family == "IPv4" {
                let low = node_part << 8 | (pod & 0xff);
                Ipv4Addr::from(0x0a80_0000 | low).to_string()
            } else {
                let low = u128::from(node_part) << 32 | u128::from(pod);
                Ipv6Addr::from(0xfd00_0010 << 96 | low).to_string()
            };
            json!({
                "addresses": [address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("worker-{node}"),
                "zone": format!("zone-{}", node % 3),
                "targetRef": {
                    "kind": "Pod", "namespace": format!("load-{}", service % 100),
                    "name": format!("service-{service}-7d4b9c6f5-{pod:05x}"),
                    "uid": format!("1c0d5b2e-5a0f-4b0f-9a55-{number:012x}"),
                },
            })
        });
        let endpoints: Vec<_> = endpoints.collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("service-{service}-{}", family.to_lowercase()),
                "generateName": format!("service-{service}-"),
                "namespace": format!("load-{}", service % 100),
                "uid": format!("2e0d5b2e-5a0f-4b0f-9a55-{service:012x}"),
                "resourceVersion": self.version(), "generation": 7,
                "creationTimestamp": "2026-08-01T10:00:00Z",
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-08-01T10:00:00Z"},
                "labels": {
                    "app": format!("service-{service}"), "group": "load",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": format!("service-{service}"),
                },
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service",
                    "name": format!("service-{service}"), "controller": true, "blockOwnerDeletion": true,
                    "uid": format!("8f0d5b2e-5a0f-4b0f-9a55-{service:012x}")}],
                "managedFields": [managed("kube-controller-manager", &json!({
                    "f:addressType": {}, "f:endpoints": {}, "f:ports": {},
                    "f:metadata": {"f:annotations": {}, "f:generateName": {}, "f:labels": {},
                        "f:ownerReferences": {}},
                }))],
            },
            "addressType": family,
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    }
}

fn managed(manager: &str, fields: &Value) -> Value {
    json!({"manager": manager, "operation": "Update", "apiVersion": "v1",
        "time": "2026-08-01T10:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields})
}

/// A response in chunks.
struct Chunks<'a> {
    stream: TcpStream,
    sent: &'a AtomicU64,
}

impl Chunks<'_> {
    fn begin(&mut self) -> Result<()> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        Ok(self.stream.write_all(head.as_bytes())?)
    }

    fn event(&mut self, kind: &str, object: &Value) -> Result<()> {
        self.write(&format!("{}\n", json!({"type": kind, "object": object})))
    }

    fn write(&mut self, line: &str) -> Result<()> {
        let chunk = format!("{:x}\r\n{line}\r\n", line.len());
        self.stream.write_all(chunk.as_bytes())?;
        self.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
