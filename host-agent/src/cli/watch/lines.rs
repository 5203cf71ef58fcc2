//! Changes as lines for people: when, which service, what from what to what, and how many of its nodes pass now.

use std::{collections::BTreeMap, time::SystemTime};

use unicode_width::UnicodeWidthStr as _;

use super::difference::{Field, difference, fields};
use crate::{
    api::types::{CatalogEvent, Health, Node, NodeAdded, NodeChanged, NodeRemoved, Resynchronised},
    cli::output::{
        Paint, Tone,
        text::{clock, count, printable},
    },
};

/// Makes lines of events, and remembers what they add up to.
pub(super) struct Lines {
    paint: Paint,
    known: BTreeMap<String, Vec<Node>>,
    begun: bool,
    /// Of the widest service and address so far, so that lines stay below one another.
    widths: [usize; 2],
}

impl Lines {
    pub(super) fn new(paint: Paint) -> Self {
        Self { paint, known: BTreeMap::new(), begun: false, widths: [0; 2] }
    }

    /// The lines of an event.
    pub(super) fn tell(&mut self, time: SystemTime, event: CatalogEvent) -> String {
        match event {
            CatalogEvent::Resynchronised(all) if self.begun => self.anew(time, &all),
            CatalogEvent::Resynchronised(all) => self.first(time, all),
            event => self.change(time, &event),
        }
    }

    /// The line of an interruption.
    pub(super) fn interrupted(&self, time: SystemTime, cause: &str) -> String {
        self.notice(time, Tone::Bad, &format!("interrupted: {cause}"))
    }

    /// Every service in figures.
    fn first(&mut self, time: SystemTime, all: Resynchronised) -> String {
        self.begun = true;
        self.known = all.services;
        self.widths[0] = self.known.keys().map(|name| name.width()).max().unwrap_or_default();
        let addresses = self.known.values().flatten().map(|node| node.address.to_string().len());
        self.widths[1] = addresses.max().unwrap_or_default();
        if self.known.is_empty() {
            return self.notice(time, Tone::Faint, "no services yet");
        }
        let line = |name: &String, nodes: &Vec<Node>| {
            let text = format!("{}, {} passing", count(nodes.len(), "node"), passing(nodes));
            format!("{}{}\n", self.head(time, name), self.paint.paint(Tone::Faint, &text))
        };
        self.known.iter().map(|(name, nodes)| line(name, nodes)).collect()
    }

    /// What changed while nobody told.
    fn anew(&mut self, time: SystemTime, all: &Resynchronised) -> String {
        let old = std::mem::take(&mut self.known);
        let names: std::collections::BTreeSet<&String> = old.keys().chain(all.services.keys()).collect();
        let of = |services: &BTreeMap<String, Vec<Node>>, name| services.get(name).cloned().unwrap_or_default();
        let events: Vec<CatalogEvent> =
            names.into_iter().flat_map(|name| difference(name, &of(&old, name), &of(&all.services, name))).collect();
        self.known = old;
        let what = if events.is_empty() { "nothing was missed".to_owned() } else { count(events.len(), "change") };
        let mut out = self.notice(time, Tone::Strong, &format!("resynchronised: {what}"));
        out.extend(events.iter().map(|event| self.change(time, event)));
        out
    }

    fn change(&mut self, time: SystemTime, event: &CatalogEvent) -> String {
        let (service, node, verb, tone, text) = match event {
            CatalogEvent::Added(NodeAdded { service, node }) => {
                (service, node, "added  ", Tone::Good, self.description(node))
            }
            CatalogEvent::Removed(NodeRemoved { service, node }) => {
                let was = format!("was {}, weight {}", node.health.as_str(), node.weight);
                (service, node, "removed", Tone::Bad, self.paint.paint(Tone::Faint, &was))
            }
            CatalogEvent::Changed(NodeChanged { service, old, new }) => {
                let text: Vec<String> = fields(old, new).iter().map(|field| self.field(field)).collect();
                (service, new, "changed", Tone::Warning, text.join(", "))
            }
            CatalogEvent::Resynchronised(_) => return String::new(),
        };
        let nodes = self.known.entry(service.clone()).or_default();
        nodes.retain(|other| other.address != node.address);
        if !matches!(event, CatalogEvent::Removed(_)) {
            nodes.push(node.clone());
        }
        let now = format!("({} of {} passing)", passing(nodes), nodes.len());
        if nodes.is_empty() {
            self.known.remove(service);
        }
        let address = node.address.to_string();
        self.widths = [self.widths[0].max(service.width()), self.widths[1].max(address.len())];
        let (head, verb) = (self.head(time, service), self.paint.paint(tone, verb));
        let now = self.paint.paint(Tone::Faint, &now);
        format!("{head}{verb}  {address:width$}  {text}  {now}\n", width = self.widths[1])
    }

