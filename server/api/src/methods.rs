//! The calls that there are, by their path, as the descriptors say that reflection serves.

use std::collections::HashMap;

use piecewised_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::FileDescriptorSet;

/// One method of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Method {
    /// "piecewised.v1.CompileService".
    pub(crate) service: String,
    /// "Compile".
    pub(crate) name: String,
    /// Whether its caller sends any number of messages, and not one.
    pub(crate) is_client_streaming: bool,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Methods(HashMap<String, Method>);

impl Methods {
    /// Those of every service of this daemon.
    ///
    /// # Errors
    /// Where a descriptor set that was compiled in cannot be read.
    pub(crate) fn new() -> Result<Self, prost::DecodeError> {
        let mut methods = HashMap::new();
        let sets = [
            FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        for set in sets {
            for file in FileDescriptorSet::decode(set)?.file {
                for service in &file.service {
                    for method in &service.method {
                        let method = Method {
                            service: format!("{}.{}", file.package(), service.name()),
                            name: method.name().to_owned(),
                            is_client_streaming: method.client_streaming(),
                        };
                        methods.insert(format!("/{}/{}", method.service, method.name), method);
                    }
                }
            }
        }
        Ok(Self(methods))
    }

    /// The one that a request's path names.
    pub(crate) fn of_path(&self, path: &str) -> Option<&Method> {
        self.0.get(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_is_there_and_streams_are_told_apart() {
        let methods = Methods::new().unwrap();
        let streams = |path: &str| methods.of_path(path).map(|method| method.is_client_streaming);
        assert_eq!(streams("/piecewised.v1.CompileService/Compile"), Some(false));
        assert_eq!(streams("/piecewised.v1.CompileService/PutSnapshot"), Some(true));
        assert_eq!(streams("/piecewised.v1.AdminService/Drain"), Some(false));
        assert_eq!(streams("/grpc.health.v1.Health/Watch"), Some(false));
        assert_eq!(streams("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), Some(true));
        assert_eq!(streams("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"), Some(true));
        assert_eq!(streams("/piecewised.v1.CompileService/Nothing"), None);
    }
}
