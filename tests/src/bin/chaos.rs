//! `cargo xtask chaos`: rounds of faults drawn from a seed, for a bounded time. The first round that breaks a rule ends
//! it, and is named with what repeats it.
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use waypost_tests::chaos::random::Round;
use waypost_tests::chaos::scenarios;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments.next().context("name the seconds, the seed and perhaps a scenario")?.parse()?;
    let mut seed: u64 = arguments.next().context("name the seed")?.parse()?;
    let only = arguments.next().map(|name| scenarios::find(&name)).transpose()?;

    let terminal = std::io::stdout().is_terminal();
    let started = Instant::now();
    let mut rounds = 0;
    println!("rounds of faults for {seconds} s, from seed {seed}");
    while rounds == 0 || started.elapsed() < Duration::from_secs(seconds) {
        let round = Round::draw(seed, only);
        let since = Instant::now();
        let names: Vec<_> = round.scenarios.iter().map(|scenario| scenario.name).collect();
        let outcome = round
            .run(|step| {
                if terminal {
                    print!("\r\x1b[2K  seed {seed:<10}  {:<24}  {step} ...", round.world());
                    // Without a screen there is nothing to see.
                    let _ = std::io::stdout().flush();
                }
            })
            .await;
        if terminal {
            print!("\r\x1b[2K");
        }
        let mark = if outcome.is_ok() { "held  " } else { "broken" };
        let took = since.elapsed().as_secs_f64();
        println!("  {mark}  seed {seed:<10}  {:<24}  {took:>5.1} s  {}", round.world(), names.join(", "));
        match outcome {
            Ok(verdict) => println!("          {verdict}"),
            Err(error) => {
                eprintln!("{error:#}");
                let named = only.map_or(String::new(), |only| format!(" --scenario {}", only.name));
                eprintln!("repeat it with: cargo xtask chaos --minutes 0 --seed {seed}{named}");
                return Ok(ExitCode::FAILURE);
            }
        }
        rounds += 1;
        seed = round.next_seed();
    }
    println!("{rounds} rounds held in {:.0} s", started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}
