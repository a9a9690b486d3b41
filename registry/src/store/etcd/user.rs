//! Who we are to an etcd that asks for users.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use etcd_client::Client;
use tokio::sync::Mutex;

use crate::store::StoreError;

/// A user of etcd. The password is read for each log-in, so that changing it needs no restart; it is never logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFile {
    /// The user's name.
    pub name: String,
    /// A file with nothing but the password; a line end after it is no part of it.
    pub password_file: PathBuf,
}

impl UserFile {
    async fn password(&self) -> Result<String, StoreError> {
        let refused = |reason: String| StoreError::Config {
            setting: "registry.password_file",
            value: self.password_file.display().to_string(),
            reason,
        };
        let text = tokio::fs::read_to_string(&self.password_file)
            .await
            .map_err(|error| refused(format!("can't be read: {error}")))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(refused("is empty".to_owned())),
            password => Ok(password.to_owned()),
        }
    }
}

/// The token that a member gave us. A simple token ends when it is not used for a while, and each member counts that for
/// itself.
#[derive(Debug, Default)]
pub(super) struct Token {
    /// How many were had from this member; 0: none yet.
    count: AtomicU64,
    /// Held while one is asked for, so that calls which find it stale at once ask once.
    asking: Mutex<()>,
}

impl Token {
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Logs in, unless somebody did so since there were `seen` tokens. `Ok(false)`: it was not needed.
    pub(super) async fn renew(
        &self,
        seen: u64,
        user: &UserFile,
        client: &Client,
    ) -> Result<bool, Failed> {
        let _asking = self.asking.lock().await;
        if self.count() != seen {
            return Ok(false);
        }
        let password = user.password().await.map_err(Failed::Here)?;
        let mut client = client.clone();
        match client
            .update_user(Some((user.name.clone(), password)))
            .await
        {
            Ok(()) => {}
            // Users may be configured here before they are enabled there.
            Err(etcd_client::Error::GRpcStatus(status))
                if status.message().contains("authentication is not enabled") => {}
            Err(error) => return Err(Failed::There(error)),
        }
        self.count.fetch_add(1, Ordering::Release);
        Ok(true)
    }
}

pub(super) enum Failed {
    /// The password file.
    Here(StoreError),
    /// etcd, or the way there.
    There(etcd_client::Error),
}
