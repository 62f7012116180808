//! Reading domain XML: what is taken, and what a hostile text cannot do.

use std::path::Path;

use proptest::prelude::*;
use vestigo_model::{Cloud, HostId, Timestamp};

use super::super::{
    Channel, Description, Inspection, Site, VoMap, XmlError,
    channel::{Plan, explain, plan},
    describe,
};

const UUID: &str = "ff91d2dc-69a1-43ef-abde-c9e4e9a0305b";

fn domain(name: &str, metadata: &str, devices: &str) -> String {
    format!(
        "<domain type='kvm' id='3'><name>{name}</name><uuid>{UUID}</uuid><metadata>{metadata}</metadata>\
         <features><acpi/></features><devices>{devices}</devices></domain>"
    )
}

fn read(name: &str, metadata: &str, devices: &str) -> Description {
    describe(&domain(name, metadata, devices)).unwrap()
}

const NOVA: &str = r#"<nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
  <nova:package version="25.1.0"/><nova:name>worker &amp; friend</nova:name>
  <nova:flavor name="m1.large"><nova:memory>64</nova:memory></nova:flavor>
  <nova:owner><nova:user uuid="ff62">pilot</nova:user><nova:project uuid="512866f9">atlas-prod</nova:project></nova:owner>
  <nova:root type="image" uuid="9e58cb69-316a-4093-9f23-c1d1bd8edffe"/>
  <nova:ports><nova:port uuid="77c1dc00-af39-4463-bea0-12808f4bc340">
    <nova:ip type="fixed" address="172.1.1.43" ipVersion="4"/><nova:ip type="fixed" address="fd00::43" ipVersion="6"/>
    <nova:ip type="floating" address="192.0.2.1" ipVersion="4"/></nova:port>
   <nova:port uuid="88c1dc00-af39-4463-bea0-12808f4bc340"><nova:ip type="fixed" address="10.9.9.9"/></nova:port></nova:ports>
</nova:instance>"#;

const NICS: &str = "<interface type='bridge'><mac address='fa:16:3e:00:00:01'/><target dev='tap77c1dc00-af'/></interface>\
  <interface type='bridge'><mac address='fa:16:3e:00:00:02'/><target dev='vnet7'/><virtualport type='openvswitch'>\
  <parameters interfaceid='88c1dc00-af39-4463-bea0-12808f4bc340'/></virtualport></interface>\
  <interface type='hostdev'><mac address='fa:16:3e:00:00:03'/></interface>\
  <interface type='direct'><mac address='fa:16:3e:00:00:04'/><source mode='passthrough'/><target dev='macvtap0'/></interface>";

#[test]
fn nova() {
    let seen = read("instance-00000885", NOVA, NICS);
    let m = &seen.metadata;
    assert_eq!((m.cloud, m.id.as_str()), (Cloud::Openstack, UUID));
    let project = m.project.as_ref().unwrap();
    assert_eq!((project.id.as_str(), project.name.as_ref().unwrap().as_str()), ("512866f9", "atlas-prod"));
    assert_eq!(m.owner.as_ref().unwrap().as_str(), "pilot");
    assert_eq!(m.flavour.as_ref().unwrap().as_str(), "m1.large");
    let expected: Vec<String> = seen.taps.iter().map(|t| format!("{} {:?}", t.name, t.expected)).collect();
    let first = "tap77c1dc00-af [172.1.1.43, fd00::43]";
    assert_eq!(
        expected,
        [first, "vnet7 [10.9.9.9]", "nic2 []", "macvtap0 []"],
        "floating addresses never show on a tap"
    );
    let not: Vec<bool> = seen.taps.iter().map(|t| t.not_capturable.is_some()).collect();
    assert_eq!(not, [false, false, true, true]);
}

#[test]
fn networks_that_the_xml_decides() {
    let network = |inside: &str, kind: &str| {
        let nic = format!(
            "<interface type='{kind}'><mac address='fa:16:3e:00:00:01'/><target dev='vnet0'/>{inside}</interface>"
        );
        read("a", "", &nic).taps.remove(0).network.map(String::from)
    };
    let ovs = "<source bridge='br-int'/><virtualport type='openvswitch'/>";
    assert_eq!(network("<source bridge='br0'/>", "bridge").as_deref(), Some("br0"));
    assert_eq!(network("<source network='default' bridge='virbr0'/>", "network").as_deref(), Some("virbr0"));
    assert_eq!(network("<source bridge='br0'/><vlan><tag id='7'/></vlan>", "bridge").as_deref(), Some("br0/7"));
    assert_eq!(network(&format!("{ovs}<vlan><tag id='7'/></vlan>"), "bridge").as_deref(), Some("br-int/7"));
    assert_eq!(network(ovs, "bridge"), None, "the tag is set where libvirt does not see it");
    let trunk = "<source bridge='br0'/><vlan trunk='yes'><tag id='7'/><tag id='8'/></vlan>";
    assert_eq!(network(trunk, "bridge"), None);
    assert_eq!(network("", "ethernet"), None);
    assert_eq!(network("<source bridge='br0'/>", "vhostuser"), None, "its frames do not pass there");
}

