//! The queue in every state that a few callers, keys and executors can bring it into, and in random ones beyond.

use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::Priority::{Background, Interactive, Prefetch};

const ROOM: Room = Room { max_jobs: 100, max_jobs_per_peer: 100, max_bytes_per_peer: 1 << 20 };

fn need(device: &str) -> Need {
    let gpu_kind = (device != "cpu").then(|| device.to_owned());
    Need { device_type: device.into(), gpu_kind, is_tuned: false }
}

fn key(n: u8) -> Digest {
    Digest([n; 32])
}

fn ask(n: u8, device: &str) -> Ask {
    Ask { key: key(n), need: need(device), graph: key(n), graph_bytes: 100 }
}

fn peer(name: &str) -> Peer {
    Peer::new(name)
}

fn slots(n_executors: usize, max_jobs_per_gpu: usize, gpus: &[&str]) -> Slots {
    let mut slots = Slots::new(n_executors, u64::MAX, Some(max_jobs_per_gpu));
    slots.set_gpus(gpus.iter().map(|kind| ((*kind).to_owned(), 0)));
    slots
}

/// Everything about a job that makes a difference to what follows: key, stage, what it holds, for whom it runs, who waits and how
/// urgently, whether it has its key.
type JobShape = (Digest, u8, Option<Grant>, Option<Peer>, Vec<(Peer, Priority)>, bool);

#[derive(PartialEq, Eq, Hash)]
struct Shape {
    jobs: Vec<JobShape>,
    /// Peers with what runs for them, in the order in which they were served.
    peers: Vec<(Peer, usize)>,
    is_closed: bool,
}

/// What anybody can do to a queue.
#[derive(Debug, Clone)]
enum Step {
    Submit(&'static str, Priority, Vec<u8>),
    Enqueue(JobId),
    Take,
    Finish(JobId),
    /// The GPU failed it.
    Move(JobId),
    Leave(JobId, WaiterId),
    Close,
}

impl Queue {
    fn shape(&self) -> Shape {
        let shape = |(id, job): (&JobId, &Job)| {
            let (stage, grant, peer) = match &job.stage {
                Stage::Settling => (0, None, None),
                Stage::Queued => (1, None, None),
                Stage::Running { grant, peer } => (2, Some(*grant), Some(peer.clone())),
            };
            let waiters = job.waiters.iter().map(|waiter| (waiter.peer.clone(), waiter.priority)).collect();
            (job.ask.key, stage, grant, peer, waiters, self.by_key.get(&job.ask.key) == Some(id))
        };
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.sort_by_key(|(_, account)| account.served);
        Shape {
            jobs: self.jobs.iter().map(shape).collect(),
            peers: peers.into_iter().map(|(peer, account)| (peer.clone(), account.n_running)).collect(),
            is_closed: self.is_closed,
        }
    }

    fn in_stage(&self, wanted: impl Fn(&Stage) -> bool) -> Vec<JobId> {
        self.jobs.iter().filter(|(_, job)| wanted(&job.stage)).map(|(id, _)| *id).collect()
    }

    fn settling(&self) -> Vec<JobId> {
        self.in_stage(|stage| *stage == Stage::Settling)
    }

    fn queued(&self) -> Vec<JobId> {
        self.in_stage(|stage| *stage == Stage::Queued)
    }

    fn running(&self) -> Vec<JobId> {
        self.in_stage(|stage| matches!(stage, Stage::Running { .. }))
    }

    fn waiters(&self) -> Vec<(JobId, WaiterId)> {
        self.jobs.iter().flat_map(|(id, job)| job.waiters.iter().map(|waiter| (*id, waiter.id))).collect()
    }

    /// Every step that is possible now, with at most so many callers at a time.
    fn steps(&self, keys: &[Vec<u8>], max_waiters: usize, priorities: &[Priority]) -> Vec<Step> {
        let mut steps = vec![Step::Take];
        for name in ["a", "b"] {
            for &priority in priorities {
                let fitting = keys.iter().filter(|keys| self.waiters().len() + keys.len() <= max_waiters);
                steps.extend(fitting.map(|keys| Step::Submit(name, priority, keys.clone())));
            }
        }
        steps.extend(self.settling().into_iter().flat_map(|id| [Step::Enqueue(id), Step::Finish(id)]));
        steps.extend(self.running().into_iter().flat_map(|id| [Step::Finish(id), Step::Move(id)]));
        steps.extend(self.waiters().into_iter().map(|(id, waiter)| Step::Leave(id, waiter)));
        steps.push(Step::Close);
        steps
    }

