//! Asks the programs what would become of a new flow (E26).

use aya::{
    Ebpf,
    maps::{Map, MapError},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};
use proxy_common::{
    explain::{Answer, Explain, Question},
    frontend::Frontend,
    masquerade::PortRange,
    service::SlotRange,
    table::Table,
};

use crate::dataplane::{
    load::{self, LoadError, Sizes},
    mapped::{Access, Mapped, MappedError},
    maps::Maps,
    pins::Pins,
};

/// Offset of `ifindex` in `struct __sk_buff`.
const IFINDEX: usize = 40;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("open table EXPLAIN")]
    Open(#[source] MapError),
    #[error("use table EXPLAIN")]
    Mapped(#[source] MappedError),
    #[error("table {0} is not pinned: another version of the agent made these tables")]
    NotPinned(String),
    #[error("the eBPF object has no program explain")]
    Missing,
    #[error("run program explain")]
    Run(#[source] ProgramError),
    #[error("program explain did not answer")]
    Unanswered,
}

/// The program `explain`, loaded and ready to be asked.
pub struct Explainer {
    ebpf: Ebpf,
    explain: Mapped<Explain>,
}

impl Explainer {
    /// Loads the program on the pinned maps. What it writes is its own.
    pub fn live(pins: &Pins) -> Result<Self, AskError> {
        // A map that is not there would be made and pinned.
        if let Some(name) = Pins::tables()
            .map(|(_, name)| name)
            .find(|name| !pins.map(name).exists())
        {
            return Err(AskError::NotPinned(name));
        }
        Self::load_from(Some(pins), Sizes::default())
    }

    /// Loads the program on empty maps of its own, which are pinned nowhere.
    pub fn offline(sizes: Sizes) -> Result<Self, AskError> {
        Self::load_from(None, sizes)
    }

    fn load_from(pins: Option<&Pins>, sizes: Sizes) -> Result<Self, AskError> {
        let mut ebpf = load::load_object(pins, sizes, PortRange::UNPRIVILEGED, 0)?;
        load::load_program(&mut ebpf, "explain")?;
        let map = ebpf
            .open(Table::Explain.name())
            .and_then(Map::from_map_data)
            .map_err(AskError::Open)?;
        let explain = Mapped::new(&map, Access::Write).map_err(AskError::Mapped)?;
        Ok(Self { ebpf, explain })
    }

    /// The maps that the program looks at.
    pub fn maps(&self) -> &impl Maps {
        &self.ebpf
    }

    /// Asks about an Ethernet frame as if it had come in by device `ifindex`,
    /// or 0 where no device matters.
    pub fn ask(
        &mut self,
        question: Question,
        frame: &[u8],
        ifindex: u32,
    ) -> Result<Answer, AskError> {
        // One row, which is there.
        let _ = self.explain.set(
            0,
            Explain {
                question,
                answer: NO_ANSWER,
            },
        );
        let mut context = [0; IFINDEX + 4];
        context[IFINDEX..].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let program: &SchedClassifier = self
            .ebpf
            .program("explain")
            .and_then(|program| program.try_into().ok())
            .ok_or(AskError::Missing)?;
        program.test_run(options).map_err(AskError::Run)?;
        let answer = self.explain.get(0).map(|explain| explain.answer);
        answer
            .filter(|answer| answer.decision != Answer::UNANSWERED)
            .ok_or(AskError::Unanswered)
    }
}

const NO_ANSWER: Answer = Answer {
    decision: Answer::UNANSWERED,
    client: 0,
    masquerade: 0,
    flags: 0,
    backend: 0,
    frontend: Frontend {
        service: Frontend::NO_SERVICE,
        flags: 0,
        kind: 0,
        tag: 0,
    },
    range: SlotRange::reject(),
};
