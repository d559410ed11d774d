//! x
#![allow(clippy::unwrap_used, clippy::print_stdout)]
use piecewised_tch::*;
use piecewised_client::*;
use piecewised_plan::{Plan, Range};
use tch::{Device, Kind, Tensor};
#[tokio::main]
async fn main() {
    let t = std::time::Instant::now();
    let worker = Worker::connect("unix:///tmp/d/s.sock".parse().unwrap(), WorkerOptions { cache_dir: Some("/tmp/d/cache".into()), ..WorkerOptions::new(Device::Cpu) }).await.unwrap();
    println!("connected {:?}", t.elapsed());
    let mut graph = GraphBuilder::new(Device::Cpu);
    let n = graph.symbol("n");
    let x = graph.tensor("x", Kind::Float, [n.into(), 64.into()]);
    let weight = graph.tensor("weight", Kind::Float, [64.into(), 64.into()]);
    let product = graph.call("torch.matmul", [x.into(), weight.into()]);
    let gated = graph.call_with("torch._C._nn.gelu", [product.into()], [("approximate", "tanh".into())]);
    let graph = graph.finish([gated]).unwrap();
    let plan = Plan::new(&[Range::new(1, 16).unwrap(), Range::new(17, 64).unwrap()], &[4]).unwrap();
    let piece = worker.compile(request(graph, plan), |event| println!("{:?} {event:?}", t.elapsed())).await.unwrap();
    println!("{:?} {:?}", t.elapsed(), piece);
    let w = Tensor::randn([64, 64], (Kind::Float, Device::Cpu));
    for n in [1, 2, 4, 16, 17, 64] {
        let x = Tensor::randn([n, 64], (Kind::Float, Device::Cpu));
        let y = piece.forward(&[&x, &w]).unwrap();
        let e = x.matmul(&w).gelu("tanh");
        println!("{n} {:?} {:?}", (&y[0] - e).abs().max(), piece.package_for(&[&x, &w]).unwrap());
    }
    println!("{}", piece.forward(&[Tensor::randn([65, 64], (Kind::Float, Device::Cpu)), w]).unwrap_err());
}
