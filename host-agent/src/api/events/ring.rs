//! The last changes of the catalog, numbered, and where a reader stands among them. Pure: catalogs come in, changes come
//! out; who is too far behind, or was with an earlier run of the agent, gets everything instead.

use std::{collections::VecDeque, fmt, str::FromStr, sync::Arc};

use waypost_catalog::{Catalog, Service, ServiceName, model::NodeEntry};

/// Where a reader stands: after the change of this number, in this run of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Of the run; another one for each.
    pub epoch: u64,
    /// Version of the catalog.
    pub version: u64,
    /// Number of the change.
    pub seq: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}", self.epoch, self.version, self.seq)
    }
}

/// A text that is no position.
#[derive(Debug, PartialEq, Eq)]
pub struct NoPosition;

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let parse = || {
            let (epoch, rest) = text.split_once('-')?;
            let (version, seq) = rest.split_once('-')?;
            let epoch = u64::from_str_radix(epoch, 16).ok()?;
            Some(Self { epoch, version: version.parse().ok()?, seq: seq.parse().ok()? })
        };
        parse().ok_or(NoPosition)
    }
}

/// What happened to a node.
#[derive(Clone, Debug)]
pub enum Change {
    /// It was not there before.
    Added(Arc<NodeEntry>),
    /// It is another at the same address.
    Changed(Arc<NodeEntry>, Arc<NodeEntry>),
    /// It is gone.
    Removed(Arc<NodeEntry>),
}

/// A change and its number.
#[derive(Clone, Debug)]
pub struct Numbered {
    /// Version of the catalog that has it.
    pub version: u64,
    /// Its number.
    pub seq: u64,
    /// The service.
    pub service: ServiceName,
    /// The change.
    pub change: Change,
}

/// What a reader gets next.
#[derive(Debug)]
pub enum Batch {
    /// It has everything.
    Nothing,
    /// These changes, and then it stands at the last of them.
    Changes(Vec<Arc<Numbered>>),
    /// Everything, and then it stands there.
    All(Arc<Catalog>, Position),
}

/// The last changes.
#[derive(Debug)]
pub struct Ring {
    epoch: u64,
    capacity: usize,
    changes: VecDeque<Arc<Numbered>>,
    /// Number of the last change.
    last: u64,
    catalog: Option<Arc<Catalog>>,
}

impl Ring {
    /// Nothing yet. It keeps so many changes.
    pub fn new(epoch: u64, capacity: usize) -> Self {
        Self { epoch, capacity, changes: VecDeque::new(), last: 0, catalog: None }
    }

    /// Takes in the next catalog. The first one is where everybody begins.
    pub fn advance(&mut self, next: Arc<Catalog>) {
        if let Some(old) = self.catalog.replace(Arc::clone(&next)) {
            let (none, version) = (Service::default(), next.version());
            for (name, service) in old.services() {
                let now = next.services().get(name).map_or(&none, Arc::as_ref);
                if now.changed_in() != service.changed_in() || now.hash() != service.hash() {
                    self.compare(name, service, now, version);
                }
            }
            for (name, service) in next.services().iter().filter(|(name, _)| !old.services().contains_key(*name)) {
                self.compare(name, &none, service, version);
            }
        }
    }

    fn compare(&mut self, name: &ServiceName, old: &Service, new: &Service, version: u64) {
        for (address, entry) in old.entries() {
            if !new.entries().contains_key(address) {
                self.push(version, name, Change::Removed(Arc::clone(entry)));
            }
        }
        for (address, entry) in new.entries() {
            match old.entries().get(address) {
                None => self.push(version, name, Change::Added(Arc::clone(entry))),
                Some(before) if Arc::ptr_eq(before, entry) || before.node() == entry.node() => {}
                Some(before) => self.push(version, name, Change::Changed(Arc::clone(before), Arc::clone(entry))),
            }
        }
    }

    fn push(&mut self, version: u64, service: &ServiceName, change: Change) {
        self.last += 1;
        if self.changes.len() == self.capacity {
            self.changes.pop_front();
        }
        self.changes.push_back(Arc::new(Numbered { version, seq: self.last, service: service.clone(), change }));
    }

