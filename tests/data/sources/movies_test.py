import gzip

import pytest

from calrec_jax.data import sources
from calrec_jax.data.sources import Event, Item
from calrec_jax.errors import CalrecError


@pytest.fixture
def read(tmp_path):
    """Writes a file and reads it back with `read_events` or `read_items`."""

    def run(reader, source, content, name="file"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(reader(sources.get_source(source), str(path)))

    return run


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_the_csv_files_of_movielens(read, pack):
    ratings = b"userId,movieId,rating,timestamp\n1,10,4.0,964982703\n2, 20 ,0.5,964982704.0\n"
    assert read(sources.read_events, "movielens", pack(ratings)) == [
        (2, Event("1", "10", None, 964_982_703)),
        (3, Event("2", "20", None, 964_982_704)),
    ]
    movies = (
        "movieId,title,genres\r\n"
        "1,Toy Story (1995),Adventure|Children\r\n"
        '11,"American President, The (1995)",Comedy\r\n'
        '12,"The ""Best"" &amp; <i>Café</i>",(no genres listed)\r\n'
    ).encode()
    assert read(sources.read_items, "movielens", pack(movies)) == [
        (2, Item("1", {"title": "Toy Story (1995)", "category": "Adventure Children"})),
        (3, Item("11", {"title": "American President, The (1995)", "category": "Comedy"})),
        (4, Item("12", {"title": 'The "Best" & Café'})),
    ]


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
@pytest.mark.parametrize("source", ["movielens", "movietweetings"])
def test_files_with_colons(read, source, pack):
    assert read(sources.read_events, source, pack(b"1::0111161::10::1365029107\n")) == [
        (1, Event("1", "0111161", None, 1_365_029_107))
    ]
    movies = "0002844::Fantômas (1913)::Crime|Drama\n5::Who::What (1990)::Short\n6::Bare::\n"
    assert read(sources.read_items, source, pack(movies.encode())) == [
        (1, Item("0002844", {"title": "Fantômas (1913)", "category": "Crime Drama"})),
        (2, Item("5", {"title": "Who::What (1990)", "category": "Short"})),
        (3, Item("6", {"title": "Bare"})),
    ]


@pytest.mark.parametrize("source", ["movielens", "movietweetings"])
def test_times_keep_their_fractions(read, source):
    lines = "1::2::3::964982703.25\n1::2::3::2000-07-30T18:45:03.5\n"
    assert [event for _, event in read(sources.read_events, source, lines)] == [
        Event("1", "2", None, 964_982_703, 250_000_000),
        Event("1", "2", None, 964_982_703, 500_000_000),
    ]


def test_only_movielens_may_be_latin_1(read):
    movies = "1::Fantômas::Crime\n".encode("latin-1") + "2::Amélie::Drama\n".encode()
    assert read(sources.read_items, "movielens", movies) == [
        (1, Item("1", {"title": "Fantômas", "category": "Crime"})),
        (2, Item("2", {"title": "Amélie", "category": "Drama"})),
    ]
    [(_, rejected), (_, item)] = read(sources.read_items, "movietweetings", movies)
    assert (rejected.reason, rejected.text) == ("not UTF-8", "1::Fant\ufffdmas::Crime")
    assert item.item_id == "2"


def test_lines_with_colons_that_cannot_be_used_are_rejected(read):
    lines = "1::2::3::4::5\n1::2::3\n::2::3::4\n1::2::3::\n1::2::3::x\n1::2::3::0\n\n1::2::3::4\n"
    outcomes = read(sources.read_events, "movielens", lines)
    assert [outcome.reason for _, outcome in outcomes[:-1]] == [
        "not four values with :: between them",
        "not four values with :: between them",
        "no userId",
        "no timestamp",
        "timestamp is neither a number nor an ISO 8601 date",
        "time stamp is not after 1970",
    ]
    assert outcomes[-1] == (8, Event("1", "2", None, 4))
    [(_, first), (_, second)] = read(sources.read_items, "movielens", "1::T\n::T::G\n")
    assert (first.reason, second.reason) == (
        "not three values with :: between them",
        "no movieId",
    )


def test_other_columns_are_an_error(read):
    with pytest.raises(CalrecError, match="ratings.csv has no column movieId, but userId, item, t"):
        read(sources.read_events, "movielens", "userId,item,timestamp\n", "ratings.csv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "folder", "events", "items"),
    [
        ("movielens", "movielens/ml-latest-small", 100_836, 9_742),
        ("movietweetings", "movietweetings/100K", 100_000, 10_506),
    ],
)
def test_real_files(shared_data, source, folder, events, items):
    source = sources.get_source(source)
    files = sources.find_files(source, str(shared_data / folder), download_dir=".")
    [events_path], [items_path] = files.events, files.items
    read = [outcome for _, outcome in sources.read_events(source, events_path)]
    assert len(read) == events and {type(outcome) for outcome in read} == {Event}
    listed = [outcome for _, outcome in sources.read_items(source, items_path)]
    assert len(listed) == items and {type(outcome) for outcome in listed} == {Item}
    assert all("title" in item.fields for item in listed)
    assert {event.item_id for event in read} <= {item.item_id for item in listed}
