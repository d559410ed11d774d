//! Arguments, expressions and input descriptions.

use piecewised_graph::model::{Argument, Device, Real, SymExpr, SymFunction, TensorMeta, ValueMeta};
use piecewised_proto::v1;

use crate::{WireError, graph_from_proto, graph_to_proto};

pub(crate) fn argument_from(argument: v1::Argument) -> Result<Argument, WireError> {
    use v1::argument::Value;
    let value = argument.value.ok_or_else(|| {
        WireError::new("EMPTY_ARGUMENT", "an argument has no value set; set exactly one (none for Python's None)")
    })?;
    Ok(match value {
        Value::Node(name) => Argument::Node(name),
        Value::IntValue(value) => Argument::Int(value),
        Value::FloatValue(value) => Argument::Float(Real(value)),
        Value::BoolValue(value) => Argument::Bool(value),
        Value::None(v1::Unit {}) => Argument::None,
        Value::StringValue(value) => Argument::Str(value),
        Value::ComplexValue(v1::Complex { real, imag }) => {
            Argument::Complex(Real(real.unwrap_or(0.0)), Real(imag.unwrap_or(0.0)))
        }
        Value::Dtype(name) => Argument::Dtype(name),
        Value::Device(device) => Argument::Device(torch_device_from(device)),
        Value::Layout(name) => Argument::Layout(name),
        Value::MemoryFormat(name) => Argument::MemoryFormat(name),
        Value::Slice(slice) => {
            let v1::Slice { start, stop, step } = *slice;
            Argument::Slice(Box::new((bound_from(start)?, bound_from(stop)?, bound_from(step)?)))
        }
        Value::Ellipsis(v1::Unit {}) => Argument::Ellipsis,
        Value::Tuple(list) => Argument::Tuple(arguments_from(list.items)?),
        Value::List(list) => Argument::List(arguments_from(list.items)?),
        Value::Dict(dict) => Argument::Dict(dict.entries.into_iter().map(entry_from).collect::<Result<_, _>>()?),
        Value::SymInt(expr) => Argument::SymInt(expr_from(expr)?),
        Value::SymFloat(expr) => Argument::SymFloat(expr_from(expr)?),
        Value::SymBool(expr) => Argument::SymBool(expr_from(expr)?),
        Value::Graph(graph) => Argument::Graph(Box::new(graph_from_proto(graph)?)),
        Value::Opaque(v1::Opaque { r#type, value }) => Argument::Opaque { r#type, value },
    })
}

pub(crate) fn arguments_from(arguments: Vec<v1::Argument>) -> Result<Vec<Argument>, WireError> {
    arguments.into_iter().map(argument_from).collect()
}

fn bound_from(bound: Option<Box<v1::Argument>>) -> Result<Argument, WireError> {
    bound.map_or(Ok(Argument::None), |bound| argument_from(*bound))
}

fn entry_from(entry: v1::DictEntry) -> Result<(Argument, Argument), WireError> {
    let part = |part: Option<v1::Argument>, what| {
        argument_from(part.ok_or_else(|| WireError::new("EMPTY_ARGUMENT", format!("a dict entry has no {what}")))?)
    };
    Ok((part(entry.key, "key")?, part(entry.value, "value")?))
}

pub(crate) fn argument_to(argument: &Argument) -> v1::Argument {
    use v1::argument::Value;
    let value = match argument {
        Argument::Node(name) => Value::Node(name.clone()),
        Argument::Int(value) => Value::IntValue(*value),
        Argument::Float(value) => Value::FloatValue(value.0),
        Argument::Bool(value) => Value::BoolValue(*value),
        Argument::None => Value::None(v1::Unit {}),
        Argument::Str(value) => Value::StringValue(value.clone()),
        Argument::Complex(real, imag) => Value::ComplexValue(v1::Complex { real: Some(real.0), imag: Some(imag.0) }),
        Argument::Dtype(name) => Value::Dtype(name.clone()),
        Argument::Device(device) => Value::Device(torch_device_to(device)),
        Argument::Layout(name) => Value::Layout(name.clone()),
        Argument::MemoryFormat(name) => Value::MemoryFormat(name.clone()),
        Argument::Slice(bounds) => Value::Slice(Box::new(v1::Slice {
            start: Some(Box::new(argument_to(&bounds.0))),
            stop: Some(Box::new(argument_to(&bounds.1))),
            step: Some(Box::new(argument_to(&bounds.2))),
        })),
        Argument::Ellipsis => Value::Ellipsis(v1::Unit {}),
        Argument::Tuple(items) => Value::Tuple(v1::ArgumentList { items: arguments_to(items) }),
        Argument::List(items) => Value::List(v1::ArgumentList { items: arguments_to(items) }),
        Argument::Dict(entries) => Value::Dict(v1::Dict {
            entries: entries
                .iter()
                .map(|(key, value)| v1::DictEntry { key: Some(argument_to(key)), value: Some(argument_to(value)) })
                .collect(),
        }),
        Argument::SymInt(expr) => Value::SymInt(expr_to(expr)),
        Argument::SymFloat(expr) => Value::SymFloat(expr_to(expr)),
        Argument::SymBool(expr) => Value::SymBool(expr_to(expr)),
        Argument::Graph(graph) => Value::Graph(graph_to_proto(graph)),
        Argument::Opaque { r#type, value } => {
            Value::Opaque(v1::Opaque { r#type: r#type.clone(), value: value.clone() })
        }
    };
    v1::Argument { value: Some(value) }
}

pub(crate) fn arguments_to(arguments: &[Argument]) -> Vec<v1::Argument> {
    arguments.iter().map(argument_to).collect()
}

pub(crate) fn torch_device_from(device: v1::Device) -> Device {
    Device { r#type: device.r#type, index: device.index }
}

fn torch_device_to(device: &Device) -> v1::Device {
    v1::Device { r#type: device.r#type.clone(), index: device.index }
}

pub(crate) fn expr_from(expr: v1::SymExpr) -> Result<SymExpr, WireError> {
    use v1::sym_expr::Expr;
    let expr = expr.expr.ok_or_else(|| {
        WireError::new("EMPTY_EXPRESSION", "a symbolic expression has nothing set; set exactly one field")
    })?;
    Ok(match expr {
        Expr::Integer(value) => SymExpr::Int(value),
        Expr::Symbol(name) => SymExpr::Symbol(name),
        Expr::Real(value) => SymExpr::Real(Real(value)),
        Expr::Boolean(value) => SymExpr::Bool(value),
        Expr::Call(call) => {
            let function = v1::SymFunction::try_from(call.function).ok().and_then(function_from).ok_or_else(|| {
                WireError::new("BAD_EXPRESSION", format!("there is no symbolic function {}", call.function))
            })?;
            SymExpr::Call(function, call.operands.into_iter().map(expr_from).collect::<Result<_, _>>()?)
        }
    })
}

pub(crate) fn expr_to(expr: &SymExpr) -> v1::SymExpr {
    use v1::sym_expr::Expr;
    let expr = match expr {
        SymExpr::Int(value) => Expr::Integer(*value),
        SymExpr::Symbol(name) => Expr::Symbol(name.clone()),
        SymExpr::Real(value) => Expr::Real(value.0),
        SymExpr::Bool(value) => Expr::Boolean(*value),
        SymExpr::Call(function, operands) => Expr::Call(v1::SymCall {
            function: function_to(*function).into(),
            operands: operands.iter().map(expr_to).collect(),
        }),
    };
    v1::SymExpr { expr: Some(expr) }
}

/// One table for both directions, so that neither can miss a function.
macro_rules! functions {
    ($($name:ident),* $(,)?) => {
        fn function_from(function: v1::SymFunction) -> Option<SymFunction> {
            match function {
                v1::SymFunction::Unspecified => None,
                $(v1::SymFunction::$name => Some(SymFunction::$name),)*
            }
        }

        fn function_to(function: SymFunction) -> v1::SymFunction {
            match function {
                $(SymFunction::$name => v1::SymFunction::$name,)*
            }
        }
    };
}

functions!(
    Add,
    Mul,
    Pow,
    FloorDiv,
    CleanDiv,
    CeilDiv,
    Mod,
    PythonMod,
    ModularIndexing,
    Max,
    Min,
    ToFloat,
    TruncToInt,
    FloorToInt,
    CeilToInt,
    RoundToInt,
    IntTrueDiv,
    FloatTrueDiv,
    PowByNatural,
    FloatPow,
    Abs,
    Where,
    Identity,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Not,
    Sqrt,
);

pub(crate) fn meta_from(meta: v1::ValueMeta) -> Result<ValueMeta, WireError> {
    use v1::value_meta::Value;
    let value = meta
        .value
        .ok_or_else(|| WireError::new("EMPTY_VALUE", "a placeholder does not say what its value looks like"))?;
    Ok(match value {
        Value::Tensor(tensor) => ValueMeta::Tensor(tensor_from(tensor)?),
        Value::SymInt(expr) => ValueMeta::SymInt(expr_from(expr)?),
        Value::SymFloat(expr) => ValueMeta::SymFloat(expr_from(expr)?),
        Value::SymBool(expr) => ValueMeta::SymBool(expr_from(expr)?),
        Value::Constant(argument) => ValueMeta::Constant(argument_from(argument)?),
        Value::Opaque(r#type) => ValueMeta::Opaque(r#type),
    })
}

pub(crate) fn meta_to(meta: &ValueMeta) -> v1::ValueMeta {
    use v1::value_meta::Value;
    let value = match meta {
        ValueMeta::Tensor(tensor) => Value::Tensor(tensor_to(tensor)),
        ValueMeta::SymInt(expr) => Value::SymInt(expr_to(expr)),
        ValueMeta::SymFloat(expr) => Value::SymFloat(expr_to(expr)),
        ValueMeta::SymBool(expr) => Value::SymBool(expr_to(expr)),
        ValueMeta::Constant(argument) => Value::Constant(argument_to(argument)),
        ValueMeta::Opaque(r#type) => Value::Opaque(r#type.clone()),
    };
    v1::ValueMeta { value: Some(value) }
}

pub(crate) fn tensor_from(tensor: v1::TensorMeta) -> Result<TensorMeta, WireError> {
    let device = tensor.device.ok_or_else(|| WireError::new("EMPTY_VALUE", "a tensor has no device"))?;
    let exprs = |exprs: Vec<v1::SymExpr>| exprs.into_iter().map(expr_from).collect::<Result<_, _>>();
    Ok(TensorMeta {
        dtype: tensor.dtype,
        device: torch_device_from(device),
        layout: if tensor.layout.is_empty() { "strided".into() } else { tensor.layout },
        sizes: exprs(tensor.sizes)?,
        strides: exprs(tensor.strides)?,
        storage_offset: tensor.storage_offset.map_or(Ok(SymExpr::Int(0)), expr_from)?,
        is_parameter: tensor.is_parameter,
    })
}

pub(crate) fn tensor_to(tensor: &TensorMeta) -> v1::TensorMeta {
    v1::TensorMeta {
        dtype: tensor.dtype.clone(),
        device: Some(torch_device_to(&tensor.device)),
        layout: tensor.layout.clone(),
        sizes: tensor.sizes.iter().map(expr_to).collect(),
        strides: tensor.strides.iter().map(expr_to).collect(),
        storage_offset: Some(expr_to(&tensor.storage_offset)),
        is_parameter: tensor.is_parameter,
    }
}
