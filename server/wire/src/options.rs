//! Compiler options and torch settings.

use std::collections::BTreeMap;

use piecewised_graph::{
    model::Real,
    request::{ArtifactFormat, CompileOptions, OptionValue, Specialisation, TorchSettings, Tuning},
};
use piecewised_proto::v1;

use crate::{WireError, format_from_proto, format_to_proto};

/// What a request asks for beside the options that code depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delivery {
    /// The hint for each entry of the plan; empty: none given.
    pub hints: Vec<i64>,
    /// The tuned artifact where it is in the store, else the fast one; the options' own tuning is then FAST.
    pub is_tiered: bool,
    /// A range whose code is proven under guards only is an error.
    pub is_strict: bool,
}

/// The options of a message, their format, and how the results are to be delivered.
///
/// # Errors
/// [`WireError`] where a value is empty, or the format or a choice is unknown.
pub fn options_from_proto(
    options: v1::CompileOptions,
) -> Result<(CompileOptions, ArtifactFormat, Delivery), WireError> {
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
    let specialisation = match v1::Specialisation::try_from(options.specialisation) {
        Ok(v1::Specialisation::Unspecified | v1::Specialisation::Range) => Specialisation::Range,
        Ok(v1::Specialisation::Generic) => Specialisation::Generic,
        Err(_) => return Err(unknown_choice("specialisation", options.specialisation)),
    };
    let (tuning, is_tiered) = match v1::Tuning::try_from(options.tuning) {
        Ok(v1::Tuning::Unspecified | v1::Tuning::Fast) => (Tuning::Fast, false),
        Ok(v1::Tuning::Full) => (Tuning::Full, false),
        Ok(v1::Tuning::Tiered) => (Tuning::Fast, true),
        Err(_) => return Err(unknown_choice("tuning", options.tuning)),
    };
    let is_strict = match v1::GuardPolicy::try_from(options.guards) {
        Ok(v1::GuardPolicy::Unspecified | v1::GuardPolicy::Dispatch) => false,
        Ok(v1::GuardPolicy::Strict) => true,
        Err(_) => return Err(unknown_choice("guards", options.guards)),
    };
    let delivery = Delivery { hints: options.hints, is_tiered, is_strict };
    Ok((CompileOptions { inductor, torch, specialisation, tuning }, format, delivery))
}

/// The message of options, a format and the way of delivery.
pub fn options_to_proto(options: &CompileOptions, format: ArtifactFormat, delivery: &Delivery) -> v1::CompileOptions {
    let Delivery { hints, is_tiered, is_strict } = delivery;
    let specialisation = match options.specialisation {
        Specialisation::Range => v1::Specialisation::Range,
        Specialisation::Generic => v1::Specialisation::Generic,
    };
    let guards = if *is_strict { v1::GuardPolicy::Strict } else { v1::GuardPolicy::Dispatch };
    v1::CompileOptions {
        format: format_to_proto(format).into(),
        inductor: options.inductor.iter().map(|(name, value)| (name.clone(), value_to(value))).collect(),
        torch: Some(settings_to(&options.torch)),
        hints: hints.clone(),
        specialisation: specialisation.into(),
        tuning: if *is_tiered { v1::Tuning::Tiered } else { tuning_to_proto(options.tuning) }.into(),
        guards: guards.into(),
    }
}

/// The mode of tuning that something was made with; one that is for requests alone, or unknown, counts as FAST.
pub fn tuning_from_proto(tuning: v1::Tuning) -> Tuning {
    match tuning {
        v1::Tuning::Full => Tuning::Full,
        v1::Tuning::Unspecified | v1::Tuning::Fast | v1::Tuning::Tiered => Tuning::Fast,
    }
}

/// The wire's name of a mode of tuning.
pub fn tuning_to_proto(tuning: Tuning) -> v1::Tuning {
    match tuning {
        Tuning::Fast => v1::Tuning::Fast,
        Tuning::Full => v1::Tuning::Full,
    }
}

fn unknown_choice(field: &str, value: i32) -> WireError {
    WireError::new(
        "UNKNOWN_CHOICE",
        format!("CompileOptions.{field} {value} is not one that this version knows; compile_service.proto lists them"),
    )
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
