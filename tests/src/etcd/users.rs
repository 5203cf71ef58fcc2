//! Users, roles and passwords of an etcd that asks for them.
use std::sync::PoisonError;

use anyhow::Result;
use etcd_client::Permission;

use super::Etcd;

impl Etcd {
    /// Has etcd ask for users from now on. What the harness does, it does as `root` then.
    pub async fn enable_auth(&self, root_password: &str) -> Result<()> {
        let mut client = self.client().await?;
        client.user_add("root", root_password, None).await?;
        client.user_grant_role("root", "root").await?;
        client.auth_enable().await?;
        *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Some(root_password.to_owned());
        Ok(())
    }

    /// Adds a user that may do this much, by a role of the same name.
    pub async fn add_user(&self, name: &str, password: &str, permissions: Vec<Permission>) -> Result<()> {
        let mut client = self.client().await?;
        client.user_add(name, password, None).await?;
        client.role_add(name).await?;
        for permission in permissions {
            client.role_grant_permission(name, permission).await?;
        }
        client.user_grant_role(name, name).await?;
        Ok(())
    }

    /// Gives a user another password. Its tokens end with the old one.
    pub async fn change_password(&self, name: &str, password: &str) -> Result<()> {
        self.client().await?.user_change_password(name, password).await?;
        if name == "root" {
            *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Some(password.to_owned());
        }
        Ok(())
    }
}