    /// Does one step, and checks what it says of itself.
    fn step(&mut self, step: &Step, device: impl Fn(u8) -> &'static str) {
        match step {
            Step::Submit(name, priority, keys) => {
                let asks: Vec<_> = keys.iter().map(|n| ask(*n, device(*n))).collect();
                let had: Vec<bool> = keys.iter().map(|n| self.by_key.contains_key(&key(*n))).collect();
                let n_waiting = self.n_waiting();
                match self.submit(&peer(name), *priority, asks) {
                    Err(error) => {
                        assert!(self.is_closed || self.room.max_jobs < 100, "{error}");
                        assert_eq!(self.n_waiting(), n_waiting, "all or none");
                    }
                    Ok(asked) => {
                        for ((asked, n), had) in asked.iter().zip(keys).zip(had) {
                            assert!(!asked.is_new || !had, "a second job for a key");
                            assert_eq!(self.jobs[&asked.job].ask.key, key(*n));
                            assert!(asked.position < self.n_waiting().max(1));
                        }
                    }
                }
            }
            Step::Enqueue(id) => {
                let is_wanted = !self.jobs[id].waiters.is_empty();
                assert_eq!(self.enqueue(*id), is_wanted);
                assert_eq!(self.jobs.contains_key(id), is_wanted);
            }
            Step::Take => {
                let fits = |queue: &Self, id: &JobId| matches!(queue.slots.fit(&queue.jobs[id].ask.need), Fit::Fits(_));
                let fitting: Vec<JobId> = self.queued().into_iter().filter(|id| fits(self, id)).collect();
                let most_urgent = fitting.iter().map(|id| self.jobs[id].priority()).min();
                let taken = self.take();
                assert_eq!(taken.is_some(), !fitting.is_empty(), "what can run is handed out, and nothing else");
                if let Some((id, _)) = taken {
                    assert_eq!(Some(self.jobs[&id].priority()), most_urgent);
                }
            }
            Step::Finish(id) => {
                self.finish(*id);
                assert!(!self.jobs.contains_key(id));
            }
            Step::Move(id) => {
                let before = match &self.jobs[id].stage {
                    Stage::Running { grant, .. } => *grant,
                    stage => panic!("{stage:?}"),
                };
                let after = self.gpu_failed(*id).unwrap().0;
                assert_eq!(before.gpu.is_some(), after.gpu.is_some());
            }
            Step::Leave(id, waiter) => {
                let (n_left, stage) = (self.jobs[id].waiters.len() - 1, self.jobs[id].stage.clone());
                let left = self.leave(*id, *waiter);
                let expected = match (n_left, stage) {
                    (0, Stage::Queued) => Left::Dropped,
                    (0, Stage::Running { .. }) => Left::Abandoned,
                    _ => Left::Nothing,
                };
                assert_eq!(left, expected);
                if left == Left::Abandoned {
                    self.disown(*id);
                }
            }
            Step::Close => {
                self.close();
            }
        }
    }

