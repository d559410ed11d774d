//! Between `piecewised.v1` messages and the pure models, both ways: the one place that knows both.
//!
//! Guarantees that `from(to(model)) == model`, and that a message which leaves out something required is refused with a
//! sentence that says where. It checks presence and form only; the rules of graphs and plans are `piecewised_graph`'s and
//! `piecewised_plan`'s. Recursion is bounded by the decoder: prost refuses messages nested more than 100 deep.

mod artifact;
mod error;
mod frontend;
mod graph;
mod options;
mod plan;
mod program;
mod snapshot;
mod value;

pub use artifact::{
    device_from_proto, device_to_proto, format_from_proto, format_to_proto, handle_from_proto, handle_to_proto,
    outcome_to_proto, signature_from_proto, signature_to_proto, toolchain_from_proto, toolchain_to_proto,
};
pub use error::WireError;
pub use frontend::{MAX_PAYLOAD_BYTES, frontend_from_proto, frontend_to_proto};
pub use graph::{graph_from_proto, graph_to_proto};
pub use options::{Delivery, options_from_proto, options_to_proto, tuning_from_proto, tuning_to_proto};
pub use plan::{plan_from_proto, plan_to_proto, range_from_proto, range_to_proto};
pub use program::{manifest_from_proto, manifest_to_proto, program_name_from_proto};
pub use snapshot::{snapshot_name_from_proto, snapshot_name_to_proto};

#[cfg(test)]
mod tests;
