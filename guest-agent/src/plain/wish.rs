//! From the command line to what is wanted of a sandbox without rights, and what cannot be had there.

use std::path::{Path, PathBuf};

use nix::unistd::{geteuid, getgroups};
use vestigo_model::PayloadUid;

use super::manifest::Facts;
use crate::{
    cgroup::Limits,
    cli::{Exec, Net, Openings, TrustArg},
    environment,
    network::resolver,
    protocol::Refusal,
    sandbox::{
        self, Extra, HOSTNAME, Plan, Run, landlock,
        rootless::{Rootless, Source},
    },
    shape::{Bind, Shape},
};

/// All of it.
#[derive(Debug)]
pub(super) struct Wish {
    shape: Shape,
    rootfs: Option<PathBuf>,
    work: Option<PathBuf>,
    trees: Vec<Source>,
    host_network: bool,
    command: Vec<String>,
    env: Vec<(String, String)>,
}

impl Wish {
    pub(super) fn of(options: Exec) -> Result<Self, Refusal> {
        possible(&options)?;
        let trees = trees(&options.openings);
        let (shape, trees) = (shape(&options.openings, &trees), trees.into_iter().map(|(source, _)| source).collect());
        shape.check()?;
        let text = |text: std::ffi::OsString| {
            text.into_string()
                .map_err(|bad| Refusal::caller(format!("{} is not UTF-8; a record could not hold it", bad.display())))
        };
        let pair = |text: &String| {
            let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or_else(|| Refusal::caller(format!("--env {text}: write it as KEY=VALUE")))
        };
        let command = options.command.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let env = options.env.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
        environment::check(&env, false)?;
        if command.first().is_none_or(String::is_empty) || command.iter().any(|argument| argument.contains('\0')) {
            return Err(Refusal::caller("no command is given, or a NUL byte stands in it; write it after --"));
        }
        let Openings { rootfs, work, .. } = options.openings;
        Ok(Self { shape, rootfs, work, trees, host_network: options.net == Net::Host, command, env })
    }

    /// Text of `/etc/resolv.conf` for the payload: without a network there is nobody to ask.
    pub(super) fn resolvers(&self) -> String {
        if self.host_network { resolver::of_vm() } else { String::new() }
    }

    pub(super) fn rootless(&self, scratch: &Path) -> Rootless {
        let binds = self.shape.binds.iter().map(|bind| Extra::Tree(bind.target.clone()));
        let extras = binds.chain(self.shape.tmpfs.iter().cloned().map(Extra::Tmpfs));
        Rootless {
            plan: Plan {
                doors: 0,
                extras: extras.collect(),
                foreign: self.rootfs.is_some(),
                nested: self.shape.nested,
                hostname: self.shape.hostname.clone().unwrap_or_else(|| HOSTNAME.to_owned()),
            },
            trees: self.trees.clone(),
            rootfs: self.rootfs.clone(),
            work: self.work.clone(),
            scratch: scratch.to_owned(),
            host_network: self.host_network,
            pids: self.shape.limits.pids,
        }
    }

    pub(super) fn to_run(&self, uid: PayloadUid) -> Run {
        Run {
            command: self.command.clone(),
            env: environment::whole(&self.env, &uid.to_string()),
            token: false,
            directory: self.shape.directory.clone().unwrap_or_else(|| sandbox::HOME.into()),
        }
    }

    pub(super) fn facts(&self, landlock: Option<&landlock::Applied>) -> Facts {
        let own = nix::unistd::getegid();
        Facts {
            shape: self.shape.clone(),
            host_network: self.host_network,
            groups: getgroups().is_ok_and(|groups| groups.iter().any(|group| *group != own)),
            landlock: landlock.cloned(),
        }
    }
}

/// What needs root, or somebody who checks, is refused: it is never left out in silence.
fn possible(options: &Exec) -> Result<(), Refusal> {
    let identity = &options.identity;
    if geteuid().is_root() {
        return Err(Refusal::policy(
            "--plain would run the payload with root's files and rights; call as an ordinary user, or start `guest-agent daemon` and leave --plain out",
        ));
    }
    let checked = [
        ("--task", identity.task.is_some()),
        ("--token-file", identity.token_file.is_some()),
        ("--trust", identity.trust.is_some_and(|trust| trust != TrustArg::AssertedByVo)),
    ];
    if let Some((name, _)) = checked.iter().find(|(_, given)| *given) {
        return Err(Refusal::caller(format!(
            "{name} needs the daemon, which verifies it; leave {name} out, or leave --plain out"
        )));
    }
    if identity.user_subject.is_none() || identity.user_issuer.is_none() {
        return Err(Refusal::caller(
            "--plain has only the pilot's word for the user; give --user-subject and --user-issuer",
        ));
    }
    let Openings { memory, cpus, .. } = &options.openings;
    if memory.is_some() || cpus.is_some() {
        return Err(Refusal::caller(
            "--memory and --cpus need cgroups, which --plain has not; put the call into a group of its own: \
             systemd-run --user --scope -p MemoryMax=… -p CPUQuota=…",
        ));
    }
    Ok(())
}

/// What is bound, and where.
fn trees(openings: &Openings) -> Vec<(Source, PathBuf)> {
    let tree = |text: &String, writable| {
        let (source, target) = text.split_once(':').unwrap_or((text, text));
        (Source { path: source.into(), writable }, PathBuf::from(target))
    };
    let writable = openings.bind.iter().map(|text| tree(text, true));
    writable.chain(openings.ro_bind.iter().map(|text| tree(text, false))).collect()
}

fn shape(openings: &Openings, trees: &[(Source, PathBuf)]) -> Shape {
    let bind = |(source, target): &(Source, PathBuf)| Bind { target: target.clone(), writable: source.writable };
    Shape {
        rootfs: openings.rootfs.is_some(),
        work: openings.work.is_some(),
        binds: trees.iter().map(bind).collect(),
        tmpfs: openings.tmpfs.clone(),
        nested: openings.nested,
        directory: openings.chdir.clone(),
        hostname: openings.hostname.clone(),
        limits: Limits { memory: None, pids: openings.pids, cpu: None },
    }
}
