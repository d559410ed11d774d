//! Snapshots' names.

use piecewised_graph::SnapshotName;
use piecewised_proto::v1;

use crate::WireError;

/// The name of a message.
///
/// # Errors
/// `BAD_SNAPSHOT_NAME` where it is absent or a part is not usable.
pub fn snapshot_name_from_proto(name: Option<v1::SnapshotName>) -> Result<SnapshotName, WireError> {
    let bad = |message: String| WireError::new("BAD_SNAPSHOT_NAME", message);
    let v1::SnapshotName { frontend, name, toolchain } = name.ok_or_else(|| bad("the snapshot has no name".into()))?;
    SnapshotName::new(frontend, name, toolchain).map_err(|error| bad(error.to_string()))
}

/// The message of a name.
pub fn snapshot_name_to_proto(name: &SnapshotName) -> v1::SnapshotName {
    let SnapshotName { frontend, name, toolchain } = name.clone();
    v1::SnapshotName { frontend, name, toolchain }
}
