//! `hostd meter` beside meters that others wrote, over the same files. What they count otherwise is named here and explained in
//! docs/metering.md; any other difference is a failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufWriter, Write as _},
    net::IpAddr,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vestigo_tests::{
    bins, paths, process,
    require::{self, Need},
    traffic::{Mix, PcapWriter, Zoo, write_mix, write_pcapng},
};

/// One direction of a conversation: addresses, ports, protocol. ICMP has no ports here: everybody has something else there.
type Way = (IpAddr, u16, IpAddr, u16, u8);
/// Packets and bytes.
type Ways = BTreeMap<Way, (u64, u64)>;

fn add(ways: &mut Ways, (src, src_port, dst, dst_port, proto): Way, packets: u64, bytes: u64) {
    let portless = !matches!(proto, 6 | 17 | 132);
    let ports = if portless { (0, 0) } else { (src_port, dst_port) };
    let way = ways.entry((src, ports.0, dst, ports.1, proto)).or_default();
    *way = (way.0 + packets, way.1 + bytes);
}

fn zoo(folder: &Path) -> Result<std::path::PathBuf> {
    let path = folder.join("zoo.pcap");
    let mut file = PcapWriter::new(BufWriter::new(File::create(&path)?), 262_144, 1)?;
    for (micros, bytes) in &Zoo::new().frames {
        file.packet(*micros, bytes)?;
    }
    file.finish()?;
    Ok(path)
}

fn meter(arguments: &[&str], file: &Path) -> Result<Output> {
    let hostd = bins::path("hostd")?;
    Command::new(&hostd).arg("meter").args(arguments).arg(file).output().context("cannot run hostd")
}

fn flows(file: &Path) -> Result<Vec<Value>> {
    let done = meter(&["--json"], file)?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn number<T: TryFrom<u64>>(value: &Value, name: &str) -> Result<T> {
    let number = value.get(name).and_then(Value::as_u64).with_context(|| format!("no number {name} in {value}"))?;
    T::try_from(number).ok().with_context(|| format!("{name} is too large in {value}"))
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value.get(name).and_then(Value::as_str).with_context(|| format!("no text {name} in {value}"))
}

fn ours(flows: &[Value]) -> Result<Ways> {
    let mut ways = Ways::new();
    for flow in flows {
        let (orig, resp): (IpAddr, IpAddr) = (text(flow, "orig_ip")?.parse()?, text(flow, "resp_ip")?.parse()?);
        let (orig_port, resp_port) = (number(flow, "orig_port")?, number(flow, "resp_port")?);
        let proto = number(flow, "proto")?;
        for (way, side) in
            [((orig, orig_port, resp, resp_port, proto), "orig"), ((resp, resp_port, orig, orig_port, proto), "resp")]
        {
            let packets = number(flow, &format!("{side}_packets"))?;
            if packets > 0 {
                add(&mut ways, way, packets, number(flow, &format!("{side}_bytes"))?);
            }
        }
    }
    Ok(ways)
}

/// Fails unless exactly these differ: each explanation names the ports or addresses that it is about.
fn compare(ours: &Ways, theirs: &Ways, explained: &[(&str, &str)]) {
    let every: BTreeSet<&Way> = ours.keys().chain(theirs.keys()).collect();
    let (mut used, mut unexplained) = (BTreeSet::new(), Vec::new());
    for way in every {
        let (own, other) = (ours.get(way), theirs.get(way));
        let (src, src_port, dst, dst_port, proto) = way;
        let shown = format!("{src} {src_port} {dst} {dst_port} {proto}");
        match explained.iter().find(|(part, _)| shown.contains(part)) {
            _ if own == other => {}
            Some((part, _)) => drop(used.insert(*part)),
            None => unexplained.push(format!("{shown}: we count {own:?}, they count {other:?}")),
        }
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
    for (part, why) in explained {
        assert!(used.contains(part), "nothing differs any more for {part} ({why})");
    }
}

/// Every packet by tshark's dissector, the length as the IP header has it; fragments as they are.
fn tshark(file: &Path) -> Result<Ways> {
    let fields = [
        "ip.src",
        "ipv6.src",
        "ip.dst",
        "ipv6.dst",
        "tcp.srcport",
        "udp.srcport",
        "sctp.srcport",
        "tcp.dstport",
        "udp.dstport",
        "sctp.dstport",
        "ip.len",
        "ipv6.plen",
    ];
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-E", "separator=,", "-E", "occurrence=f"]);
    command.args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]);
    command.args(["-Y", "(tcp or udp or sctp) and not icmp and not icmpv6"]).arg("-r").arg(file);
    for field in fields {
        command.args(["-e", field]);
    }
    let mut ways = Ways::new();
    for line in process::output(&mut command)?.lines() {
        let words: Vec<&str> = line.split(',').collect();
        let word = |at: usize| words.get(at).copied().filter(|word| !word.is_empty());
        let first = |range: std::ops::Range<usize>| range.into_iter().find_map(word).context("a field is missing");
        let proto = [6, 17, 132].into_iter().zip(4..7).find(|(_, at)| word(*at).is_some()).context("no ports")?.0;
        let way = (first(0..2)?.parse()?, first(4..7)?.parse()?, first(2..4)?.parse()?, first(7..10)?.parse()?, proto);
        let bytes = match word(10) {
            Some(length) => length.parse()?,
            None => first(11..12)?.parse::<u64>()? + 40,
        };
        add(&mut ways, way, 1, bytes);
    }
    Ok(ways)
}

