//! The rules about mirrors: a full state is one that etcd had, and what is told after it is what etcd did next, change
//! by change.
use std::collections::BTreeMap;
use std::time::Duration;

use super::epochs::{Epoch, Part, difference, shown};
use super::{Rule, Verdict};
use crate::chaos::history::{Change, Entry, History, What};

/// The recorder may see a stretch begin that much later than a mirror.
const BEHIND: Duration = Duration::from_secs(2);

/// A full state, and the changes up to the next one.
struct Segment<'a> {
    at: Duration,
    entries: &'a [Entry],
    revision: i64,
    changes: Vec<&'a Change>,
}

/// Where in a stretch a segment fits.
struct Fit {
    /// How far it goes.
    revision: i64,
    /// Keys beyond what is known of a stretch that ended.
    unverified: usize,
    /// What the stretch went on with, and the segment does not have.
    next: Option<String>,
}

pub(super) fn check(history: &History, epochs: &[Epoch<'_>], verdict: &mut Verdict) {
    let end = history.records.last().map_or(Duration::ZERO, |record| record.at);
    for (observer, prefix) in &history.observers {
        olds(history, observer, verdict);
        let segments = segments(history, observer, verdict);
        let mut current = (0, 0);
        let mut differs = Some("it was never told anything".to_owned());
        for (index, segment) in segments.iter().enumerate() {
            verdict.told += segment.size();
            let last = index + 1 == segments.len();
            match place(segment, prefix, epochs, current, last) {
                Ok((epoch, fit)) => {
                    current = (epoch, fit.revision);
                    verdict.unverified += fit.unverified;
                    let newest = epoch + 1 == epochs.len();
                    differs = if newest { fit.next } else { Some("it was not told of the newest etcd".to_owned()) };
                }
                Err(why) => {
                    verdict.violation(Rule::Told, segment.at, format!("{observer}: {why}"));
                    differs = None;
                }
            }
        }
        if let Some(what) = differs {
            verdict.violation(Rule::Mirrored, end, format!("{observer} differs from etcd at the end: {what}"));
        }
    }
}

fn segments<'a>(history: &'a History, name: &str, verdict: &mut Verdict) -> Vec<Segment<'a>> {
    let mut segments: Vec<Segment<'a>> = Vec::new();
    for record in &history.records {
        match &record.what {
            What::Told { observer, entries, revision, .. } if observer == name => {
                segments.push(Segment { at: record.at, entries, revision: *revision, changes: Vec::new() });
            }
            What::ToldChanges { observer, changes } if observer == name => match segments.last_mut() {
                Some(segment) => segment.changes.extend(changes),
                None => verdict.violation(Rule::Told, record.at, format!("{name}: a change before any full state")),
            },
            _ => {}
        }
    }
    segments
}

/// The stretch that a segment belongs to: none before the last one's, and one that is known in full if possible. Where
/// it fits several, as a full state without keys does, it is the first, so that those after it find their place; the
/// last segment's is the newest.
fn place(
    segment: &Segment<'_>,
    prefix: &str,
    epochs: &[Epoch<'_>],
    (current, told): (usize, i64),
    last: bool,
) -> Result<(usize, Fit), String> {
    let mut why = "etcd has said nothing yet".to_owned();
    let begun = epochs.iter().take_while(|epoch| epoch.began <= segment.at + BEHIND).count();
    let mut candidates: Vec<usize> = (current..begun).collect();
    if last {
        candidates.reverse();
    }
    for lenient in [false, true] {
        for index in candidates.iter().copied() {
            let Some(epoch) = epochs.get(index) else { continue };
            let not_before = if index == current { told } else { 0 };
            let ended = lenient && index + 1 < epochs.len();
            match segment.fit(epoch, prefix, not_before, ended) {
                Ok(fit) => return Ok((index, fit)),
                Err(error) if !lenient => why = error,
                Err(_) => {}
            }
        }
    }
    Err(why)
}

impl Segment<'_> {
    fn size(&self) -> usize {
        self.entries.len() + self.changes.len()
    }

    /// Holds it against one stretch. `ended`: more may have happened there than is known.
    fn fit(&self, epoch: &Epoch<'_>, prefix: &str, not_before: i64, ended: bool) -> Result<Fit, String> {
        let part = Part::of(epoch, prefix);
        if self.revision < not_before {
            return Err(format!("a full state of revision {} after revision {not_before}", self.revision));
        }
        let (place, held) = part.at(self.revision);
        let told: BTreeMap<&str, &Entry> = self.entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
        if let Some(what) = difference(&told, &held) {
            if ended && self.revision > part.end() {
                return Ok(Fit { revision: self.revision, unverified: self.size(), next: None });
            }
            return Err(format!("a full state that etcd did not have in revision {}: {what}", self.revision));
        }
        let mut said = part.changes.iter().skip(place);
        for (index, told) in self.changes.iter().enumerate() {
            match said.next() {
                Some(said) if told == said => {}
                Some(said) => return Err(format!("told the {told} where etcd's next change is the {said}")),
                None if ended => {
                    return Ok(Fit { revision: part.end(), unverified: self.changes.len() - index, next: None });
                }
                None => return Err(format!("told the {told}, and etcd did no more")),
            }
        }
        let revision = self.changes.last().map_or(self.revision, |change| change.revision());
        Ok(Fit { revision, unverified: 0, next: said.next().map(|said| format!("it was not told the {said}")) })
    }
}

/// What a key is said to have been is what its subscriber was told of it last.
fn olds(history: &History, name: &str, verdict: &mut Verdict) {
    let mut copy: BTreeMap<&str, &Entry> = BTreeMap::new();
    for record in &history.records {
        match &record.what {
            What::Told { observer, entries, .. } if observer == name => {
                copy = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
            }
            What::ToldChanges { observer, changes } if observer == name => {
                for change in changes {
                    match change {
                        Change::Put(entry) => _ = copy.insert(&entry.key, entry),
                        Change::Deleted { key, .. } => _ = copy.remove(key.as_str()),
                    }
                }
            }
            What::ToldOld { observer, key, old } if observer == name => {
                let (told, known) = (old.as_ref(), copy.get(key.as_str()));
                if told != known.copied() {
                    let (told, known) = (shown(told.as_ref()), shown(known));
                    let what = format!("{name}: key {key} is said to have been {told}, and was {known}");
                    verdict.violation(Rule::Told, record.at, what);
                }
            }
            _ => {}
        }
    }
}