#[test]
fn opennebula() {
    let metadata = r#"<one:vm xmlns:one="http://opennebula.org/xmlns/libvirt/1.0">
      <one:system_datastore><![CDATA[/var/lib/one//datastores/0/42]]></one:system_datastore><one:uname>carol</one:uname>
      <one:gname>cms</one:gname><one:gid>105</one:gid></one:vm>"#;
    let nic = "<interface type='bridge'><mac address='02:00:0a:00:00:05'/><target dev='one-42-0'/><filterref filter='clean-traffic'>\
               <parameter name='IP' value='10.0.0.5'/><parameter name='CTRL_IP_LEARNING' value='none'/></filterref></interface>";
    let seen = read("one-42", metadata, nic);
    assert_eq!((seen.metadata.cloud, seen.metadata.id.as_str()), (Cloud::Opennebula, "42"));
    assert_eq!(seen.metadata.project.unwrap().id.as_str(), "105");
    assert_eq!(seen.taps[0].expected, ["10.0.0.5".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(read("renamed", metadata, "").metadata.id.as_str(), "42", "the number from the folder");
}

#[test]
fn vac_in_three_generations() {
    for folder in [
        "1700000000_lhcb-prod_vac-01.example.org",
        "1700000000:lhcb-prod",
        "1700000000:lhcb-prod:ff91d2dc-69a1-43ef-abde-c9e4e9a0305b",
        "vac-01.example.org/lhcb-prod/ff91d2dc-69a1-43ef-abde-c9e4e9a0305b",
    ] {
        let console =
            format!("<serial type='file'><source path='/var/lib/vac/machines/{folder}/console.log'/></serial>");
        let seen = read("vac-01.example.org", "", &console);
        assert_eq!(seen.metadata.cloud, Cloud::Vac, "{folder}");
        assert_eq!(seen.metadata.machine_type.unwrap().as_str(), "lhcb-prod", "{folder}");
    }
}

#[test]
fn plain_and_none() {
    let ours = "<v:instance xmlns:v='https://vestigo.invalid/metadata/1' id='worker-7'><v:project id='p1'>Atlas</v:project>\
                <v:owner>dave</v:owner></v:instance>";
    let m = read("a", ours, "").metadata;
    assert_eq!((m.cloud, m.id.as_str(), m.owner.unwrap().as_str()), (Cloud::Plain, "worker-7", "dave"));
    let m = read("a", "", "").metadata;
    assert_eq!((m.cloud, m.id.as_str(), m.project), (Cloud::Plain, "a", None));
    let foreign = "<v:instance xmlns:v='https://example.org/other'><v:project id='p1'/></v:instance>";
    assert_eq!(read("a", foreign, "").metadata.project, None, "another's namespace is not ours");
}

#[test]
fn disks_and_their_chains() {
    let devices = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/d/disk' index='1'/>\
        <backingStore type='file' index='2'><format type='qcow2'/><source file='/b/mid'/>\
        <backingStore type='file'><format type='raw'/><source file='/b/base'/><backingStore/></backingStore></backingStore>\
        <target dev='vda' bus='virtio'/></disk>\
      <disk type='file' device='disk'><driver type='qcow2'/><source file='/d/two'/><backingStore type='network'>\
        <format type='raw'/><source protocol='rbd' name='images/base'/></backingStore><target dev='vdb'/></disk>\
      <disk type='block' device='disk'><source dev='/dev/vg/three'/><target dev='vdc'/></disk>\
      <disk type='file' device='disk'><source file='four'/><target dev='vdd'/></disk>\
      <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/></disk>";
    let seen = read("a", "", devices);
    let chains: Vec<Vec<String>> =
        seen.disks.iter().map(|d| d.chain.iter().map(|l| l.format.clone()).collect()).collect();
    assert_eq!(chains, [vec!["qcow2", "qcow2", "raw"], vec!["qcow2"]]);
    assert_eq!(seen.disks[0].chain[2].path, Path::new("/b/base"));
    let why: Vec<String> = seen.unpinnable.iter().map(|(target, why)| format!("{target}: {why}")).collect();
    assert!(why[0].contains("vdb: its backing layer 1 cannot be kept: it is the network volume rbd:images/base"));
    assert!(why[1].contains("vdc: it is the block volume /dev/vg/three"));
    assert!(why[2].contains("not absolute"));
    assert_eq!(why.len(), 3, "a CD-ROM is not the VM's disk");
}

#[test]
fn channel_plans() {
    let folder = Path::new("/run/vestigo");
    let bare = read("a", "", "");
    let Plan::Attach { devices, socket } = plan(&bare, folder) else { panic!() };
    assert_eq!(socket, folder.join(format!("{UUID}.sock")));
    assert!(matches!(devices.as_slice(), [controller, _] if controller.contains("virtio-serial")), "{devices:?}");
    let refused = explain(&bare, "'virtio-serial' controller cannot be hot plugged.");
    assert!(refused.contains("hw_qemu_guest_agent"), "{refused}");
    let with_controller = read("a", "", "<controller type='virtio-serial' index='0'/>");
    let Plan::Attach { devices, .. } = plan(&with_controller, Path::new("/run/it's")) else { panic!() };
    assert!(matches!(devices.as_slice(), [channel] if channel.contains("/run/it&apos;s/")), "{devices:?}");
    let channel = "<channel type='unix'><source mode='bind' path='/s'/><target type='virtio' name='org.vestigo.attribution.0'/></channel>";
    let there = read("a", "", channel);
    assert_eq!(there.channel, Some(Channel::Socket("/s".into())));
    assert_eq!(plan(&there, folder), Plan::Present("/s".into()));
    let foreign = read("a", "", &channel.replace("type='unix'", "type='pty'"));
    assert!(matches!(plan(&foreign, folder), Plan::Impossible(_)));
    let Plan::Impossible(why) = plan(&read("a", "", ""), Path::new(&"/x".repeat(50))) else { panic!() };
    assert!(why.contains("at most 65 bytes"), "{why}");
    let no_acpi = describe(&domain("a", "", "").replace("<acpi/>", "")).unwrap();
    assert!(explain(&no_acpi, "no").contains("acpi"));
}

#[test]
fn maps_tenants_to_vos() {
    let vos = VoMap::parse("[[vo]]\nname='atlas'\nprojects=['512866f9']\n[[vo]]\nname='cms'\nprojects=['atlas-prod']")
        .unwrap();
    let site = Site { host: HostId::new("hv1").unwrap(), vos };
    let now = Timestamp::from_nanos(7);
    let seen = Inspection::of(domain("i", NOVA, NICS), true, &site, now).unwrap();
    assert_eq!(seen.instance.vo.unwrap().as_str(), "atlas", "the id decides before the name");
    let unmapped =
        Inspection::of(domain("i", &NOVA.replace("512866f9", "x").replace("atlas-prod", "y"), ""), true, &site, now);
    assert_eq!(unmapped.unwrap().instance.vo, None);
}

#[test]
fn refuses_a_bad_vos_file_with_one_clear_sentence() {
    for (text, needle) in [
        ("[[vo]]\nname='a'\nproject=['x']", "unknown field `project`"),
        ("[[vo]]\nname='a b'", "VO"),
        ("[[vo]]\nname='a'\n[[vo]]\nname='a'", "listed twice"),
        ("[[vo]]\nname='a'\nprojects=['x']\n[[vo]]\nname='b'\nprojects=['x']", "claimed by VO \"a\" and by VO \"b\""),
        ("[[vo]]\nname='a'\nprojects=['x','x']", "listed twice in VO"),
        ("[[vo]]\nname='a'\nvac_machine_types=['']", "empty"),
    ] {
        let message = VoMap::parse(text).unwrap_err().to_string();
        assert!(message.contains(needle), "{message}");
    }
}

#[test]
fn refuses_what_is_no_domain() {
    let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'>]><domain><name>&a;</name></domain>";
    assert!(matches!(describe(bomb), Err(XmlError::Malformed(_))));
    assert!(matches!(describe(&"<a>".repeat(10_000)), Err(XmlError::Limit(_))));
    assert!(matches!(describe(&format!("<domain>{}</domain>", "<a/>".repeat(200_000))), Err(XmlError::Limit(_))));
    assert!(matches!(describe(&" ".repeat(5 << 20)), Err(XmlError::TooLarge(_))));
    assert_eq!(describe("<domain/>"), Err(XmlError::Absent("<uuid>")));
    assert!(matches!(describe(&domain("a", "", "").replace(UUID, "nope")), Err(XmlError::Value { .. })));
}

#[test]
fn a_tenants_name_cannot_fool_a_terminal() {
    let seen = read("a&#x202e;b", "", "");
    assert_eq!(seen.name.as_str(), "a\u{fffd}b");
    assert_eq!(read(&"é".repeat(200), "", "").name.as_str().len(), 254);
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,400}", cut in 0_usize..2000) {
        let _ = describe(&text);
        let _ = VoMap::parse(&text);
        let whole = domain("one-1", NOVA, NICS);
        let cut = whole.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(0);
        let _ = describe(whole.get(..cut).unwrap_or(""));
        let _ = describe(&format!("{}{text}{}", whole.get(..cut).unwrap_or(""), whole.get(cut..).unwrap_or("")));
    }
}
