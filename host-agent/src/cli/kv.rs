//! `waypost kv watch`: keys of etcd and their values, as they change.

use std::{collections::BTreeMap, time::SystemTime};

use clap::{Args, Subcommand};
use serde::Serialize;
use waypost_registry::{KeyChange, Mirror, MirrorEvent, MirrorOptions, format::rfc3339};

use super::{
    follow::{Following, News, tell_all},
    output::{
        self, Paint, Tone,
        text::{bytes, clock, printable},
    },
    source::{Target, TargetOptions},
    watch::interrupted,
};
use crate::{
    api::{
        types::{Encoding, Value, ValueEvent, ValueRemoved, Values},
        values::value,
    },
    client::Path,
};

/// The events of `GET /v1/values/events`.
const NAMES: &[&str] = &["put", "removed", "resynchronised"];
/// Characters of a value that people are shown.
const SHOWN: usize = 160;

#[derive(Debug, Subcommand)]
pub(super) enum Kv {
    /// Print a key, or all keys that begin alike, and then every change
    Watch(Watch),
}

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// The key
    #[arg(value_name = "KEY", required_unless_present = "prefix", conflicts_with = "prefix")]
    key: Option<String>,
    /// Every key that begins so
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    #[command(flatten)]
    source: TargetOptions,
    /// Print each event as one line of JSON
    #[arg(long)]
    json: bool,
}

impl Watch {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self { key, prefix, source, json } = self;
        let mut lines = Lines::new(Paint::stdout());
        let tell = |news: News<ValueEvent>| match (news, json) {
            (News::Event(event), true) => output::print_json(&Line::new(SystemTime::now(), &event)),
            (News::Event(event), false) => output::print(&lines.tell(SystemTime::now(), event)),
            (News::Interrupted(cause), true) => Ok(interrupted(&cause)),
            (News::Interrupted(cause), false) => output::print(&lines.interrupted(SystemTime::now(), &cause)),
        };
        match source.target()? {
            Target::Agent(client) => {
                let path = Path::of(&["values", "events"]);
                let path = path.with("key", key.as_deref()).with("prefix", prefix.as_deref());
                tell_all(client.events(path, NAMES), tell).await
            }
            Target::Etcd(connector) => {
                let options = match key {
                    Some(key) => MirrorOptions::single_key(key),
                    None => MirrorOptions::new(prefix.unwrap_or_default()),
                };
                let (mirror, events) = Mirror::start(connector, options);
                let outcome = tell_all(Following::new(events, mirror.status(), read), tell).await;
                mirror.shutdown().await;
                outcome
            }
        }
    }
}

/// What happened to the keys, as the agent would tell it.
fn read(event: MirrorEvent) -> Vec<ValueEvent> {
    match event {
        MirrorEvent::Synced { entries, revision, .. } => {
            let values = entries.iter().map(|entry| value(entry)).collect();
            vec![ValueEvent::Resynchronised(Values { revision, values })]
        }
        MirrorEvent::Changed { changes, .. } => changes
            .into_iter()
            .map(|change| match change {
                KeyChange::Put(put) => ValueEvent::Put(value(&put)),
                KeyChange::Delete { key, revision } => {
                    ValueEvent::Removed(ValueRemoved { key, mod_revision: revision })
                }
            })
            .collect(),
    }
}

/// A line of JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: Flat<'a>,
}

