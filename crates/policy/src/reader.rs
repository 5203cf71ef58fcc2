//! Reads a JSON document value by value, and gathers everything that is wrong with it instead of stopping at the first.

use std::{
    cell::RefCell,
    fmt::Display,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use serde_json::Value;

use crate::{
    MAX_DOCUMENT, Problem, Problems,
    duration::{format_duration, parse_duration},
    json::{Json, quoted},
    nearest::nearest,
};

const DURATION_FORM: &str = "write a number and ms, s, m or h, such as \"2s\"";

/// Everything found wrong so far.
#[derive(Debug, Default)]
struct Sink(RefCell<Vec<Problem>>);

impl Sink {
    fn add(&self, path: &str, message: String) {
        self.0.borrow_mut().push(Problem { path: path.to_owned(), message });
    }
}

/// Reads a document, of which `read` makes what it stands for.
pub(crate) fn document<T>(text: &[u8], read: impl FnOnce(&mut Fields<'_>) -> Option<T>) -> Result<T, Problems> {
    if text.len() > MAX_DOCUMENT {
        return Err(Problems::whole(format!("{} bytes long: up to {MAX_DOCUMENT} are allowed", text.len())));
    }
    let json = Json::parse(text).map_err(|error| Problems::whole(format!("no JSON: {error}")))?;
    let sink = Sink::default();
    let root = Place { value: &json, path: String::new(), sink: &sink };
    let read = root.fields("an object, such as {}").and_then(|mut fields| {
        let read = read(&mut fields);
        fields.finish();
        read
    });
    let found = sink.0.into_inner();
    match read {
        Some(read) if found.is_empty() => Ok(read),
        _ if found.is_empty() => Err(Problems::whole("cannot be read".to_owned())),
        _ => Err(Problems::new(found)),
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Place<'d> {
    value: &'d Json,
    path: String,
    sink: &'d Sink,
}

impl<'d> Place<'d> {
    /// Notes what is wrong here.
    pub(crate) fn refuse<T>(&self, message: impl AsRef<str>) -> Option<T> {
        self.sink.add(&self.path, message.as_ref().to_owned());
        None
    }

    fn expected<T>(&self, form: &str) -> Option<T> {
        self.refuse(format!("expected {form}, found {}", self.value.described()))
    }

    pub(crate) fn is_object(&self) -> bool {
        matches!(self.value, Json::Object(_))
    }

    pub(crate) fn json(&self) -> &'d Json {
        self.value
    }

    /// Any value, in which no member is there twice.
    pub(crate) fn value(&self) -> Option<Value> {
        self.members_once();
        Some(self.value.to_value())
    }

    fn members_once(&self) {
        match self.value {
            Json::Object(members) => {
                let fields = self.fields("an object");
                let places = members.iter().filter_map(|(key, value)| Some(fields.as_ref()?.place(key, value)));
                places.for_each(|place| place.members_once());
            }
            Json::Array(_) => {
                self.items("[]", 0..=usize::MAX).into_iter().flatten().for_each(|item| item.members_once())
            }
            _ => {}
        }
    }

    pub(crate) fn text(&self) -> Option<&'d str> {
        self.text_as("a text")
    }

    fn text_as(&self, form: &str) -> Option<&'d str> {
        match self.value {
            Json::Text(text) => Some(text),
            _ => self.expected(form),
        }
    }

    /// A text of so many characters.
    pub(crate) fn text_of(&self, allowed: RangeInclusive<usize>) -> Option<String> {
        let text = self.text()?;
        let count = text.chars().count();
        if allowed.contains(&count) {
            return Some(text.to_owned());
        }
        match count {
            0 => self.refuse("is empty: write a text, or leave it out"),
            _ => self.refuse(format!("{count} characters long: up to {} are allowed", allowed.end())),
        }
    }

    /// Whatever `parse` makes of a text; its error says what is allowed.
    pub(crate) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.text()?) {
            Ok(parsed) => Some(parsed),
            Err(message) => self.refuse(message),
        }
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        match self.value {
            Json::Bool(value) => Some(*value),
            _ => self.expected("true or false"),
        }
    }

    /// A whole number; `2.0` is one.
    pub(crate) fn integer(&self, allowed: RangeInclusive<u32>) -> Option<u32> {
        let number = match self.value {
            Json::Number(number) => number.as_f64(),
            _ => None,
        };
        // Every u32 is exact in an f64, and the range keeps anything else out.
        let fits = |number: &f64| {
            number.fract() == 0.0 && *number >= f64::from(*allowed.start()) && *number <= f64::from(*allowed.end())
        };
        match number.filter(fits) {
            Some(number) => Some(number as u32),
            None => self.expected(&format!("a whole number from {} to {}", allowed.start(), allowed.end())),
        }
    }

    /// A number above `allowed.start`, up to `allowed.end`.
    pub(crate) fn number(&self, allowed: Range<f64>) -> Option<f64> {
        let number = match self.value {
            Json::Number(number) => number.as_f64(),
            _ => None,
        };
        match number.filter(|number| *number > allowed.start && *number <= allowed.end) {
            Some(number) => Some(number),
            None => self.expected(&format!("a number above {} and up to {}", allowed.start, allowed.end)),
        }
    }

    pub(crate) fn duration(&self, allowed: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text_as("a duration, such as \"2s\"")?;
        let Some(parsed) = parse_duration(text) else {
            return self.refuse(format!("{} is no duration: {DURATION_FORM}", quoted(text)));
        };
        if allowed.contains(&parsed) {
            return Some(parsed);
        }
        let (low, high) = (format_duration(*allowed.start()), format_duration(*allowed.end()));
        self.refuse(format!("{text:?} is out of range: allowed is {low} to {high}"))
    }

    /// Refuses a word that is none of those known.
    pub(crate) fn unknown_word<'k, T>(
        &self,
        what: &str,
        text: &str,
        known: impl Iterator<Item = &'k str> + Clone,
    ) -> Option<T> {
        let hint = match nearest(text, known.clone()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("allowed are {}", listed(known)),
        };
        self.refuse(format!("{} is no {what}; {hint}", quoted(text)))
    }

    /// The elements of an array.
    pub(crate) fn items(&self, example: &str, allowed: RangeInclusive<usize>) -> Option<Vec<Place<'d>>> {
        let Json::Array(items) = self.value else {
            return self.expected(&format!("an array, such as {example}"));
        };
        if items.is_empty() && *allowed.start() > 0 {
            return self.refuse(format!("is empty: write at least one, such as {example}"));
        }
        if items.len() > *allowed.end() {
            return self.refuse(format!("{} elements: up to {} are allowed", items.len(), allowed.end()));
        }
        let place = |(index, value)| Place { value, path: format!("{}[{index}]", self.path), sink: self.sink };
        Some(items.iter().enumerate().map(place).collect())
    }

    /// Every element as `read` has it; `None` if any is wrong.
    pub(crate) fn list<T>(
        &self,
        example: &str,
        allowed: RangeInclusive<usize>,
        read: impl Fn(&Place<'d>) -> Option<T>,
    ) -> Option<Vec<T>> {
        // All of them are read, so that all problems are found.
        let read: Vec<Option<T>> = self.items(example, allowed)?.iter().map(read).collect();
        read.into_iter().collect()
    }

    /// The members of an object whose names are free; each name once.
    pub(crate) fn members(&self, example: &str, allowed: RangeInclusive<usize>) -> Option<Vec<(&'d str, Place<'d>)>> {
        let fields = self.fields(&format!("an object, such as {example}"))?;
        if fields.members.is_empty() && *allowed.start() > 0 {
            return self.refuse(format!("is empty: write at least one, such as {example}"));
        }
        if fields.members.len() > *allowed.end() {
            return self.refuse(format!("{} members: up to {} are allowed", fields.members.len(), allowed.end()));
        }
        let place = |(key, value): &'d (String, Json)| (key.as_str(), fields.place(key, value));
        Some(fields.members.iter().map(place).collect())
    }

    /// An object whose members are known by name. `form` is what a message calls it.
    pub(crate) fn fields(&self, form: &str) -> Option<Fields<'d>> {
        let Json::Object(members) = self.value else { return self.expected(form) };
        let fields = Fields { members, path: self.path.clone(), sink: self.sink, known: Vec::new() };
        let mut names: Vec<&str> = members.iter().map(|(key, _)| key.as_str()).collect();
        names.sort_unstable();
        let twice = names.windows(2).filter_map(|pair| match pair {
            [one, other] if one == other => Some(*one),
            _ => None,
        });
        for name in twice {
            self.sink.add(&below(&self.path, name), "is there more than once".to_owned());
        }
        Some(fields)
    }
}

