//! Server-sent events out of the bytes of an answer, as the HTML standard reads them.

/// Longest event that is taken: beyond what 100,000 nodes take.
const MAX_EVENT: usize = 256 << 20;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: String,
}

/// An event that is too long to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {MAX_EVENT} bytes")]
pub(super) struct TooLong;

/// Reads events out of bytes that come in pieces.
#[derive(Debug, Default)]
pub(super) struct Reader {
    line: Vec<u8>,
    after_return: bool,
    name: String,
    data: String,
    id: Option<String>,
    last_id: Option<String>,
}

impl Reader {
    /// The id of the last event that came whole: where to go on after a break.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// Forgets an event of which only a part has come.
    pub(super) fn broke_off(&mut self) {
        *self = Self { last_id: self.last_id.take(), ..Self::default() };
    }

    /// The events that are whole with these bytes.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' if self.after_return => self.after_return = false,
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.line(&String::from_utf8_lossy(&line)));
                }
                _ => {
                    self.after_return = false;
                    self.line.push(byte);
                }
            }
            if self.line.len() + self.data.len() > MAX_EVENT {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            return self.end_of_event();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            // Comments, which only say that somebody is there, and what a newer agent may add.
            _ => {}
        }
        None
    }

    fn end_of_event(&mut self) -> Option<Event> {
        if let Some(id) = self.id.take() {
            self.last_id = (!id.is_empty()).then_some(id);
        }
        let (name, mut data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        data.pop()?;
        Some(Event { name, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into() }
    }

    #[test]
    fn events_are_read_whatever_the_pieces_they_come_in() {
        let text = ": hello\n\nevent: added\nid: 7\ndata: {\"a\":\ndata: 1}\n\nevent:removed\r\ndata:x\r\rdata\n\n";
        let expected = [event("added", "{\"a\":\n1}"), event("removed", "x"), event("", "")];
        for size in 1..text.len() {
            let mut reader = Reader::default();
            let pieces = text.as_bytes().chunks(size);
            let events: Vec<Event> = pieces.flat_map(|piece| reader.read(piece).unwrap()).collect();
            assert_eq!(events, expected, "in pieces of {size}");
            assert_eq!(reader.last_id(), Some("7"));
        }
    }

    #[test]
    fn half_an_event_is_forgotten_with_its_id() {
        let mut reader = Reader::default();
        reader.read(b"id: 1\ndata: a\n\nid: 2\nevent: added\ndata: b").unwrap();
        assert_eq!(reader.last_id(), Some("1"));
        reader.broke_off();
        assert_eq!(reader.read(b"data: c\n\n").unwrap(), [event("", "c")]);
        assert_eq!(reader.last_id(), Some("1"));
    }
}
