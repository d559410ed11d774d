//! Packages on a GPU. Without one: that this is told in a sentence.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it unwraps nothing, and says what it skips"
)]

mod common;

use std::{sync::Arc, thread};

use common::{assert_close, daemon, scaled_eagerly, scaled_on};
use piecewised_tch::{Error, Worker, initialise, synchronise};
use tch::{Device, Kind, Tensor};

#[tokio::test]
async fn calls_on_a_gpu_are_eagers_from_several_threads_too() {
    let device = Device::Cuda(0);
    if let Err(error) = initialise(device) {
        assert!(matches!(error, Error::Libtorch { .. }), "{error}");
        println!("skipped, there is no GPU: {error}");
        return;
    }
    let daemon = daemon();
    let worker = Worker::connect(daemon.endpoint(), daemon.options_for(device)).await.unwrap();
    let piece = Arc::new(worker.compile(scaled_on(device), |_| ()).await.unwrap());
    let threads: Vec<_> = (1..=8)
        .map(|n| {
            let piece = piece.clone();
            thread::spawn(move || {
                let random = |sizes: [i64; 2]| Tensor::randn(sizes, (Kind::Float, device));
                let weight = random([16, 16]);
                for _ in 0..100 {
                    let x = random([n * 8, 16]);
                    let expected = scaled_eagerly(&x, &weight);
                    let outputs = piece.forward(&[&x, &weight]).unwrap();
                    synchronise(device).unwrap();
                    for (found, expected) in [&outputs[0], &outputs[1], &x].into_iter().zip(&expected) {
                        assert_close(&found.to_device(Device::Cpu), &expected.to_device(Device::Cpu));
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // A tensor that is elsewhere is refused before anything is launched.
    let here = Tensor::zeros([8, 16], (Kind::Float, Device::Cpu));
    let error = piece.forward(&[&here, &Tensor::zeros([16, 16], (Kind::Float, device))]).unwrap_err();
    assert!(error.to_string().contains("is on cpu, and the piece takes it on cuda:0"), "{error}");
}
