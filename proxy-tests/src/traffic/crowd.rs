//! Many small conversations at a time, from one thread: a byte goes and comes back.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use socket2::{Domain, Socket, Type};

/// Events handled before the kernel is asked again.
const BATCH: usize = 256;
/// Within this time a byte must be back, from the first SYN on.
const LIMIT: Duration = Duration::from_secs(8);
/// Interval at which conversations that take too long are looked for.
const LOOK: Duration = Duration::from_millis(250);

const QUESTION: [u8; 1] = *b"?";

/// The transport protocol of conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Debug)]
struct Talk {
    socket: Socket,
    state: State,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Asked,
    Answered,
}

/// Conversations by number. Those that fail are closed.
#[derive(Debug)]
pub(super) struct Crowd {
    epoll: Epoll,
    talks: Vec<Option<Talk>>,
    free: Vec<usize>,
    waiting: usize,
    looked: Instant,
}

/// The number of a conversation, and the result of its question.
pub(super) type Outcome = (usize, io::Result<()>);

impl Crowd {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            talks: Vec::new(),
            free: Vec::new(),
            waiting: 0,
            looked: Instant::now(),
        })
    }

    /// Conversations that wait for an answer.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Begins one and asks.
    pub(super) fn begin(
        &mut self,
        transport: Transport,
        source: SocketAddr,
        target: SocketAddr,
    ) -> io::Result<()> {
        let kind = match transport {
            Transport::Tcp => Type::STREAM,
            Transport::Udp => Type::DGRAM,
        };
        let socket = Socket::new(Domain::for_address(target), kind.nonblocking(), None)?;
        // A port that an earlier connection has left, or another address uses.
        socket.set_reuse_address(transport == Transport::Tcp)?;
        socket.bind(&source.into())?;
        let state = match socket.connect(&target.into()) {
            Ok(()) => {
                (&socket).write_all(&QUESTION)?;
                State::Asked
            }
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => State::Connecting,
            Err(error) => return Err(error),
        };
        let number = self.free.pop().unwrap_or(self.talks.len());
        self.epoll.add(&socket, interest(number, state))?;
        let talk = Talk {
            socket,
            state,
            since: Instant::now(),
        };
        if number == self.talks.len() {
            self.talks.push(Some(talk));
        } else {
            self.talks[number] = Some(talk);
        }
        self.waiting += 1;
        Ok(())
    }

    /// Asks once more in a conversation that had its answer.
    pub(super) fn ask(&mut self, number: usize) -> io::Result<()> {
        let talk = self.talks[number].as_mut();
        let talk = talk.ok_or_else(|| io::Error::from(ErrorKind::NotConnected))?;
        (&talk.socket).write_all(&QUESTION)?;
        talk.state = State::Asked;
        talk.since = Instant::now();
        self.waiting += 1;
        Ok(())
    }

    /// Closes one.
    pub(super) fn close(&mut self, number: usize) {
        if self.talks[number].take().is_some() {
            self.free.push(number);
        }
    }

    /// Numbers of those that are open.
    pub(super) fn open(&self) -> Vec<usize> {
        let all = self.talks.iter().enumerate();
        all.filter_map(|(number, talk)| talk.as_ref().map(|_| number))
            .collect()
    }

    /// Waits a moment for answers and returns what ended meanwhile.
    pub(super) fn wait(&mut self, milliseconds: u16) -> io::Result<Vec<Outcome>> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = self.epoll.wait(&mut events, milliseconds)?;
        let mut ended = Vec::with_capacity(count);
        for event in &events[..count] {
            let number = usize::try_from(event.data()).map_err(io::Error::other)?;
            match self.go_on(number) {
                Ok(false) => {}
                Ok(true) => ended.push((number, Ok(()))),
                Err(error) => ended.push((number, Err(error))),
            }
        }
        if self.looked.elapsed() > LOOK {
            self.looked = Instant::now();
            for (number, talk) in self.talks.iter().enumerate() {
                let late =
                    |talk: &Talk| talk.state != State::Answered && talk.since.elapsed() > LIMIT;
                if talk.as_ref().is_some_and(late) {
                    ended.push((number, Err(ErrorKind::TimedOut.into())));
                }
            }
        }
        for (number, outcome) in &ended {
            self.waiting -= 1;
            if outcome.is_err() {
                self.close(*number);
            }
        }
        Ok(ended)
    }

    /// True if the answer is there.
    fn go_on(&mut self, number: usize) -> io::Result<bool> {
        let Some(talk) = self.talks[number].as_mut() else {
            return Ok(false);
        };
        match talk.state {
            State::Connecting => {
                if let Some(error) = talk.socket.take_error()? {
                    return Err(error);
                }
                (&talk.socket).write_all(&QUESTION)?;
                talk.state = State::Asked;
                let mut event = interest(number, talk.state);
                self.epoll.modify(&talk.socket, &mut event)?;
                Ok(false)
            }
            State::Asked => {
                let mut answer = [0; 2];
                match (&talk.socket).read(&mut answer) {
                    Ok(1) => {
                        talk.state = State::Answered;
                        Ok(true)
                    }
                    Ok(length) => Err(io::Error::other(format!("{length} bytes came back"))),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
                    Err(error) => Err(error),
                }
            }
            // It ended with nobody waiting.
            State::Answered => {
                self.close(number);
                Ok(false)
            }
        }
    }
}

fn interest(number: usize, state: State) -> EpollEvent {
    let flags = if state == State::Connecting {
        EpollFlags::EPOLLOUT
    } else {
        EpollFlags::EPOLLIN
    };
    EpollEvent::new(flags, number as u64)
}
