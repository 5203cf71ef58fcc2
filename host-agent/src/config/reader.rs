//! Reads a TOML document key by key, and gathers everything that is wrong with it instead of stopping at the first.

use std::{cell::RefCell, collections::BTreeMap, ops::Range};

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::Problem;

/// What a value's parser says: the value, or what is wrong with it and what is allowed.
pub(super) type Parsed<T> = Result<T, String>;

/// Everything found wrong so far, by its place in the text.
pub(super) struct Problems<'t> {
    text: &'t str,
    found: RefCell<Vec<(usize, String)>>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, found: RefCell::default() }
    }

    pub(super) fn add(&self, at: usize, message: String) {
        self.found.borrow_mut().push((at, message));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// In the order of the text.
    pub(super) fn into_sorted(self) -> Vec<Problem> {
        let mut found = self.found.into_inner();
        found.sort();
        found.dedup();
        found.into_iter().map(|(at, message)| Problem::at(self.text, at, message)).collect()
    }
}

/// One table of the document.
pub(super) struct Section<'d> {
    table: &'d DeTable<'d>,
    path: String,
    at: usize,
    known: RefCell<Vec<&'static str>>,
    problems: &'d Problems<'d>,
}

impl<'d> Section<'d> {
    /// The document itself.
    pub(super) fn root(document: &'d Spanned<DeTable<'d>>, problems: &'d Problems<'d>) -> Self {
        Self::new(document.get_ref(), String::new(), 0, problems)
    }

    fn new(table: &'d DeTable<'d>, path: String, at: usize, problems: &'d Problems<'d>) -> Self {
        Self { table, path, at, known: RefCell::default(), problems }
    }

    fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn value(&self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.known.borrow_mut().push(key);
        self.table.get(key)
    }

    fn parse<T>(
        &self,
        key: &str,
        value: &DeValue<'_>,
        at: Range<usize>,
        parse: impl Fn(&DeValue<'_>) -> Parsed<T>,
    ) -> Option<T> {
        match parse(value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problems.add(at.start, format!("{}: {message}", self.path(key)));
                None
            }
        }
    }

    /// Says what is wrong with a key's value, at that value's place (or the table's, where the key is missing).
    pub(super) fn problem(&self, key: &str, message: impl AsRef<str>) {
        let at = self.table.get(key).map_or(self.at, |value| value.span().start);
        self.problems.add(at, format!("{}: {}", self.path(key), message.as_ref()));
    }

    /// Whether the key is written down.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The key's value; `None` if it is missing, or wrong (which is then noted).
    pub(super) fn get<T>(&self, key: &'static str, parse: impl Fn(&DeValue<'_>) -> Parsed<T>) -> Option<T> {
        let value = self.value(key)?;
        self.parse(key, value.get_ref(), value.span(), parse)
    }

    /// As [`Self::get`], where a missing key is wrong too.
    pub(super) fn require<T>(
        &self,
        key: &'static str,
        example: &str,
        parse: impl Fn(&DeValue<'_>) -> Parsed<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.problems.add(self.at, format!("{}: missing: write {example}", self.path(key)));
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
        let parsed: Vec<_> = elements.iter().map(|e| self.parse(key, e.get_ref(), e.span(), &parse)).collect();
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
            let path = format!("{key}.{}", name.get_ref());
            Some((name.get_ref().to_string(), self.parse(&path, value.get_ref(), value.span(), &parse)?))
        });
        Some(parsed.collect())
    }

    /// A table within this one.
    pub(super) fn section(&self, key: &'static str) -> Option<Section<'d>> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            let form = format!("a table: write [{}]", self.path(key));
            self.problem(key, wrong_type(&form, value.get_ref()));
            return None;
        };
        Some(Section::new(table, self.path(key), value.span().start, self.problems))
    }

    /// Each table of an array of tables.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'d>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let form = format!("an array of tables: write [[{}]]", self.path(key));
        let Some(elements) = value.get_ref().as_array() else {
            self.problem(key, wrong_type(&form, value.get_ref()));
            return Vec::new();
        };
        let section = |element: &'d Spanned<DeValue<'d>>| match element.get_ref().as_table() {
            Some(table) => Some(Section::new(table, self.path(key), element.span().start, self.problems)),
            None => {
                let message = wrong_type(&form, element.get_ref());
                self.problems.add(element.span().start, format!("{}: {message}", self.path(key)));
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
            self.problems.add(key.span().start, format!("{}: unknown key; {hint}", self.path(key.get_ref())));
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
