//! Packets by chance, in sequences, through all hooks of two datapaths: what must
//! hold of every packet is checked after each.
//!
//! ```text
//! generate ─► mutate ─► Step ─► Player ── two datapaths that must do the same
//!                                 ├─ check     of each run: bytes, verdict, counters
//!                                 └─ exchange  of a question: answer and errors come back
//! ```
//!
//! A run is sequences with consecutive seeds; each begins with empty flow tables,
//! so that its seed is enough to see it again. One that fails is made as short as
//! it can be and kept as text that does not depend on how packets are generated.

mod check;
mod exchange;
mod frame;
mod generate;
mod mutate;
mod player;
mod step;
mod world;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result};
use fastrand::Rng;

use self::{
    generate::Generator,
    player::Player,
    step::{Sequence, Twin},
};
use crate::{exec, family::Family, name, netns::Netns, packet::Cast};

/// The folder of sequences that failed once.
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");

/// Steps of a sequence.
const LENGTH: std::ops::Range<usize> = 5..40;
/// Combinations of what the second datapath differs in.
const TWINS: [Twin; 3] = [
    Twin {
        slow: true,
        hints: false,
    },
    Twin {
        slow: false,
        hints: true,
    },
    Twin {
        slow: true,
        hints: true,
    },
];

/// A device that leads everywhere, for `ip`.
const DEVICES: &str = "link set lo up\n\
                       link add near type veth peer name far\n\
                       link set near up\n\
                       link set far up\n";

/// The figures of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub sequences: u64,
    /// Runs of a packet through a hook.
    pub packets: u64,
    /// Questions that a backend has answered.
    pub answered: u64,
    pub elapsed: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self {
            sequences,
            packets,
            answered,
            elapsed,
        } = self;
        let rate = u128::from(packets) * 1000 / elapsed.as_millis().max(1);
        write!(
            f,
            "{packets} packets in {sequences} sequences, {answered} questions answered, \
             {rate} packets/s, all as they should be"
        )
    }
}

/// A sequence after which something does not hold.
#[derive(Debug)]
pub struct Failure {
    seed: u64,
    /// As short as it could be made.
    sequence: Sequence,
    error: Error,
}

/// Plays sequences from `seed` on until the time is over or one fails.
pub fn run(seed: u64, time: Duration) -> Result<Report, Box<Failure>> {
    on_a_node(move || {
        let mut player = Player::new();
        let start = Instant::now();
        let mut report = Report::default();
        while report.elapsed < time {
            let seed = seed.wrapping_add(report.sequences);
            play_seed(&mut player, seed)?;
            report = Report {
                sequences: report.sequences + 1,
                packets: player.packets,
                answered: player.answered,
                elapsed: start.elapsed(),
            };
        }
        Ok(report)
    })
}

/// Plays what was written down in the corpus.
pub fn replay() -> Result<()> {
    on_a_node(|| {
        let mut player = Player::new();
        for entry in fs::read_dir(CORPUS)? {
            let path = entry?.path();
            let sequence = fs::read_to_string(&path)?.parse();
            sequence
                .and_then(|sequence| play(&mut player, &sequence))
                .with_context(|| path.display().to_string())?;
        }
        Ok(())
    })
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:#}", self.error)?;
        writeln!(f, "\nagain: cargo xtask fuzz --seed {}\n", self.seed)?;
        write!(f, "{}", self.sequence)
    }
}

impl Failure {
    /// Writes the sequence to the corpus, and returns where.
    pub fn keep(&self) -> Result<PathBuf> {
        let path = Path::new(CORPUS).join(format!("seed-{}.txt", self.seed));
        let error = format!("{:#}", self.error).replace('\n', "\n# ");
        let text = format!("# {error}\n{}", self.sequence);
        fs::create_dir_all(CORPUS)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

/// Generates and plays the sequence of a seed.
fn play_seed(player: &mut Player, seed: u64) -> Result<(), Box<Failure>> {
    let mut rng = Rng::with_seed(seed);
    let twin = TWINS[rng.usize(..TWINS.len())];
    let mut sequence = Sequence {
        twin,
        steps: Vec::new(),
    };
    player.begin(twin);
    for _ in 0..rng.usize(LENGTH) {
        let family = if rng.bool() { Family::V4 } else { Family::V6 };
        let flows = player.flows(family);
        let step = Generator {
            rng: &mut rng,
            cast: Cast::of(family),
            flows,
        }
        .step();
        sequence.steps.push(step.clone());
        if let Err(error) = player.step(&step) {
            return Err(Box::new(shrunk(player, seed, sequence, error)));
        }
    }
    match player.end() {
        Ok(()) => Ok(()),
        Err(error) => Err(Box::new(shrunk(player, seed, sequence, error))),
    }
}

fn play(player: &mut Player, sequence: &Sequence) -> Result<()> {
    player.begin(sequence.twin);
    for (step, index) in sequence.steps.iter().zip(1..) {
        player.step(step).with_context(|| format!("step {index}"))?;
    }
    player.end()
}

/// Leaves out steps while what remains still fails.
fn shrunk(player: &mut Player, seed: u64, sequence: Sequence, error: Error) -> Failure {
    let mut failure = Failure {
        seed,
        sequence,
        error,
    };
    let mut index = failure.sequence.steps.len();
    while index > 0 {
        index -= 1;
        let mut fewer = failure.sequence.clone();
        fewer.steps.remove(index);
        if let Err(error) = play(player, &fewer) {
            failure = Failure {
                sequence: fewer,
                error,
                ..failure
            };
            index = index.min(failure.sequence.steps.len());
        }
    }
    failure
}

/// Runs `work` on one CPU, in a network namespace where routes lead to all
/// backends, so that its seed and not the machine decides what happens.
fn on_a_node<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let work = move || {
        let netns = Netns::create(&name::unique()).expect("a network namespace");
        netns.enter().expect("enter it");
        for family in ["ipv4", "ipv6"] {
            let path = format!("/proc/sys/net/{family}/conf/all/forwarding");
            fs::write(&path, "1").expect(&path);
        }
        let mut commands = String::from(DEVICES);
        for (family, length, all) in [(Family::V4, 32, "0.0.0.0/0"), (Family::V6, 128, "::/0")] {
            let node = Cast::of(family).node();
            commands.extend([
                format!("addr add {node}/{length} dev near nodad\n"),
                format!("route add {all} dev near\n"),
            ]);
        }
        exec::run("ip", &["-batch", "-"], &commands).expect("devices");
        work()
    };
    match std::thread::spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
