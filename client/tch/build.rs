//! Compiles the C++ shim against the libtorch that torch-sys links, which is the one in `LIBTORCH`.
//!
//! Tests and examples of this package get an rpath to that libtorch, so that `cargo test` runs them as they are. Other programs do not:
//! they would depend on the folder that they were built in (README.md says how they find libtorch).

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=shim/package.cpp");
    println!("cargo:rerun-if-changed=shim/package.h");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        panic!("LIBTORCH is not set: .cargo/config.toml sets it to .venv/libtorch, where `make venv` puts libtorch");
    };
    // A link in the environment is followed once, so that what is compiled does not change with it unnoticed.
    let libtorch = libtorch.canonicalize().unwrap_or_else(|error| {
        panic!("there is no libtorch at LIBTORCH={}: {error}; run `make venv` first", libtorch.display())
    });
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        // libtorch's headers have warnings of their own.
        .warnings(false)
        .flag("-Wno-attributes")
        // The shim's own cost counts also in a debug build.
        .opt_level(2)
        .file("shim/package.cpp")
        .compile("piecewised_package");
    let library = libtorch.join("lib");
    // For tests that compile C++ themselves; the library does not read it.
    println!("cargo:rustc-env=LIBTORCH_OF_BUILD={}", libtorch.display());
    for kind in ["tests", "examples"] {
        println!("cargo:rustc-link-arg-{kind}=-Wl,-rpath,{}", library.display());
    }
}