    /// What comes after a position, at most so many changes of it; from the start without one.
    pub fn after(&self, position: Option<&Position>, most: usize) -> Batch {
        let Some(catalog) = &self.catalog else { return Batch::Nothing };
        let oldest = self.last - self.changes.len() as u64;
        match position {
            Some(at) if at.epoch == self.epoch && (oldest..=self.last).contains(&at.seq) => {
                let skip = usize::try_from(at.seq - oldest).unwrap_or(usize::MAX);
                let changes: Vec<_> = self.changes.iter().skip(skip).take(most).map(Arc::clone).collect();
                if changes.is_empty() { Batch::Nothing } else { Batch::Changes(changes) }
            }
            _ => Batch::All(Arc::clone(catalog), self.here(catalog)),
        }
    }

    fn here(&self, catalog: &Catalog) -> Position {
        Position { epoch: self.epoch, version: catalog.version(), seq: self.last }
    }

    /// The position of a change.
    pub fn position(&self, change: &Numbered) -> Position {
        Position { epoch: self.epoch, version: change.version, seq: change.seq }
    }
}

#[cfg(test)]
mod tests {
    use waypost_catalog::Node;

    use super::*;

    /// The next version, in which web has nodes at these ports with these weights.
    fn with(before: &Catalog, nodes: &[(u16, u32)]) -> Arc<Catalog> {
        let nodes =
            nodes.iter().map(|(port, weight)| Node { weight: *weight, ..Node::at(([10, 0, 0, 1], *port).into()) });
        let web = ServiceName::new("web").unwrap();
        Arc::new(before.updated([(web, nodes.collect())]).0.unwrap())
    }

    fn told(batch: Batch) -> Vec<String> {
        let Batch::Changes(changes) = batch else { panic!("{batch:?}") };
        let port = |entry: &NodeEntry| entry.node().address.port();
        let text = |numbered: &Arc<Numbered>| match &numbered.change {
            Change::Added(entry) => format!("{}+{}", numbered.seq, port(entry)),
            Change::Removed(entry) => format!("{}-{}", numbered.seq, port(entry)),
            Change::Changed(old, new) => {
                format!("{}={}:{}>{}", numbered.seq, port(new), old.node().weight, new.node().weight)
            }
        };
        changes.iter().map(text).collect()
    }

    fn at(seq: u64) -> Position {
        Position { epoch: 7, version: 1, seq }
    }

    #[test]
    fn changes_are_told_from_where_a_reader_stands_in_order_and_once() {
        let mut ring = Ring::new(7, 100);
        assert!(matches!(ring.after(None, 9), Batch::Nothing), "there is no catalog yet");
        let first = with(&Catalog::default(), &[(1, 1), (2, 1)]);
        ring.advance(Arc::clone(&first));
        let Batch::All(catalog, position) = ring.after(None, 9) else { panic!() };
        assert_eq!((catalog.version(), position), (1, at(0)));
        let second = with(&first, &[(2, 5), (3, 1)]);
        ring.advance(Arc::clone(&second));
        ring.advance(with(&second, &[]));
        assert_eq!(told(ring.after(Some(&at(0)), 9)), ["1-1", "2=2:1>5", "3+3", "4-2", "5-3"]);
        assert_eq!(told(ring.after(Some(&at(2)), 2)), ["3+3", "4-2"]);
        assert!(matches!(ring.after(Some(&at(5)), 9), Batch::Nothing));
    }

    #[test]
    fn who_is_too_far_behind_or_was_with_another_run_gets_everything() {
        let mut ring = Ring::new(7, 2);
        let mut catalog = with(&Catalog::default(), &[(1, 1)]);
        for weight in 2..6 {
            ring.advance(Arc::clone(&catalog));
            catalog = with(&catalog, &[(1, weight)]);
        }
        assert_eq!(told(ring.after(Some(&at(1)), 9)).len(), 2);
        for position in [at(0), at(4), Position { epoch: 8, ..at(3) }] {
            let Batch::All(_, here) = ring.after(Some(&position), 9) else { panic!("{position}") };
            assert_eq!((here.seq, here.epoch), (3, 7));
        }
    }

    #[test]
    fn a_position_is_read_back_from_its_text() {
        let position = Position { epoch: u64::MAX, version: 12, seq: 345 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for text in ["", "1", "1-2", "x-1-1", "1-1-1-1", "1--1"] {
            assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text}");
        }
    }

    #[test]
    fn what_changed_and_changed_back_between_two_looks_is_no_change() {
        let mut ring = Ring::new(7, 100);
        let first = with(&Catalog::default(), &[(1, 1)]);
        ring.advance(Arc::clone(&first));
        let other = with(&first, &[(1, 2)]);
        ring.advance(with(&other, &[(1, 1)]));
        assert!(matches!(ring.after(Some(&at(0)), 9), Batch::Nothing));
    }
}
