//! Each fault that etcd and the way to it can have, done to agents and to users of the library, and what came of it
//! held to the rules of `waypost_tests::chaos::checker`.
use anyhow::Result;
use waypost_tests::chaos::scenarios;

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
    etcd_stopped_for_longer_than_the_ttl_has_everything_back: "etcd-stopped",
    a_wiped_etcd_has_everything_back: "data-wiped",
}
