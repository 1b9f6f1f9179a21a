//! A small web server in a pod: answers every request with its name and the
//! client's address, and closes the connection.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use proxy_tests::{Family, Pod};
use socket2::{Domain, SockRef, Socket, Type};

/// The port it listens on.
pub(crate) const PORT: u16 = 8080;
/// Clients that ask nothing are sent away.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves until dropped.
#[derive(Debug)]
pub(crate) struct WebServer {
    listener: Arc<TcpListener>,
    acceptor: Option<JoinHandle<()>>,
}

impl WebServer {
    /// Listens at the pod's address of one family.
    pub(crate) fn start(pod: &Pod, family: Family) -> Result<Self> {
        let place = pod.at(family, PORT);
        let listener = pod.run(|| listen(place));
        let listener = listener.with_context(|| format!("{}: {place}", pod.name()))?;
        let listener = Arc::new(listener);
        let accepting = Arc::clone(&listener);
        let name = format!("{} on {}", pod.name(), pod.node_name());
        let acceptor = pod.spawn(move || {
            // Dropping the server shuts the listener down and ends this loop.
            while let Ok((stream, client)) = accepting.accept() {
                let name = name.clone();
                // A client that goes away is its own business.
                thread::spawn(move || answer(stream, client, &name));
            }
        });
        Ok(Self {
            listener,
            acceptor: Some(acceptor),
        })
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        let _ = SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn listen(place: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(place), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&place.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn answer(mut stream: TcpStream, client: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    // The request ends with an empty line; what it asks for does not matter.
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = format!("{name}, asked by {}\n", client.ip());
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
