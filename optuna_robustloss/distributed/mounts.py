"""The file system that a path is on: SQLite's locks do not work on every one."""

from __future__ import annotations

import re
from pathlib import Path

#: File systems on which the locks of SQLite do not work, or not everywhere.
_NETWORK = re.compile(
    r"(fuse\.)?(nfs\d?|cifs|smb\w*|lustre|gpfs|beegfs\w*|fhgfs|ceph\w*|glusterfs|sshfs|afs|openafs|"
    r"9p|ncpfs|panfs|p?vfs2|orangefs|wekafs|davfs2?|moosefs|mfs|juicefs|s3fs|gcsfuse|rclone|vboxsf)"
)
_MOUNTINFO = Path("/proc/self/mountinfo")


def read_mounts() -> str:
    """Return Linux's table of mounts; empty on other systems."""
    if not _MOUNTINFO.is_file():
        return ""
    return _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")


def network_file_system(path: Path, mountinfo: str) -> str | None:
    """Return the type of the network file system that ``path`` is on, or None if it is local.

    Args:
        path: absolute, without symbolic links.
        mountinfo: the text of Linux's ``/proc/self/mountinfo``.

    """
    kind, depth = "", -1
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mounted, types = before.split(), after.split()
        if len(mounted) < 5 or not types:
            continue
        # Space, tab, newline and backslash are written as octal numbers.
        folder = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mounted[4]))
        if path.is_relative_to(folder) and len(folder.parts) >= depth:  # the later mount is on top
            kind, depth = types[0], len(folder.parts)
    return kind if _NETWORK.fullmatch(kind) else None