fn nfpcapd(file: &Path, folder: &Path) -> Result<Ways> {
    let store = folder.join("nfpcapd");
    std::fs::create_dir(&store)?;
    process::output(Command::new("nfpcapd").arg("-r").arg(file).arg("-w").arg(&store))?;
    let mut command = Command::new("nfdump");
    command.arg("-R").arg(&store).args(["-q", "-N", "-6", "-o", "fmt:%pr,%sa,%sp,%da,%dp,%pkt,%byt"]);
    let mut ways = Ways::new();
    for line in process::output(&mut command)?.lines() {
        let words: Vec<&str> = line.split(',').map(str::trim).collect();
        let [proto, src, src_port, dst, dst_port, packets, bytes] = words.as_slice() else { continue };
        let proto = named(proto);
        let way = (src.parse()?, src_port.parse().unwrap_or(0), dst.parse()?, dst_port.parse().unwrap_or(0), proto);
        add(&mut ways, way, packets.parse()?, bytes.parse()?);
    }
    Ok(ways)
}

/// Bytes are whole frames: the Ethernet header is taken off again, 14 bytes and 4 for each tag.
fn argus(file: &Path, folder: &Path, tags: impl Fn(&Way) -> u64) -> Result<Ways> {
    let records = folder.join("argus");
    process::output(Command::new("argus").args(["-F", "/dev/null"]).arg("-r").arg(file).arg("-w").arg(&records))?;
    let mut command = Command::new("ra");
    command.args(["-F", "/dev/null", "-n", "-c", ",", "-r"]).arg(&records);
    command.args(["-s", "proto", "saddr", "sport", "daddr", "dport", "spkts", "dpkts", "sbytes", "dbytes"]);
    let mut ways = Ways::new();
    for line in process::output(&mut command)?.lines() {
        let words: Vec<&str> = line.split(',').collect();
        let [proto, src, src_port, dst, dst_port, packets, packets_back, bytes, bytes_back] = words.as_slice() else {
            continue;
        };
        let (Ok(src), Ok(dst)) = (src.parse(), dst.parse()) else { continue };
        let (src_port, dst_port) = (src_port.parse().unwrap_or(0), dst_port.parse().unwrap_or(0));
        let proto = named(proto);
        for (way, packets, bytes) in [
            ((src, src_port, dst, dst_port, proto), packets, bytes),
            ((dst, dst_port, src, src_port, proto), packets_back, bytes_back),
        ] {
            let (packets, bytes): (u64, u64) = (packets.parse()?, bytes.parse()?);
            if packets > 0 {
                add(&mut ways, way, packets, bytes - packets * (14 + 4 * tags(&way)));
            }
        }
    }
    Ok(ways)
}

fn named(proto: &str) -> u8 {
    if let Ok(number) = proto.parse() {
        return number;
    }
    match proto {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "ipv6-icmp" => 58,
        "pim" => 103,
        "sctp" => 132,
        // Whatever else it is called is a difference to be explained.
        _ => 255,
    }
}

#[test]
fn one_of_everything_is_counted_as_tshark_nfpcapd_and_argus_count_it() -> Result<()> {
    if !require::met(&[Need::Meters])? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let file = zoo(folder.path())?;
    let ours = ours(&flows(&file)?)?;
    let with_ports: Ways =
        ours.iter().filter(|(way, _)| matches!(way.4, 6 | 17 | 132)).map(|(way, count)| (*way, *count)).collect();

    compare(
        &with_ports,
        &tshark(&file)?,
        &[
            (" 42000 ", "later fragments have no ports for it"),
            ("10.0.0.51 0 10.0.0.61", "fragments without a first are no UDP for it"),
        ],
    );
    compare(&ours, &nfpcapd(&file, folder.path())?, NFPCAPD);
    let tags = |way: &Way| match way.1.max(way.3) {
        40_010 | 40_012 => 1,
        _ => 0,
    };
    compare(&ours, &argus(&file, folder.path(), tags)?, ARGUS);
    Ok(())
}

