//! Both documents as JSON Schema (2020-12), for editors and other programs.
//!
//! The parsers accept no document that its schema refuses. They refuse more, which a schema cannot say: durations out of
//! range, a table size that is no prime number, arms of subsets that are not there or of one subset twice, a `base_time`
//! beyond `max_time`, members and zones that are there twice, headers that differ in case only, and a service that neither
//! a route nor its arm names.

/// Of [`crate::Policy`].
pub const POLICY: &str = include_str!("../../../docs/schema/policy.schema.json");
/// Of [`crate::Route`].
pub const ROUTE: &str = include_str!("../../../docs/schema/route.schema.json");
