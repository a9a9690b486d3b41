//! Smooth weighted round-robin.

use model::snapshot::PortView;

use super::{Picker, Tried, at, start};

/// Takes turns in the order of [`model::rotation::Rotation`], which spreads the turns of a heavy endpoint evenly. A
/// pick is an atomic addition and a look-up.
pub(super) struct RoundRobin;

impl Picker for RoundRobin {
    fn pick(&self, port: &PortView, tried: &Tried) -> Option<usize> {
        let start = start(port, tried);
        let first = at(port, start)?;
        if !tried.contains(&port.endpoints[first]) {
            return Some(first);
        }
        (1..port.rotation.period() as u64)
            .filter_map(|step| at(port, start.wrapping_add(step)))
            .find(|index| !tried.contains(&port.endpoints[*index]))
    }
}
