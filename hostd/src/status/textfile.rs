//! Metrics as a file, for node_exporter's textfile collector: whole or not at all.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{Ask, Status, open_metrics};

/// Writes the file again and again, until nobody answers any more.
pub async fn write_regularly(path: PathBuf, interval: Duration, asks: mpsc::Sender<Ask>) {
    let mut due = tokio::time::interval(interval);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        due.tick().await;
        let (ask, answer) = Ask::new();
        if asks.send(ask).await.is_err() {
            return;
        }
        let Ok(status) = answer.await else { return };
        let target = path.clone();
        let written = tokio::task::spawn_blocking(move || write(&target, &status)).await;
        match written {
            Ok(Ok(())) => failing = false,
            Ok(Err(error)) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(path = %path.display(), %error, "the file of metrics cannot be written; it is tried again");
                }
            }
            // A panic there has been reported.
            Err(_) => return,
        }
    }
}

fn write(path: &Path, status: &Status) -> io::Result<()> {
    let text = open_metrics(status).map_err(io::Error::other)?;
    // The collector reads `*.prom` only.
    let aside = path.with_extension("tmp");
    fs::write(&aside, text)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o644))?;
    fs::rename(&aside, path)
}
