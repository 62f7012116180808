# SPDX-License-Identifier: Apache-2.0
"""The initial RAM disk: busybox, the modules of the root disk, one script. Written as an uncompressed cpio archive,
because unpacking costs more than reading when the guest's CPU is emulated."""

import stat

from rootfs import load_order

MODULES = ("virtio_pci", "virtio_blk")


def write(tree, kernel, script, image):
    base = tree / "lib/modules" / kernel
    order = load_order(base, MODULES)
    entries = [(name, stat.S_IFDIR | 0o755, b"", (0, 0)) for name in ("bin", "dev", "modules", "root")]
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, (tree / "bin/busybox").read_bytes(), (0, 0)))
    entries.append(("init", stat.S_IFREG | 0o755, script.read_bytes(), (0, 0)))
    # The kernel opens this before the script can mount anything.
    entries.append(("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)))
    for path in order:
        entries.append((f"modules/{path.rsplit('/', 1)[-1]}", stat.S_IFREG | 0o644, (base / path).read_bytes(), (0, 0)))
    names = "".join(f"{path.rsplit('/', 1)[-1]}\n" for path in order)
    entries.append(("modules/order", stat.S_IFREG | 0o644, names.encode(), (0, 0)))
    entries.append(("TRAILER!!!", 0, b"", (0, 0)))
    with open(image, "wb") as file:
        for number, entry in enumerate(entries, 1):
            file.write(newc(number, *entry))


def newc(inode, name, mode, data, device):
    """One member of a `newc` archive: 13 eight-digit hex fields, name and data padded to four bytes."""
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return pad(head) + pad(data)


def pad(data):
    return data + b"\0" * (-len(data) % 4)
