//! An explanation for people.

use waypost_policy::{
    Explanation,
    explain::{By, Exclusion, Missing, NodeShare, Rule, Unmet, Way},
};

use super::{
    super::output::{
        Align, Cell, Paint, Table, Tone,
        text::{percent, printable},
    },
    listing::target,
};

/// With the rules that were looked at.
pub(super) fn render_route(request: &str, explanation: &Explanation, notes: &[String], paint: Paint) -> String {
    let mut out = format!("{}\n", printable(request));
    if !explanation.rules.is_empty() {
        let mut table = Table::headed([
            ("ORDER", Align::Right),
            ("ROUTE", Align::Left),
            ("MET", Align::Left),
            ("BECAUSE", Align::Left),
        ]);
        for Rule { id, order, because } in &explanation.rules {
            let (met, because) = match because {
                None => (Cell::toned("yes", Tone::Good), String::new()),
                Some(unmet) => (Cell::toned("no", Tone::Faint), self::because(unmet)),
            };
            table.row([order.to_string().into(), id.into(), met, because.into()]);
        }
        out.push('\n');
        out.push_str(&table.render(paint));
    }
    if let Some(timeout) = &explanation.timeout {
        out.push_str(&format!("\ntimeout {timeout}\n"));
    }
    if !explanation.ways.is_empty() {
        out.push('\n');
    }
    out.push_str(&render_ways(explanation, notes, paint));
    out
}

/// Only where the request can go.
pub(super) fn render_ways(explanation: &Explanation, notes: &[String], paint: Paint) -> String {
    let mut blocks: Vec<String> = explanation.ways.iter().map(|way| render_way(way, paint)).collect();
    let notes: String = notes.iter().map(|note| format!("- {}\n", printable(note))).collect();
    if !notes.is_empty() {
        blocks.push(notes);
    }
    blocks.join("\n")
}

fn because(Unmet { field, wanted, found }: &Unmet) -> String {
    match found {
        Some(found) => format!("{field}: wants {wanted}, has {found}"),
        None => format!("{field}: wants {wanted}, has none"),
    }
}

fn render_way(way: &Way, paint: Paint) -> String {
    let name = paint.paint(Tone::Strong, &printable(&target(&way.service, way.subset.as_deref())));
    let mut out = format!("{} {name}, {}; {}\n", percent(way.probability), way.strategy, named_by(way));
    match way.missing_subset {
        Some(Missing::WholeService) => out.push_str("no node of the subset may be picked: any of the service is\n"),
        Some(Missing::NoNode) => {
            out.push_str("no node of the subset may be picked, and the policy is strict: filters pick none\n")
        }
        None => {}
    }
    if way.panicking {
        out.push_str("too few nodes are healthy: health is not looked at\n");
    }
    if way.nodes.is_empty() {
        return out;
    }
    let mut table = Table::headed([
        ("ADDRESS", Align::Left),
        ("HEALTH", Align::Left),
        ("WEIGHT", Align::Right),
        ("ZONE", Align::Left),
        ("VERSION", Align::Left),
        ("LEVEL", Align::Right),
        ("SHARE", Align::Right),
        ("NONE SINCE", Align::Left),
        ("ID", Align::Left),
    ]);
    for node in &way.nodes {
        let NodeShare { id, address, health, weight, zone, version, level, probability, excluded } = node;
        let tone = match *health {
            "passing" => Tone::Good,
            "draining" => Tone::Warning,
            _ => Tone::Bad,
        };
        table.row([
            address.into(),
            Cell::toned(health, tone),
            weight.to_string().into(),
            zone.into(),
            version.into(),
            level.to_string().into(),
            Cell::toned(percent(*probability), if *probability > 0.0 { Tone::Plain } else { Tone::Faint }),
            excluded.map(why).unwrap_or_default().into(),
            id.into(),
        ]);
    }
    out.push_str(&table.render(paint));
    out
}

/// What has named the service, and the subset of it.
fn named_by(way: &Way) -> String {
    let by = |by| match by {
        By::Route => "the route",
        By::RouteSplit => "the route's split",
        By::RouteStickySplit => "the route's sticky split",
        By::Host => "name",
        By::Header => "the request's header",
        By::PolicySplit => "the policy's split",
        By::PolicyStickySplit => "the policy's sticky split",
    };
    match way.subset_by {
        Some(subset_by) if subset_by != way.service_by => {
            format!("service by {}, subset by {}", by(way.service_by), by(subset_by))
        }
        Some(_) => format!("both by {}", by(way.service_by)),
        None => format!("service by {}", by(way.service_by)),
    }
}

fn why(excluded: Exclusion) -> &'static str {
    match excluded {
        Exclusion::OtherSubset => "not in the subset",
        Exclusion::Draining => "draining",
        Exclusion::Critical => "critical",
        Exclusion::NoWeight => "weight 0",
        Exclusion::OtherLevel => "another level takes all",
        Exclusion::OtherZone => "nearer zones take all",
        Exclusion::OtherHash => "the key leads elsewhere",
        Exclusion::OtherCookie => "the cookie leads elsewhere",
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::facts::tests::{facts, request},
        *,
    };

    #[test]
    fn an_explanation_is_read_from_the_rule_to_the_node() {
        let mut asked = request(Some("shop.x"), "/orders");
        let (explanation, notes) = facts().of_request("shop.x", &mut asked);
        let expected = "\
GET shop.x/orders

ORDER  ROUTE   MET  BECAUSE
   10  admin   no   match.path: wants /admin/, has /orders
   20  orders  yes

timeout 2s

75.0 % orders (v1), weighted-round-robin; service by the route, subset by the policy's split
ADDRESS      HEALTH    WEIGHT  ZONE  VERSION  LEVEL   SHARE  NONE SINCE         ID
10.0.0.1:80  passing        3        1            0  75.0 %                     10.0.0.1:80
10.0.0.2:80  passing        1        1            0  25.0 %                     10.0.0.2:80
10.0.0.3:80  critical       1        1            0   0.0 %  critical           10.0.0.3:80
10.0.0.4:80  passing        1        2            0   0.0 %  not in the subset  10.0.0.4:80

25.0 % orders (v2), weighted-round-robin; service by the route, subset by the policy's split
ADDRESS      HEALTH    WEIGHT  ZONE  VERSION  LEVEL    SHARE  NONE SINCE         ID
10.0.0.1:80  passing        3        1            0    0.0 %  not in the subset  10.0.0.1:80
10.0.0.2:80  passing        1        1            0    0.0 %  not in the subset  10.0.0.2:80
10.0.0.3:80  critical       1        1            0    0.0 %  not in the subset  10.0.0.3:80
10.0.0.4:80  passing        1        2            0  100.0 %                     10.0.0.4:80

- nodes of orders that have just come get less at first: only agents know which
";
        assert_eq!(render_route(&asked.shown(), &explanation, &notes, Paint::PLAIN), expected);
    }

    #[test]
    fn a_request_that_goes_nowhere_is_told_so() {
        let mut asked = request(Some("nobody"), "/");
        let (explanation, notes) = facts().of_request("nobody", &mut asked);
        let out = render_route(&asked.shown(), &explanation, &notes, Paint::PLAIN);
        let expected = "\
ORDER  ROUTE   MET  BECAUSE
   10  admin   no   match.path: wants /admin/, has /
   20  orders  no   match.hosts: wants shop.x, has nobody
- no route matches, and no service is called like the host nobody or its first label
";
        assert!(out.ends_with(expected), "{out}");
    }
}