    /// What holds in every state.
    fn check(&self) {
        let mut owned: HashMap<Digest, JobId> = HashMap::new();
        let mut accounts: BTreeMap<Peer, Account> = BTreeMap::new();
        let mut n_running = 0;
        let mut by_gpu: HashMap<usize, usize> = HashMap::new();
        for (id, job) in &self.jobs {
            if self.by_key.get(&job.ask.key) == Some(id) {
                owned.insert(job.ask.key, *id);
            } else {
                assert!(
                    !job.waits() && job.waiters.is_empty(),
                    "only a running job that nobody waits for can lose its key"
                );
            }
            assert!(job.stage != Stage::Queued || !job.waiters.is_empty(), "a queued job that nobody waits for");
            for waiter in &job.waiters {
                accounts.entry(waiter.peer.clone()).or_default().n_waiters += 1;
            }
            if let Stage::Running { grant, peer } = &job.stage {
                n_running += 1;
                accounts.entry(peer.clone()).or_default().n_running += 1;
                if let Some(gpu) = grant.gpu {
                    *by_gpu.entry(gpu).or_default() += 1;
                }
            }
        }
        assert_eq!(owned, self.by_key, "every key names a job that there is");
        assert_eq!(n_running, self.n_running());
        let found = self.peers.iter().map(|(peer, account)| (peer.clone(), Account { served: 0, ..account.clone() }));
        assert_eq!(accounts, found.collect());
        assert!(by_gpu.values().all(|n_jobs| *n_jobs <= 1));
        let order = self.order();
        assert_eq!(order.iter().collect::<HashSet<_>>().len(), self.n_waiting());
        assert!(order.is_sorted_by_key(|id| self.jobs[id].priority()));
    }

