//! The server replies with errors.

use std::time::Duration;

use futures_util::future::FutureExt;

use super::{
    super::stage::{PLAIN, Setup, Stage},
    Row, row,
};

const SECONDS: f64 = 2.0;
const FOR: Duration = Duration::from_secs(2);

/// The processes have an ACL user of their own.
const USER: Setup = Setup {
    user: "throttle:secret@",
    ..PLAIN
};

/// The user has fewer rights for a while.
async fn rights(stage: &mut Stage, fewer: &[&str], all: &[&str]) {
    stage.begins();
    stage.server.acl_set_user("throttle", fewer).await;
    stage.sleep(SECONDS).await;
    stage.server.acl_set_user("throttle", all).await;
    stage.ends();
}

pub(super) fn rows() -> Vec<Row> {
    let mut rows = errors();
    rows.extend(misconfigurations());
    rows
}

/// Temporary errors.
fn errors() -> Vec<Row> {
    vec![
        row("loading", "killed, then LOADING for 2 s", |stage, _| {
            async move {
                stage.begins();
                stage.server.restart_loading(FOR).await;
                stage.sleep(SECONDS).await;
                stage.ends();
            }
            .boxed()
        }),
        row("busy", "a long script: BUSY for 2 s", |stage, _| {
            async move {
                stage.begins();
                stage.server.busy_for(FOR).await;
                stage.sleep(SECONDS).await;
                stage.server.script_kill().await;
                stage.ends();
            }
            .boxed()
        }),
        row("paused", "`CLIENT PAUSE` for 2 s", |stage, _| {
            async move {
                stage.begins();
                stage.server.client_pause(FOR).await;
                stage.sleep(SECONDS).await;
                stage.server.client_unpause().await;
                stage.ends();
            }
            .boxed()
        }),
        row("read_only", "demoted: READONLY", |stage, _| {
            async move {
                stage.begins();
                stage.server.demote().await;
                stage.sleep(SECONDS).await;
                stage.server.promote().await;
                stage.ends();
            }
            .boxed()
        })
        .core(),
        row(
            "master_down",
            "demoted, serves nothing: MASTERDOWN",
            |stage, _| {
                async move {
                    stage.begins();
                    stage.server.demote_without_master().await;
                    stage.sleep(SECONDS).await;
                    stage.server.promote().await;
                    stage.ends();
                }
                .boxed()
            },
        ),
        row(
            "out_of_memory",
            "full, without eviction: OOM",
            |stage, _| {
                async move {
                    stage.begins();
                    stage.server.fill_memory().await;
                    stage.sleep(SECONDS).await;
                    stage.server.free_memory().await;
                    stage.ends();
                }
                .boxed()
            },
        ),
        row(
            "failed_save",
            "a background save failed: MISCONF",
            |stage, _| {
                async move {
                    stage.begins();
                    stage.server.fail_saves().await;
                    stage.sleep(SECONDS).await;
                    stage.server.repair_saves().await;
                    stage.ends();
                }
                .boxed()
            },
        ),
    ]
}

/// Errors that last until an operator removes their cause.
fn misconfigurations() -> Vec<Row> {
    vec![
        row("max_clients", "`maxclients` reached", |stage, _| {
            async move {
                stage.begins();
                let full = stage.server.fill_clients().await;
                stage.sleep(SECONDS).await;
                full.release().await;
                stage.ends();
            }
            .boxed()
        }),
        row(
            "wrong_password",
            "the password is changed, and changed back",
            |stage, _| {
                async move {
                    stage.begins();
                    let server = &stage.server;
                    server
                        .acl_set_user("throttle", &["resetpass", ">other"])
                        .await;
                    let () = server
                        .command(&["CLIENT", "KILL", "USER", "throttle"])
                        .await;
                    stage.sleep(SECONDS).await;
                    let server = &stage.server;
                    server
                        .acl_set_user("throttle", &["resetpass", ">secret"])
                        .await;
                    stage.ends();
                }
                .boxed()
            },
        )
        .on(USER),
        row(
            "no_right_for_scripts",
            "no permission for EVALSHA: NOPERM",
            |stage, _| rights(stage, &["-evalsha", "-eval"], &["+evalsha", "+eval"]).boxed(),
        )
        .on(USER),
        row(
            "no_right_for_hset",
            "no permission for HSET in the script",
            |stage, _| rights(stage, &["-hset"], &["+hset"]).boxed(),
        )
        .on(USER)
        .core(),
    ]
}
