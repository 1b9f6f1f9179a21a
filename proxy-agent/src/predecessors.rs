//! Takes over from agents of other layout versions, older or newer: their
//! programs serve until our tables are complete, their open flows are carried
//! over where they can be read, and then their programs go.

use anyhow::Context as _;
use proxy_common::family::{Family, V4, V6};
use tracing::{info, warn};

use crate::{
    dataplane::{
        other_layouts::{OtherLayout, OtherLayoutError},
        pins::Pins,
        tables::KernelFamily,
    },
    notice::Notice,
};

/// The layout versions that are still in place.
#[derive(Debug)]
pub struct Predecessors {
    pins: Pins,
    layouts: Vec<OtherLayout>,
    failure: Notice<Option<String>>,
}

impl Predecessors {
    /// Finds them, and prepares our tables for their flows. To be called before
    /// a planner reads the tables.
    pub fn find(pins: &Pins) -> Self {
        let found = Self {
            pins: pins.clone(),
            layouts: OtherLayout::find(pins),
            failure: Notice::default(),
        };
        for layout in &found.layouts {
            let flows = layout.has_known_flows();
            info!(
                "programs of another version are in place below {} and serve until the new tables are complete; open flows are {}",
                layout.path().display(),
                if flows {
                    "carried over"
                } else {
                    "not carried over, their tables differ"
                }
            );
            if flows {
                Self::report::<V4>(layout.carry_filters_over::<V4>(pins).map_err(Into::into));
                Self::report::<V6>(layout.carry_filters_over::<V6>(pins).map_err(Into::into));
            }
        }
        found
    }

    pub fn is_empty(&self) -> bool {
        self.layouts.is_empty()
    }

    /// Copies their open flows to complete tables.
    pub fn carry_flows_over(&self) {
        for layout in self
            .layouts
            .iter()
            .filter(|layout| layout.has_known_flows())
        {
            self.carry::<V4>(layout);
            self.carry::<V6>(layout);
        }
    }

    fn carry<F: KernelFamily>(&self, layout: &OtherLayout) {
        let carried = layout.carry_flows_over::<F>(&self.pins);
        Self::report::<F>(carried.map(|flows| {
            info!(family = F::NAME, flows, "open flows carried over");
        }));
    }

    fn report<F: Family>(result: Result<(), OtherLayoutError>) {
        if let Err(error) = result {
            let error = anyhow::Error::new(error);
            warn!(
                family = F::NAME,
                "some open flows are not carried over: {error:#}"
            );
        }
    }

    /// Takes their programs off wherever ours are now, and removes what is no
    /// longer in use. Devices that we do not serve yet keep them. To be called
    /// again until nothing is left.
    pub fn replace(&mut self, unserved: impl Fn(u32) -> bool) {
        let (pins, mut error) = (&self.pins, None);
        self.layouts.retain(|layout| {
            let removed = layout
                .unlink_devices(&unserved)
                .and_then(|()| layout.remove())
                .with_context(|| format!("below {}", pins.root().display()));
            match removed {
                Ok(true) => info!("replaced what was below {}", layout.path().display()),
                Ok(false) => {}
                Err(failed) => error = Some(format!("{failed:#}")),
            }
            layout.path().exists()
        });
        if self.failure.is_news(error.clone())
            && let Some(error) = error
        {
            warn!("cannot replace the programs of another version, trying again: {error}");
        }
    }
}
