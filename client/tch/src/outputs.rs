//! From the values that a package returns to the tensors that the graph returns.
//!
//! A graph may return nested tuples, lists and dicts. A Rust caller gets their tensors in a row, in the order in which they stand there:
//! what a graph that returns `(a, {"b": b}, None)` returns is `[a, b]`. Numbers that a graph returns are tensors without dimensions; `None` and
//! strings are left out.

use serde_json::Value;
use tch::Tensor;

use crate::manifest::Structure;

/// How to make the one from the other.
#[derive(Debug)]
pub(crate) struct Outputs {
    n_returned: usize,
    /// `None`: the values as they are.
    leaves: Option<Vec<Leaf>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Leaf {
    Returned(usize),
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl Outputs {
    pub(crate) fn new(n_returned: usize, structure: &Structure) -> Result<Self, String> {
        let mut leaves = Vec::new();
        flatten(structure, n_returned, &mut leaves)?;
        let is_as_it_is = leaves.iter().cloned().eq((0..n_returned).map(Leaf::Returned));
        Ok(Self { n_returned, leaves: (!is_as_it_is).then_some(leaves) })
    }

    /// How many values the package returns.
    pub(crate) fn n_returned(&self) -> usize {
        self.n_returned
    }

    pub(crate) fn of(&self, returned: Vec<Tensor>) -> Vec<Tensor> {
        let Some(leaves) = &self.leaves else { return returned };
        let tensor = |leaf: &Leaf| match leaf {
            Leaf::Returned(at) => returned[*at].shallow_clone(),
            Leaf::Int(value) => Tensor::from(*value),
            Leaf::Float(value) => Tensor::from(*value),
            Leaf::Bool(value) => Tensor::from(*value),
        };
        leaves.iter().map(tensor).collect()
    }
}

fn flatten(structure: &Structure, n_returned: usize, leaves: &mut Vec<Leaf>) -> Result<(), String> {
    match structure {
        Structure::Leaf(at) if *at < n_returned => leaves.push(Leaf::Returned(*at)),
        Structure::Leaf(at) => return Err(format!("the graph returns value {at} of {n_returned}")),
        Structure::Tuple(items) | Structure::List(items) => {
            items.iter().try_for_each(|item| flatten(item, n_returned, leaves))?;
        }
        Structure::Dict(items) => items.iter().try_for_each(|(_, item)| flatten(item, n_returned, leaves))?,
        Structure::Constant(Value::Bool(value)) => leaves.push(Leaf::Bool(*value)),
        Structure::Constant(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(value), _) => leaves.push(Leaf::Int(value)),
            (None, Some(value)) => leaves.push(Leaf::Float(value)),
            (None, None) => return Err(format!("the graph returns {number}, which is no number of 64 bits")),
        },
        Structure::Constant(_) => {}
    }
    Ok(())
}
