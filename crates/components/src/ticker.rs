//! The thread that makes time pass for components: it moves the engine's epoch on while something runs, and sleeps
//! otherwise.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

/// How exact deadlines are.
const TICK: Duration = Duration::from_millis(5);

/// Ended with the last of its engine's users.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    ended: bool,
}

/// Time passes for as long as this is held.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Shared);

impl Ticker {
    pub(crate) fn start(engine: wasmtime::Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("strategy-clock".to_owned())
            .spawn(move || of_thread.tick(|| engine.increment_epoch()))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn run(&self) -> Running<'_> {
        self.shared.lock().running += 1;
        self.shared.changed.notify_one();
        Running(&self.shared)
    }
}

/// The number of ticks after which a deadline that begins now has passed. The tick that is under way counts for nothing.
pub(crate) fn ticks(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2) + 1
}

impl Shared {
    /// Nothing here panics while it holds the lock, and a count is whole at any time.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self, mut tick: impl FnMut()) {
        let mut state = self.lock();
        while !state.ended {
            if state.running == 0 {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            std::thread::sleep(TICK);
            tick();
            state = self.lock();
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It only fails if the thread panicked, and there is nothing in it that does.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        thread,
        time::Instant,
    };

    use super::*;

    #[test]
    fn time_passes_only_while_something_runs() {
        let shared = Arc::new(Shared::default());
        let ticks = Arc::new(AtomicU64::new(0));
        let (of_thread, counted) = (Arc::clone(&shared), Arc::clone(&ticks));
        let thread = thread::spawn(move || of_thread.tick(|| _ = counted.fetch_add(1, Ordering::Relaxed)));
        let ticker = Ticker { shared, thread: Some(thread) };

        thread::sleep(4 * TICK);
        assert_eq!(ticks.load(Ordering::Relaxed), 0);
        let running = ticker.run();
        let ends = Instant::now() + Duration::from_secs(20);
        while ticks.load(Ordering::Relaxed) < 3 {
            assert!(Instant::now() < ends, "it does not tick");
            thread::sleep(TICK);
        }
        drop(running);
        thread::sleep(4 * TICK);
        let then = ticks.load(Ordering::Relaxed);
        thread::sleep(4 * TICK);
        assert_eq!(ticks.load(Ordering::Relaxed), then);
    }

    #[test]
    fn a_deadline_is_never_cut_short() {
        assert_eq!(ticks(Duration::ZERO), 1);
        assert_eq!(ticks(TICK), 2);
        assert_eq!(ticks(TICK + Duration::from_nanos(1)), 3);
        assert!(ticks(Duration::MAX) > 1 << 60);
    }
}
