"""Where a file is, by the mounts that Linux lists."""

from pathlib import Path

import pytest

from optuna_robustloss.distributed.mounts import network_file_system

MOUNTS = r"""
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
25 22 0:23 / /proc rw - proc proc rw
40 22 0:44 / /home rw,relatime shared:20 - nfs4 server:/home rw,vers=4.2
41 40 254:2 / /home/local rw - xfs /dev/sdb rw
42 22 0:50 / /mnt/with\040space rw - fuse.sshfs me@host:/ rw
43 22 0:51 / /share rw - autofs systemd-1 rw
44 43 0:52 / /share rw master:3 - cifs //server/share rw
45 22 0:53 / /scratch rw - lustre mds@tcp:/fs rw
46 22 0:54 / /over rw - nfs4 server:/o rw
47 46 0:55 / /over rw - tmpfs tmpfs rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/s.db", "nfs4"),
        ("/home/local/s.db", None),
        ("/homework/s.db", None),
        ("/tmp/s.db", None),
        ("/mnt/with space/s.db", "fuse.sshfs"),
        ("/share/s.db", "cifs"),
        ("/scratch/a/b/s.db", "lustre"),
        ("/over/s.db", None),
    ],
)
def test_network_file_systems_are_found_by_their_mount(path, kind):
    assert network_file_system(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    "kind", "nfs nfs3 smb3 smbfs gpfs beegfs ceph fuse.ceph glusterfs fuse.glusterfs afs 9p".split()
)
def test_other_kinds_of_network_file_systems(kind):
    assert network_file_system(Path("/a"), f"1 1 0:1 / / rw - {kind} x rw") == kind


@pytest.mark.parametrize("kind", "ext4 xfs btrfs overlay tmpfs zfs fuseblk fuse.ntfs-3g".split())
def test_local_file_systems(kind):
    assert network_file_system(Path("/a"), f"1 1 0:1 / / rw - {kind} x rw") is None