    /// Time and service.
    fn head(&self, time: SystemTime, service: &str) -> String {
        let rest = " ".repeat(self.widths[0].saturating_sub(service.width()));
        let (time, service) = (self.paint.paint(Tone::Faint, &clock(time)), self.paint.paint(Tone::Strong, service));
        format!("{time}  {service}{rest}  ")
    }

    fn notice(&self, time: SystemTime, tone: Tone, text: &str) -> String {
        format!("{}  {}\n", self.paint.paint(Tone::Faint, &clock(time)), self.paint.paint(tone, &printable(text)))
    }

    fn description(&self, node: &Node) -> String {
        let mut parts = vec![self.health(node.health.as_str()), format!("weight {}", node.weight)];
        let labels = [("zone", &node.zone), ("version", &node.version), ("tags", &node.tags.join(","))];
        let labels = labels.into_iter().filter(|(_, text)| !text.is_empty());
        parts.extend(labels.map(|(name, text)| format!("{name} {}", printable(text))));
        if node.id != node.address.to_string() {
            parts.push(format!("id {}", printable(&node.id)));
        }
        parts.join(", ")
    }

    fn field(&self, field: &Field) -> String {
        let shown = |text: &str| match text {
            "" => "none".to_owned(),
            text if field.name == "health" => self.health(text),
            text => printable(text),
        };
        format!("{} {} → {}", printable(&field.name), shown(&field.old), shown(&field.new))
    }

    fn health(&self, name: &str) -> String {
        let tone = match name {
            "passing" => Tone::Good,
            "critical" => Tone::Bad,
            _ => Tone::Warning,
        };
        self.paint.paint(tone, name)
    }
}

fn passing(nodes: &[Node]) -> usize {
    nodes.iter().filter(|node| node.health == Health::Passing).count()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn node(port: u16, weight: u32, health: Health) -> Node {
        let node = Node::from(&waypost_catalog::Node::at(([10, 0, 0, 1], port).into()));
        Node { weight, health, ..node }
    }

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn all<const N: usize>(services: [(&str, Vec<Node>); N]) -> CatalogEvent {
        let services = services.into_iter().map(|(name, nodes)| (name.to_owned(), nodes)).collect();
        CatalogEvent::Resynchronised(Resynchronised { version: 1, services })
    }

    #[test]
    fn a_line_tells_when_and_what_from_what_to_what() {
        let mut lines = Lines::new(Paint::PLAIN);
        let service = || "web".to_owned();
        let (old, new) = (node(80, 2, Health::Passing), node(80, 3, Health::Critical));
        let added = Node { zone: "eu-1".into(), id: "web-2".into(), ..node(8080, 1, Health::Passing) };
        let removed = NodeRemoved { service: service(), node: new.clone() };
        let out = [
            lines.tell(at(0), all([("orders", vec![]), ("web", vec![old.clone()])])),
            lines.tell(at(1), CatalogEvent::Added(NodeAdded { service: service(), node: added })),
            lines.tell(at(2), CatalogEvent::Changed(NodeChanged { service: service(), old, new })),
            lines.tell(at(3), CatalogEvent::Removed(removed)),
            lines.interrupted(at(4), "the watch fell silent"),
        ];
        let expected = "\
00:00:00.000  orders  0 nodes, 0 passing
00:00:00.000  web     1 node, 1 passing
00:00:01.000  web     added    10.0.0.1:8080  passing, weight 1, zone eu-1, id web-2  (2 of 2 passing)
00:00:02.000  web     changed  10.0.0.1:80    health passing → critical, weight 2 → 3  (1 of 2 passing)
00:00:03.000  web     removed  10.0.0.1:80    was critical, weight 3  (1 of 1 passing)
00:00:04.000  interrupted: the watch fell silent
";
        assert_eq!(out.concat(), expected);
    }

    #[test]
    fn a_new_start_tells_what_was_missed() {
        let mut lines = Lines::new(Paint::PLAIN);
        let (first, second) = (node(80, 1, Health::Passing), node(81, 1, Health::Passing));
        lines.tell(at(0), all([("web", vec![first.clone()]), ("db", vec![first.clone()])]));
        let out = lines.tell(at(1), all([("web", vec![first.clone(), second.clone()])]));
        let expected = "\
00:00:01.000  resynchronised: 2 changes
00:00:01.000  db   removed  10.0.0.1:80  was passing, weight 1  (0 of 0 passing)
00:00:01.000  web  added    10.0.0.1:81  passing, weight 1  (2 of 2 passing)
";
        assert_eq!(out, expected);
        let out = lines.tell(at(2), all([("web", vec![first, second])]));
        assert_eq!(out, "00:00:02.000  resynchronised: nothing was missed\n");
    }

    #[test]
    fn text_of_others_cannot_command_the_terminal() {
        let mut lines = Lines::new(Paint::PLAIN);
        let node = Node { zone: "\u{1b}[2J".into(), ..node(80, 1, Health::Passing) };
        let out = lines.tell(at(0), CatalogEvent::Added(NodeAdded { service: "web".into(), node }));
        assert!(!out.contains('\u{1b}'), "{out:?}");
    }
}
