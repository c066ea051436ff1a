"""DuckDB's queries over the raw tables: joins, counts, the k-core, sorting.

Tables and views, in the order in which they are made: `events` and `listings` are read from files;
`items` has the first listing of each item; `known` has the events whose item is kept, `kept` those
of them in the k-core; `catalogue` has the items that are written.
"""

from __future__ import annotations

import pathlib

import duckdb

from calrec_jax.data.preparation.engine import Times
from calrec_jax.data.preparation.sequences import BEFORE_OUR_DATA, Rules

_ROW_GROUP = 50_000  # rows that a reader has in memory at a time


def number(db: duckdb.DuckDBPyConnection, query: str) -> int:
    """The one value that a query returns."""
    (value,) = db.execute(query).fetchone()
    return value


def select_items(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Makes `items` from `listings`; counts repeated listings and the items that are left out."""
    db.execute(
        "CREATE TABLE items AS SELECT listings.* FROM listings SEMI JOIN "
        "(SELECT min(position) AS position FROM listings GROUP BY item_id) USING (position)"
    )
    listed = number(db, "SELECT count(*) FROM listings")
    again = number(
        db,
        "SELECT count(*) FROM listings JOIN items USING (item_id) "
        "WHERE listings.fields <> items.fields",
    )
    counts = {
        "items_listed_again": listed - number(db, "SELECT count(*) FROM items"),
        "items_listed_differently": again,
    }
    for problem in ("items_without_text", "items_without_required"):
        query = f"SELECT count(*) FROM items WHERE problem = '{problem}'"
        counts[problem] = number(db, query)
    return counts


def describe_times(db: duckdb.DuckDBPyConnection, now: float) -> Times:
    """Counts `events` by their times; `now` is in Unix seconds."""
    counts = db.execute(
        f"SELECT count(timestamp), count(*) FILTER (timestamp > {now}), "
        f"count(*) FILTER (timestamp < {BEFORE_OUR_DATA}), "
        f'count(*) FILTER ("order" IS NULL) FROM events'
    ).fetchone()
    at_once = number(
        db,
        "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM events "
        'WHERE "order" IS NULL GROUP BY timestamp, nanosecond)',
    )
    return Times(*counts, at_once)


def delete_duplicates(db: duckdb.DuckDBPyConnection) -> int:
    """Deletes from `events` all but the first of those that are equal in all but their position.

    Only events whose hash occurs twice are compared, which are few.

    Returns:
      The number of deleted events.
    """
    columns = 'user_id, item_id, "order", timestamp, nanosecond'
    return number(
        db,
        f"DELETE FROM events WHERE position IN (SELECT position FROM events "
        f"WHERE hash({columns}) IN "
        f"(SELECT hash({columns}) AS hash FROM events GROUP BY hash HAVING count(*) > 1) "
        f"QUALIFY row_number() OVER (PARTITION BY {columns} ORDER BY position) > 1)",
    )


def delete_without_order(db: duckdb.DuckDBPyConnection) -> int:
    """Deletes events without an order from `events` where others of the user have one.

    Returns:
      The number of deleted events.
    """
    return number(
        db,
        'DELETE FROM events WHERE "order" IS NULL AND user_id IN '
        '(SELECT user_id FROM events WHERE "order" IS NOT NULL)',
    )


def select_events(db: duckdb.DuckDBPyConnection, rules: Rules) -> dict[str, int]:
    """Makes `known` from `events` and `items`; deletes from `events`. Counts what is left out."""
    duplicated = 0 if rules.keep_duplicates else delete_duplicates(db)
    without_order = delete_without_order(db)
    db.execute(
        "CREATE VIEW known AS SELECT events.* FROM events "
        "SEMI JOIN (SELECT item_id FROM items WHERE problem IS NULL) USING (item_id)"
    )
    sortable = number(db, "SELECT count(*) FROM events")
    required = number(
        db,
        "SELECT count(*) FROM events SEMI JOIN "
        "(SELECT item_id FROM items WHERE problem = 'items_without_required') USING (item_id)",
    )
    return {
        "events_duplicated": duplicated,
        "events_without_order": without_order,
        "events_without_item": sortable - required - number(db, "SELECT count(*) FROM known"),
        "events_without_required": required,
    }


def ids_apart(db: duckdb.DuckDBPyConnection) -> tuple[str, str] | None:
    """(least item id of events, least of items) if they have none in common; otherwise None."""
    common = "SELECT 1 FROM events SEMI JOIN items USING (item_id) LIMIT 1"
    if db.execute(common).fetchone():
        return None
    least = [number(db, f"SELECT min(item_id) FROM {table}") for table in ("events", "items")]
    return None if None in least else tuple(least)


def select_core(db: duckdb.DuckDBPyConnection, rules: Rules) -> dict[str, int]:
    """Makes `kept` from `known`, and `core_items`, the ids of the items in the k-core."""
    if not rules.k_core:
        db.execute("CREATE VIEW kept AS FROM known")
        db.execute("CREATE VIEW core_items AS SELECT item_id FROM items WHERE problem IS NULL")
        return dict.fromkeys(("events_not_in_core", "users_not_in_core", "items_not_in_core"), 0)
    for name in ("user", "item"):  # numbers are faster to count than text
        db.execute(
            f"CREATE TABLE {name}_numbers AS SELECT {name}_id, row_number() OVER () AS {name} "
            f"FROM (SELECT DISTINCT {name}_id FROM known)"
        )
    db.execute(
        "CREATE TABLE core AS SELECT position, user, item FROM known "
        "JOIN user_numbers USING (user_id) JOIN item_numbers USING (item_id)"
    )
    before = _size_of_core(db)
    while _shrink_core(db, rules.k_core) and rules.k_core_iterated:
        pass
    after = _size_of_core(db)
    db.execute("CREATE VIEW kept AS SELECT known.* FROM known SEMI JOIN core USING (position)")
    db.execute(
        "CREATE VIEW core_items AS "
        "SELECT item_id FROM item_numbers SEMI JOIN large_items USING (item)"
    )
    usable = number(db, "SELECT count(*) FROM items WHERE problem IS NULL")
    return {
        "events_not_in_core": before[0] - after[0],
        "users_not_in_core": before[1] - after[1],
        "items_not_in_core": usable - number(db, "SELECT count(*) FROM core_items"),
    }


def _size_of_core(db: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """(number of events, number of users) in `core`."""
    return db.execute("SELECT count(*), count(DISTINCT user) FROM core").fetchone()


def _shrink_core(db: duckdb.DuckDBPyConnection, k: int) -> bool:
    """Removes events of users or items with less than `k` events from `core`.

    Returns:
      Whether there were any.
    """
    before = number(db, "SELECT count(*) FROM core")
    for name in ("user", "item"):
        db.execute(
            f"CREATE OR REPLACE TABLE large_{name}s AS "
            f"SELECT {name} FROM core GROUP BY {name} HAVING count(*) >= {k}"
        )
    db.execute(
        "CREATE OR REPLACE TABLE core AS SELECT core.* FROM core "
        "SEMI JOIN large_users USING (user) SEMI JOIN large_items USING (item)"
    )
    return number(db, "SELECT count(*) FROM core") < before


def export_events(db: duckdb.DuckDBPyConnection, path: pathlib.Path) -> None:
    """Writes `kept` as Parquet, with users in the order of the store."""
    _export(db, "kept", "md5(user_id), user_id", path)


def select_catalogue(db: duckdb.DuckDBPyConnection, bought: bool) -> dict[str, int]:
    """Makes `catalogue` from `items`.

    Args:
      bought: whether to take only the items in the table `uses`.
    """
    db.execute("CREATE VIEW listed AS FROM items SEMI JOIN core_items USING (item_id)")
    uses = "SEMI JOIN uses USING (item_id)" if bought else ""
    db.execute(f"CREATE TABLE catalogue AS SELECT listed.* FROM listed {uses}")
    listed, left = (number(db, f"SELECT count(*) FROM {t}") for t in ("listed", "catalogue"))
    return {"items_not_bought": listed - left}


def field_names(db: duckdb.DuckDBPyConnection) -> list[str]:
    """The names of all fields that items of `catalogue` have, sorted."""
    rows = db.execute("SELECT DISTINCT unnest(names) AS name FROM catalogue").fetchall()
    return sorted(name for (name,) in rows)


def export_catalogue(db: duckdb.DuckDBPyConnection, path: pathlib.Path) -> None:
    """Writes `catalogue` as Parquet, in the order of the store."""
    _export(db, "catalogue", "md5(item_id), item_id", path)


def _export(db: duckdb.DuckDBPyConnection, table: str, order: str, path: pathlib.Path) -> None:
    target = str(path).replace("'", "''")
    db.execute(
        f"COPY (SELECT * FROM {table} ORDER BY {order}) TO '{target}' "
        f"(FORMAT parquet, ROW_GROUP_SIZE {_ROW_GROUP})"
    )


def cold_targets(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The number of validation and test targets that are in no training sequence, from `uses`."""
    row = db.execute(
        "SELECT coalesce(sum(validation), 0), coalesce(sum(test), 0) FROM ("
        "SELECT sum(validation) AS validation, sum(test) AS test FROM uses "
        "GROUP BY item_id HAVING NOT bool_or(trained))"
    ).fetchone()
    return {"validation": int(row[0]), "test": int(row[1])}
