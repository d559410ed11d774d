//! Compiles the protos with protox, so that no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 6] = [
    "piecewised/v1/graph.proto",
    "piecewised/v1/plan.proto",
    "piecewised/v1/artifact.proto",
    "piecewised/v1/program.proto",
    "piecewised/v1/compile_service.proto",
    "piecewised/v1/admin_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=piecewised");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let set = protox::compile(FILES, ["."])?;
    fs::write(out.join("piecewised.v1.binpb"), set.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_client(false)
        .codec_path("crate::codec::RequestCodec")
        .bytes(".piecewised.v1.FetchArtifactResponse.data")
        .bytes(".piecewised.v1.FetchSnapshotResponse.data")
        .compile_fds(set.clone())?;

    // The client half apart, because the two decode different things: an undecodable request is the caller's
    // mistake, an undecodable response is ours.
    let client = out.join("client");
    fs::create_dir_all(&client)?;
    tonic_prost_build::configure()
        .build_server(false)
        .out_dir(&client)
        .extern_path(".piecewised.v1", "crate::v1")
        .compile_fds(set)?;
    Ok(())
}