const NFPCAPD: &[(&str, &str)] = &[
    ("10.0.0.25 ", "it does not read 802.1ad tags"),
    (" 42000 10.0.0.60 ", "it puts IPv4 fragments together and counts one packet with one header"),
    ("10.0.0.51 0 10.0.0.61 ", "fragments that cannot be put together are not counted"),
    ("10.0.0.80 0 10.0.0.81 ", "SCTP has no ports for it"),
    ("10.0.0.81 0 10.0.0.80 ", "SCTP has no ports for it"),
    (" 44000 ", "SCTP has no ports for it"),
    ("10.0.0.80 0 10.0.0.82 ", "it looks into GRE, and finds nothing there"),
    ("fd00::28", "it takes the first extension header for the protocol"),
    ("fd00::32 ", "it takes the fragment header for the protocol"),
];
const ARGUS: &[(&str, &str)] = &[
    ("10.0.0.25 ", "802.1ad frames are a flow of hardware addresses for it"),
    ("10.0.0.5 0 10.0.0.1 0 255", "ARP is a flow for it"),
    ("10.0.0.9 23 10.0.0.5 ", "it counts frames with what pads them"),
    ("fd00::21 ", "it finds no ports behind AH"),
    ("fd00::32 ", "later fragments of IPv6 are a flow of their own for it"),
    (" 44000 ", "SCTP has no ports for it"),
    ("10.0.0.80 0 10.0.0.81 ", "SCTP has no ports for it"),
    ("10.0.0.81 0 10.0.0.80 ", "SCTP has no ports for it"),
];

#[test]
fn a_busy_file_is_counted_as_tshark_and_nfpcapd_count_it() -> Result<()> {
    if !require::met(&[Need::Meters])? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mix.pcap");
    let mix = Mix { conversations: 2000, packets: 40_000, seconds: 25, snap: 128 };
    write_mix(BufWriter::new(File::create(&file)?), mix)?;
    let ours = ours(&flows(&file)?)?;
    let packets: u64 = ours.values().map(|(packets, _)| packets).sum();
    assert_eq!(packets, 40_000);
    let with_ports: Ways =
        ours.iter().filter(|(way, _)| matches!(way.4, 6 | 17 | 132)).map(|(way, count)| (*way, *count)).collect();
    compare(&with_ports, &tshark(&file)?, &[]);
    compare(&ours, &nfpcapd(&file, folder.path())?, &[]);
    Ok(())
}

/// The package computes from the tuple that we print, and must come to the name that we print.
#[test]
fn community_ids_are_the_references() -> Result<()> {
    const SCRIPT: &str = "\
import communityid, json, sys
c = communityid.CommunityID()
for line in sys.stdin:
    f = json.loads(line)
    a, b, p = f['orig_ip'], f['resp_ip'], f['proto']
    if p in (1, 58):
        make = communityid.FlowTuple.make_icmp if p == 1 else communityid.FlowTuple.make_icmp6
        t = make(a, b, f['resp_port'] >> 8, f['resp_port'] & 255)
    elif p in (6, 17, 132):
        t = communityid.FlowTuple(p, a, b, f['orig_port'], f['resp_port'])
    else:
        t = communityid.FlowTuple.make_ip(a, b, p)
    print(c.calc(t))
";
    if !require::met(&[Need::Meters])? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let flows = flows(&zoo(folder.path())?)?;
    let lines: String = flows.iter().map(|flow| format!("{flow}\n")).collect();
    let input = folder.path().join("flows.jsonl");
    std::fs::write(&input, lines)?;
    let mut reference = Command::new(paths::venv("python"));
    let said = process::output(reference.arg("-c").arg(SCRIPT).stdin(File::open(&input)?))?;
    let theirs: Vec<&str> = said.lines().collect();
    let own = flows.iter().map(|flow| text(flow, "community_id")).collect::<Result<Vec<_>>>()?;
    assert!(own.len() > 40);
    assert_eq!(own, theirs);
    Ok(())
}

#[test]
fn every_format_and_a_pipe_give_the_same_flows() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pcap = zoo(folder.path())?;
    let whole = ours(&flows(&pcap)?)?;
    let pcapng = folder.path().join("zoo.pcapng");
    write_pcapng(&mut File::create(&pcapng)?, &Zoo::new().frames)?;
    assert_eq!(ours(&flows(&pcapng)?)?, whole);

    let mut child = Command::new(bins::path("hostd")?)
        .args(["meter", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let bytes = std::fs::read(&pcap)?;
    let mut pipe = child.stdin.take().context("no pipe")?;
    let writer = std::thread::spawn(move || bytes.chunks(1000).try_for_each(|some| pipe.write_all(some)));
    let done = child.wait_with_output()?;
    writer.join().expect("the writer")?;
    let flows: Vec<Value> =
        String::from_utf8(done.stdout)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(ours(&flows)?, whole);
    Ok(())
}

#[test]
fn a_file_that_breaks_off_gives_what_it_has_and_says_where() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pcap = zoo(folder.path())?;
    let bytes = std::fs::read(&pcap)?;
    let broken = folder.path().join("broken.pcap");
    // In the middle of the third packet: a file header, two packets of 54 bytes with their headers, and a bit.
    std::fs::write(&broken, bytes.get(..24 + 2 * (16 + 54) + 20).context("too short")?)?;
    let done = meter(&["--json"], &broken)?;
    let said = String::from_utf8(done.stderr)?;
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("breaks off at byte 164"), "{said}");
    assert!(said.contains("packets: 2\n"), "{said}");
    assert_eq!(String::from_utf8(done.stdout)?.lines().count(), 1);

    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "nothing of the kind, but long enough to be looked at")?;
    let done = meter(&[], &text)?;
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8(done.stderr)?;
    assert!(said.ends_with("notes.txt is no pcap or pcapng file\n") && said.lines().count() == 1, "{said}");
    Ok(())
}
