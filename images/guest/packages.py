# SPDX-License-Identifier: Apache-2.0
"""Debian's packages: which, from where, and into which folder."""

import json
import os
import re
import subprocess
import tempfile

LISTS = "/var/lib/apt/lists"
KERNEL = "linux-image-cloud-amd64"
WANTED = ("busybox-static", "nftables", "libc6", "libgcc-s1")
# The guest needs none of these, and the disk is written anew for every build.
LEFT_OUT = ("usr/share", "usr/lib/x86_64-linux-gnu/gconv", "lib/x86_64-linux-gnu/gconv", "etc")


class BuildError(Exception):
    """One sentence for the person who runs the build."""


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, capture_output=True, **options).stdout


def closure():
    """The wanted packages and what they depend on, plus the kernel that the cloud meta-package points to."""
    lines = run("apt-cache", "depends", "--no-recommends", "--no-suggests", KERNEL).splitlines()
    kernels = [line.split()[-1] for line in lines if "Depends: linux-image-" in line]
    if not kernels:
        raise BuildError(f"apt knows no {KERNEL}: run tests/prerequisites first.")
    # An empty status file: the answer must be the same whatever this machine has installed.
    plan = run("apt-get", "-s", "-o", "Dir::State::status=/dev/null", "install", "--no-install-recommends", *WANTED)
    names = re.findall(r"^Inst (\S+)", plan, re.M)
    return sorted({name.split(":")[0] for name in names}) + kernels[:1]


def resolve(cache):
    """File name and size of every package, as apt's lists name them now."""
    # apt takes seconds to answer; its answer can only change with its lists.
    newest = max((entry.stat().st_mtime_ns for entry in os.scandir(LISTS) if entry.is_file()), default=0)
    stamp = [newest, list(WANTED), KERNEL]
    note = cache / "resolved.json"
    try:
        known = json.loads(note.read_text())
        if known["stamp"] == stamp:
            return known["packages"]
    except (OSError, ValueError, KeyError):
        pass
    with tempfile.TemporaryDirectory() as empty:
        # In an empty folder: apt does not print what lies in the current one already.
        uris = run("apt-get", "download", "--print-uris", *closure(), cwd=empty)
    # Each line: 'address' file-name size hash
    found = [[name, int(size)] for name, size in re.findall(r"^'[^']*' (\S+) (\d+)", uris, re.M)]
    note.write_text(json.dumps({"stamp": stamp, "packages": found}))
    return found


def fetch(cache):
    """Paths of the packages in the cache, downloading those whose file name (and so version) is not there yet."""
    cache.mkdir(parents=True, exist_ok=True)
    entries = resolve(cache)
    missing = [name for name, size in entries if not is_whole(cache / name, size)]
    if missing:
        # The file name is name_version_arch.deb with the version's colon written as %3a.
        wanted = ["=".join(name.split("_")[:2]).replace("%3a", ":") for name in missing]
        try:
            # apt's own user may not write here, so apt would only warn and go on as root.
            run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *wanted, cwd=cache)
        except subprocess.CalledProcessError as error:
            raise BuildError(f"apt could not download the guest's packages: {error.stderr.strip()}") from error
    return [cache / name for name, _ in entries]


def is_whole(path, size):
    return path.is_file() and path.stat().st_size == size


def unpack(debs, tree):
    """Lays the packages' files over a merged-/usr tree and returns the kernel's release."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    left_out = [f"--exclude=./{name}" for name in LEFT_OUT]
    for deb in debs:
        data = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE)
        run("tar", "-x", "--keep-directory-symlink", "--no-same-owner", *left_out, "-C", str(tree), stdin=data.stdout)
        data.stdout.close()
        if data.wait() != 0:
            raise BuildError(f"{deb} is damaged: remove it and build again.")
    kernels = [path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*")]
    if len(kernels) != 1:
        raise BuildError(f"expected one kernel in the packages, found {kernels}.")
    return kernels[0]


def describe(debs):
    """Name, version and hash of each package, as the manifest lists them."""
    listed = []
    for deb in sorted(debs):
        name, version = run("dpkg-deb", "-W", "--showformat=${Package}\\t${Version}", str(deb)).split("\t")
        listed.append({"name": name, "version": version, "sha256": run("sha256sum", str(deb)).split()[0]})
    return listed
