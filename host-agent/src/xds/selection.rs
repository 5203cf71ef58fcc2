//! Which services become clusters.

/// Names of services, and beginnings of names.
#[derive(Clone, Debug)]
pub struct Selection {
    patterns: Vec<String>,
}

impl Selection {
    /// Of these patterns: names, or the beginning of names and a `*`.
    pub fn new(patterns: &[String]) -> Self {
        Self { patterns: patterns.to_vec() }
    }

    /// Whether a service becomes a cluster.
    pub fn matches(&self, service: &str) -> bool {
        self.patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => service.starts_with(beginning),
            None => service == pattern,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_matches_itself_a_star_what_begins_so_and_nothing_matches_no_pattern() {
        let selection = Selection::new(&["web".to_owned(), "shop-*".to_owned()]);
        for (service, expected) in [("web", true), ("web2", false), ("shop-", true), ("shop-a", true), ("shop", false)]
        {
            assert_eq!(selection.matches(service), expected, "{service}");
        }
        assert!(Selection::new(&["*".to_owned()]).matches("anything"));
        assert!(!Selection::new(&[]).matches("anything"));
    }
}
