//! Who a client's certificate says it is. That its signer is trusted was checked when the connection was made.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::{extensions::GeneralName, prelude::*};

/// What counts of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// Its alternative names (DNS, URI, email), then its common names. Never empty: else its serial number.
    pub(crate) names: Vec<String>,
    /// When it ends; a connection may live longer than that.
    pub(crate) not_after: SystemTime,
}

impl Certificate {
    /// `None`: it cannot be read.
    pub(crate) fn of_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut names = Vec::new();
        if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
            for name in &alternative.value.general_names {
                match name {
                    GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
                        names.push((*text).to_owned());
                    }
                    _ => {}
                }
            }
        }
        names.extend(certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok().map(str::to_owned)));
        // They go into the log.
        names.retain(|name| !name.is_empty() && name.len() <= 256 && !name.chars().any(char::is_control));
        if names.is_empty() {
            names.push(format!("serial {}", certificate.tbs_certificate.raw_serial_as_string()));
        }
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Some(Self { names, not_after: UNIX_EPOCH + Duration::from_secs(seconds) })
    }
}
