//! The distinct nodes that a pick has chosen so far.

/// How many distinct nodes a pick yields at most: a first choice and two alternatives.
pub const CHOICES: usize = 3;

pub(crate) struct Chosen<'a> {
    choices: &'a mut [usize; CHOICES],
    count: usize,
}

impl<'a> Chosen<'a> {
    pub(crate) fn new(choices: &'a mut [usize; CHOICES]) -> Self {
        Self { choices, count: 0 }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count == CHOICES
    }

    /// Adds a node, unless it is there already or nothing fits in.
    pub(crate) fn add(&mut self, node: usize) {
        if self.choices.iter().take(self.count).any(|chosen| *chosen == node) {
            return;
        }
        if let Some(free) = self.choices.get_mut(self.count) {
            *free = node;
            self.count += 1;
        }
    }
}
