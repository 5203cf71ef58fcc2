//! Reads a TOML document key by key, and gathers everything that is wrong with it instead of stopping at the first.

use std::{cell::RefCell, collections::BTreeMap};

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::Problem;

/// What a value's parser says: the value, or what is wrong with it and what is allowed.
pub(super) type Parsed<T> = Result<T, String>;

/// Everything found wrong so far, by its place in the text.
pub(super) struct Problems<'t> {
    text: &'t str,
    found: RefCell<Vec<Found>>,
}

/// One thing that is wrong: at which byte of the text, at which keys, and what.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) at: usize,
    /// From the document down; none for its syntax.
    pub(super) keys: Vec<String>,
    /// Of an array's element.
    pub(super) index: Option<usize>,
    pub(super) message: String,
}

impl<'t> Problems<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, found: RefCell::default() }
    }

    /// Notes what is wrong with the text itself.
    pub(super) fn add(&self, at: usize, message: String) {
        self.add_at(at, Vec::new(), None, message);
    }

    fn add_at(&self, at: usize, keys: Vec<String>, index: Option<usize>, message: String) {
        self.found.borrow_mut().push(Found { at, keys, index, message });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// In the order of the text.
    pub(super) fn into_found(self) -> Vec<Found> {
        let mut found = self.found.into_inner();
        found.sort();
        found.dedup();
        found
    }

    /// In the order of the text, each with its line and column.
    pub(super) fn into_sorted(self) -> Vec<Problem> {
        let text = self.text;
        let problem = |Found { at, keys, message, .. }: Found| match keys.as_slice() {
            [] => Problem::at(text, at, message),
            keys => Problem::at(text, at, format!("{}: {message}", keys.join("."))),
        };
        self.into_found().into_iter().map(problem).collect()
    }
}

/// One table of the document.
pub(super) struct Section<'d> {
    table: &'d DeTable<'d>,
    path: Vec<String>,
    at: usize,
    known: RefCell<Vec<&'static str>>,
    problems: &'d Problems<'d>,
}

impl<'d> Section<'d> {
    /// The document itself.
    pub(super) fn root(document: &'d Spanned<DeTable<'d>>, problems: &'d Problems<'d>) -> Self {
        Self::new(document.get_ref(), Vec::new(), 0, problems)
    }

    fn new(table: &'d DeTable<'d>, path: Vec<String>, at: usize, problems: &'d Problems<'d>) -> Self {
        Self { table, path, at, known: RefCell::default(), problems }
    }

    fn path(&self, key: &str) -> Vec<String> {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }

    fn dotted(&self, key: &str) -> String {
        self.path(key).join(".")
    }

    fn add(&self, at: usize, key: &str, message: String) {
        self.problems.add_at(at, self.path(key), None, message);
    }

    fn value(&self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.known.borrow_mut().push(key);
        self.table.get(key)
    }

    fn parse<T>(
        &self,
        keys: Vec<String>,
        index: Option<usize>,
        value: &Spanned<DeValue<'_>>,
        parse: impl Fn(&DeValue<'_>) -> Parsed<T>,
    ) -> Option<T> {
        match parse(value.get_ref()) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problems.add_at(value.span().start, keys, index, message);
                None
            }
        }
    }

    /// Says what is wrong with a key's value, at that value's place (or the table's, where the key is missing).
    pub(super) fn problem(&self, key: &str, message: impl AsRef<str>) {
        let at = self.table.get(key).map_or(self.at, |value| value.span().start);
        self.add(at, key, message.as_ref().to_owned());
    }

    /// Whether the key is written down.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The key's value; `None` if it is missing, or wrong (which is then noted).
    pub(super) fn get<T>(&self, key: &'static str, parse: impl Fn(&DeValue<'_>) -> Parsed<T>) -> Option<T> {
        let value = self.value(key)?;
        self.parse(self.path(key), None, value, parse)
    }

    /// As [`Self::get`], where a missing key is wrong too.
    pub(super) fn require<T>(
        &self,
        key: &'static str,
        example: &str,
        parse: impl Fn(&DeValue<'_>) -> Parsed<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.add(self.at, key, format!("missing: write {example}"));
        }
        self.get(key, parse)
    }

    /// The elements of an array; `None` if it is missing, or any of them is wrong (all of which are then noted).
    pub(super) fn list<T>(&self, key: &'static str, parse: impl Fn(&DeValue<'_>) -> Parsed<T>) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let Some(elements) = value.get_ref().as_array() else {
            self.problem(key, wrong_type("an array, such as [\"a\", \"b\"]", value.get_ref()));
            return None;
        };
        let parsed = elements.iter().enumerate().map(|(index, e)| self.parse(self.path(key), Some(index), e, &parse));
        let parsed: Vec<_> = parsed.collect();
        parsed.into_iter().collect()
    }

    /// A table of free keys, all of one type.
    pub(super) fn map<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&DeValue<'_>) -> Parsed<T>,
    ) -> Option<BTreeMap<String, T>> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.problem(key, wrong_type("a table, such as { team = \"orders\" }", value.get_ref()));
            return None;
        };
        let parsed = table.iter().filter_map(|(name, value)| {
            let name = name.get_ref().to_string();
            let mut keys = self.path(key);
            keys.push(name.clone());
            Some((name, self.parse(keys, None, value, &parse)?))
        });
        Some(parsed.collect())
    }

    /// A table within this one.
    pub(super) fn section(&self, key: &'static str) -> Option<Section<'d>> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            let form = format!("a table: write [{}]", self.dotted(key));
            self.problem(key, wrong_type(&form, value.get_ref()));
            return None;
        };
        Some(Section::new(table, self.path(key), value.span().start, self.problems))
    }

    /// Each table of an array of tables.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'d>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let form = format!("an array of tables: write [[{}]]", self.dotted(key));
        let Some(elements) = value.get_ref().as_array() else {
            self.problem(key, wrong_type(&form, value.get_ref()));
            return Vec::new();
        };
        let section = |element: &'d Spanned<DeValue<'d>>| match element.get_ref().as_table() {
            Some(table) => Some(Section::new(table, self.path(key), element.span().start, self.problems)),
            None => {
                let message = wrong_type(&form, element.get_ref());
                self.add(element.span().start, key, message);
                None
            }
        };
        elements.iter().filter_map(section).collect()
    }

    /// Notes every key that nobody asked for. Call it once all known keys were asked for.
    pub(super) fn finish(&self) {
        let known = self.known.borrow();
        for key in self.table.keys().filter(|key| !known.iter().any(|known| known == key.get_ref())) {
            let near = known.iter().map(|known| (strsim::damerau_levenshtein(known, key.get_ref()), known));
            let hint = match near.min().filter(|(distance, known)| *distance <= 1 + known.len() / 4) {
                Some((_, known)) => format!("did you mean {known:?}?"),
                None => format!("allowed here: {}", known.join(", ")),
            };
            self.add(key.span().start, key.get_ref(), format!("unknown key; {hint}"));
        }
    }
}

/// `expected <form>, found <type>`.
pub(super) fn wrong_type(form: &str, found: &DeValue<'_>) -> String {
    let found = match found {
        DeValue::String(text) => format!("the text {text:?}"),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => format!("the time {time}"),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    format!("expected {form}, found {found}")
}
