# SPDX-License-Identifier: Apache-2.0
"""The guest's root file system."""

import os
import re
import shutil
import subprocess

from packages import BuildError, run

SIZE = "384M"
# What an nftables NAT with maps, network namespaces and the payload's mounts can ask for; dependencies follow by themselves.
MODULES = (
    "virtio_net", "8021q", "virtio_blk", "virtio_console", "virtio_pci", "virtio_rng", "virtio_balloon", "virtio_scsi",
    "vmw_vsock_virtio_transport", "veth", "dummy", "macvlan", "ipvlan", "overlay", "fuse",
    "nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nfnetlink_log", "nf_log_syslog", "nf_nat",
    "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_ct", "nft_counter", "nft_objref", "nft_limit", "nft_log",
    "nft_hash", "nft_numgen", "nft_reject", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_fib",
    "nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6", "nft_socket", "nft_connlimit", "nft_quota",
    "inet_diag", "tcp_diag", "udp_diag", "unix_diag",
)
FOLDERS = {
    "dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777, "root": 0o700, "home": 0o755, "mnt": 0o755,
    "var/lib/vestigo": 0o700, "var/log": 0o755, "var/tmp": 0o1777, "etc/vestigo": 0o755, "home/pilot": 0o755,
}


def fill(tree, agent, overlay, kernel):
    """Turns the unpacked packages into the guest's root."""
    link_applets(tree)
    keep_modules(tree, kernel)
    for name, mode in FOLDERS.items():
        (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / name).chmod(mode)
    shutil.copytree(overlay, tree, dirs_exist_ok=True)
    install_agent(tree, agent)
    run("ldconfig", "-r", str(tree))
    os.chown(tree / "home/pilot", 1000, 1000)


def link_applets(tree):
    busybox = tree / "bin/busybox"
    for applet in run(str(busybox), "--list-full").split():
        link = tree / applet.replace("usr/", "", 1)
        # A real program of a package (nft, ldconfig) wins over the applet.
        if not link.exists() and not link.is_symlink():
            link.symlink_to("/bin/busybox")


def keep_modules(tree, kernel):
    """Leaves only the modules that the guest can need, with a dependency list made for exactly those."""
    base = tree / "lib/modules" / kernel
    run("depmod", "-b", str(tree), kernel)
    keep = set(load_order(base, MODULES))
    for path in (base / "kernel").rglob("*.ko*"):
        if str(path.relative_to(base)) not in keep:
            path.unlink()
    run("depmod", "-b", str(tree), kernel)


def load_order(base, names):
    """Paths of the modules and everything they need, dependencies first (virtio_ring before virtio_pci …)."""
    depends = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, needs = line.split(":")
        depends[path] = needs.split()
    by_name = {module_name(path): path for path in depends}
    order = []

    def visit(path):
        if path not in order:
            # modules.dep lists the nearest first.
            for need in reversed(depends[path]):
                visit(need)
            order.append(path)

    for name in names:
        # A name that is not a module of this kernel is built in, or folded into another module.
        if name in by_name:
            visit(by_name[name])
    return order


def module_name(path):
    return re.sub(r"\.ko(\.\w+)?$", "", path.rsplit("/", 1)[-1]).replace("-", "_")


def install_agent(tree, agent):
    target = tree / "usr/sbin/guest-agent"
    shutil.copyfile(agent, target)
    target.chmod(0o755)
    run("strip", str(target))
    listed = subprocess.run(["ldd", str(agent)], text=True, capture_output=True, check=False).stdout
    if "not found" in listed:
        raise BuildError(f"{agent} needs a library that this machine does not have: {listed.strip()}")
    for path in re.findall(r"=> (/\S+)", listed):
        name = path.rsplit("/", 1)[-1]
        places = [tree / "lib/x86_64-linux-gnu" / name, tree / "lib64" / name]
        # A library outside the packages' closure comes from the machine on which the agent was linked.
        if not any(place.exists() for place in places):
            shutil.copyfile(path, places[0])


def make_disk(tree, image):
    """An ext4 file system with the tree as its content, as a qcow2 without holes filled in."""
    raw = image.with_suffix(".raw")
    with open(raw, "wb") as file:
        file.truncate(int(SIZE[:-1]) << 20)
    # No journal to replay after a killed QEMU would be faster, but a VO's disk has one: keep it, small.
    run("mkfs.ext4", "-q", "-F", "-L", "vestigo-root", "-J", "size=8", "-m", "0", "-O", "^metadata_csum_seed,^orphan_file",
        "-d", str(tree), str(raw))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    raw.unlink()
