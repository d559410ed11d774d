//! Tries AOTInductor packages before they are released: `piecewised-runner try FOLDER`, `piecewised-runner version`.
//!
//! An executor starts it, with libtorch on `LD_LIBRARY_PATH`, and puts what is to be tried into the folder (`request.rs`). Packages run here as
//! they will in a worker, by the very code of `client/tch`; whether what comes out is right is the executor's to say, which has eager's results.
//! Being a process of its own, it may crash: that fails the artifact and nothing else.
//!
//! Exit code 0: `result.json` has the outputs. 1: it has the error, which is on stderr too.

mod exchange;
mod request;
mod timing;
mod trial;

use std::{env, path::PathBuf, process::ExitCode};

use piecewised_tch::{initialise, libtorch_version};
use tch::Device;

const USAGE: &str = "usage: piecewised-runner try FOLDER    (FOLDER holds request.json, and gets result.json)\n       \
                     piecewised-runner version       (what it was built for, and whether there is a GPU)";

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]
fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [command, folder] if command == "try" => match trial::run(&PathBuf::from(folder)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("piecewised-runner: {error:#}");
                ExitCode::FAILURE
            }
        },
        [command] if command == "version" => {
            if let Err(error) = initialise(Device::Cpu) {
                eprintln!("piecewised-runner: {error}");
                return ExitCode::FAILURE;
            }
            let cuda = initialise(Device::Cuda(0)).is_ok();
            println!("{}", serde_json::json!({"libtorch": libtorch_version(), "cuda": cuda}));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
