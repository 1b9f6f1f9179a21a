//! The TCP server. It greets each connection with an [`Answer`], then obeys
//! one line: `echo` (bytes come back until the client closes), `take N` (reads
//! N bytes of the bulk pattern, says `ok`), or `send N` (sends them).

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use socket2::{Domain, SockRef, Socket, Type};

use super::{Answer, bulk};
use crate::host::Host;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

#[derive(Debug)]
pub(super) struct TcpServer {
    listener: Arc<TcpListener>,
    acceptor: Option<JoinHandle<()>>,
}

impl TcpServer {
    pub(super) fn start(host: &Host, place: SocketAddr) -> Result<Self> {
        let listener = host.run(|| listen(place));
        let listener = listener.with_context(|| format!("{}: TCP {place}", host.name()))?;
        let listener = Arc::new(listener);
        let (accepting, name) = (Arc::clone(&listener), host.name().to_owned());
        let acceptor = host.spawn(move || {
            // Dropping the server shuts the listener down and ends this loop.
            while let Ok((stream, client)) = accepting.accept() {
                let name = name.clone();
                // A client that goes away is its own test's business.
                thread::spawn(move || serve(stream, client, name));
            }
        });
        Ok(Self {
            listener,
            acceptor: Some(acceptor),
        })
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn listen(place: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(place), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if place.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&place.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn serve(mut stream: TcpStream, client: SocketAddr, server: String) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = Answer {
        server,
        client,
        local: stream.local_addr()?,
    };
    stream.write_all(answer.to_line()?.as_bytes())?;

    let mut reader = BufReader::new(stream.try_clone()?);
    let mut order = String::new();
    reader.read_line(&mut order)?;
    match order.trim().split_once(' ') {
        Some(("take", length)) => {
            let verdict = bulk::receive(&mut reader, number(length)?);
            let line = verdict.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
            stream.write_all((line + "\n").as_bytes())
        }
        Some(("send", length)) => bulk::send(&mut stream, number(length)?),
        _ => io::copy(&mut reader, &mut stream).map(drop),
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(io::Error::other)
}
