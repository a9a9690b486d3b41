//! Docker: whether it answers, and in which version.

use bollard::Docker;

use super::Finding;
use crate::config::Config;

const ABOUT: &str = "docker";
const SECONDS: u64 = 5;
/// The oldest API that heddle speaks: 1.41, of Docker 20.10.
const OLDEST: (usize, usize) = (1, 41);

pub async fn look(config: &Config) -> Vec<Finding> {
    let Some(url) = &config.docker else {
        let what = "docker.enabled is false: containers are not looked for";
        return vec![Finding::ok(ABOUT, what)];
    };
    vec![match version(url).await {
        Ok((docker, (major, minor))) if (major, minor) < OLDEST => Finding::fail(
            ABOUT,
            format!("{docker} at {url} speaks API {major}.{minor}"),
            "update it: heddle needs API 1.41, which Docker 20.10 and Podman 4 speak",
        ),
        Ok((docker, (major, minor))) => {
            Finding::ok(ABOUT, format!("{docker}, API {major}.{minor}, at {url}"))
        }
        Err(error) => Finding::fail(
            ABOUT,
            format!("no answer at {url}: {error}"),
            "start Docker, set docker.socket to its socket (Podman: unix:///run/podman/podman.sock), run heddle as \
             root or in the group docker, or set docker.enabled = false",
        ),
    }]
}

/// A client of the Docker that the configuration names.
pub async fn connect(url: &str) -> Result<Docker, bollard::errors::Error> {
    let docker = if url.starts_with("unix://") {
        Docker::connect_with_unix(url, SECONDS, bollard::API_DEFAULT_VERSION)?
    } else {
        Docker::connect_with_http(url, SECONDS, bollard::API_DEFAULT_VERSION)?
    };
    docker.negotiate_version().await
}

async fn version(url: &str) -> Result<(String, (usize, usize)), bollard::errors::Error> {
    let docker = connect(url).await?;
    let spoken = docker.client_version();
    let told = docker.version().await?;
    let name = told.platform.map(|p| p.name).filter(|n| !n.is_empty());
    let name = name.unwrap_or_else(|| "Docker".to_owned());
    let version = told.version.unwrap_or_default();
    Ok((
        format!("{name} {version}"),
        (spoken.major_version, spoken.minor_version),
    ))
}
