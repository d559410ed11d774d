//! Where two canonical graphs differ first: what tells a person why two callers' code is not shared.

use serde::Serialize;

use crate::model::{Graph, Node, Op};

/// The longest text of a part of a node.
const MAX_TEXT_BYTES: usize = 200;

/// The first difference of two graphs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The position of the node; `None`: it is not in a node of the outermost graph.
    pub position: Option<usize>,
    /// What is different there, as a sentence.
    pub what: String,
}

/// Where `ours` first differs from `theirs`, both in canonical form; `None`: nowhere.
pub fn first_difference(ours: &Graph, theirs: &Graph) -> Option<Difference> {
    for (position, (our, their)) in ours.nodes.iter().zip(&theirs.nodes).enumerate() {
        if our != their {
            return Some(Difference { position: Some(position), what: node(our, their) });
        }
    }
    let whole = |what: String| Some(Difference { position: None, what });
    let (n_ours, n_theirs) = (ours.nodes.len(), theirs.nodes.len());
    if n_ours != n_theirs {
        return whole(format!("the graph has {n_ours} nodes, the other {n_theirs}"));
    }
    for (what, ours, theirs) in [
        ("symbols", texts(&ours.symbols), texts(&theirs.symbols)),
        ("constants", texts(&ours.constants), texts(&theirs.constants)),
        ("nested graphs", texts(&ours.subgraphs), texts(&theirs.subgraphs)),
    ] {
        if ours.len() != theirs.len() {
            return whole(format!("the graph has {} {what}, the other {}", ours.len(), theirs.len()));
        }
        if let Some((at, (our, their))) = ours.iter().zip(&theirs).enumerate().find(|(_, (our, their))| our != their) {
            return whole(format!("of its {what}, number {at} is {}, the other's is {}", cut(our), cut(their)));
        }
    }
    None
}

fn texts<T: Serialize>(items: &[T]) -> Vec<String> {
    items.iter().map(text).collect()
}

/// What is different about two nodes: what they do, else the first part of it.
fn node(ours: &Node, theirs: &Node) -> String {
    match (&ours.op, &theirs.op) {
        (
            Op::CallFunction { target: a, args: our_args, kwargs: our_kwargs },
            Op::CallFunction { target: b, args: their_args, kwargs: their_kwargs },
        )
        | (
            Op::CallMethod { method: a, args: our_args, kwargs: our_kwargs },
            Op::CallMethod { method: b, args: their_args, kwargs: their_kwargs },
        ) if a == b => {
            let pairs = our_args.iter().zip(their_args).enumerate();
            if let Some((at, (our, their))) = pairs.into_iter().find(|(_, (our, their))| our != their) {
                return format!("argument {at} of {a} is {}, the other's is {}", said(our), said(their));
            }
            if our_args.len() != their_args.len() {
                return format!("{a} has {} arguments, the other's {}", our_args.len(), their_args.len());
            }
            format!("the keywords of {a} are {}, the other's are {}", said(our_kwargs), said(their_kwargs))
        }
        (Op::Placeholder { value: our }, Op::Placeholder { value: their }) => {
            format!("the input is {}, the other's is {}", said(our), said(their))
        }
        (our, their) => format!("it is {}, the other's is {}", said(our), said(their)),
    }
}

fn said(part: &impl Serialize) -> String {
    cut(&text(part))
}

fn text(part: &impl Serialize) -> String {
    serde_json::to_string(part).expect("the model has string keys only and no fallible serializer")
}

fn cut(text: &str) -> String {
    match (0..=MAX_TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at)) {
        Some(end) if text.len() > MAX_TEXT_BYTES => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}
