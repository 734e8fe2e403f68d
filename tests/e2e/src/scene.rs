//! What most tests with a load begin and end with: a pair whose alpha is Primary, random numbers, and a ledger.

use crate::cluster::{Cluster, Plan};
use crate::ledger::{Ledger, Load};
use crate::rng::{Rng, seed};

/// A pair and what it was promised.
#[derive(Debug)]
pub struct Scene {
    /// The pair.
    pub cluster: Cluster,
    /// Drawn from the seed of this run.
    pub rng: Rng,
    /// What was acknowledged, while no load runs.
    ledger: Option<Ledger>,
}

impl Scene {
    /// Alpha is Primary, beta mirrors it. The seed is printed under `name`.
    pub fn primary(name: &str, plan: &Plan) -> Scene {
        let number = seed(name);
        Scene {
            cluster: Cluster::primary(plan),
            rng: Rng::new(number),
            ledger: Some(Ledger::new(plan.size_bytes, 4, number)),
        }
    }

    /// Eight writers at alpha.
    #[track_caller]
    pub fn load(&mut self) -> Load {
        self.ledger.take().expect("one load at a time").start(self.cluster.alpha.nbd(), 8)
    }

    /// Ends a load; both copies must be equal and hold what it was promised.
    #[track_caller]
    pub fn settle(&mut self, load: Load) {
        let mut ledger = load.stop();
        self.cluster.assert_replicas_equal();
        ledger.assert_kept(self.cluster.beta.disk());
        self.ledger = Some(ledger);
    }
}