    /// Whoever waits is served in the end, if makers and workers do what they have to: nothing can hang.
    fn check_that_it_ends(mut self) {
        for id in self.settling() {
            self.enqueue(id);
        }
        self.close();
        loop {
            while self.take().is_some() {}
            let running = self.running();
            if running.is_empty() {
                break;
            }
            running.into_iter().for_each(|id| self.finish(id));
        }
        assert!(self.is_over() && self.jobs.is_empty() && self.peers.is_empty() && self.by_key.is_empty());
        assert_eq!(self.n_running(), 0);
    }
}

/// Goes to every state that can be reached with up to three callers at a time, and does everything that can be done there.
fn explore(start: Queue, keys: &[Vec<u8>], priorities: &[Priority], device: fn(u8) -> &'static str) -> usize {
    let mut seen = HashSet::from([start.shape()]);
    let mut open = VecDeque::from([start]);
    while let Some(queue) = open.pop_front() {
        for step in queue.steps(keys, 3, priorities) {
            let mut next = queue.clone();
            next.step(&step, device);
            if seen.insert(next.shape()) {
                next.check();
                next.clone().check_that_it_ends();
                open.push_back(next);
            }
        }
    }
    seen.len()
}

#[test]
fn every_state_of_two_peers_two_keys_and_one_executor() {
    let n_states = explore(
        Queue::new(ROOM, slots(1, 1, &[])),
        &[vec![0], vec![1], vec![0, 1]],
        &[Interactive, Background],
        |_| "cpu",
    );
    assert!(n_states > 1000, "{n_states}");
}

#[test]
fn every_state_with_two_executors_and_one_gpu() {
    let device = |n| if n == 0 { "gpu" } else { "cpu" };
    let n_states = explore(Queue::new(ROOM, slots(2, 1, &["gpu"])), &[vec![0], vec![1]], &[Interactive], device);
    assert!(n_states > 1000, "{n_states}");
}

#[test]
fn every_state_of_a_full_queue() {
    let room = Room { max_jobs: 2, max_jobs_per_peer: 1, ..ROOM };
    let n_states = explore(Queue::new(room, slots(1, 1, &[])), &[vec![0], vec![1], vec![2]], &[Background], |_| "cpu");
    assert!(n_states > 1000, "{n_states}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Longer ways through larger queues: seven keys, two kinds of GPUs, three executors, up to twenty callers.
    #[test]
    fn random_ways_break_nothing(choices in prop::collection::vec(any::<prop::sample::Index>(), 0..150)) {
        let device = |n: u8| ["cpu", "x", "y"][usize::from(n) % 3];
        let mut queue = Queue::new(ROOM, slots(3, 1, &["x", "y", "x"]));
        let keys: Vec<Vec<u8>> = (0..7).map(|n| vec![n]).chain([vec![0, 1, 2, 3], vec![3, 3, 4, 5, 6]]).collect();
        for choice in choices {
            let mut steps = queue.steps(&keys, 20, &[Interactive, Prefetch, Background]);
            steps.pop(); // Closing at random would end most ways early.
            let step = choice.get(&steps);
            queue.step(step, device);
            queue.check();
        }
        queue.check_that_it_ends();
    }
}

/// Submits and enqueues.
fn wait_for(queue: &mut Queue, name: &str, priority: Priority, keys: &[u8]) -> Vec<Asked> {
    let asked = queue.submit(&peer(name), priority, keys.iter().map(|n| ask(*n, "cpu")).collect()).unwrap();
    for asked in &asked {
        queue.enqueue(asked.job);
    }
    asked
}

/// The keys in the order in which one executor gets them.
fn served(queue: &mut Queue) -> Vec<u8> {
    let next = || {
        let (id, _) = queue.take()?;
        let n = queue.jobs[&id].ask.key.0[0];
        queue.finish(id);
        Some(n)
    };
    std::iter::from_fn(next).collect()
}

fn queue(n_executors: usize) -> Queue {
    Queue::new(ROOM, slots(n_executors, 1, &[]))
}

#[test]
fn the_more_urgent_goes_first_and_a_join_makes_a_job_more_urgent() {
    let mut one = queue(1);
    wait_for(&mut one, "a", Background, &[1]);
    wait_for(&mut one, "a", Prefetch, &[2]);
    wait_for(&mut one, "a", Interactive, &[3]);
    wait_for(&mut one, "a", Background, &[4]);
    assert_eq!(served(&mut one.clone()), [3, 2, 1, 4]);
    let joined = wait_for(&mut one, "b", Interactive, &[4]);
    assert_eq!(served(&mut one.clone()), [3, 4, 2, 1], "b came after a, and before a's second turn");
    // It is as urgent as those who wait for it now.
    one.leave(joined[0].job, joined[0].waiter);
    assert_eq!(served(&mut one), [3, 2, 1, 4]);
}

#[test]
fn peers_take_turns_however_much_each_asks_for() {
    let mut one = queue(1);
    wait_for(&mut one, "a", Interactive, &[1, 2, 3, 4]);
    wait_for(&mut one, "b", Interactive, &[11, 12]);
    wait_for(&mut one, "c", Interactive, &[21]);
    assert_eq!(served(&mut one), [1, 11, 21, 2, 12, 3, 4]);
}

#[test]
fn a_job_that_two_peers_wait_for_goes_with_the_first_turn_of_either() {
    let mut one = queue(1);
    wait_for(&mut one, "a", Interactive, &[1, 2, 3]);
    wait_for(&mut one, "b", Interactive, &[3]);
    assert_eq!(served(&mut one), [1, 3, 2]);
}

#[test]
fn what_runs_for_a_peer_counts_for_its_turn() {
    let mut two = queue(2);
    wait_for(&mut two, "a", Interactive, &[1, 2, 3]);
    let (first, second) = (two.take().unwrap().0, two.take().unwrap().0);
    assert_eq!([first, second].map(|id| two.jobs[&id].ask.key.0[0]), [1, 2], "all executors, while nobody else asks");
    wait_for(&mut two, "b", Interactive, &[11, 12]);
    two.finish(first);
    let third = two.take().unwrap().0;
    assert_eq!(two.jobs[&third].ask.key, key(11));
    two.finish(third);
    let fourth = two.take().unwrap().0;
    assert_eq!(two.jobs[&fourth].ask.key, key(12), "a has one running, b none");
}

#[test]
fn newcomers_do_not_starve_who_waits() {
    let names: Vec<String> = (0..20).map(|n| format!("newcomer {n}")).collect();
    let mut one = queue(1);
    wait_for(&mut one, "a", Interactive, &[1, 2, 3]);
    let mut order = Vec::new();
    for (n, name) in (100..).zip(&names) {
        wait_for(&mut one, name, Interactive, &[n]);
        let (id, _) = one.take().unwrap();
        order.push(one.jobs[&id].ask.key.0[0]);
        one.finish(id);
    }
    let at = |n| order.iter().position(|served| *served == n);
    assert_eq!(at(1), Some(0));
    assert!(at(2) <= Some(3) && at(3) <= Some(9) && at(3).is_some(), "{order:?}");
}

#[test]
fn a_large_job_is_not_overtaken_for_ever_by_small_ones() {
    const GIB: u64 = 1 << 30;
    let mut queue = Queue::new(ROOM, Slots::new(3, 10 * GIB, Some(1)));
    let large = Need { is_tuned: true, ..need("cpu") };
    queue.slots.measured(&need("cpu"), 3 * GIB);
    queue.slots.measured(&large, 8 * GIB);
    wait_for(&mut queue, "a", Interactive, &[1]);
    let (small, _) = queue.take().unwrap();
    let asked = queue.submit(&peer("b"), Interactive, vec![Ask { need: large, ..ask(2, "cpu") }]).unwrap();
    queue.enqueue(asked[0].job);
    wait_for(&mut queue, "a", Interactive, &[3]);
    assert_eq!(queue.take(), None, "3 would fit, but it is not its turn");
    // a was served before b came, and is once more; however much it adds, b is next.
    queue.finish(small);
    let (small, _) = queue.take().unwrap();
    assert_eq!(queue.jobs[&small].ask.key, key(3));
    wait_for(&mut queue, "a", Interactive, &[4, 5, 6]);
    assert_eq!(queue.take(), None);
    queue.finish(small);
    assert_eq!(queue.take().unwrap().0, asked[0].job);
}

#[test]
fn room_is_bounded_for_the_queue_for_patient_jobs_and_for_each_peer() {
    let room = Room { max_jobs: 6, max_jobs_per_peer: 4, max_bytes_per_peer: 450 };
    let mut queue = Queue::new(room, slots(1, 1, &[]));
    let refused = |queue: &mut Queue, name: &str, priority, keys: &[u8]| {
        let asks = keys.iter().map(|n| ask(*n, "cpu")).collect();
        queue.submit(&peer(name), priority, asks).unwrap_err()
    };
    wait_for(&mut queue, "a", Background, &[1, 2, 3]);
    let error = refused(&mut queue, "b", Prefetch, &[4]);
    assert!(
        matches!(error, SubmitError::QueueFull { n_queued: 3, n_new: 1, limit: 3, retry_after: Some(_) }),
        "{error}"
    );
    // Joining needs no place in the queue.
    wait_for(&mut queue, "b", Background, &[1, 2]);
    let error = refused(&mut queue, "a", Interactive, &[4, 5]);
    assert!(matches!(error, SubmitError::PeerQueueFull { n_queued: 3, n_new: 2, limit: 4, .. }), "{error}");
    let error = refused(&mut queue, "c", Interactive, &[4, 5, 6, 7]);
    assert!(
        matches!(error, SubmitError::QueueFull { n_queued: 3, n_new: 4, limit: 6, retry_after: Some(_) }),
        "{error}"
    );
    let error = refused(&mut queue, "c", Interactive, &[4, 5, 6, 7, 8, 9, 10]);
    assert!(matches!(error, SubmitError::QueueFull { retry_after: None, .. }), "so many will never fit: {error}");

    // A graph counts once for a peer, however many of its ranges wait, and while they run too.
    let of_graph = |n: u8, graph: u8| Ask { graph: key(graph), graph_bytes: 200, ..ask(n, "cpu") };
    queue.submit(&peer("d"), Interactive, vec![of_graph(4, 77), of_graph(5, 77)]).unwrap();
    let error = queue.submit(&peer("d"), Interactive, vec![Ask { graph_bytes: 300, ..of_graph(6, 78) }]).unwrap_err();
    assert!(matches!(error, SubmitError::PeerBytesFull { bytes: 200, new_bytes: 300, limit: 450, .. }), "{error}");
    queue.submit(&peer("d"), Interactive, vec![of_graph(6, 78)]).unwrap();
}

#[test]
fn a_disowned_job_makes_room_for_another_of_its_key() {
    let mut one = queue(2);
    let asked = wait_for(&mut one, "a", Interactive, &[1]);
    let (ending, _) = one.take().unwrap();
    assert_eq!(one.leave(ending, asked[0].waiter), Left::Abandoned);
    one.disown(ending);
    let again = wait_for(&mut one, "a", Interactive, &[1]);
    assert!(again[0].is_new && again[0].job != ending);
    one.finish(ending);
    assert_eq!(one.take().unwrap().0, again[0].job, "the end of the first is not the end of the second");
}
