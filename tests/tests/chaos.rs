//! Each fault that etcd and the way to it can have, done to agents and to users of the library, and what came of it
//! held to the rules of `waypost_tests::chaos::checker`.
use anyhow::Result;
use waypost_tests::chaos::random::Round;
use waypost_tests::chaos::scenarios;

/// What the random round is drawn from.
const SEED: u64 = 4;

/// One test for each scenario, which prints what was measured.
macro_rules! scenarios {
    ($($name:ident: $scenario:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() -> Result<()> {
                let verdict = scenarios::run($scenario).await?;
                println!("{}: {verdict}", $scenario);
                Ok(())
            }
        )*
    };
}

scenarios! {
    a_killed_leader_costs_no_registration: "leader-killed",
    a_rolling_restart_costs_no_registration: "rolling-restart",
    etcd_stopped_for_longer_than_the_ttl_has_everything_back: "etcd-stopped",
    a_wiped_etcd_has_everything_back: "data-wiped",
    a_restored_snapshot_is_brought_up_to_date: "snapshot-restored",
    what_was_compacted_away_during_a_cut_is_not_missed: "compacted-during-cut",
    what_was_compacted_away_between_range_and_watch_is_not_missed: "compacted-before-watch",
    own_keys_that_others_delete_or_overwrite_are_back_in_time: "key-deleted",
    own_keys_whose_lease_is_revoked_are_back_in_time: "lease-revoked",
    tokens_that_end_are_replaced: "token-expired",
    a_changed_password_is_taken_up: "password-changed",
    a_restarted_member_with_authentication_is_signed_in_to_again: "auth-restarted",
    replaced_certificates_are_taken_up: "certificates-replaced",
    half_open_connections_are_given_up: "link-half-open",
    half_closed_connections_are_given_up: "link-half-closed",
    links_that_were_cut_are_taken_up_again: "link-cut",
    links_that_were_silent_are_taken_up_again: "link-silent",
    slow_links_cost_no_registration_and_no_event: "link-slow",
    a_killed_agent_is_gone_in_time_and_back_when_it_is_started: "agent-killed",
    a_frozen_agent_is_gone_in_time_and_back_when_it_is_thawed: "agent-frozen",
    a_stepped_clock_changes_nothing: "clock-stepped",
    ten_thousand_changes_at_once_are_told_one_by_one: "many-keys",
    a_slow_subscriber_misses_nothing: "slow-subscriber",
    most_of_a_service_vanishing_is_held_and_then_believed: "service-vanishes",
    malformed_values_hurt_nobody: "values-malformed",
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_round_holds() -> Result<()> {
    // Always the same one: what others break is for `cargo xtask chaos` to find.
    let round = Round::draw(SEED, None);
    let names: Vec<_> = round.scenarios.iter().map(|scenario| scenario.name).collect();
    println!("seed {SEED}: {}: {}", round.world(), names.join(", "));
    println!("{}", round.run(|_| {}).await?);
    Ok(())
}
