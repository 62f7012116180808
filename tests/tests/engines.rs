//! The files are the contract: engines that are none of ours give the answers that `vestigo` gives, and both are right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{collections::BTreeSet, net::IpAddr, path::Path, time::Duration};

use vestigo_model::{HostId, TimeRange, Timestamp, User, Vo};
use vestigo_tests::{
    ledger::{
        Shape, Site,
        ask::Vestigo,
        engines::{self, Engine, Question, Rows},
        truth::{Truth, WhoPoint},
        write,
    },
    require::{self, Need},
};

const TOLERANCE: Duration = Duration::from_secs(2);

/// What is asked, of everybody alike.
struct Questions<'a> {
    truth: Truth<'a>,
    vestigo: Vestigo,
    points: Vec<(WhoPoint, TimeRange)>,
    addresses: Vec<IpAddr>,
    users: Vec<User>,
    vos: [&'static str; 2],
    range: TimeRange,
}

impl<'a> Questions<'a> {
    fn new(site: &'a Site, ledger: &Path) -> Self {
        let truth = Truth::new(site);
        let points = (0..6).map(|number| truth.point(number).unwrap());
        // Spark knows no nanoseconds: the question has none either.
        let whole = |time: Timestamp| Timestamp::from_nanos(time.as_nanos() / 1000 * 1000);
        let around = |point: &WhoPoint| TimeRange::around(whole(point.time), TOLERANCE);
        let points: Vec<_> =
            points.map(|point| (WhoPoint { time: whole(point.time), ..point.clone() }, around(&point))).collect();
        let addresses: BTreeSet<IpAddr> =
            points.iter().flat_map(|(point, _)| [point.flow.local().0, point.flow.peer().0, point.ip]).collect();
        let users = site.tenants.iter().map(|tenant| tenant.users[0].clone());
        let at = |hours: i64| Timestamp::from_nanos(site.shape.start() + hours * 3_600_000_000_000);
        Self {
            truth,
            vestigo: Vestigo::over(ledger).unwrap(),
            points,
            addresses: addresses.into_iter().collect(),
            users: users.collect::<BTreeSet<_>>().into_iter().collect(),
            vos: ["atlas", "cms"],
            range: TimeRange::new(at(2), at(46)).unwrap(),
        }
    }

    fn pseudonyms(user: &User) -> Vec<String> {
        vec![user.subject.to_string()]
    }

    fn list(&self) -> Vec<Question> {
        let who = self.points.iter().map(|(point, range)| Question::who(point, *range));
        let flows = self.addresses.iter().map(|ip| Question::flows_of(*ip));
        let pilots = self.users.iter().map(|user| Question::pilots(&Self::pseudonyms(user), self.range));
        let ips = self.vos.iter().map(|vo| Question::ips(vo, self.range));
        who.chain(flows).chain(pilots).chain(ips).chain([Question::gaps(self.range)]).collect()
    }

    fn check(&self, answers: &[Rows]) {
        let mut answers = answers.iter();
        let mut next = || answers.next().unwrap();
        for (point, range) in &self.points {
            let found = engines::candidates(next()).unwrap();
            assert!(!found.is_empty());
            assert_eq!(found, self.truth.who(point.ip, point.port, *range).unwrap(), "{point:?}");
            assert_eq!(found, self.vestigo.who(point.time, point.ip, point.port).unwrap(), "{point:?}");
        }
        let everything = TimeRange::new(Timestamp::from_nanos(0), Timestamp::from_nanos(i64::MAX)).unwrap();
        for ip in &self.addresses {
            let found = engines::sums(next()).unwrap();
            assert!(!found.is_empty());
            assert_eq!(found, self.truth.flows_of(*ip, everything).unwrap(), "{ip}");
        }
        let mut runs = 0;
        for user in &self.users {
            let found = engines::runs(next()).unwrap();
            runs += found.len();
            assert_eq!(found, self.truth.pilots(&user.subject, self.range).unwrap(), "{user}");
            assert_eq!(found, self.vestigo.pilots(&user.issuer, &user.subject, self.range).unwrap(), "{user}");
        }
        assert!(runs > 3, "{runs}");
        for vo in self.vos {
            let found = engines::addresses(next()).unwrap();
            assert!(!found.is_empty());
            assert_eq!(found, self.truth.ips(&Vo::new(vo).unwrap(), self.range).unwrap(), "{vo}");
            assert_eq!(found, self.vestigo.ips(vo, self.range).unwrap(), "{vo}");
        }
        let found = engines::outages(next(), self.range).unwrap();
        assert!(!found.is_empty());
        assert_eq!(found, micros(self.truth.outages(self.range).unwrap()));
        for (host, from, to) in self.truth.outages(self.range).unwrap() {
            let during = TimeRange::new(from, to).unwrap();
            let said = self.vestigo.outages(during).unwrap();
            assert!(said.iter().any(|(h, f, t)| *h == host && *f == from && *t == to), "{host} {during:?}: {said:?}");
        }
    }
}

fn micros(outages: BTreeSet<(HostId, Timestamp, Timestamp)>) -> BTreeSet<(HostId, i64, i64)> {
    outages.into_iter().map(|(host, from, to)| (host, from.as_nanos() / 1000, to.as_nanos() / 1000)).collect()
}

/// A site on which hostd was down for a while: otherwise nobody has anything to say of gaps.
fn site() -> Site {
    let of_seed = |seed| Site::new(Shape { seed, flows: 6000, ..Shape::small() }).unwrap();
    let whole = |site: &Site| {
        TimeRange::new(Timestamp::from_nanos(site.shape.start()), Timestamp::from_nanos(site.shape.end()))
    };
    (1..).map(of_seed).find(|site| !Truth::new(site).outages(whole(site).unwrap()).unwrap().is_empty()).unwrap()
}

fn answers_as_vestigo_does(engine: Engine) {
    if !require::met(&[Need::Root, Need::Network, Need::Engines]).unwrap() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let site = site();
    let ledger = folder.path().join("ledger");
    write::ledger(&site, &ledger, 2, |_| ()).unwrap();
    let questions = Questions::new(&site, &ledger);
    let answers = engines::ask(engine, &ledger, &questions.list()).unwrap();
    questions.check(&answers);
}

#[test]
fn duckdb_answers_as_vestigo_does() {
    answers_as_vestigo_does(Engine::DuckDb);
}

#[test]
fn pyarrow_answers_as_vestigo_does() {
    answers_as_vestigo_does(Engine::Arrow);
}

#[test]
fn chdb_answers_as_vestigo_does() {
    answers_as_vestigo_does(Engine::ChDb);
}

#[test]
fn a_spark_cluster_answers_as_vestigo_does() {
    answers_as_vestigo_does(Engine::Spark);
}
