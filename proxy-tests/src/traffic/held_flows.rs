//! Many flows that are open at a time.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Sources,
    crowd::{Crowd, Transport},
    descriptors,
};
use crate::host::Host;

/// Questions at a time: fewer than any socket has room for.
const WIDTH: usize = 128;

/// Flows of one client, each with a socket of its own.
#[derive(Clone, Debug)]
pub struct HeldFlows {
    pub transport: Transport,
    pub target: SocketAddr,
    pub count: usize,
}

/// Each of the flows was asked once.
#[derive(Clone, Debug, Default)]
pub struct Round {
    pub asked: usize,
    pub answered: usize,
    /// Number of failures by error.
    pub failures: BTreeMap<String, usize>,
    pub took: Duration,
}

impl HeldFlows {
    /// Opens them all and asks in each; when all are open, asks in each once more.
    pub fn run(&self, client: &Host, sources: &Sources) -> Result<[Round; 2]> {
        client.run(|| {
            let threads = descriptors::threads_for(self.count)?;
            let part = self.count.div_ceil(threads);
            let all_open = Barrier::new(threads);
            let rounds = thread::scope(|scope| {
                let workers: Vec<_> = (0..threads)
                    .map(|thread| {
                        let first = thread * part;
                        let own = sources.clone().skip(first);
                        let own = own.take(part.min(self.count - first));
                        scope.spawn(|| self.ask_twice(own, &all_open))
                    })
                    .collect();
                let ended = workers.into_iter().map(|worker| worker.join().ok());
                let ended = ended.map(|rounds| rounds.context("a thread panicked"));
                ended.collect::<Result<Vec<_>>>()
            })?;
            let mut sum = [Round::default(), Round::default()];
            for rounds in rounds {
                for (sum, round) in sum.iter_mut().zip(rounds?) {
                    sum.add(round);
                }
            }
            Ok(sum)
        })
    }

    fn ask_twice(
        &self,
        sources: impl Iterator<Item = SocketAddr>,
        all_open: &Barrier,
    ) -> io::Result<[Round; 2]> {
        let opened = descriptors::start_afresh()
            .and_then(|()| Crowd::new())
            .and_then(|mut crowd| {
                let round = each(&mut crowd, sources, |crowd, source| {
                    crowd.begin(self.transport, source, self.target)
                })?;
                Ok((crowd, round))
            });
        all_open.wait();
        let (mut crowd, opened) = opened?;
        let open = crowd.open();
        let again = each(&mut crowd, open.into_iter(), Crowd::ask)?;
        Ok([opened, again])
    }
}

fn each<T>(
    crowd: &mut Crowd,
    mut questions: impl Iterator<Item = T>,
    ask: impl Fn(&mut Crowd, T) -> io::Result<()>,
) -> io::Result<Round> {
    let mut round = Round::default();
    let start = Instant::now();
    let mut all_asked = false;
    while !all_asked || crowd.waiting() > 0 {
        while !all_asked && crowd.waiting() < WIDTH {
            let Some(question) = questions.next() else {
                all_asked = true;
                break;
            };
            round.asked += 1;
            if let Err(error) = ask(crowd, question) {
                round.note(&error);
            }
        }
        for (_, outcome) in crowd.wait(1)? {
            match outcome {
                Ok(()) => round.answered += 1,
                Err(error) => round.note(&error),
            }
        }
    }
    round.took = start.elapsed();
    Ok(round)
}

impl Round {
    fn note(&mut self, error: &io::Error) {
        *self.failures.entry(error.to_string()).or_default() += 1;
    }

    fn add(&mut self, other: Self) {
        self.asked += other.asked;
        self.answered += other.answered;
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        self.took = self.took.max(other.took);
    }
}
