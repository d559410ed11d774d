//! `piecewised jobs`: the compiles that run and that wait.

use std::io::{self, IsTerminal as _, Write};

use piecewised_client::Job;
use tokio_stream::StreamExt as _;

use super::{Place, duration, one_line, range, table, write_table};
use crate::surroundings::Surroundings;

/// Moves a terminal's cursor to the top and clears what is below it.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) async fn list(place: &Place, surroundings: &Surroundings) -> anyhow::Result<()> {
    let jobs = place.connect(surroundings).await?.admin().jobs().await?;
    place.write(&jobs, |out, jobs| say(out, jobs))
}

pub(super) async fn watch(place: &Place, surroundings: &Surroundings) -> anyhow::Result<()> {
    let changes = place.connect(surroundings).await?.admin().watch_jobs().await?;
    tokio::pin!(changes);
    let is_terminal = io::stdout().is_terminal();
    while let Some(jobs) = changes.next().await {
        place.write(&jobs?, |out, jobs| {
            if is_terminal {
                write!(out, "{CLEAR}")?;
            }
            say(out, jobs)?;
            if is_terminal { Ok(()) } else { writeln!(out) }
        })?;
    }
    Ok(())
}

fn say(out: &mut dyn Write, jobs: &[Job]) -> io::Result<()> {
    if jobs.is_empty() {
        return writeln!(out, "nothing is being compiled");
    }
    let mut rows = table(["JOB", "KEY", "LABEL", "RANGE", "PHASE", "TRY", "AGE", "RUNNING", "PID", "DEVICE"]);
    for job in jobs {
        let running = job.running_s.map_or("-".to_owned(), duration);
        let label = if job.label.is_empty() { "-".to_owned() } else { one_line(&job.label) };
        let [attempt, pid] =
            [job.attempt, job.executor_pid].map(|n| if n == 0 { "-".to_owned() } else { n.to_string() });
        let (age, device) = (duration(job.age_s), one_line(&job.device));
        rows.add_row([
            job.id.clone(),
            job.key.short(),
            label,
            range(job.range),
            one_line(&job.phase),
            attempt,
            age,
            running,
            pid,
            device,
        ]);
    }
    write_table(out, &rows)
}
