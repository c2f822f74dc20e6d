"""Fetching a file from servers that fail: it arrives whole and right, or not at all."""

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import Faults, Server, limited_file_size, serve

from flame.data.download.faults import DamagedFile, DiskFault, FileFault, Unreachable
from flame.data.download.remote import RemoteFile, open_remote
from flame.data.download.transfer import Link, fetch

CONTENT = random.Random(0).randbytes(1_000_003)


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture
def link() -> Link:
    return Link(first_wait=0.001)


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def remote(server: Server, faults: Faults | None = None, content: bytes = CONTENT, **known) -> RemoteFile:
    server.faults["/f"] = faults or Faults()
    return RemoteFile("train", "f", server.put("/f", content), **known)


def test_a_file_arrives_and_leaves_nothing_else(server: Server, link: Link, tmp_path: Path) -> None:
    assert fetch(remote(server), tmp_path / "f", link) == sha256(CONTENT)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("known", [{}, {"digest": sha256(CONTENT), "size": len(CONTENT)}])
def test_cut_connections_are_continued_from_the_byte_where_they_ended(
    server: Server, link: Link, tmp_path: Path, known: dict
) -> None:
    fetch(remote(server, Faults(cut_after=300_000), **known), tmp_path / "f", link)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked("/f") == ["", "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_server_that_cannot_continue_sends_all_again(server: Server, link: Link, tmp_path: Path) -> None:
    fetch(remote(server, Faults(cut_after=300_000, cuts=2, ignores_ranges=True)), tmp_path / "f", link)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_that_always_cuts_and_never_continues_is_given_up(server: Server, link: Link, tmp_path: Path) -> None:
    file = remote(server, Faults(cut_after=300_000, ignores_ranges=True))
    with pytest.raises(FileFault, match="tried 6 times.*300,000 of 1,000,003 bytes"):
        fetch(file, tmp_path / "f", link)
    assert not (tmp_path / "f").exists()


def test_wrong_bytes_are_noticed_and_fetched_again(server: Server, link: Link, tmp_path: Path) -> None:
    fetch(remote(server, Faults(wrong_bytes=2), digest=sha256(CONTENT)), tmp_path / "f", link)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_bytes_that_stay_wrong_never_get_the_name_of_the_file(server: Server, link: Link, tmp_path: Path) -> None:
    md5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    with pytest.raises(DamagedFile, match="wrong bytes.*md5"):
        fetch(remote(server, Faults(wrong_bytes=9), digest=md5), tmp_path / "f", link)
    assert os.listdir(tmp_path) == []


def test_a_file_that_changes_under_way_is_never_mixed_of_two_versions(
    server: Server, link: Link, tmp_path: Path
) -> None:
    file = remote(server, Faults(cut_after=300_000))
    link.advance = lambda count: server.files.update({"/f": CONTENT[::-1]})
    fetch(file, tmp_path / "f", link)
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]


def test_bytes_of_a_server_that_says_nothing_of_versions_are_not_continued(
    server: Server, link: Link, tmp_path: Path
) -> None:
    file = remote(server, Faults(cut_after=300_000, cuts=1, has_no_version=True))
    link.advance = lambda count: server.files.update({"/f": CONTENT[::-1]})
    fetch(file, tmp_path / "f", link)
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]
    assert server.asked("/f") == ["", ""]


def test_passing_errors_are_waited_out(server: Server, link: Link, tmp_path: Path) -> None:
    fetch(remote(server, Faults(codes=[503, 429, 500, 503])), tmp_path / "f", link)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("code, said", [(404, "404 Not Found"), (410, "410 Gone"), (403, "hf auth login")])
def test_final_errors_are_not_waited_out(server: Server, link: Link, tmp_path: Path, code: int, said: str) -> None:
    with pytest.raises(FileFault, match=said):
        fetch(remote(server, Faults(codes=[code])), tmp_path / "f", link)
    assert len(server.requests) == 1


@pytest.mark.parametrize("stated", [len(CONTENT) + 10, 2 * len(CONTENT)])
def test_a_server_that_states_too_great_a_length_gives_the_file_or_an_error(
    server: Server, link: Link, tmp_path: Path, stated: int
) -> None:
    fetch(remote(server, Faults(stated_length=stated)), tmp_path / "f", link)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_file_shorter_than_listed_is_an_error(server: Server, link: Link, tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match="1,000,003 bytes instead of 2,000,000"):
        fetch(remote(server, size=2_000_000), tmp_path / "f", link)
    with pytest.raises(DamagedFile, match="wrong bytes"):
        fetch(remote(server, Faults(stated_length=500), digest=sha256(CONTENT)), tmp_path / "g", link)
    assert not {"f", "g"} & set(os.listdir(tmp_path))


def test_an_unfinished_file_of_another_run_is_continued(server: Server, link: Link, tmp_path: Path) -> None:
    file = remote(server, Faults(cut_after=400_000, codes=[]), digest=sha256(CONTENT))
    server.faults["/f"].ignores_ranges = True
    with pytest.raises(FileFault):
        fetch(file, tmp_path / "f", link)
    server.faults["/f"] = Faults()
    server.requests.clear()
    fetch(file, tmp_path / "f", Link())
    assert server.asked("/f") == ["bytes=400000-"]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_bytes_of_unknown_origin_are_not_continued(server: Server, link: Link, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"of something else")
    fetch(remote(server), tmp_path / "f", link)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_without_a_network_it_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="cannot reach 127.0.0.1:9 .*refused.*check the network"):
        fetch(RemoteFile("train", "f", "http://127.0.0.1:9/f"), tmp_path / "f", Link(first_wait=100))


def test_a_disk_that_cannot_be_written_is_named(server: Server, link: Link, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where a folder should be")
    with pytest.raises(FileFault, match="cannot write .*folder.*File exists.*another --out"):
        fetch(remote(server), tmp_path / "folder" / "f", link)


def test_a_full_disk_leaves_no_file_under_its_own_name(server: Server, link: Link, tmp_path: Path) -> None:
    file = remote(server)
    with limited_file_size(500_000), pytest.raises(DiskFault, match="File too large"):
        fetch(file, tmp_path / "f", link)
    assert not (tmp_path / "f").exists()
    fetch(file, tmp_path / "f", Link())
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert len(server.requests) == 2 and server.requests[1][1] == "bytes=500000-"


def test_progress_adds_up_to_the_size_however_often_it_starts_over(server: Server, link: Link, tmp_path: Path) -> None:
    seen: list[int] = []
    link.advance = seen.append
    fetch(remote(server, Faults(cut_after=300_000, cuts=2, ignores_ranges=True)), tmp_path / "f", link)
    assert sum(seen) == len(CONTENT)


def test_a_local_file_that_changed_is_not_continued(link: Link, tmp_path: Path) -> None:
    source, file = tmp_path / "there", RemoteFile("train", "f", f"file://{tmp_path}/there")
    source.write_bytes(CONTENT)
    with open_remote(file) as answer:
        version = answer.version
    with open_remote(file, 1000, version) as answer:
        assert answer.start == 1000
    os.utime(source, (1, 1))
    with open_remote(file, 1000, version) as answer:
        assert answer.start == 0


def test_other_addresses_are_opened_by_fsspec(link: Link, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(CONTENT)
    fetch(RemoteFile("train", "f", f"file://{tmp_path}/there"), tmp_path / "f", link)
    assert (tmp_path / "f").read_bytes() == CONTENT
    with pytest.raises(FileFault, match="does not exist"):
        fetch(RemoteFile("train", "g", f"file://{tmp_path}/nowhere"), tmp_path / "g", link)
