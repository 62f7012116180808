//! The same questions over a ledger in an object store: time, bytes and requests, counted on the way.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    super::{
        ask::Vestigo,
        truth::{Truth, WhoPoint},
        write,
    },
    Bench, Made,
    ask::who_question,
};
use crate::{
    bench::{Times, figure, progress, quantile},
    process,
    s3::S3Server,
    site::Site as World,
};

const BUCKET: &str = "ledger";
/// Where the counting proxy listens, in the site's own network.
const PROXY: &str = "127.0.0.1:7480";

/// Puts the ledger into SeaweedFS and asks there.
pub(super) fn run(bench: &Bench, made: &Made) -> Result<()> {
    let world = World::start_without_libvirt("ledger")?;
    let server = S3Server::start(&world)?;
    server.create_bucket(BUCKET)?;
    let begin = Instant::now();
    upload(&world, &server, &made.folder)?;
    progress(&format!("the ledger is in the store after {:?}", begin.elapsed()));
    let mut counter = Counter::start(&world, server.endpoint())?;
    let vestigo = vestigo(&world, &server, made)?;
    let truth = Truth::new(&made.site);
    let points = (0..bench.rounds).map(|number| truth.point(number)).collect::<Result<Vec<_>>>()?;
    ask(&world, &vestigo, &mut counter, &points, write::size(&made.folder)?)
}

fn ask(world: &World, vestigo: &Vestigo, counter: &mut Counter, points: &[WhoPoint], stored: u64) -> Result<()> {
    let (mut times, mut bytes, mut requests) = (Times::default(), Vec::new(), Vec::new());
    // The first finds no catalog.
    for (number, point) in points.iter().enumerate() {
        let question = who_question(point);
        let question: Vec<&str> = question.iter().map(String::as_str).collect();
        counter.take()?;
        let begin = Instant::now();
        run_inside(world, &vestigo.command(&question))?;
        let (took, (read, asked)) = (begin.elapsed(), counter.take()?);
        #[allow(clippy::cast_precision_loss)] // Shares for people.
        let (share, asked) = (read as f64 / stored as f64, asked as f64);
        if number == 0 {
            figure("s3_first_who_s", format_args!("{:.2}", took.as_secs_f64()));
            figure("s3_first_who_share_of_bytes", format_args!("{share:.5}"));
            continue;
        }
        times.push(took);
        bytes.push(share);
        requests.push(asked);
    }
    times.print("s3_who");
    figure("s3_who_share_of_bytes", format_args!("{:.6}", quantile(&bytes, 0.5)));
    figure("s3_who_share_of_bytes_max", format_args!("{:.6}", quantile(&bytes, 1.0)));
    figure("s3_who_requests", format_args!("{:.0}", quantile(&requests, 0.5)));
    Ok(())
}

fn run_inside(world: &World, question: &Command) -> Result<()> {
    let mut command = world.command(question.get_program())?;
    command.args(question.get_args()).stdin(Stdio::null());
    for (name, value) in question.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let output = command.output()?;
    let good = output.status.success();
    ensure!(good, "a question to the store failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// `vestigo` over the store, through the counting proxy, with a catalog of its own.
fn vestigo(world: &World, server: &S3Server<'_>, made: &Made) -> Result<Vestigo> {
    let mut vestigo = Vestigo::over(&made.folder)?;
    vestigo.common = vec!["--ledger".to_owned(), format!("s3://{BUCKET}")];
    let (config, log) = (world.dir().join("vestigo.toml"), world.dir().join("access.jsonl"));
    let text = format!(
        "[access]\nlog = \"{}\"\n[s3]\nendpoint = \"http://{PROXY}\"\nregion = \"{}\"\npath_style = true\n",
        log.display(),
        server.region()
    );
    fs::write(&config, text)?;
    let cache = world.dir().join("cache");
    let settings = [
        ("VESTIGO_CONFIG", config.display().to_string()),
        ("XDG_CACHE_HOME", cache.display().to_string()),
        ("AWS_ACCESS_KEY_ID", server.access_key().to_owned()),
        ("AWS_SECRET_ACCESS_KEY", server.secret_key().to_owned()),
    ];
    vestigo.env.retain(|(name, _)| settings.iter().all(|(of_store, _)| name != of_store));
    vestigo.env.extend(settings.map(|(name, value)| (name.to_owned(), value)));
    Ok(vestigo)
}

/// Thousands of small objects: one curl for all of a day, which keeps its connection.
fn upload(world: &World, server: &S3Server<'_>, ledger: &Path) -> Result<()> {
    let user = format!("{}:{}", server.access_key(), server.secret_key());
    let signed = format!("aws:amz:{}:s3", server.region());
    for date in fs::read_dir(ledger)? {
        let date = date?;
        let mut list = String::new();
        for file in files(&date.path())? {
            let name = file.strip_prefix(ledger)?.display();
            let (file, endpoint) = (file.display(), server.endpoint());
            writeln!(list, "upload-file = \"{file}\"\nurl = \"{endpoint}/{BUCKET}/{name}\"")?;
        }
        let config = world.dir().join("upload");
        fs::write(&config, list)?;
        let mut curl = world.command("curl")?;
        curl.args(["-sS", "--fail-with-body", "--noproxy", "*", "--aws-sigv4", &signed, "-u", &user]);
        curl.args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-K"]).arg(&config);
        process::output(curl.stdin(Stdio::null()))?;
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    Ok(files)
}

/// The counting proxy.
struct Counter {
    child: Child,
    asks: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Counter {
    fn start(world: &World, endpoint: &str) -> Result<Self> {
        let target = endpoint.strip_prefix("http://").context("the endpoint is no http address")?;
        let mut command = world.command(std::env::current_exe()?)?;
        command.args(["count", PROXY, target]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the counting proxy")?;
        let asks = child.stdin.take().context("the proxy's standard input")?;
        let says = BufReader::new(child.stdout.take().context("the proxy's standard output")?);
        let mut counter = Self { child, asks, says };
        counter.take()?;
        Ok(counter)
    }

    /// Bytes and requests since the last time.
    fn take(&mut self) -> Result<(u64, u64)> {
        writeln!(self.asks)?;
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        let (bytes, requests) = line.trim().split_once(' ').context("the counting proxy has ended")?;
        Ok((bytes.parse()?, requests.parse()?))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
