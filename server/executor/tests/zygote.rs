//! Forked executors: they are what started ones are, from a zygote that is looked after, and they leave as little behind.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

mod common;

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc};

use common::{
    eventually, members, misbehaving, nothing_left,
    real::{config, config_with, job},
};
use piecewised_executor::{Executor, LaunchKind, Launcher, Placement, Unshared};
use piecewised_graph::VerificationOutcome;
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

/// The number after a name in `/proc/PID/status`.
fn status(pid: u32, name: &str) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn compiles(executor: &mut Executor, id: &str) {
    let job = job(executor, id, "torch.add", (1, 16));
    let outcome = executor.compile(&job, &mut Unshared(|_: &str| ())).await.unwrap();
    assert_eq!(outcome.verification.outcome, VerificationOutcome::Passed);
}

#[tokio::test]
async fn forked_executors_are_the_daemons_children_in_surroundings_of_their_own() {
    let (mut config, _runtime, root) = config();
    config.nice = 7;
    config.environment.insert("AWS_SECRET_ACCESS_KEY".into(), "secret".into());
    let launcher = Launcher::new(Arc::new(config));
    assert!(matches!(launcher.kind(), LaunchKind::Fresh { .. }));
    let one = launcher.launch(&Placement { n_compile_threads: Some(3), ..Placement::default() }).await.unwrap();
    assert_eq!(launcher.kind(), LaunchKind::Forked);
    let zygote = launcher.zygote_pid().await.unwrap();
    let mut two = launcher.launch(&Placement::default()).await.unwrap();
    assert_eq!(two.hello(), one.hello());

    let mut folders = Vec::new();
    for executor in [&one, &two] {
        let pid = executor.pid();
        assert_ne!(pid, zygote);
        assert_eq!(status(pid, "PPid"), std::process::id());
        assert!(members(pid).len() >= 2, "itself, and what its trials are forked from");
        let work: PathBuf = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        let folder = work.parent().unwrap().to_owned();
        assert_eq!(folder.parent().unwrap(), root.path().canonicalize().unwrap());
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
        folders.push(folder);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().to_owned();
        assert_eq!(nice, "7");
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "500");
        for name in ["0", "1", "2"] {
            let file = fs::read_link(format!("/proc/{pid}/fd/{name}")).unwrap();
            assert!(file.starts_with("/dev/null") == (name == "0"), "{name}: {}", file.display());
        }
    }
    assert_ne!(folders[0], folders[1]);
    compiles(&mut two, "forked").await;
    // Where it compiled is its own folder, and what it used there is gone with the job.
    assert!(fs::read_dir(folders[1].join("tmp")).unwrap().count() <= 2);
    assert!(folders[1].join("inductor").is_dir());

    let (first, second) = (one.pid(), two.pid());
    one.shutdown().await;
    assert_eq!(members(first), [0; 0]);
    assert!(!folders[0].exists());
    // What it was forked from ends; what was forked goes on.
    launcher.shutdown().await;
    assert_eq!(members(zygote), [0; 0]);
    compiles(&mut two, "on its own").await;
    drop(two);
    nothing_left(second, &root).await;
}

#[tokio::test]
async fn a_zygote_that_died_is_started_again_and_an_abandoned_compile_leaves_nothing() {
    let (config, _runtime, root) = config();
    let launcher = Launcher::new(Arc::new(config));
    let mut before = launcher.launch(&Placement::default()).await.unwrap();
    let zygote = launcher.zygote_pid().await.unwrap();
    kill(zygote);
    eventually("it is gone", || members(zygote).is_empty()).await;
    let after = launcher.launch(&Placement::default()).await.unwrap();
    assert_eq!(launcher.kind(), LaunchKind::Forked);
    assert_ne!(launcher.zygote_pid().await.unwrap(), zygote);
    // The one before it was forked from one that is dead, and does not mind.
    compiles(&mut before, "orphan").await;

    let pid = after.pid();
    let mut executor = after;
    let job = job(&executor, "abandoned", "torch.mul", (2, 16));
    let mut host = Unshared(|_: &str| ());
    let compile = executor.compile(&job, &mut host);
    let the_compiler_runs = async {
        while members(pid).len() < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = compile => panic!("no compiler was ever seen: {result:?}"),
        () = the_compiler_runs => {}
    }
    eventually("no process of the group is left", || members(pid).is_empty()).await;
    let last = before.pid();
    drop((executor, before, launcher));
    nothing_left(last, &root).await;
}

#[tokio::test]
async fn what_cannot_be_forked_is_started_and_says_so() {
    // A thread from the very start, as some monitoring agents start one in every interpreter.
    let agent = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n";
    let (config, _runtime, root) = config_with(agent);
    let launcher = Launcher::new(Arc::new(config));
    let mut executor = launcher.launch(&Placement::default()).await.unwrap();
    let LaunchKind::Fresh { reason } = launcher.kind() else { panic!("forked") };
    assert!(reason.contains("started threads (python"), "{reason}");
    assert_eq!(launcher.zygote_pid().await, None);
    compiles(&mut executor, "fresh").await;
    let pid = executor.pid();
    executor.shutdown().await;
    nothing_left(pid, &root).await;
}

#[tokio::test]
async fn a_source_without_a_zygote_falls_back_and_a_broken_one_is_not_tried_for_ever() {
    let (config, root) = misbehaving("ready");
    let launcher = Launcher::new(Arc::new(config));
    for _ in 0..4 {
        let executor = launcher.launch(&Placement::default()).await.unwrap();
        let LaunchKind::Fresh { reason } = launcher.kind() else { panic!("forked") };
        assert!(reason.contains("No module named piecewised_executor.zygote"), "{reason}");
        executor.shutdown().await;
    }
    eventually("no folder is left", || fs::read_dir(root.path()).unwrap().next().is_none()).await;
}
