//! x
#![allow(clippy::unwrap_used)]
use piecewised_tch::{LoadOptions, Package};
use tch::{Device, Kind, Tensor};
#[test]
fn runs() {
    let t = std::time::Instant::now();
    let p = Package::load("/tmp/art".as_ref(), "e0", &LoadOptions::new(Device::Cpu)).unwrap();
    println!("load {:?}", t.elapsed());
    let x = Tensor::ones([9, 4], (Kind::Float, Device::Cpu));
    let y = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
    let out = p.forward(&[&x, &y]).unwrap();
    println!("{:?} {:?} {}", out, x.sum(Kind::Float), out[0].double_value(&[8, 3]));
    println!("{}", p.forward(&[&x]).unwrap_err());
    println!("{}", p.forward(&[&x, &y.to_kind(Kind::Double)]).unwrap_err());
    println!("{}", p.forward(&[&x, &x]).unwrap_err());
    println!("{}", p.forward(&[&x, &y.tr()]).unwrap_err());
    println!("{}", p.forward(&[&x, &y.get(0)]).unwrap_err());
    let p = Package::load("/tmp/art".as_ref(), "e1", &LoadOptions::new(Device::Cpu)).unwrap();
    for n_runners in [1, 2, 8] {
        let p =
            Package::load("/tmp/art".as_ref(), "e1", &LoadOptions { device: Device::Cpu, n_runners: Some(n_runners) })
                .unwrap();
        let x = Tensor::ones([8, 4], (Kind::Float, Device::Cpu));
        for _ in 0..1000 {
            p.forward(&[&x]).unwrap();
        }
        let t = std::time::Instant::now();
        for _ in 0..10000 {
            p.forward(&[&x]).unwrap();
        }
        println!("{n_runners} runners: {:?}", t.elapsed() / 10000);
    }
    drop(p);
    println!("{}", Package::load("/tmp/art".as_ref(), "e0", &LoadOptions::new(Device::Cuda(0))).unwrap_err());
    println!("{}", Package::load("/tmp/art".as_ref(), "e7", &LoadOptions::new(Device::Cpu)).unwrap_err());
}
