//! Which dimension of which tensor has the value of an integer argument.
//!
//! Integer arguments of a graph are sizes of its tensors. A package's manifest says where each symbol's value is read, and its entries'
//! sizes where the dispatched symbol stands: in a range as a symbol, in a single size as that size. A dimension that fits every entry has the
//! value in every call that any of them accepts, since each checks its inputs before it runs. Who has the graph knows it from there.

use piecewised_client::ValuePlace;
use piecewised_graph::{
    Handle,
    model::{Graph, Op, SymExpr, ValueMeta},
};
use piecewised_plan::Range;

use crate::{error::Position, manifest::Entry};

/// A dimension of a tensor of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) tensor: usize,
    pub(crate) dimension: usize,
    argument: u32,
    /// How many tensors a call has.
    pub(crate) n_tensors: usize,
}

impl Place {
    pub(crate) fn position(self) -> Position {
        Position { tensor: self.tensor, argument: self.argument }
    }
}

/// An entry and what it was proven for.
pub(crate) struct Compiled<'a> {
    pub(crate) entry: &'a Entry,
    pub(crate) range: Option<Range>,
}

/// Argument and dimension of a tensor that has the size that a graph is dispatched on; `None`: no tensor has it, or nothing is dispatched on.
pub(crate) fn size_in(graph: &Graph) -> Option<(u32, u32)> {
    let inputs = || {
        graph.nodes.iter().zip(0u32..).filter_map(|(node, position)| match &node.op {
            Op::Placeholder { value } => Some((position, value)),
            _ => None,
        })
    };
    let symbol = inputs().find_map(|(_, value)| match value {
        ValueMeta::SymInt(SymExpr::Symbol(name)) => Some(name),
        _ => None,
    })?;
    inputs().find_map(|(position, value)| {
        let ValueMeta::Tensor(tensor) = value else { return None };
        let (_, dimension) = tensor
            .sizes
            .iter()
            .zip(0u32..)
            .find(|(size, _)| matches!(size, SymExpr::Symbol(name) if name == symbol))?;
        Some((position, dimension))
    })
}

/// All entries of a piece.
pub(crate) struct Places<'a>(&'a [Compiled<'a>]);

impl<'a> Places<'a> {
    pub(crate) fn new(compiled: &'a [Compiled<'a>]) -> Self {
        Self(compiled)
    }

    /// Where the dispatched size is: the value of the integer `argument`. `known`: argument and dimension of a tensor that has it, where the
    /// graph is at hand.
    pub(crate) fn size(&self, argument: u32, known: Option<(u32, u32)>) -> Result<Place, String> {
        let is_known = |place: &Place| known == Some((place.argument, place.dimension as u32));
        if let Some(place) = self.dimensions().find(is_known) {
            return Ok(place);
        }
        // A graph may have other symbols, which fit as well where all entries are ranges: the manifest may name the right one, else
        // there must be one only.
        let fitting: Vec<Place> = self.dimensions().filter(|place| self.0.iter().all(|one| one.fits(*place))).collect();
        let symbols: Vec<Option<&str>> = fitting.iter().map(|place| self.symbol(*place)).collect();
        let Some(first) = fitting.first() else {
            return Err(format!(
                "the size to dispatch on is argument {argument}, an integer, and no tensor has a dimension of that size; pass a tensor that has it"
            ));
        };
        if symbols.iter().all(|symbol| *symbol == symbols[0]) {
            return Ok(*first);
        }
        let named = self.0.iter().find_map(|one| one.entry.dispatch_symbol.as_deref());
        let at = named.and_then(|named| symbols.iter().position(|symbol| *symbol == Some(named)));
        at.map(|at| fitting[at]).ok_or_else(|| {
            format!("the size to dispatch on is argument {argument}, an integer, and the artifact does not say which of its symbols that is: it is older than this client; compile the piece with its graph at hand (Worker::compile)")
        })
    }

    /// Where a value is that guards name.
    pub(crate) fn value(&self, place: ValuePlace, handles: &[Handle]) -> Result<Place, String> {
        let argument = place.argument;
        if let Some(dimension) = place.dimension {
            return self
                .dimensions()
                .find(|one| one.argument == argument && one.dimension == dimension as usize)
                .ok_or_else(|| {
                    format!("a guard names dimension {dimension} of argument {argument}, which is no tensor's")
                });
        }
        let symbols = handles.iter().flat_map(|handle| &handle.guard_symbols);
        let mut names = symbols.filter(|symbol| symbol.argument == argument && symbol.dimension.is_none());
        let source = names.find_map(|symbol| {
            self.0.iter().find_map(|one| one.entry.symbols.iter().find(|source| source.name == symbol.name))
        });
        let found = source.and_then(|source| {
            let dimension = source.dimension? as usize;
            self.dimensions().find(|one| one.argument == source.argument && one.dimension == dimension)
        });
        found.ok_or_else(|| {
            format!("a guard names argument {argument}, an integer, and no tensor has a dimension of that size")
        })
    }

    /// Every dimension of every tensor: all entries are of one graph.
    fn dimensions(&self) -> impl Iterator<Item = Place> {
        let inputs = self.0.first().map_or(&[][..], |one| &one.entry.inputs);
        inputs.iter().enumerate().flat_map(move |(tensor, input)| {
            let argument = input.argument;
            let n_tensors = inputs.len();
            (0..input.sizes.len()).map(move |dimension| Place { tensor, dimension, argument, n_tensors })
        })
    }

    /// The symbol there, in some entry.
    fn symbol(&self, place: Place) -> Option<&str> {
        self.0.iter().find_map(|one| match one.at(place) {
            Some(SymExpr::Symbol(name)) => Some(name.as_str()),
            _ => None,
        })
    }
}

impl Compiled<'_> {
    fn at(&self, place: Place) -> Option<&SymExpr> {
        self.entry.inputs.get(place.tensor)?.sizes.get(place.dimension)
    }

    fn fits(&self, place: Place) -> bool {
        match (self.at(place), self.range) {
            (Some(SymExpr::Symbol(_)), _) => true,
            (Some(SymExpr::Int(size)), Some(range)) => range.is_single_size() && range.start() == *size,
            _ => false,
        }
    }
}
