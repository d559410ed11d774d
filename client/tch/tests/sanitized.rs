//! The shim under AddressSanitizer, with a real package: `sanitized.cpp` is compiled with it and calls it as `src/shim.rs` does.
//!
//! libtorch itself is not instrumented. What it leaves allocated at its end is its own; what the shim or its caller leaves is reported.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

mod common;

use std::{fs, path::Path, process::Command};

use common::{daemon, plan, scaled};
use piecewised_client::CompileRequest;

#[tokio::test]
async fn nothing_leaks_and_nothing_is_touched_that_was_freed() {
    let daemon = daemon();
    let request = CompileRequest { plan: plan(&[(2, 8)], &[]), ..scaled() };
    let (_, folders) = daemon.artifacts(request).await;
    let folder = tempfile::tempdir().unwrap();
    let (program, broken) = (folder.path().join("sanitized"), folder.path().join("broken.pt2"));
    fs::write(&broken, "no package").unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let libtorch = Path::new(env!("LIBTORCH_OF_BUILD"));
    let library = libtorch.join("lib");
    let compiled = Command::new("g++")
        .args(["-std=c++17", "-g", "-O1", "-w", "-fsanitize=address"])
        .args([here.join("shim/package.cpp"), here.join("tests/sanitized.cpp")])
        .arg("-I")
        .arg(libtorch.join("include"))
        .arg("-I")
        .arg(libtorch.join("include/torch/csrc/api/include"))
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(&library)
        .args(["-ltorch_cpu", "-lc10", "-ldl", "-pthread"])
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let suppressions = folder.path().join("suppressions");
    // Allocated by libtorch's and OpenMP's own initialisers.
    fs::write(&suppressions, "leak:libtorch_cpu.so\nleak:libgomp.so\nleak:libc10.so\nleak:_dl_init\n").unwrap();
    let output = Command::new(&program)
        .arg(folders[0].join("packages/e0.pt2"))
        .arg(&broken)
        .env("ASAN_OPTIONS", "detect_leaks=1")
        .env("LSAN_OPTIONS", format!("suppressions={}:print_suppressions=0", suppressions.display()))
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("done\n"), "{text}");
    assert!(!text.contains("AddressSanitizer") && !text.contains("LeakSanitizer"), "{text}");
}
