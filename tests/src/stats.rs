//! Reading numbers out of Prometheus text and out of Envoy's `/stats?format=json`.
use anyhow::{Context, Result};
use serde::Deserialize;

/// Sum of a metric's samples in Prometheus text that carry all the given labels; none if there is no such sample.
pub fn prometheus(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let samples = text.lines().filter_map(|line| sample(line, name, labels));
    samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

fn sample(line: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (found, value) = match rest.strip_prefix('{') {
        Some(inner) => inner.rsplit_once('}')?,
        None => ("", rest.strip_prefix(' ')?),
    };
    let carries = |(key, value): &(&str, &str)| found.split(',').any(|label| label == format!("{key}=\"{value}\""));
    labels.iter().all(carries).then(|| value.split_whitespace().next()?.parse().ok()).flatten()
}

#[derive(Deserialize)]
struct EnvoyStats {
    stats: Vec<EnvoyStat>,
}

#[derive(Deserialize)]
struct EnvoyStat {
    name: Option<String>,
    value: Option<serde_json::Value>,
}

/// A counter or gauge of Envoy's JSON stats, 0 while it does not exist (Envoy makes some with their first use).
pub fn envoy(json: &str, name: &str) -> Result<u64> {
    let stats: EnvoyStats = serde_json::from_str(json).context("Envoy's stats are not the JSON expected")?;
    let found = stats.stats.iter().find(|stat| stat.name.as_deref() == Some(name));
    Ok(found.and_then(|stat| stat.value.as_ref()?.as_u64()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP waypost_resyncs_total Resyncs.\n\
                        waypost_resyncs_total{reason=\"first\",host=\"a\"} 1\n\
                        waypost_resyncs_total{reason=\"compacted\",host=\"a\"} 2\n\
                        waypost_keys 17\nwaypost_keys_other 3\n";

    #[test]
    fn samples_are_summed_over_the_labels_not_asked_for() {
        assert_eq!(prometheus(TEXT, "waypost_resyncs_total", &[]), Some(3.0));
        assert_eq!(prometheus(TEXT, "waypost_resyncs_total", &[("reason", "compacted")]), Some(2.0));
        assert_eq!(prometheus(TEXT, "waypost_resyncs_total", &[("reason", "none")]), None);
    }

    #[test]
    fn a_name_that_is_the_start_of_another_is_not_taken_for_it() {
        assert_eq!(prometheus(TEXT, "waypost_keys", &[]), Some(17.0));
    }

    #[test]
    fn a_counter_of_envoy_that_does_not_exist_yet_is_zero() {
        let json = r#"{"stats":[{"name":"a.b","value":4},{"histograms":{}}]}"#;
        assert_eq!(envoy(json, "a.b").unwrap(), 4);
        assert_eq!(envoy(json, "a.c").unwrap(), 0);
    }
}
