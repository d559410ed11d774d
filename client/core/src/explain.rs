//! Why something is not answered from the store: `AdminService.ExplainMiss`.

use piecewised_graph::Digest;
use piecewised_plan::Range;
use piecewised_proto::v1::{self, explain_miss_request::About, explanation::Answer, key_component::Comparison};
use piecewised_wire::range_from_proto;
use serde::Serialize;

use crate::{Admin, ClientError, CompileRequest};

/// One key and the nearest other one. `piecewised/v1/admin_service.proto` documents each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Explanation")]
pub struct Explanation {
    pub range: Option<Range>,
    pub key: Digest,
    /// "stored", "unverified", "running", "failed", "absent".
    pub answer: &'static str,
    /// `None`: none was compared.
    pub nearest: Option<Digest>,
    pub nearest_label: String,
    pub components: Vec<KeyComponent>,
}

/// One component of both keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's KeyComponent")]
pub struct KeyComponent {
    pub name: String,
    /// "equal", "different", "unknown".
    pub comparison: &'static str,
    pub ours: String,
    pub theirs: String,
    pub differences: Vec<String>,
}

impl Admin {
    /// What a request would be answered with, for each entry of its plan, and what of each key differs from the nearest one in the store; or from
    /// the one of which `against` is the first digits.
    ///
    /// # Errors
    /// [`ClientError::Refused`] as [`crate::Client::compile`] would be, or with `NO_SUCH_KEY`, among others.
    pub async fn explain_request(
        &self,
        request: CompileRequest,
        against: Option<&str>,
    ) -> Result<Vec<Explanation>, ClientError> {
        self.explain(About::Request(request.into_proto()), against).await
    }

    /// What of the key in the store that begins with these digits differs from the nearest other one, or from the one of which `against` is the first
    /// digits.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NO_SUCH_KEY`, `AMBIGUOUS_KEY` or `BAD_KEY`, among others.
    pub async fn explain_key(&self, key: &str, against: Option<&str>) -> Result<Vec<Explanation>, ClientError> {
        self.explain(About::Key(key.to_owned()), against).await
    }

    async fn explain(&self, about: About, against: Option<&str>) -> Result<Vec<Explanation>, ClientError> {
        let request = v1::ExplainMissRequest { about: Some(about), against: against.unwrap_or_default().to_owned() };
        let answer = self.service.clone().explain_miss(request).await;
        let answer = answer.map_err(|status| ClientError::from_status(&status, "asking for an explanation"))?;
        answer.into_inner().explanations.into_iter().map(explanation).collect()
    }
}

fn explanation(it: v1::Explanation) -> Result<Explanation, ClientError> {
    let digest = |bytes: &[u8]| {
        Digest::from_slice(bytes).map_err(|error| ClientError::BadResponse { problem: error.to_string() })
    };
    Ok(Explanation {
        answer: match it.answer() {
            Answer::Stored => "stored",
            Answer::Unverified => "unverified",
            Answer::Running => "running",
            Answer::Failed => "failed",
            Answer::Absent | Answer::Unspecified => "absent",
        },
        range: it.range.map(range_from_proto).transpose()?,
        key: digest(&it.key)?,
        nearest: if it.nearest.is_empty() { None } else { Some(digest(&it.nearest)?) },
        nearest_label: it.nearest_label,
        components: it.components.into_iter().map(component).collect(),
    })
}

fn component(it: v1::KeyComponent) -> KeyComponent {
    KeyComponent {
        comparison: match it.comparison() {
            Comparison::Equal => "equal",
            Comparison::Different => "different",
            Comparison::Unknown | Comparison::Unspecified => "unknown",
        },
        name: it.name,
        ours: it.ours,
        theirs: it.theirs,
        differences: it.differences,
    }
}
