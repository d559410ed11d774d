//! Whether the tensors of a call are what a package was compiled for: number, dtype, device, sizes, strides.
//!
//! Compiled code checks nothing and reads memory as it was told, so every call is checked. Sizes and strides may be expressions over
//! symbols; a symbol's value is read from a dimension of a tensor, and every other place where it occurs has to agree.
//!
//! Strides of dimensions of size 1, and all strides of a tensor without elements, are not compared: nothing is read by them.

use piecewised_graph::{Value, evaluate, model::SymExpr};
use tch::Device;

use crate::{
    dtype,
    error::{InputError, Position},
    manifest::{Entry, Input},
    shim::Described,
};

const CPU: i32 = 0;
const CUDA: i32 = 1;

/// What a package takes.
#[derive(Debug)]
pub(crate) struct Inputs {
    inputs: Vec<Expected>,
    symbols: Vec<Symbol>,
}

#[derive(Debug)]
struct Expected {
    argument: u32,
    dtype: i32,
    /// The device's type and index.
    device: (i32, i32),
    sizes: Vec<Number>,
    strides: Vec<Number>,
    /// A package for a GPU copies a tensor that does not begin where whole words are read; nobody would see what it changes in the copy.
    has_to_be_aligned: bool,
}

/// A size or a stride.
#[derive(Debug)]
enum Number {
    Known(i64),
    /// Position among the symbols.
    Symbol(usize),
    Expression(SymExpr),
}

#[derive(Debug)]
struct Symbol {
    name: String,
    tensor: usize,
    dimension: usize,
}

impl Inputs {
    /// `device`: where the package is loaded; a GPU's index is not in a manifest.
    pub(crate) fn new(entry: &Entry, device: Device) -> Result<Self, String> {
        let tensors = entry.symbols.iter().filter_map(|source| Some((source, source.dimension?)));
        let symbols: Vec<Symbol> = tensors
            .map(|(source, dimension)| {
                let (name, argument) = (source.name.clone(), source.argument);
                let tensor = entry.tensor(argument).filter(|&tensor| {
                    usize::try_from(dimension).is_ok_and(|dimension| dimension < entry.inputs[tensor].sizes.len())
                });
                let tensor = tensor.ok_or_else(|| {
                    format!("{name} is dimension {dimension} of argument {argument}, which has no such")
                })?;
                Ok(Symbol { name, tensor, dimension: dimension as usize })
            })
            .collect::<Result<_, String>>()?;
        let inputs = entry.inputs.iter().map(|input| {
            let is_mutated = entry.mutated.contains(&input.argument);
            Expected::new(input, is_mutated, &symbols, device)
        });
        Ok(Self { inputs: inputs.collect::<Result<_, _>>()?, symbols })
    }

    /// Checks the tensors of a call.
    pub(crate) fn check(&self, given: &[Described<'_>]) -> Result<(), InputError> {
        if given.len() != self.inputs.len() {
            return Err(InputError::Number { given: given.len(), expected: self.inputs.len() });
        }
        // First what a tensor is by itself, so that symbols are read from tensors that have the dimension.
        for (tensor, (expected, given)) in self.inputs.iter().zip(given).enumerate() {
            expected.check_kind(*given, tensor, &self.symbols)?;
        }
        let value = |at: usize| {
            let Symbol { tensor, dimension, .. } = &self.symbols[at];
            given[*tensor].sizes()[*dimension]
        };
        for (tensor, expected) in self.inputs.iter().enumerate() {
            expected.check_sizes(given[tensor], tensor, &value, &self.symbols)?;
        }
        Ok(())
    }
}

impl Expected {
    fn new(input: &Input, is_mutated: bool, symbols: &[Symbol], device: Device) -> Result<Self, String> {
        let argument = input.argument;
        let dtype = dtype::number(&input.dtype)
            .ok_or_else(|| format!("argument {argument} has the dtype {:?}, which is none of torch's", input.dtype))?;
        let device = match (input.device.as_str(), device) {
            ("cpu", _) => (CPU, -1),
            ("cuda", Device::Cuda(index)) => (CUDA, i32::try_from(index).unwrap_or(i32::MAX)),
            (other, _) => {
                return Err(format!(
                    "argument {argument} is on {other}, and the package was to be loaded for {device:?}"
                ));
            }
        };
        let number = |expr: &SymExpr| {
            Number::new(expr, symbols).map_err(|symbol| {
                format!(
                    "a size or stride of argument {argument} is {expr}, and no tensor has the size {symbol}; packages take tensors only"
                )
            })
        };
        let numbers = |exprs: &[SymExpr]| exprs.iter().map(number).collect::<Result<Vec<_>, _>>();
        let (sizes, strides) = (numbers(&input.sizes)?, numbers(&input.strides)?);
        let has_to_be_aligned = is_mutated && device.0 == CUDA;
        Ok(Self { argument, dtype, device, sizes, strides, has_to_be_aligned })
    }

    fn at(&self, tensor: usize) -> Position {
        Position { tensor, argument: self.argument }
    }

