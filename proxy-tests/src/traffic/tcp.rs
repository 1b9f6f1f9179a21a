//! TCP clients.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Answer, PATIENCE, bulk, socket_option};

/// A connection to be made.
#[derive(Clone, Copy, Debug)]
pub struct TcpClient {
    target: SocketAddr,
    source: Option<SocketAddr>,
    timeout: Duration,
    protocol: Option<Protocol>,
}

impl TcpClient {
    /// Connects to `target` from wherever the kernel likes.
    pub fn to(target: SocketAddr) -> Self {
        Self {
            target,
            source: None,
            timeout: PATIENCE,
            protocol: None,
        }
    }

    /// Connects from this address and port.
    #[must_use]
    pub fn from(self, source: SocketAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    /// Connects by MPTCP.
    #[must_use]
    pub fn multipath(self) -> Self {
        Self {
            protocol: Some(Protocol::MPTCP),
            ..self
        }
    }

    /// Gives up after this time.
    #[must_use]
    pub fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Connects and reads the server's greeting.
    pub fn connect(self) -> io::Result<Connection> {
        let socket = Socket::new(
            Domain::for_address(self.target),
            Type::STREAM,
            self.protocol,
        )?;
        if let Some(source) = self.source {
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
        }
        socket.connect_timeout(&self.target.into(), self.timeout)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(self.timeout))?;
        socket.set_write_timeout(Some(self.timeout))?;
        let mut stream = BufReader::new(TcpStream::from(socket));
        let mut line = String::new();
        stream.read_line(&mut line)?;
        Ok(Connection {
            answer: Answer::parse(line.as_bytes())?,
            stream,
        })
    }
}

/// An open connection to a [`Server`](super::Server).
#[derive(Debug)]
pub struct Connection {
    /// The server's answer.
    pub answer: Answer,
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// The client's end, as `getsockname` gives it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().local_addr()
    }

    /// The server's end, as `getpeername` gives it.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().peer_addr()
    }

    /// Ends the connection with a reset and leaves the port free, at once.
    pub fn reset(self) -> io::Result<()> {
        socket_option::disconnect(self.stream.get_ref())
    }

    /// Sends `length` bytes; the server compares them.
    pub fn upload(mut self, length: usize) -> io::Result<()> {
        self.stream
            .get_mut()
            .write_all(format!("take {length}\n").as_bytes())?;
        bulk::send(self.stream.get_mut(), length)?;
        let mut verdict = String::new();
        self.stream.read_line(&mut verdict)?;
        match verdict.trim() {
            "ok" => Ok(()),
            other => Err(io::Error::other(format!("server: {other:?}"))),
        }
    }

    /// Receives `length` bytes and compares them.
    pub fn download(mut self, length: usize) -> io::Result<()> {
        self.stream
            .get_mut()
            .write_all(format!("send {length}\n").as_bytes())?;
        bulk::receive(&mut self.stream, length)
    }

    /// Sends `message` and reads it back; the connection can go on doing so.
    pub fn echo(&mut self, message: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(message)?;
        let mut answer = vec![0; message.len()];
        self.stream.read_exact(&mut answer)?;
        if answer == message {
            Ok(())
        } else {
            Err(io::Error::other("the echo differs"))
        }
    }

    /// Tells the server to echo from now on; call it once before
    /// [`Connection::echo`].
    pub fn start_echo(&mut self) -> io::Result<()> {
        self.stream.get_mut().write_all(b"echo\n")
    }
}

/// Connects once and returns what the server said.
pub fn ask_tcp(target: SocketAddr) -> io::Result<Answer> {
    TcpClient::to(target)
        .connect()
        .map(|connection| connection.answer)
}

/// Connects `count` times and counts the answers of each server.
pub fn spread_tcp(target: SocketAddr, count: usize) -> io::Result<BTreeMap<String, usize>> {
    let mut servers = BTreeMap::new();
    for _ in 0..count {
        *servers.entry(ask_tcp(target)?.server).or_default() += 1;
    }
    Ok(servers)
}
