//! A pilot job in a VM: an unprivileged script that starts users' payloads through the agent.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::vm::Vm;

/// Who vouches for the users of the tests.
pub const ISSUER: &str = "https://iam.example";
/// Emulated guests on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(180);

/// One user's work.
#[derive(Debug, Clone)]
pub struct Work {
    /// The VO's name for it.
    pub payload: String,
    /// The user.
    pub user: String,
    /// A shell command, run inside the sandbox.
    pub command: String,
}

impl Work {
    /// Work that sends the payload's name to a TCP port, holds the connection for `seconds` and ends.
    pub fn call(payload: &str, user: &str, peer: &str, port: u16, seconds: u32) -> Self {
        let command = format!("(echo {payload}; sleep {seconds}) | nc {peer} {port}");
        Self { payload: payload.to_owned(), user: user.to_owned(), command }
    }
}

/// The shell command that starts one payload.
fn exec(vo: &str, pilot: &str, work: &Work) -> String {
    let Work { payload, user, command } = work;
    format!(
        "guest-agent exec --pilot-id {pilot} --payload-id {payload} --user-subject {user} --user-issuer {ISSUER} \
         --vo {vo} -- /bin/sh -c '{command}'"
    )
}

/// Starts everything at once, as the user `pilot`, and waits for all to end. Gives their exit statuses in order and what
/// they said.
pub fn run(vm: &Vm<'_>, vo: &str, pilot: &str, works: &[Work]) -> Result<(Vec<i32>, String)> {
    let mut script = String::from("set --\n");
    for work in works {
        script.push_str(&format!("{} < /dev/null &\nset -- \"$@\" $!\n", exec(vo, pilot, work)));
    }
    script.push_str("for child; do wait $child; echo \"status $?\"; done\n");
    let done = vm
        .console()
        .run(&format!("cat > /tmp/pilot.sh <<'EOF'\n{script}EOF\nsu pilot -s /bin/sh /tmp/pilot.sh"), PATIENCE)?;
    let statuses = statuses(&done.output);
    ensure!(statuses.len() == works.len(), "the pilot did not end as it should: {}", done.output);
    Ok((statuses, done.output))
}

/// The same, and each must succeed.
pub fn run_well(vm: &Vm<'_>, vo: &str, pilot: &str, works: &[Work]) -> Result<()> {
    let (statuses, output) = run(vm, vo, pilot, works)?;
    ensure!(statuses.iter().all(|status| *status == 0), "a payload failed: {output}");
    Ok(())
}

/// Payloads that run until they are told to end. Each reads from a pipe that nobody writes to; when the pipe is closed it ends.
pub struct Crew<'a, 'b> {
    vm: &'a Vm<'b>,
    name: String,
    size: usize,
}

impl<'a, 'b> Crew<'a, 'b> {
    /// Starts everything at once, as the user `pilot`, and returns at once. `name` is a file name.
    pub fn start(vm: &'a Vm<'b>, name: &str, vo: &str, pilot: &str, works: &[Work]) -> Result<Self> {
        let mut script =
            format!("cd /tmp; mkfifo {name}.gate; sleep 3600 3<> {name}.gate & echo $! > {name}.holder; set --\n");
        for work in works {
            script.push_str(&format!("{} < {name}.gate &\nset -- \"$@\" $!\n", exec(vo, pilot, work)));
        }
        script.push_str("for child; do wait $child; echo \"status $?\"; done; echo finished\n");
        vm.console().check(&format!(
            "cat > /tmp/{name}.sh <<'EOF'\n{script}EOF\nsu pilot -s /bin/sh /tmp/{name}.sh > /tmp/{name}.out 2>&1 < /dev/null &"
        ))?;
        Ok(Self { vm, name: name.to_owned(), size: works.len() })
    }

    /// What they have said so far.
    pub fn said(&self) -> Result<String> {
        self.vm.console().check(&format!("cat /tmp/{}.out", self.name))
    }

    /// Waits until `count` of them have said the line.
    pub fn wait_said(&self, line: &str, count: usize) -> Result<()> {
        let command =
            format!("test $(grep -c '^{line}$' /tmp/{0}.out) -ge {count} || {{ cat /tmp/{0}.out; false; }}", self.name);
        self.vm.console().until(&command, PATIENCE).map(drop)
    }

    /// Closes the pipe.
    pub fn release(&self) -> Result<()> {
        self.vm.console().check(&format!("kill $(cat /tmp/{}.holder)", self.name)).map(drop)
    }

    /// Waits for all to end. Gives their exit statuses in order and what they said.
    pub fn finish(self) -> Result<(Vec<i32>, String)> {
        self.vm.console().until(&format!("grep -q ^finished /tmp/{}.out", self.name), PATIENCE)?;
        let said = self.said()?;
        let statuses = statuses(&said);
        ensure!(statuses.len() == self.size, "the pilot did not end as it should: {said}");
        Ok((statuses, said))
    }
}

fn statuses(said: &str) -> Vec<i32> {
    said.lines().filter_map(|line| line.strip_prefix("status ")?.trim().parse().ok()).collect()
}

/// Waits until the VM's agent is in touch with hostd.
pub fn wait_agent(vm: &Vm<'_>) -> Result<()> {
    vm.console().until("guest-agent status --json | grep -q '\"connected\": *true'", PATIENCE).map(drop)
}
