//! The clients that may use the restricted frontends of a Service port: `SOURCE_RANGES`.

use std::collections::BTreeSet;

use proxy_common::{family::Family, net::Address as _, table::Table};

use crate::{
    plan::{
        Plan, Planner,
        problem::Full,
        write::{RangeKey, Write},
    },
    select::DesiredPort,
};

impl<F: Family> Planner<F> {
    /// Checks that there is room for the source ranges of a port beside those that
    /// it has.
    pub(super) fn check_ranges(&self, desired: &DesiredPort<F>, row: u32) -> Result<(), Full> {
        let wanted = wanted(desired, row);
        let more = wanted.difference(&self.source_ranges).count();
        if more > 0 && self.source_ranges.len() + more > self.capacity.source_ranges as usize {
            return Err(Full {
                table: Table::SourceRanges,
                capacity: self.capacity.source_ranges,
            });
        }
        Ok(())
    }

    /// Adds the source ranges of a port. Returns the writes that remove those
    /// it no longer has, for when no frontend needs them. Until then they take
    /// up room: see [`Planner::forget_ranges`].
    pub(super) fn place_ranges(
        &mut self,
        desired: &DesiredPort<F>,
        row: u32,
        plan: &mut Plan<F>,
    ) -> Vec<Write<F>> {
        if !self.ports.contains_key(&desired.name) {
            // What a lost owner of the row left.
            self.remove_ranges(row, plan);
        }
        let wanted = wanted(desired, row);
        let current = self.ranges_of(row);
        for &key in wanted.difference(&current) {
            self.source_ranges.insert(key);
            plan.writes.push(Write::SourceRange { key });
        }
        let gone = current.difference(&wanted);
        gone.map(|&key| Write::DeleteSourceRange { key }).collect()
    }

    /// Notes which source ranges some writes remove.
    pub(super) fn forget_ranges(&mut self, writes: &[Write<F>]) {
        for write in writes {
            if let Write::DeleteSourceRange { key } = write {
                self.source_ranges.remove(key);
            }
        }
    }

    /// Removes all source ranges of a row of `SERVICES`, before another port
    /// may get it.
    pub(super) fn remove_ranges(&mut self, row: u32, plan: &mut Plan<F>) {
        for key in self.ranges_of(row) {
            self.source_ranges.remove(&key);
            plan.writes.push(Write::DeleteSourceRange { key });
        }
    }

    /// Removes the source ranges that belong to no Service port; the ports have
    /// these rows of `SERVICES`.
    pub(super) fn remove_stray_ranges(&mut self, rows: &BTreeSet<u32>, plan: &mut Plan<F>) {
        let is_orphan = |key: &RangeKey<_>| key.service().is_none_or(|row| !rows.contains(&row));
        let orphans = self.source_ranges.iter().copied().filter(is_orphan);
        let orphans: Vec<_> = orphans.collect();
        for key in orphans {
            self.source_ranges.remove(&key);
            plan.writes.push(Write::DeleteSourceRange { key });
        }
    }

    fn ranges_of(&self, row: u32) -> BTreeSet<RangeKey<F::Addr>> {
        let first = RangeKey {
            bits: 0,
            ..RangeKey::new(row, F::Addr::ZERO, 0)
        };
        self.source_ranges
            .range(first..)
            .take_while(|key| key.range.service == first.range.service)
            .filter(|key| key.service() == Some(row))
            .copied()
            .collect()
    }
}

fn wanted<F: Family>(desired: &DesiredPort<F>, row: u32) -> BTreeSet<RangeKey<F::Addr>> {
    desired
        .source_ranges
        .iter()
        .map(|cidr| RangeKey::new(row, F::addr(cidr.network()), cidr.length()))
        .collect()
}
