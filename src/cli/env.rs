//! `heddle env`: the variables that Kubernetes gives to pods, for services with a virtual IP.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;

use clap::ValueEnum;

use super::Failure;
use super::client::{Client, escape};
use super::get::out;
use crate::admin::view::{List, ServiceItem};

/// How to print variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// export NAME='value', for eval
    Shell,
    /// NAME=value, for docker run --env-file
    Docker,
    /// One object
    Json,
}

pub async fn env(
    client: &Client,
    services: &[String],
    namespace: &str,
    format: Format,
    command: &[String],
) -> Result<(), Failure> {
    let path = format!("/v1/services?namespace={}", escape(namespace));
    let list: List<ServiceItem> = client.get(&path).await?;
    for wanted in services {
        if !list
            .items
            .iter()
            .any(|s| s.metadata.name.as_str() == wanted)
        {
            return Err(Failure::Failed(format!(
                "service {namespace}/{wanted} does not exist"
            )));
        }
    }
    let variables: Vec<(String, String)> = list
        .items
        .iter()
        .filter(|s| services.is_empty() || services.iter().any(|n| n == s.metadata.name.as_str()))
        .flat_map(variables_of)
        .collect();
    if let Some((program, arguments)) = command.split_first() {
        let error = std::process::Command::new(program)
            .args(arguments)
            .envs(variables)
            .exec();
        let code = if error.kind() == std::io::ErrorKind::NotFound {
            127
        } else {
            126
        };
        eprintln!("error: {program}: can't be run: {error}");
        return Err(Failure::Status(code));
    }
    let text = match format {
        Format::Shell => variables
            .iter()
            .map(|(name, value)| format!("export {name}='{value}'\n"))
            .collect(),
        Format::Docker => variables
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect(),
        Format::Json => {
            let map: serde_json::Map<String, serde_json::Value> = variables
                .into_iter()
                .map(|(name, value)| (name, value.into()))
                .collect();
            format!("{:#}\n", serde_json::Value::Object(map))
        }
    };
    out(&text)
}

/// A service's variables, in the order and with the names of Kubernetes. Without a virtual IP there are none.
fn variables_of(service: &ServiceItem) -> Vec<(String, String)> {
    let upper = |text: &str| text.to_ascii_uppercase().replace('-', "_");
    let name = upper(service.metadata.name.as_str());
    let Some(vip) = service.status.vips.first().copied() else {
        return Vec::new();
    };
    let Some(first) = service.spec.ports.first() else {
        return Vec::new();
    };
    let url = |port: u16| format!("tcp://{}", SocketAddr::new(vip, port));
    let host = |ip: IpAddr| ip.to_string();
    let mut all = vec![
        (format!("{name}_SERVICE_HOST"), host(vip)),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in &service.spec.ports {
        let suffix = upper(port.name().as_str());
        all.push((
            format!("{name}_SERVICE_PORT_{suffix}"),
            port.port.to_string(),
        ));
    }
    all.push((format!("{name}_PORT"), url(first.port)));
    for port in &service.spec.ports {
        let prefix = format!("{name}_PORT_{}_TCP", port.port);
        all.push((prefix.clone(), url(port.port)));
        all.push((format!("{prefix}_PROTO"), "tcp".to_owned()));
        all.push((format!("{prefix}_PORT"), port.port.to_string()));
        all.push((format!("{prefix}_ADDR"), host(vip)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_are_those_of_kubernetes() {
        let service: ServiceItem = serde_json::from_value(json!({
            "apiVersion": "heddle/v1", "kind": "Service",
            "metadata": {"name": "redis-primary", "namespace": "shop"},
            "managedBy": "apply",
            "spec": {"ports": [{"name": "redis", "port": 6379, "protocol": "tcp"}]},
            "status": {"vips": ["10.96.0.11"], "ports": []},
        }))
        .unwrap();
        let got: Vec<String> = variables_of(&service)
            .into_iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        assert_eq!(
            got,
            [
                "REDIS_PRIMARY_SERVICE_HOST=10.96.0.11",
                "REDIS_PRIMARY_SERVICE_PORT=6379",
                "REDIS_PRIMARY_SERVICE_PORT_REDIS=6379",
                "REDIS_PRIMARY_PORT=tcp://10.96.0.11:6379",
                "REDIS_PRIMARY_PORT_6379_TCP=tcp://10.96.0.11:6379",
                "REDIS_PRIMARY_PORT_6379_TCP_PROTO=tcp",
                "REDIS_PRIMARY_PORT_6379_TCP_PORT=6379",
                "REDIS_PRIMARY_PORT_6379_TCP_ADDR=10.96.0.11",
            ]
        );
    }
}
