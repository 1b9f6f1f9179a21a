//! Tables in memory, for tests.

use proxy_common::family::Family;

use super::Dataplane;
use crate::plan::{
    filter::FlowEnds,
    memory::{Failed, Memory},
    write::{Capacity, Tables, Write},
};

impl<F: Family> Dataplane<F> for Memory<F> {
    type Error = Failed;

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn read(&self) -> Result<Tables<F>, Self::Error> {
        Ok(self.tables.clone())
    }

    fn visit_flows(&self, visit: &mut dyn FnMut(&FlowEnds<F::Addr>)) -> Result<(), Self::Error> {
        self.flows.iter().for_each(visit);
        Ok(())
    }

    fn write(&mut self, write: &Write<F>) -> Result<(), Self::Error> {
        Memory::write(self, write)
    }
}
