//! The S3 server of the test bed: keeps what is locked, refuses the unknown, comes back after an outage with its data.

use std::fs;
use std::time::Instant;

use anyhow::Result;
use vestigo_tests::require::{self, Need};
use vestigo_tests::s3::S3Server;
use vestigo_tests::site::Site;

#[test]
fn the_store_locks_objects_and_survives_an_outage() -> Result<()> {
    if !require::met(&[Need::Root, Need::Network, Need::S3])? {
        return Ok(());
    }
    let site = Site::start_without_libvirt("s3")?;
    let begin = Instant::now();
    let s3 = S3Server::start(&site)?;
    eprintln!("the S3 server serves after {:?}", begin.elapsed());
    s3.create_bucket_with_object_lock("vault")?;
    let configuration = s3.curl(&[], "/vault?object-lock=")?;
    assert!(configuration.contains("<ObjectLockEnabled>Enabled"), "{configuration}");

    let file = site.dir().join("object");
    fs::write(&file, "evidence")?;
    let file = file.to_string_lossy();
    let put = ["-T", &file, "-H", "If-None-Match: *"];
    s3.curl(&put, "/vault/one")?;
    assert!(s3.curl(&put, "/vault/one").is_err(), "an object was overwritten");
    assert_eq!(s3.curl(&[], "/vault/one")?, "evidence");
    let anonymous = site.run("curl", &["-sSf", "--noproxy", "*", &format!("{}/vault/one", s3.endpoint())]);
    assert!(anonymous.is_err(), "an unsigned request was served");

    let begin = Instant::now();
    s3.stop()?;
    eprintln!("stopped after {:?}", begin.elapsed());
    assert!(s3.curl(&[], "/vault/one").is_err(), "a stopped server answered");
    let begin = Instant::now();
    s3.start_again()?;
    eprintln!("back after {:?}", begin.elapsed());
    assert_eq!(s3.curl(&[], "/vault/one")?, "evidence");
    Ok(())
}
