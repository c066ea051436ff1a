import gzip
import hashlib
import sys

import pytest
from remote import Site

from calrec_jax.data import sources
from calrec_jax.errors import CalrecError

EVENTS = gzip.compress(b"1::2::3::1500000000\n", mtime=0)
MOVIES = b"2::Title::Drama\n"
FILES = {"/a/ratings.dat.gz": EVENTS, "/movies.dat": MOVIES, "/cut.dat": MOVIES}


@pytest.fixture
def site():
    with Site(FILES) as site:
        yield site


@pytest.fixture
def find(tmp_path):
    """The one file of events that a URL stands for."""

    def run(url):
        source = sources.get_source("movielens")
        [path] = sources.find_files(source, None, [url], [url], download_dir=tmp_path).events
        return path

    return run


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def kept(folder) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def test_a_file_is_downloaded_once_and_read(site, find, tmp_path):
    url = f"{site.url}/a/ratings.dat.gz"
    path = find(url)
    assert path.startswith(str(tmp_path)) and path.endswith(".gz")
    [(number, event)] = sources.read_events(sources.get_source("movielens"), path)
    assert (number, event) == (1, sources.Event("1", "2", None, 1_500_000_000))
    assert site.asked == ["/a/ratings.dat.gz"]
    recorded = (tmp_path / "checksums.tsv").read_text()
    assert recorded == f"{url}\t{len(EVENTS)}\t{sha256(EVENTS)}\tratings.dat.gz\n"
    assert kept(tmp_path) == [".INFO", ".gz", ".tsv"]


def test_a_second_run_needs_no_server(find, tmp_path):
    with Site(FILES) as site:
        path = find(f"{site.url}/movies.dat")
    for pin in ("", f"#sha256={sha256(MOVIES)}"):
        assert find(f"{site.url}/movies.dat{pin}") == path
    assert site.asked == ["/movies.dat"]


def test_a_checksum_may_be_given(site, find, tmp_path):
    url = f"{site.url}/movies.dat"
    with pytest.raises(CalrecError) as error:
        find(f"{url}#sha256={'0' * 64}")
    assert str(error.value) == (
        f"{url} has the wrong content: its sha256 is {sha256(MOVIES)}, not {'0' * 64} as its "
        f"#sha256= says"
    )
    site.files["/movies.dat"] = b"mended"
    path = find(f"{url}#sha256={sha256(b'mended').upper()}")
    with open(path, "rb") as file:
        assert file.read() == b"mended"
    with pytest.raises(CalrecError, match="after # only sha256= and 64 hexadecimal digits are und"):
        find(f"{url}#md5=0")


def test_what_was_downloaded_must_stay_the_same(site, find, tmp_path):
    url = f"{site.url}/movies.dat"
    path = find(url)
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(CalrecError, match="dat has changed since it was downloaded: delete it to"):
        find(url)
    (tmp_path / path).unlink()
    assert find(url) == path
    (tmp_path / path).unlink()
    site.files["/movies.dat"] = b"another"
    with pytest.raises(
        CalrecError, match="is not what it was when .*: to take it as it is now, de"
    ):
        find(url)
    assert kept(tmp_path) == [".INFO", ".tsv"]


@pytest.mark.parametrize(
    ("path", "message"), [("/none.dat", "404"), ("/cut.dat", "IncompleteRead")]
)
def test_a_failed_download_is_one_line_and_leaves_nothing(site, find, tmp_path, path, message):
    with pytest.raises(CalrecError, match=f"{path} cannot be downloaded: .*{message}") as error:
        find(site.url + path)
    assert len(str(error.value).splitlines()) == 1
    assert kept(tmp_path) == []


def test_a_host_that_does_not_answer_is_one_line(find, tmp_path, capfd):
    with Site({}) as site:
        pass
    with pytest.raises(CalrecError, match="x cannot be downloaded: .*Connection refused") as error:
        find(f"{site.url}/x")
    assert len(str(error.value).splitlines()) == 1
    assert capfd.readouterr().err == "" and kept(tmp_path) == []


def test_damaged_records_are_named(site, find, tmp_path):
    (tmp_path / "checksums.tsv").write_text("http://x\t5\n")
    with pytest.raises(CalrecError, match="checksums.tsv is damaged: delete it to download"):
        find(f"{site.url}/movies.dat")


def test_progress_is_shown_on_a_terminal_alone(site, find, monkeypatch, capfd):
    find(f"{site.url}/movies.dat")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    find(f"{site.url}/a/ratings.dat.gz")
    assert "Dl Completed...: 100%" in capfd.readouterr().err
