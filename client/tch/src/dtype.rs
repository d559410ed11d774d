//! dtypes by torch's names and by c10's numbers. tch's `Kind` has no unsigned integers wider than a byte, so it can't be the one table.

use tch::Kind;

/// torch's name, and the number of c10's `ScalarType`.
const DTYPES: [(&str, i32); 20] = [
    ("uint8", 0),
    ("int8", 1),
    ("int16", 2),
    ("int32", 3),
    ("int64", 4),
    ("float16", 5),
    ("float32", 6),
    ("float64", 7),
    ("complex32", 8),
    ("complex64", 9),
    ("complex128", 10),
    ("bool", 11),
    ("bfloat16", 15),
    ("float8_e5m2", 23),
    ("float8_e4m3fn", 24),
    ("float8_e5m2fnuz", 25),
    ("float8_e4m3fnuz", 26),
    ("uint16", 27),
    ("uint32", 28),
    ("uint64", 29),
];

/// c10's number of a name.
pub(crate) fn number(name: &str) -> Option<i32> {
    DTYPES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// torch's name of a number.
pub(crate) fn name(number: i32) -> String {
    let known = DTYPES.iter().find(|(_, known)| *known == number);
    known.map_or_else(|| format!("c10::ScalarType({number})"), |(name, _)| (*name).to_owned())
}

/// tch's value; `None`: it has none.
pub fn kind(name: &str) -> Option<Kind> {
    Some(match name {
        "uint8" => Kind::Uint8,
        "int8" => Kind::Int8,
        "int16" => Kind::Int16,
        "int32" => Kind::Int,
        "int64" => Kind::Int64,
        "float16" => Kind::Half,
        "float32" => Kind::Float,
        "float64" => Kind::Double,
        "complex32" => Kind::ComplexHalf,
        "complex64" => Kind::ComplexFloat,
        "complex128" => Kind::ComplexDouble,
        "bool" => Kind::Bool,
        "bfloat16" => Kind::BFloat16,
        "float8_e5m2" => Kind::Float8e5m2,
        "float8_e4m3fn" => Kind::Float8e4m3fn,
        "float8_e5m2fnuz" => Kind::Float8e5m2fnuz,
        "float8_e4m3fnuz" => Kind::Float8e4m3fnuz,
        _ => return None,
    })
}

/// torch's name of tch's value; `None`: a quantised one.
pub fn dtype(kind: Kind) -> Option<&'static str> {
    DTYPES.iter().map(|(name, _)| *name).find(|name| self::kind(name) == Some(kind))
}
