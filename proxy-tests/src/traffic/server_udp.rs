//! The UDP server: each datagram comes back behind the line of an [`Answer`].

use std::{
    net::{Shutdown, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use socket2::SockRef;

use super::{Answer, socket_option};
use crate::host::Host;

/// No datagram is larger.
pub(super) const LARGEST: usize = 65_536;

#[derive(Debug)]
pub(super) struct UdpServer {
    socket: Arc<UdpSocket>,
    stopping: Arc<AtomicBool>,
    answerer: Option<JoinHandle<()>>,
}

impl UdpServer {
    pub(super) fn start(host: &Host, place: SocketAddr) -> Result<Self> {
        let socket = host.run(|| UdpSocket::bind(place));
        let socket = socket.with_context(|| format!("{}: UDP {place}", host.name()))?;
        socket_option::receive_much(&socket)?;
        let (socket, stopping) = (Arc::new(socket), Arc::new(AtomicBool::new(false)));
        let (listening, stop) = (Arc::clone(&socket), Arc::clone(&stopping));
        let name = host.name().to_owned();
        let answerer = host.spawn(move || {
            let mut buffer = vec![0; LARGEST];
            while !stop.load(Ordering::Relaxed) {
                // Errors are news of earlier answers that met a closed port.
                let Ok((length, client)) = listening.recv_from(&mut buffer) else {
                    continue;
                };
                let answer = Answer {
                    server: name.clone(),
                    client,
                    local: place,
                };
                if let Ok(line) = answer.to_line() {
                    let reply = [line.as_bytes(), &buffer[..length]].concat();
                    let _ = listening.send_to(&reply, client);
                }
            }
        });
        Ok(Self {
            socket,
            stopping,
            answerer: Some(answerer),
        })
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the thread, although it complains that nobody is connected.
        let _ = SockRef::from(&*self.socket).shutdown(Shutdown::Both);
        if let Some(answerer) = self.answerer.take() {
            let _ = answerer.join();
        }
    }
}
