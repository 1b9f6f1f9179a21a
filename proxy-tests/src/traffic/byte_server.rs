//! A server for many connections at a time: whatever comes goes back, over TCP and
//! UDP.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use socket2::{Domain, Socket, Type};

use super::{descriptors, socket_option};
use crate::host::Host;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Events handled before the kernel is asked again.
const BATCH: usize = 256;
/// Longer than any question.
const LARGEST: usize = 256;
/// Interval at which it looks whether it is to stop, in milliseconds.
const LOOK: u16 = 50;

/// Connections at a time that it is meant for.
const CONNECTIONS: usize = 65_536;

/// Sends back what comes, until dropped.
#[derive(Debug)]
pub struct ByteServer {
    stopping: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl ByteServer {
    /// Listens at every address of `host`.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let places = host.addresses().list().into_iter();
        let places: Vec<_> = places
            .map(|address| SocketAddr::new(address, port))
            .collect();
        let mut server = Self {
            stopping: Arc::default(),
            workers: Vec::new(),
        };
        for _ in 0..descriptors::threads_for(CONNECTIONS)? {
            let (places, stop) = (places.clone(), Arc::clone(&server.stopping));
            let (ready, listening) = mpsc::channel();
            server.workers.push(host.spawn(move || {
                if let Err(error) = serve(&places, &ready, &stop) {
                    // Nobody waits for this once it listens.
                    let _ = ready.send(Err(error));
                }
            }));
            listening
                .recv()?
                .with_context(|| format!("{}: port {port}", host.name()))?;
        }
        Ok(server)
    }
}

impl Drop for ByteServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// The sockets of one address.
struct Echo {
    listener: TcpListener,
    socket: UdpSocket,
}

impl Echo {
    fn listen(place: SocketAddr) -> io::Result<Self> {
        let listener = Socket::new(Domain::for_address(place), Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.set_reuse_port(true)?;
        listener.bind(&place.into())?;
        listener.listen(BACKLOG)?;
        listener.set_nonblocking(true)?;
        let socket = Socket::new(Domain::for_address(place), Type::DGRAM, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&place.into())?;
        let socket = UdpSocket::from(socket);
        socket_option::receive_much(&socket)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            listener: listener.into(),
            socket,
        })
    }
}

/// Listens, says so, and serves. Each thread has listeners of its own, between which
/// the kernel shares out who comes.
fn serve(
    places: &[SocketAddr],
    ready: &mpsc::Sender<io::Result<()>>,
    stop: &AtomicBool,
) -> io::Result<()> {
    descriptors::start_afresh()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let places = places.iter().map(|&place| Echo::listen(place));
    let places = places.collect::<io::Result<Vec<_>>>()?;
    for place in &places {
        watch(&epoll, &place.listener)?;
        watch(&epoll, &place.socket)?;
    }
    let _ = ready.send(Ok(()));
    let mut open: HashMap<RawFd, TcpStream> = HashMap::new();
    let mut events = [EpollEvent::empty(); BATCH];
    while !stop.load(Ordering::Relaxed) {
        let count = epoll.wait(&mut events, LOOK)?;
        for event in &events[..count] {
            let fd = RawFd::try_from(event.data()).map_err(io::Error::other)?;
            if let Some(stream) = open.get_mut(&fd) {
                if !answer(stream) {
                    open.remove(&fd);
                }
            } else if let Some(place) = places.iter().find(|at| at.listener.as_raw_fd() == fd) {
                accept(&epoll, &place.listener, &mut open)?;
            } else if let Some(place) = places.iter().find(|at| at.socket.as_raw_fd() == fd) {
                answer_datagrams(&place.socket);
            }
        }
    }
    Ok(())
}

fn watch(epoll: &Epoll, socket: &(impl AsRawFd + std::os::fd::AsFd)) -> io::Result<()> {
    let token = u64::try_from(socket.as_raw_fd()).map_err(io::Error::other)?;
    epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
    Ok(())
}

/// Takes in who waits, at most a batch at a time.
fn accept(
    epoll: &Epoll,
    listener: &TcpListener,
    open: &mut HashMap<RawFd, TcpStream>,
) -> io::Result<()> {
    for _ in 0..BATCH {
        // Nobody is left, or one that has gone already.
        let Ok((stream, _)) = listener.accept() else {
            break;
        };
        stream.set_nonblocking(true)?;
        watch(epoll, &stream)?;
        open.insert(stream.as_raw_fd(), stream);
    }
    Ok(())
}

/// False once the client has closed.
fn answer(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; LARGEST];
    match stream.read(&mut buffer) {
        Ok(0) => false,
        Ok(length) => stream.write_all(&buffer[..length]).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; LARGEST];
    for _ in 0..BATCH {
        // None is left, or news of an earlier answer that met a closed port.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            break;
        };
        let _ = socket.send_to(&buffer[..length], client);
    }
}
