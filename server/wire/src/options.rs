//! Compiler options and torch settings.

use std::collections::BTreeMap;

use piecewised_graph::{
    model::Real,
    request::{ArtifactFormat, CompileOptions, OptionValue, TorchSettings},
};
use piecewised_proto::v1;

use crate::{WireError, format_from_proto, format_to_proto};

/// The options of a message, their format, and the hint for each entry of the plan (empty: none given).
///
/// # Errors
/// [`WireError`] where a value is empty or the format is unknown.
pub fn options_from_proto(
    options: v1::CompileOptions,
) -> Result<(CompileOptions, ArtifactFormat, Vec<i64>), WireError> {
    let format = match options.format {
        0 => ArtifactFormat::Inductor,
        format => format_from_proto(format)?,
    };
    let inductor = options
        .inductor
        .into_iter()
        .map(|(name, value)| Ok((name.clone(), value_from(&name, value)?)))
        .collect::<Result<BTreeMap<_, _>, WireError>>()?;
    let torch = options.torch.map(settings_from).unwrap_or_default();
    Ok((CompileOptions { inductor, torch }, format, options.hints))
}

/// The message of options, a format and hints.
pub fn options_to_proto(options: &CompileOptions, format: ArtifactFormat, hints: &[i64]) -> v1::CompileOptions {
    v1::CompileOptions {
        format: format_to_proto(format).into(),
        inductor: options.inductor.iter().map(|(name, value)| (name.clone(), value_to(value))).collect(),
        torch: Some(settings_to(&options.torch)),
        hints: hints.to_vec(),
    }
}

fn value_from(name: &str, value: v1::OptionValue) -> Result<OptionValue, WireError> {
    use v1::option_value::Value;
    match value.value {
        None => Err(WireError::new("EMPTY_OPTION", format!("option {name:?} has no value set"))),
        Some(Value::BoolValue(value)) => Ok(OptionValue::Bool(value)),
        Some(Value::IntValue(value)) => Ok(OptionValue::Int(value)),
        Some(Value::FloatValue(value)) => Ok(OptionValue::Float(Real(value))),
        Some(Value::StringValue(value)) => Ok(OptionValue::Str(value)),
        Some(Value::None(v1::Unit {})) => Ok(OptionValue::None),
        Some(Value::Strings(list)) => Ok(OptionValue::Strs(list.items)),
    }
}

fn value_to(value: &OptionValue) -> v1::OptionValue {
    use v1::option_value::Value;
    let value = match value {
        OptionValue::None => Value::None(v1::Unit {}),
        OptionValue::Bool(value) => Value::BoolValue(*value),
        OptionValue::Int(value) => Value::IntValue(*value),
        OptionValue::Float(value) => Value::FloatValue(value.0),
        OptionValue::Str(value) => Value::StringValue(value.clone()),
        OptionValue::Strs(items) => Value::Strings(v1::StringList { items: items.clone() }),
    };
    v1::OptionValue { value: Some(value) }
}

fn settings_from(settings: v1::TorchSettings) -> TorchSettings {
    let default = TorchSettings::default();
    let or = |text: String, default: String| if text.is_empty() { default } else { text };
    TorchSettings {
        default_dtype: or(settings.default_dtype, default.default_dtype),
        float32_matmul_precision: or(settings.float32_matmul_precision, default.float32_matmul_precision),
        deterministic_algorithms: settings.deterministic_algorithms,
        num_threads: settings.num_threads,
        autocast: settings.autocast.into_iter().map(|cast| (cast.device_type, cast.dtype)).collect(),
    }
}

fn settings_to(settings: &TorchSettings) -> v1::TorchSettings {
    v1::TorchSettings {
        default_dtype: settings.default_dtype.clone(),
        float32_matmul_precision: settings.float32_matmul_precision.clone(),
        deterministic_algorithms: settings.deterministic_algorithms,
        num_threads: settings.num_threads,
        autocast: settings
            .autocast
            .iter()
            .map(|(device_type, dtype)| v1::Autocast { device_type: device_type.clone(), dtype: dtype.clone() })
            .collect(),
    }
}
