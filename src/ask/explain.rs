//! `piecewised explain`: what of a key differs from the nearest one in the store.

use std::{
    io::{self, Write},
    path::Path,
};

use piecewised_client::Explanation;

use super::{Place, graph_file::Changes, one_line, range, table, write_table};
use crate::surroundings::Surroundings;

pub(super) async fn run(
    place: &Place,
    surroundings: &Surroundings,
    about: &str,
    changes: &Changes,
    against: Option<&str>,
) -> anyhow::Result<()> {
    let client = place.connect(surroundings).await?;
    let is_key = !about.is_empty() && about.len() <= 64 && about.bytes().all(|byte| byte.is_ascii_hexdigit());
    let explanations = if Path::new(about).is_file() || !is_key {
        let request = changes.request(&client, Path::new(about)).await?;
        client.admin().explain_request(request, against).await?
    } else {
        client.admin().explain_key(about, against).await?
    };
    place.write(&explanations, |out, explanations| {
        explanations.iter().enumerate().try_for_each(|(at, one)| {
            if at > 0 {
                writeln!(out)?;
            }
            say(out, one)
        })
    })
}

fn say(out: &mut dyn Write, explanation: &Explanation) -> io::Result<()> {
    let Explanation { key, answer, nearest, nearest_label, components, .. } = explanation;
    let answer = match *answer {
        "stored" => "it is in the store",
        "unverified" => {
            "it is in the store, and would be compiled again: it was not verified, as the operator wants it now"
        }
        "running" => "it is being compiled, or waits for it",
        "failed" => "it failed, which is remembered; `piecewised clear-failures` has it tried again",
        _ => "it is not in the store, and would be compiled",
    };
    writeln!(out, "{} of key {}: {answer}", range(explanation.range), key.short())?;
    let Some(nearest) = nearest else {
        return if explanation.answer == "stored" { Ok(()) } else { writeln!(out, "nothing else is in the store") };
    };
    let label = if nearest_label.is_empty() { String::new() } else { format!(", {}", one_line(nearest_label)) };
    writeln!(out, "nearest    {}{label}", nearest.short())?;
    let mut rows = table(["COMPONENT", "IS", "WHAT"]);
    for component in components {
        let what = match component.comparison {
            "different" => component.differences.iter().map(|it| one_line(it)).collect::<Vec<_>>().join("\n"),
            "unknown" => "the nearest one was stored without it".to_owned(),
            _ => one_line(&component.ours),
        };
        rows.add_row([component.name.replace('_', " "), component.comparison.to_owned(), what]);
    }
    write_table(out, &rows)
}
