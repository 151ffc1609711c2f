//! Traffic that goes on while something happens.

use std::time::Duration;

use anyhow::Result;
use podway_testkit::{Host, Running, eventually};

use crate::traffic::{SOON, Way};

/// Fast enough that an interruption of 20 ms is noticed, slow enough for a dozen at once on two cores.
const PACE: Duration = Duration::from_millis(10);

/// So many calls more show that a load goes on.
const A_WHILE: usize = 5;

/// New connections and one long stream in each of some ways, until [`Load::assert_nothing_lost`].
#[derive(Debug)]
pub struct Load {
    running: Vec<(String, Running)>,
}

impl Load {
    /// Begins to call, every 10 ms in each way.
    pub fn start(client: &Host, ways: impl IntoIterator<Item = Way>) -> Result<Self> {
        let mut running = Vec::new();
        for way in ways {
            running.push((format!("new connections, {way}"), client.flood(way.probe().every(PACE))?));
            running.push((format!("a stream, {way}"), client.stream(way.probe().every(PACE))?));
        }
        Ok(Self { running })
    }

    /// Lets all of them go on for a while and stops; panics unless every call was answered and every stream has lasted.
    #[track_caller]
    pub fn assert_nothing_lost(self) {
        for (what, running) in self.running {
            let sent = || running.answers().map(|answers| answers.sent());
            let before = sent().unwrap_or_else(|error| panic!("{what}: {error:#}"));
            eventually(SOON, &format!("{what} go on"), || match sent() {
                Ok(now) if now >= before + A_WHILE => Ok(()),
                seen => Err(format!("{before}, then {seen:?}")),
            });
            let answers = running.stop().unwrap_or_else(|error| panic!("{what}: {error:#}"));
            assert!(answers.all_answered(), "{what}: {answers}");
        }
    }
}
