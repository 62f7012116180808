//! A ledger in an object store gives the answers of the folder that it was copied from.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use vestigo_tests::{
    bins,
    ledger::{self, Shape, truth::Truth, write},
    require::{self, Need},
    s3::S3Server,
    site::Site,
};

const PLACE: &str = "evidence/site-a/ledger";

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { all.extend(files(&path)?) } else { all.push(path) }
    }
    all.sort();
    Ok(all)
}

/// Puts every file under its name in the ledger.
fn upload(s3: &S3Server<'_>, root: &Path) -> Result<()> {
    for file in files(root)? {
        let name = file.strip_prefix(root)?.to_str().context("a name that is no text")?.replace('=', "%3D");
        let source = file.to_str().context("a name that is no text")?;
        s3.curl(&["-T", source], &format!("/{PLACE}/{name}"))?;
    }
    Ok(())
}

/// `vestigo` inside the site, where the store is.
struct Desk<'a> {
    site: &'a Site,
    s3: &'a S3Server<'a>,
    config: PathBuf,
}

impl<'a> Desk<'a> {
    fn new(site: &'a Site, s3: &'a S3Server<'a>) -> Result<Self> {
        let config = site.dir().join("vestigo.toml");
        let log = site.dir().join("log.jsonl");
        let text = format!("[access]\nlog = \"{}\"\n[s3]\nendpoint = \"{}\"\n", log.display(), s3.endpoint());
        fs::write(&config, text)?;
        Ok(Self { site, s3, config })
    }

    /// The answer, and the exit code.
    fn ask(&self, ledger: &str, arguments: &[String]) -> Result<(i32, String)> {
        let mut command = self.site.command(bins::path("vestigo")?)?;
        command.args(arguments).args(["--ledger", ledger]).env("VESTIGO_CONFIG", &self.config);
        command.env("VESTIGO_CASE", "C-1").env("VESTIGO_REASON", "a test");
        command.env("XDG_CACHE_HOME", self.site.dir().join("cache"));
        command.env("AWS_ACCESS_KEY_ID", self.s3.access_key()).env("AWS_SECRET_ACCESS_KEY", self.s3.secret_key());
        let output = command.output()?;
        let said = String::from_utf8(output.stdout)?;
        let code = output.status.code().context("ended by a signal")?;
        ensure!(matches!(code, 0 | 3), "{arguments:?} over {ledger}: {}", String::from_utf8_lossy(&output.stderr));
        Ok((code, said))
    }
}

/// The questions, and whether there is something to be found.
fn questions(site: &ledger::Site) -> Result<Vec<(bool, Vec<String>)>> {
    let point = Truth::new(site).point(0).context("the ledger has no flow")?;
    let user = &site.tenants[0].users[0].subject;
    let (time, ip, own) = (point.time.to_string(), point.ip.to_string(), point.flow.local().0.to_string());
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
    let sum =
        "SELECT host, vo, count(*) AS flows, sum(orig_bytes) AS sent FROM flows GROUP BY host, vo ORDER BY host, vo";
    let some = format!("SELECT first, segment FROM flows WHERE orig_ip = '{own}' ORDER BY first, segment, orig_port");
    Ok(vec![
        (true, words(&["who", "--time", &time, "--ip", &ip, "--json"])),
        (false, words(&["who", "--time", &time, "--ip", "192.0.2.199", "--json"])),
        (true, words(&["pilots", "--user", user.as_str(), "--json"])),
        (true, words(&["flows", "--sum", "host,vo", "--json"])),
        (true, words(&["flows", "--ip", &own, "--limit", "0", "--json"])),
        (true, words(&["sql", sum, "--json"])),
        (true, words(&["sql", &some, "--json"])),
        (true, words(&["sql", "SELECT count(*) FROM payloads", "--json"])),
    ])
}

/// What must be equal: rows that begin at one moment may come in any order.
fn comparable(text: &str) -> Result<Value> {
    let lines: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter::<Value>().collect();
    let mut all = Vec::new();
    for line in lines? {
        let mut answer = line.get("answer").cloned().unwrap_or(line);
        if let Some(rows) = answer.get_mut("rows").and_then(Value::as_array_mut) {
            rows.sort_by_key(ToString::to_string);
        }
        all.push(answer);
    }
    Ok(Value::Array(all))
}

#[test]
fn a_bucket_answers_as_its_folder_does() -> Result<()> {
    if !require::met(&[Need::Root, Need::Network, Need::S3])? {
        return Ok(());
    }
    let site = Site::start_without_libvirt("ledger-s3")?;
    let s3 = S3Server::start(&site)?;
    s3.create_bucket("evidence")?;
    let generated = ledger::Site::new(Shape { days: 1, ..Shape::of_flows(2000) })?;
    let root = site.dir().join("ledger");
    write::ledger(&generated, &root, 1, |_| ())?;
    upload(&s3, &root)?;
    let desk = Desk::new(&site, &s3)?;
    let (folder, bucket) = (root.display().to_string(), format!("s3://{PLACE}"));
    for (found, question) in questions(&generated)? {
        let (code, here) = desk.ask(&folder, &question)?;
        assert_eq!(code, if found { 0 } else { 3 }, "{question:?}: {here}");
        let (far_code, there) = desk.ask(&bucket, &question)?;
        assert_eq!(code, far_code, "{question:?}");
        assert_eq!(comparable(&there)?, comparable(&here)?, "{question:?}");
    }
    Ok(())
}