    /// All but sizes and strides.
    fn check_kind(&self, given: Described<'_>, tensor: usize, symbols: &[Symbol]) -> Result<(), InputError> {
        let at = || self.at(tensor);
        if given.dtype() != self.dtype {
            if given.dtype() < 0 {
                return Err(InputError::NotPlain { at: at(), problem: "there is no tensor in it" });
            }
            return Err(InputError::Dtype {
                at: at(),
                given: dtype::name(given.dtype()),
                expected: dtype::name(self.dtype),
            });
        }
        if given.device() != self.device {
            return Err(InputError::Device {
                at: at(),
                given: device_name(given.device()),
                expected: device_name(self.device),
            });
        }
        if !given.is_plain() {
            let problem = "it is sparse, quantised, or lazily conjugated or negated; make it a strided tensor with its values \
                           in memory first (to_dense, resolve_conj, resolve_neg)";
            return Err(InputError::NotPlain { at: at(), problem });
        }
        if self.has_to_be_aligned && !given.is_aligned() {
            return Err(InputError::Misaligned { at: at() });
        }
        if given.sizes().len() != self.sizes.len() {
            let expected = format!("{}: {}", self.sizes.len(), texts(&self.sizes, symbols));
            return Err(InputError::Dimensions { at: at(), given: given.sizes().len(), expected });
        }
        Ok(())
    }

    fn check_sizes(
        &self,
        given: Described<'_>,
        tensor: usize,
        value: &impl Fn(usize) -> i64,
        symbols: &[Symbol],
    ) -> Result<(), InputError> {
        let sizes = given.sizes();
        if self.sizes.iter().zip(sizes).any(|(expected, given)| expected.value(value, symbols) != Some(*given)) {
            let expected = explained(&self.sizes, value, symbols);
            return Err(InputError::Sizes { at: self.at(tensor), given: sizes.to_vec(), expected });
        }
        let strides = || self.strides.iter().zip(given.strides()).zip(sizes);
        let differ =
            strides().any(|((expected, given), size)| *size != 1 && expected.value(value, symbols) != Some(*given));
        if differ && !sizes.contains(&0) {
            let wanted: Vec<_> = self.strides.iter().map(|stride| stride.value(value, symbols)).collect();
            let is_contiguous = wanted == contiguous(sizes);
            let advice = if is_contiguous { "; make it contiguous first (Tensor::contiguous)" } else { "" };
            let expected = explained(&self.strides, value, symbols);
            return Err(InputError::Strides { at: self.at(tensor), given: given.strides().to_vec(), expected, advice });
        }
        Ok(())
    }
}

impl Number {
    /// The error is a symbol without a value.
    fn new<'a>(expr: &'a SymExpr, symbols: &[Symbol]) -> Result<Self, &'a str> {
        let position = |name: &str| symbols.iter().position(|symbol| symbol.name == name);
        match expr {
            SymExpr::Int(value) => Ok(Self::Known(*value)),
            SymExpr::Symbol(name) => position(name).map(Self::Symbol).ok_or(name),
            _ => match named(expr).into_iter().find(|name| position(name).is_none()) {
                Some(unknown) => Err(unknown),
                None => Ok(Self::Expression(expr.clone())),
            },
        }
    }

    /// `None`: it has no value, and so nothing is equal to it.
    fn value(&self, value: &impl Fn(usize) -> i64, symbols: &[Symbol]) -> Option<i64> {
        match self {
            Self::Known(known) => Some(*known),
            Self::Symbol(at) => Some(value(*at)),
            Self::Expression(expr) => {
                let value_of = |name: &str| symbols.iter().position(|symbol| symbol.name == name).map(value);
                match evaluate(expr, &value_of) {
                    Ok(Value::Int(value)) => Some(value),
                    Ok(Value::Float(_) | Value::Bool(_)) | Err(_) => None,
                }
            }
        }
    }

    fn text(&self, symbols: &[Symbol]) -> String {
        match self {
            Self::Known(value) => value.to_string(),
            Self::Symbol(at) => symbols[*at].name.clone(),
            Self::Expression(expr) => expr.to_string(),
        }
    }
}

/// The strides of a row-major tensor, in elements.
fn contiguous(sizes: &[i64]) -> Vec<Option<i64>> {
    let mut strides = vec![Some(1); sizes.len()];
    for at in (1..sizes.len()).rev() {
        strides[at - 1] = strides[at].and_then(|stride: i64| stride.checked_mul(sizes[at].max(1)));
    }
    strides
}

fn texts(numbers: &[Number], symbols: &[Symbol]) -> String {
    let texts: Vec<String> = numbers.iter().map(|number| number.text(symbols)).collect();
    format!("[{}]", texts.join(", "))
}

/// `[s0, 4] with s0 = 9`.
fn explained(numbers: &[Number], value: &impl Fn(usize) -> i64, symbols: &[Symbol]) -> String {
    let is_in_it = |symbol: &Symbol| {
        numbers.iter().any(|number| match number {
            Number::Known(_) => false,
            Number::Symbol(at) => symbols[*at].name == symbol.name,
            Number::Expression(expr) => named(expr).contains(&symbol.name.as_str()),
        })
    };
    let values: Vec<String> = symbols
        .iter()
        .enumerate()
        .filter(|(_, symbol)| is_in_it(symbol))
        .map(|(at, symbol)| {
            format!("{} = {}, dimension {} of tensor {}", symbol.name, value(at), symbol.dimension, symbol.tensor)
        })
        .collect();
    let text = texts(numbers, symbols);
    if values.is_empty() { text } else { format!("{text} with {}", values.join("; ")) }
}

/// The symbols in an expression.
fn named(expr: &SymExpr) -> Vec<&str> {
    match expr {
        SymExpr::Symbol(symbol) => vec![symbol],
        SymExpr::Call(_, operands) => operands.iter().flat_map(named).collect(),
        SymExpr::Int(_) | SymExpr::Real(_) | SymExpr::Bool(_) => Vec::new(),
    }
}

fn device_name((kind, index): (i32, i32)) -> String {
    match kind {
        CPU => "cpu".into(),
        CUDA => format!("cuda:{index}"),
        other => format!("c10::DeviceType({other})"),
    }
}
