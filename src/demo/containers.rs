//! Backends as containers, of an image that holds this binary alone.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, KillContainerOptions, ListContainersOptions,
    RemoveContainerOptions, RemoveImageOptions, StartContainerOptions, StopContainerOptions,
};
use futures::StreamExt as _;

use super::folder::is_dead;
use super::image;
use super::services::{NAMESPACE, labels};
use crate::cli::Failure;

/// Says of a container whose demo it belongs to: the process's id.
const LABEL: &str = "heddle.demo";
const DEFAULT: &str = "unix:///var/run/docker.sock";
/// Seconds for one call to Docker.
const CALL: u64 = 120;

/// The containers of one demo.
pub struct Containers {
    docker: Docker,
    /// Docker's socket, as a node's configuration names it.
    pub url: String,
    demo: String,
    imported: bool,
}

impl Containers {
    /// Reaches Docker, and takes away what demos that were killed have left there.
    pub async fn connect() -> Result<Containers, Failure> {
        let url = std::env::var("DOCKER_HOST").unwrap_or_else(|_| DEFAULT.to_owned());
        let failed = |e: &dyn std::fmt::Display| {
            Failure::Failed(format!(
                "demo --docker: Docker at {url}: {e} (start Docker, name it in DOCKER_HOST, or run heddle demo, \
                 which needs none)"
            ))
        };
        if !url.starts_with("unix://") {
            return Err(failed(
                &"containers of another host can't be dialled from here",
            ));
        }
        let docker = Docker::connect_with_unix(&url, CALL, bollard::API_DEFAULT_VERSION)
            .map_err(|e| failed(&e))?;
        let docker = docker.negotiate_version().await.map_err(|e| failed(&e))?;
        let containers = Containers {
            docker,
            url,
            demo: std::process::id().to_string(),
            imported: false,
        };
        containers.remove_leftovers().await?;
        Ok(containers)
    }

    /// Makes the image.
    pub async fn import(&mut self) -> Result<(), Failure> {
        let options = CreateImageOptions {
            from_src: Some("-".to_owned()),
            repo: Some(image_name(&self.demo)),
            tag: Some("latest".to_owned()),
            changes: vec![
                "ENTRYPOINT [\"/heddle\"]".to_owned(),
                "EXPOSE 8080".to_owned(),
            ],
            ..CreateImageOptions::default()
        };
        let body = bollard::body_try_stream(image::tar()?);
        let mut steps = std::pin::pin!(self.docker.create_image(Some(options), Some(body), None));
        while let Some(step) = steps.next().await {
            step.map_err(|e| failed("its image can't be made", &e))?;
            self.imported = true;
        }
        Ok(())
    }

    pub async fn start(&self, service: &str, name: &str) -> Result<(), Failure> {
        let mut wanted: HashMap<String, String> = labels(service, name)
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        wanted.insert("heddle.namespace".to_owned(), NAMESPACE.to_owned());
        wanted.insert(LABEL.to_owned(), self.demo.clone());
        let body = ContainerCreateBody {
            image: Some(image_name(&self.demo)),
            cmd: Some(["whoami", "--name", name].map(str::to_owned).to_vec()),
            labels: Some(wanted),
            ..ContainerCreateBody::default()
        };
        let container = self.container(name);
        let options = CreateContainerOptions {
            name: Some(container.clone()),
            ..CreateContainerOptions::default()
        };
        let started = async {
            self.docker.create_container(Some(options), body).await?;
            let options = None::<StartContainerOptions>;
            self.docker.start_container(&container, options).await
        };
        started
            .await
            .map_err(|e| failed(&format!("{container} can't be started"), &e))
    }

    pub async fn stop(&self, name: &str) -> Result<(), Failure> {
        let container = self.container(name);
        let options = None::<StopContainerOptions>;
        let stopped = self.docker.stop_container(&container, options).await;
        stopped.map_err(|e| failed(&format!("{container} can't be stopped"), &e))
    }

    pub async fn kill(&self, name: &str) -> Result<(), Failure> {
        let container = self.container(name);
        let options = KillContainerOptions {
            signal: "SIGKILL".to_owned(),
        };
        let killed = self.docker.kill_container(&container, Some(options)).await;
        killed.map_err(|e| failed(&format!("{container} can't be killed"), &e))
    }

    /// Removes all containers of this demo, and its image.
    pub async fn end(&mut self) -> Result<(), Failure> {
        self.remove(&self.demo).await
    }

    /// What `docker` calls a backend.
    pub fn container(&self, name: &str) -> String {
        format!("heddle-demo-{}-{name}", self.demo)
    }

    async fn remove_leftovers(&self) -> Result<(), Failure> {
        let all = self.list(LABEL.to_owned()).await?;
        let demos = all.into_iter().map(|(_, demo)| demo);
        for demo in demos.collect::<std::collections::BTreeSet<_>>() {
            if is_dead(&demo) {
                self.remove(&demo).await?;
            }
        }
        Ok(())
    }

    /// Ids of containers with a label, and whose they are.
    async fn list(&self, label: String) -> Result<Vec<(String, String)>, Failure> {
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), vec![label])])),
            ..ListContainersOptions::default()
        };
        let all = self.docker.list_containers(Some(options)).await;
        let all = all.map_err(|e| failed("its containers can't be listed", &e))?;
        let own = all.into_iter().filter_map(|c| {
            let demo = c.labels?.remove(LABEL)?;
            Some((c.id?, demo))
        });
        Ok(own.collect())
    }

    async fn remove(&self, demo: &str) -> Result<(), Failure> {
        for (id, _) in self.list(format!("{LABEL}={demo}")).await? {
            let options = RemoveContainerOptions {
                force: true,
                v: true,
                ..RemoveContainerOptions::default()
            };
            let removed = self.docker.remove_container(&id, Some(options)).await;
            removed.map_err(|e| failed(&format!("container {id} can't be removed"), &e))?;
        }
        let options = RemoveImageOptions {
            force: true,
            ..RemoveImageOptions::default()
        };
        let image = image_name(demo);
        match self.docker.remove_image(&image, Some(options), None).await {
            Ok(_) => Ok(()),
            Err(e) if !self.imported || is_missing(&e) => Ok(()),
            Err(e) => Err(failed(&format!("image {image} can't be removed"), &e)),
        }
    }
}

fn is_missing(error: &bollard::errors::Error) -> bool {
    matches!(
        error,
        bollard::errors::Error::DockerResponseServerError {
            status_code: 404,
            ..
        }
    )
}

fn image_name(demo: &str) -> String {
    format!("heddle-demo-{demo}")
}

fn failed(what: &str, error: &bollard::errors::Error) -> Failure {
    Failure::Failed(format!("demo --docker: {what}: {error}"))
}
