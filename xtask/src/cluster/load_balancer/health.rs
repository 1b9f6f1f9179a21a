//! Asks nodes whether they have endpoints of a Service.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::cluster::{
    addresses,
    spec::{Family, Spec},
};

/// How long a node has for each step of the answer.
const LIMIT: Duration = Duration::from_millis(700);

/// Returns the numbers of the nodes that say so, asked all at a time by the family
/// that the endpoints are to have.
pub(super) fn healthy(spec: &Spec, family: Family, port: u16) -> Vec<u8> {
    thread::scope(|scope| {
        let asked: Vec<_> = spec
            .nodes()
            .map(|(number, _)| {
                let address = addresses::node(family, number);
                let node = SocketAddr::new(address, port);
                (number, scope.spawn(move || ask(node)))
            })
            .collect();
        asked
            .into_iter()
            .filter_map(|(number, answer)| matches!(answer.join(), Ok(Ok(true))).then_some(number))
            .collect()
    })
}

fn ask(node: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&node, LIMIT).context("connect")?;
    stream
        .set_read_timeout(Some(LIMIT))
        .context("set a limit")?;
    let question = format!("GET /healthz HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).context("ask")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}