/// An event with its parts beside its name.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Flat<'a> {
    Put(&'a Value),
    Removed(&'a ValueRemoved),
    Resynchronised(&'a Values),
}

impl<'a> Line<'a> {
    fn new(time: SystemTime, event: &'a ValueEvent) -> Self {
        let event = match event {
            ValueEvent::Put(value) => Flat::Put(value),
            ValueEvent::Removed(removed) => Flat::Removed(removed),
            ValueEvent::Resynchronised(values) => Flat::Resynchronised(values),
        };
        Self { time: rfc3339(time), event }
    }
}

/// Makes lines of events, and remembers the values, to tell what a key held before.
struct Lines {
    paint: Paint,
    known: BTreeMap<String, Value>,
    begun: bool,
}

impl Lines {
    fn new(paint: Paint) -> Self {
        Self { paint, known: BTreeMap::new(), begun: false }
    }

    fn tell(&mut self, time: SystemTime, event: ValueEvent) -> String {
        match event {
            ValueEvent::Put(value) => self.put(time, value),
            ValueEvent::Removed(removed) => self.removed(time, &removed.key),
            ValueEvent::Resynchronised(Values { values, .. }) => {
                let gone: Vec<String> =
                    self.known.keys().filter(|key| !values.iter().any(|value| value.key == **key)).cloned().collect();
                let mut out = String::new();
                if std::mem::replace(&mut self.begun, true) {
                    out = self.line(time, Tone::Strong, "anew", "everything was read again");
                } else if values.is_empty() {
                    out = self.line(time, Tone::Faint, "empty", "no such key yet");
                }
                out.extend(gone.iter().map(|key| self.removed(time, key)));
                for value in values {
                    if self.known.get(&value.key) != Some(&value) {
                        out.push_str(&self.put(time, value));
                    }
                }
                out
            }
        }
    }

    fn put(&mut self, time: SystemTime, value: Value) -> String {
        let held = match self.known.get(&value.key) {
            Some(old) => format!("{} → {}", shown(old), shown(&value)),
            None => shown(&value),
        };
        let line = self.line(time, Tone::Good, "put", &format!("{}  {held}", printable(&value.key)));
        self.known.insert(value.key.clone(), value);
        line
    }

    fn removed(&mut self, time: SystemTime, key: &str) -> String {
        let held = self.known.remove(key).map(|old| format!("  was {}", shown(&old))).unwrap_or_default();
        self.line(time, Tone::Bad, "removed", &format!("{}{held}", printable(key)))
    }

    fn interrupted(&self, time: SystemTime, cause: &str) -> String {
        self.line(time, Tone::Bad, "interrupted", &printable(cause))
    }

    fn line(&self, time: SystemTime, tone: Tone, verb: &str, text: &str) -> String {
        let (time, verb) = (self.paint.paint(Tone::Faint, &clock(time)), self.paint.paint(tone, &format!("{verb:7}")));
        format!("{time}  {verb}  {text}\n")
    }
}

/// A value for people: its beginning, if it is text.
fn shown(value: &Value) -> String {
    let size = || bytes(value.value.len() as u64);
    match value.encoding {
        Encoding::Base64 => format!("base64 {}", cut(&value.value)),
        Encoding::Utf8 if value.value.chars().count() > SHOWN => format!("{:?}… ({})", cut(&value.value), size()),
        Encoding::Utf8 => format!("{:?}", value.value),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn held(key: &str, text: &str, mod_revision: i64) -> Value {
        Value {
            key: key.into(),
            value: text.into(),
            encoding: Encoding::Utf8,
            mod_revision,
            create_revision: 1,
            lease: None,
        }
    }

    #[test]
    fn a_line_tells_what_a_key_held_before_and_holds_now() {
        let mut lines = Lines::new(Paint::PLAIN);
        let all = |revision, values| ValueEvent::Resynchronised(Values { revision, values });
        let (first, long) = (held("/c/a", "1", 2), held("/c/b", &"x\n".repeat(200), 4));
        let events = [
            all(2, vec![first.clone()]),
            ValueEvent::Put(held("/c/a", "2", 3)),
            ValueEvent::Removed(ValueRemoved { key: "/c/a".into(), mod_revision: 3 }),
            all(4, vec![first]),
            ValueEvent::Put(long),
        ];
        let out: String = events.into_iter().map(|event| lines.tell(UNIX_EPOCH, event)).collect();
        let expected = "\
00:00:00.000  put      /c/a  \"1\"
00:00:00.000  put      /c/a  \"1\" → \"2\"
00:00:00.000  removed  /c/a  was \"2\"
00:00:00.000  anew     everything was read again
00:00:00.000  put      /c/a  \"1\"
";
        assert!(out.starts_with(expected), "{out}");
        assert!(out.ends_with("… (400 B)\n") && out.lines().count() == 6, "{out}");
    }

    #[test]
    fn a_line_of_json_holds_the_event_with_its_parts() {
        let line = |event| serde_json::to_value(Line::new(UNIX_EPOCH, &event)).unwrap();
        let put = line(ValueEvent::Put(held("/c/a", "1", 2)));
        assert_eq!((&put["event"], &put["key"], &put["value"]), (&"put".into(), &"/c/a".into(), &"1".into()));
        let all = line(ValueEvent::Resynchronised(Values { revision: 7, values: Vec::new() }));
        assert_eq!((&all["event"], &all["revision"]), (&"resynchronised".into(), &7.into()));
    }
}
