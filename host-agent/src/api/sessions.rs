//! What the agent holds for clients who have to come back in time. Pure: the time comes in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Sessions by their ids.
#[derive(Debug)]
pub struct Sessions<T> {
    held: HashMap<String, Session<T>>,
}

#[derive(Debug)]
struct Session<T> {
    what: T,
    ttl: Duration,
    until: Instant,
}

impl<T> Default for Sessions<T> {
    fn default() -> Self {
        Self { held: HashMap::new() }
    }
}

impl<T> Sessions<T> {
    /// Holds something for whoever knows the id, for `ttl` from now on.
    pub fn insert(&mut self, id: String, what: T, ttl: Duration, now: Instant) {
        self.held.insert(id, Session { what, ttl, until: now + ttl });
    }

    /// Holds on for another `ttl` from now on: what is held, and for how long.
    pub fn renew(&mut self, id: &str, now: Instant) -> Option<(&T, Duration)> {
        let session = self.held.get_mut(id).filter(|session| now < session.until)?;
        session.until = now + session.ttl;
        Some((&session.what, session.ttl))
    }

    /// What is held under an id.
    pub fn get(&self, id: &str) -> Option<&T> {
        self.held.get(id).map(|session| &session.what)
    }

    /// Holds it no longer.
    pub fn remove(&mut self, id: &str) -> Option<T> {
        self.held.remove(id).map(|session| session.what)
    }

    /// What nobody came back for in time.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        self.held.extract_if(|_, session| now >= session.until).map(|(_, session)| session.what).collect()
    }

    /// When to call [`Self::expire`] next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.held.values().map(|session| session.until).min()
    }

    /// Everything.
    pub fn take_all(&mut self) -> Vec<T> {
        self.held.drain().map(|(_, session)| session.what).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_renewed_in_time_is_held_and_what_is_not_is_given_back_once() {
        let (mut sessions, start) = (Sessions::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        sessions.insert("a".into(), 1, TTL, start);
        sessions.insert("b".into(), 2, TTL, start);
        assert_eq!(sessions.next_expiry(), Some(at(10)));
        assert_eq!(sessions.renew("a", at(9)), Some((&1, TTL)));
        assert_eq!(sessions.expire(at(9)), [0; 0]);
        assert_eq!(sessions.renew("b", at(10)), None, "too late, though nobody has looked yet");
        assert_eq!(sessions.expire(at(10)), [2]);
        assert_eq!(sessions.expire(at(10)), [0; 0]);
        assert_eq!((sessions.next_expiry(), sessions.get("a"), sessions.get("b")), (Some(at(19)), Some(&1), None));
        assert_eq!((sessions.remove("a"), sessions.remove("a")), (Some(1), None));
    }

    #[test]
    fn an_unknown_id_holds_nothing() {
        let mut sessions = Sessions::<u8>::default();
        assert_eq!(sessions.renew("a", Instant::now()), None);
        assert_eq!((sessions.next_expiry(), sessions.take_all().len()), (None, 0));
    }
}
