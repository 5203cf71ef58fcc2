//! A panic anywhere ends the process. An agent that lives on without one of its tasks would keep a lease alive that
//! nobody looks after; one that is gone is started again by its supervisor, and adopts the lease.

use std::panic;

/// From now on a panic is logged as usual, and then ends the process with `SIGABRT`.
pub fn end_the_process() {
    let log = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        log(info);
        tracing::error!(%info, "the agent has a defect and ends here: start it again");
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt as _,
        process::{Command, Stdio},
        time::Duration,
    };

    use super::*;

    const CHILD: &str = "WAYPOST_TEST_PANICS";

    #[test]
    fn a_task_that_panics_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            end_the_process();
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                tokio::spawn(async { panic!("on purpose") });
                tokio::time::sleep(Duration::from_secs(60)).await;
            });
            return;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "panics::tests::a_task_that_panics_ends_the_process", "--nocapture"]);
        let ended = child.env(CHILD, "1").stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
        let log = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.signal(), Some(6), "{log}");
        assert!(log.contains("on purpose"), "{log}");
    }
}