/// The members of an object.
#[derive(Debug)]
pub(crate) struct Fields<'d> {
    members: &'d [(String, Json)],
    path: String,
    sink: &'d Sink,
    known: Vec<&'static str>,
}

impl<'d> Fields<'d> {
    fn place(&self, key: &str, value: &'d Json) -> Place<'d> {
        Place { value, path: below(&self.path, key), sink: self.sink }
    }

    /// The member of this name, which is known from here on.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<Place<'d>> {
        self.known.push(key);
        let (_, value) = self.members.iter().find(|(name, _)| name == key)?;
        Some(self.place(key, value))
    }

    /// As [`Self::get`], where a missing member is wrong.
    pub(crate) fn require(&mut self, key: &'static str, example: &str) -> Option<Place<'d>> {
        if !self.has(key) {
            self.problem(key, format!("missing: write {example}"));
        }
        self.get(key)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.members.iter().any(|(name, _)| name == key)
    }

    /// Notes what is wrong with a member.
    pub(crate) fn problem(&self, key: &str, message: impl Display) {
        self.sink.add(&below(&self.path, key), message.to_string());
    }

    /// Notes what is wrong with the object as a whole.
    pub(crate) fn refuse<T>(&self, message: impl Display) -> Option<T> {
        self.sink.add(&self.path, message.to_string());
        None
    }

    /// Notes every member that nobody asked for. Call it once all that are known were asked for.
    pub(crate) fn finish(self) {
        for (key, _) in self.members.iter().filter(|(key, _)| !self.known.contains(&key.as_str())) {
            let hint = match nearest(key, self.known.iter().copied()) {
                Some(known) => format!("did you mean {known:?}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.problem(key, format!("unknown field; {hint}"));
        }
    }
}

/// Words in quotes, as a sentence has them.
pub(crate) fn listed<'k>(words: impl Iterator<Item = &'k str>) -> String {
    words.map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}

/// The path of a member.
fn below(path: &str, key: &str) -> String {
    let plain =
        !key.is_empty() && key.len() <= 64 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    match (path, plain) {
        ("", true) => key.to_owned(),
        (_, true) => format!("{path}.{key}"),
        (_, false) => format!("{path}[{}]", quoted(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str, read: impl FnOnce(&mut Fields<'_>)) -> String {
        let wrong = document(text.as_bytes(), |fields| {
            read(fields);
            Some(())
        });
        wrong.unwrap_err().to_string()
    }

    #[test]
    fn everything_is_named_with_its_path() {
        let found = problems(r#"{"a": 1, "b": [true, "x"], "c": {"d e": 0}, "tpye": 1, "zebra": 2}"#, |fields| {
            fields.get("type");
            fields.get("a").unwrap().text();
            fields.get("b").unwrap().list("[true]", 1..=2, Place::boolean);
            fields.get("c").unwrap().members("{}", 1..=2).unwrap()[0].1.integer(1..=2);
            fields.require("f", "a number");
        });
        let expected = "\
a: expected a text, found the number 1
b[1]: expected true or false, found the text \"x\"
c[\"d e\"]: expected a whole number from 1 to 2, found the number 0
f: missing: write a number
tpye: unknown field; did you mean \"type\"?
zebra: unknown field; known here: type, a, b, c, f";
        assert_eq!(found, expected);
    }

    #[test]
    fn a_member_that_is_there_twice_is_refused() {
        assert_eq!(problems(r#"{"a": 1, "a": 1}"#, |fields| drop(fields.get("a"))), "a: is there more than once");
    }

    #[test]
    fn what_is_no_object_or_no_json_is_refused_as_a_whole() {
        assert_eq!(problems("[]", |_| {}), "expected an object, such as {}, found an array");
        assert_eq!(problems("{", |_| {}), "no JSON: EOF while parsing an object at line 1 column 1");
        let long = format!("\"{}\"", "x".repeat(MAX_DOCUMENT));
        assert!(problems(&long, |_| {}).ends_with("up to 65536 are allowed"));
    }

    #[test]
    fn numbers_are_whole_whichever_way_they_are_written() {
        let read = |text: &str| document(text.as_bytes(), |fields| fields.get("n")?.integer(0..=u32::MAX)).ok();
        assert_eq!(read(r#"{"n": 2}"#), Some(2));
        assert_eq!(read(r#"{"n": 2.0}"#), Some(2));
        assert_eq!(read(r#"{"n": 4294967295}"#), Some(u32::MAX));
        for wrong in ["2.5", "-1", "4294967296", "1e300", "\"2\"", "null"] {
            assert_eq!(read(&format!(r#"{{"n": {wrong}}}"#)), None, "{wrong}");
        }
    }
}
