//! What is abused: the server alone, or the Primary of a pair. It must be as it was when those who abused it went.

use crate::busy::Model;
use lockstep_e2e::wait_for;
use lockstep_e2e::{
    Cluster, Connection, Plain, Plan, Port, RESOURCE, open_descriptors, peak_bytes, rss_bytes,
    settled_descriptors,
};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

const MIB: u64 = 1 << 20;
pub(crate) const SIZE_BYTES: u64 = 64 * MIB;
const MAX_CLIENTS: usize = 1200;
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) enum Subject {
    /// `lockstep nbd`, which listens on TCP too.
    Alone(Box<Plain>, Port),
    Pair(Box<Cluster>),
}

impl Subject {
    pub(crate) fn alone() -> Subject {
        let port = Port::reserve();
        let (address, clients) = (format!("127.0.0.1:{}", port.number()), MAX_CLIENTS.to_string());
        let options = ["--name", RESOURCE, "--tcp", &address, "--max-clients", &clients];
        Subject::Alone(Box::new(Plain::with_few_files(SIZE_BYTES, &options)), port)
    }

    pub(crate) fn pair() -> Subject {
        let plan =
            Plan { size_bytes: SIZE_BYTES, max_clients: MAX_CLIENTS, timeout_ms: 10_000, ..Plan::default() };
        Subject::Pair(Box::new(Cluster::primary(&plan)))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        match self {
            Subject::Alone(plain, _) => plain.socket(),
            Subject::Pair(cluster) => cluster.alpha.nbd().to_owned(),
        }
    }

    /// Its port, if it listens on one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Subject::Alone(_, port) => Some(port.number()),
            Subject::Pair(_) => None,
        }
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.socket().as_path(), RESOURCE).expect("a client")
    }

    fn pid(&self) -> u32 {
        match self {
            Subject::Alone(plain, _) => plain.pid(),
            Subject::Pair(cluster) => cluster.alpha.pid(),
        }
    }

    pub(crate) fn rss_bytes(&self) -> u64 {
        rss_bytes(self.pid())
    }

    /// Descriptors that are open while nobody is there; one client came and went before.
    pub(crate) fn descriptors_at_rest(&self) -> usize {
        drop(self.connect());
        settled_descriptors(self.pid())
    }

    /// Until nothing of any client is left.
    #[track_caller]
    pub(crate) fn wait_at_rest(&self, descriptors: usize) {
        if let Subject::Pair(cluster) = self {
            cluster.alpha.wait_status("nothing of a client", |status| {
                status["clients"] == json!([]) && status["requests"] == 0
            });
        }
        wait_for("no more descriptors than before", LIMIT, || match open_descriptors(self.pid()) {
            open if open <= descriptors => Ok(()),
            open => Err(format!("{open} are open, {descriptors} were")),
        });
    }

    /// It never took more memory than it said at its start.
    #[track_caller]
    pub(crate) fn assert_within_budget(&self) {
        let budget = match self {
            Subject::Alone(plain, _) => plain.budget_bytes(),
            Subject::Pair(cluster) => cluster.alpha.budget_bytes(),
        };
        let peak = peak_bytes(self.pid());
        println!("{} MiB at most, {} MiB were announced", peak / MIB, budget / MIB);
        assert!(peak <= budget, "{} MiB of {} MiB", peak / MIB, budget / MIB);
    }

    /// Each copy holds what the clients wrote; the copies of a pair are equal.
    #[track_caller]
    pub(crate) fn assert_holds(&self, models: &[Model]) {
        let disk = match self {
            Subject::Alone(plain, _) => plain.disk(),
            Subject::Pair(cluster) => {
                cluster.assert_replicas_equal();
                cluster.beta.disk().to_owned()
            }
        };
        let bytes = std::fs::read(disk).expect("the data");
        for model in models {
            let found = &bytes[model.offset as usize..][..model.bytes.len()];
            assert!(found == model.bytes, "what was written at {} is not there", model.offset);
        }
    }
}
