"""A user as the report shows one."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from calrec_jax.eval.outcomes import BEST
from calrec_jax.text.items import Catalogue, UserSequence

EXAMPLES = 100  # users that are shown


def example(
    user: UserSequence,
    prediction: Mapping[str, Any],
    catalogue: Catalogue,
    texts: Sequence[str],
    slices: Mapping[str, str],
) -> dict[str, Any]:
    """A prediction with the user's history, its dates, and the texts of all items in it.

    Args:
      prediction: a line of predictions.jsonl.
      texts: of all items, in the catalogue's order.
      slices: see `slices.slice_of`.
    """
    ranked = prediction["ranked"][:BEST]
    ids = [*user.item_ids, *(item["item_id"] for item in ranked)]
    return {
        **prediction,
        "ranked": ranked,
        "history": list(user.history),
        "dates": user.timestamps and [_date(seconds) for seconds in user.timestamps],
        "slices": slices,
        "texts": {item_id: texts[catalogue.index[item_id]] for item_id in ids},
    }


def _date(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
