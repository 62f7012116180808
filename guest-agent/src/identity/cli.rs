//! `guest-agent task`: what a user needs to sign a task, and what anybody needs to see whether an agent would take it.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use sha2::{Digest as _, Sha256};
use vestigo_model::{Clock as _, Digest, Label, PayloadId, PilotId, SystemClock, Timestamp, User, Vo};

use super::{
    signers::{self, AllowedSigners},
    sshsig,
    task::{self, Asked, Input, Nonce, Signatory, Statement},
};

/// A statement begins a little before it is made: the clock of the VM may be behind the user's.
const BACKDATE: Duration = Duration::from_secs(300);

/// Options of `task`.
#[derive(Debug, Args)]
pub struct Task {
    /// What to do
    #[command(subcommand)]
    pub command: TaskCommand,
}

/// The verbs of `task`.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// Write the statement that a user signs to let one program run in his name
    Statement(Box<StatementArgs>),
    /// Print the two digests of a command that a statement holds
    Digest(DigestArgs),
    /// Check a signed statement as the agent would
    Verify(Box<VerifyArgs>),
}

/// Options of `task statement`.
#[derive(Debug, Args)]
pub struct StatementArgs {
    /// A name for the task
    #[arg(long, value_name = "ID")]
    pub task: PayloadId,
    /// The virtual organisation
    #[arg(long)]
    pub vo: Vo,
    /// Your name, as the issuer knows it
    #[arg(long, value_name = "SUBJECT")]
    pub user_subject: Label,
    /// Who knows you by that name
    #[arg(long, value_name = "ISSUER")]
    pub user_issuer: Label,
    /// A site where it may run (repeatable)
    #[arg(long, required = true, value_name = "NAME")]
    pub audience: Vec<Label>,
    /// Hours until it may no longer be started
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=743), value_name = "N")]
    pub hours: u32,
    /// How often it may be started
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub runs: u32,
    /// A pilot that may start it, * and ? as wildcards (repeatable) [default: any]
    #[arg(long, value_name = "PATTERN")]
    pub pilot: Vec<Label>,
    /// A file that the task reads, to be recorded with its digest (repeatable)
    #[arg(long, value_name = "FILE")]
    pub input: Vec<PathBuf>,
    /// Where the statement goes
    #[arg(long, short, value_name = "FILE", default_value = "task.json")]
    pub output: PathBuf,
    /// The program file here, if the command names it by another path there [default: the command's first word]
    #[arg(long, value_name = "FILE")]
    pub executable: Option<PathBuf>,
    /// The program and its arguments, as the pilot will start it
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Options of `task digest`.
#[derive(Debug, Args)]
pub struct DigestArgs {
    /// The program file here, if the command names it by another path there
    #[arg(long, value_name = "FILE")]
    pub executable: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Options of `task verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The statement
    pub statement: PathBuf,
    /// Its signature [default: the statement's name with .sig]
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
    /// The trust file (OpenSSH's allowed_signers)
    #[arg(long, value_name = "FILE")]
    pub signers: PathBuf,
    /// Public keys that count no more, one a line
    #[arg(long, value_name = "FILE")]
    pub revoked: Option<PathBuf>,
    /// The VO of the pilot [default: the statement's]
    #[arg(long)]
    pub vo: Option<Vo>,
    /// A name of the site [default: those in the statement]
    #[arg(long, value_name = "NAME")]
    pub audience: Vec<Label>,
    /// The pilot that starts it
    #[arg(long, value_name = "ID", default_value = "verify")]
    pub pilot: PilotId,
    /// The time to judge by [default: now]
    #[arg(long, value_name = "TIME")]
    pub at: Option<Timestamp>,
    /// The program file here, if the command names it by another path there
    #[arg(long, value_name = "FILE")]
    pub executable: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Does it.
///
/// # Errors
/// A sentence for the user.
pub fn run(options: &Task) -> anyhow::Result<()> {
    let text = match &options.command {
        TaskCommand::Statement(options) => statement(options)?,
        TaskCommand::Digest(options) => {
            let executable = executable(options.executable.as_deref(), &options.command)?;
            format!("executable {executable}\narguments  {}\n", task::arguments(&options.command))
        }
        TaskCommand::Verify(options) => verify(options)?,
    };
    // A closed pipe is the reader's wish.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn statement(options: &StatementArgs) -> anyhow::Result<String> {
    let now = whole_seconds(SystemClock.now());
    let written = Statement {
        vestigo_task: task::VERSION,
        task: options.task.clone(),
        vo: options.vo.clone(),
        user: Signatory { issuer: options.user_issuer.clone(), subject: options.user_subject.clone() },
        executable: executable(options.executable.as_deref(), &options.command)?,
        arguments: task::arguments(&options.command),
        inputs: options.input.iter().map(|path| input(path)).collect::<anyhow::Result<_>>()?,
        audience: options.audience.clone(),
        not_before: now - BACKDATE,
        expires: now + Duration::from_secs(u64::from(options.hours) * 3600),
        nonce: nonce()?,
        runs: options.runs,
        pilots: options.pilot.clone(),
    };
    let mut text = serde_json::to_string_pretty(&written)?;
    text.push('\n');
    task::parse(text.as_bytes())?;
    let path = &options.output;
    // Not over an old one: its signature would lie beside it and no longer fit.
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = file.with_context(|| {
        format!(
            "cannot write {} as a new file; remove the old one and its signature, or name another with --output",
            path.display()
        )
    })?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    let user = User { issuer: options.user_issuer.clone(), subject: options.user_subject.clone() };
    Ok(format!(
        "{path} says what may run. Read it, then sign it with the key that the VO knows:\n  \
         ssh-keygen -Y sign -n {namespace} -f ~/.ssh/id_ed25519 {path}\n\
         In allowed_signers your name is {principal}\n",
        path = path.display(),
        namespace = sshsig::NAMESPACE,
        principal = signers::principal(&user),
    ))
}

fn verify(options: &VerifyArgs) -> anyhow::Result<String> {
    let statement = read(&options.statement, task::MAX_STATEMENT)?;
    let default = || {
        let mut name = options.statement.clone().into_os_string();
        name.push(".sig");
        PathBuf::from(name)
    };
    let signature = read(&options.signature.clone().unwrap_or_else(default), sshsig::MAX_SIGNATURE)?;
    let about = |path: &Path| path.display().to_string();
    let allowed = AllowedSigners::parse(&read(&options.signers, signers::MAX_FILE)?);
    let mut allowed = allowed.with_context(|| about(&options.signers))?;
    if let Some(path) = &options.revoked {
        allowed.revoke(&read(path, signers::MAX_FILE)?).with_context(|| about(path))?;
    }
    let said = task::parse(&statement)?;
    let audience = if options.audience.is_empty() { &said.audience } else { &options.audience };
    let vo = options.vo.as_ref().unwrap_or(&said.vo);
    let asked = Asked { vo, user: None, pilot: &options.pilot, audience, command: &options.command };
    let at = options.at.unwrap_or_else(|| SystemClock.now());
    let task = task::verify(&statement, &signature, &allowed, at, &asked)?;
    task.permits(&executable(options.executable.as_deref(), &options.command)?)?;
    Ok(format!(
        "good: task {} of {}, key {} (line {}), until {}, {} run(s)\n",
        said.task,
        task.principal(),
        task.fingerprint(),
        task.line(),
        said.expires,
        said.runs,
    ))
}

/// The digest of the program. Without a slash it would be looked up in PATH, and be another file on each machine.
fn executable(given: Option<&Path>, command: &[OsString]) -> anyhow::Result<Digest> {
    let first = command.first().map(OsString::as_os_str).unwrap_or_default();
    let named = || first.as_bytes().contains(&b'/').then(|| Path::new(first));
    let path = given.or_else(named).ok_or_else(|| {
        anyhow!(
            "{} has no folder, so it may be another file at each site; name it like ./{0}, or give --executable FILE",
            OsStr::new(first).display()
        )
    })?;
    digest(path)
}

fn digest(path: &Path) -> anyhow::Result<Digest> {
    let hashed = || -> io::Result<Digest> {
        let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 128 << 10]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(Digest(hash.finalize().into())),
                got => hash.update(buffer.get(..got).unwrap_or_default()),
            }
        }
    };
    hashed().with_context(|| format!("cannot read {}", path.display()))
}

fn input(path: &Path) -> anyhow::Result<Input> {
    let name = path.file_name().and_then(OsStr::to_str).ok_or_else(|| anyhow!("{} has no name", path.display()))?;
    Ok(Input { name: Label::new(name)?, sha256: digest(path)? })
}

fn nonce() -> anyhow::Result<Nonce> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Nonce::try_from(text).map_err(|why| anyhow!(why))
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    let nanos = time.as_nanos();
    Timestamp::from_nanos(nanos - nanos.rem_euclid(1_000_000_000))
}

fn read(path: &Path, most: usize) -> anyhow::Result<Vec<u8>> {
    let unreadable = || format!("cannot read {}; name a file that is there and that you may read", path.display());
    let about = fs::metadata(path).with_context(unreadable)?;
    ensure!(about.is_file(), "{} is not a regular file", path.display());
    let limit = u64::try_from(most).unwrap_or(u64::MAX);
    if about.len() > limit {
        bail!("{} is larger than {} KiB", path.display(), most >> 10);
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).with_context(unreadable)?;
    Ok(bytes)
}
