"""The report's browser of users: what each user was recommended, with a search and filters."""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calrec_jax.model_dir import EvaluationDir
from calrec_jax.report.files import read_json, require
from calrec_jax.report.page import Section, breakable

_GENERATED, _RANKED = 10, 10  # shown of each user
_USERS_PER_PAGE = 20  # where the page's script runs
_RANKS = {"1": "1", "10": "2 to 10", "more": "beyond 10"}
_PARTS = ("user_id", "target", "rank", "generated", "ranked", "history", "dates", "slices", "texts")
_TARGET = ' <span class="mark">✓ target</span>'


def section(directory: EvaluationDir, result: Mapping[str, Any]) -> Section:
    """The users of an evaluation's examples.json, or a line that the file is missing.

    Args:
      directory: the evaluation.
      result: what its metrics.json holds.

    Raises:
      CalrecError: the file is damaged.
    """
    heading, path = f"Users of {breakable(directory.name)}", directory.examples
    if not path.exists():
        return heading, f"<p>{path.name} is missing: run <code>calrec eval</code> again.</p>"
    users = _read_users(path, result["slices"])
    details = "\n".join(map(_user, users))
    return (
        heading,
        f"""<div data-users="{_USERS_PER_PAGE}">
<p>The first {len(users):,} of {result["n"]:,} users.</p>
<div class="controls" hidden>{_controls(users, result["slices"])}</div>
<p><output></output></p>
{details}
<div class="controls" hidden><button>Previous</button><button>Next</button></div></div>""",
    )


def _read_users(path: pathlib.Path, slicings: Iterable[str]) -> list[dict[str, Any]]:
    users, remedy = read_json(path), "run `calrec eval` again"
    for user in users if isinstance(users, list) else [users]:
        require(path, user, _PARTS, remedy)
        require(path, user["slices"], slicings, remedy)
    return users


def _controls(users: Sequence[Mapping[str, Any]], slices: Mapping[str, Iterable[str]]) -> str:
    """The search box, and a choice for the rank and for each slicing with several slices."""
    parts = ['<label>search<input type="search" placeholder="user, item or text"></label>']
    parts.append(_choice("rank", "target found at rank", _RANKS))
    for slicing, names in slices.items():
        present = {user["slices"][slicing] for user in users}
        if len(present) > 1:
            options = {name: name for name in names if name in present}
            parts.append(_choice(f"slice {slicing}", slicing, options))
    return "".join(parts)


def _choice(trait: str, label: str, options: Mapping[str, str]) -> str:
    listed = "".join(
        f'<option value="{html.escape(value)}">{html.escape(text)}</option>'
        for value, text in options.items()
    )
    return (
        f'<label>{html.escape(label)}<select name="{html.escape(trait)}">'
        f'<option value="">any</option>{listed}</select></label>'
    )


def _traits(user: Mapping[str, Any]) -> dict[str, str]:
    """The values that users are filtered by: {name of the choice: the user's value}."""
    worst = user["rank"]["high"]  # a tie is not yet a find
    rank = "1" if worst == 1 else "10" if worst <= 10 else "more"
    return {"rank": rank} | {f"slice {k}": v for k, v in user["slices"].items()}


def _user(user: Mapping[str, Any]) -> str:
    dates = user["dates"] or [""] * (len(user["history"]) + 1)
    history = [
        f"<li{_class(item_id == user['target'])}>{_date(date)}{_item(user, item_id)}</li>"
        for item_id, date in zip(user["history"], dates, strict=False)
    ]
    slices = ", ".join(f"{slicing}: {name}" for slicing, name in user["slices"].items())
    return f"""<details data-traits="{html.escape(json.dumps(_traits(user)))}">
<summary><span class="find">{html.escape(user["user_id"])}</span>: target at rank
{_rank(user["rank"])}: {_date(dates[-1])}{_item(user, user["target"], mark=False)}</summary>
<p class="soft">{html.escape(slices)}</p>
<h4>History, oldest first</h4><ol>{"".join(history)}</ol>
{_generated(user)}
<h4>Retrieved, with scores</h4><ol>{"".join(_ranked(user))}</ol></details>"""


def _rank(rank: Mapping[str, int]) -> str:
    if rank["high"] == rank["low"]:
        return f"{rank['low']:,}"
    return f"{rank['low']:,}–{rank['high']:,} (tied)"


def _generated(user: Mapping[str, Any]) -> str:
    """The generated texts in order; nothing for a model that scores items."""
    if not user["generated"]:
        return ""
    target = user["texts"][user["target"]].strip()
    entries = []
    for generated in user["generated"][:_GENERATED]:
        text, logprob = generated["text"], generated["logprob"]
        # A trie knows the items, whose texts may be cut. Without one, equal texts have to do.
        items = generated.get("items")
        is_target = text.strip() == target if items is None else user["target"] in items
        shown = html.escape(text) or "<i>nothing</i>"
        entries.append(
            f'<li{_class(is_target)}><span class="find">{shown}</span> '
            f'<span class="soft">{logprob:.2f}</span>{_TARGET if is_target else ""}</li>'
        )
    more = len(user["generated"]) - _GENERATED
    if more > 0:
        entries.append(f'<li class="soft">and {more} more</li>')
    return f"<h4>Generated, with log-probabilities</h4><ol>{''.join(entries)}</ol>"


def _ranked(user: Mapping[str, Any]) -> Iterable[str]:
    for item in user["ranked"][:_RANKED]:
        is_target = item["item_id"] == user["target"]
        yield (
            f"<li{_class(is_target)}>{_item(user, item['item_id'])} "
            f'<span class="soft">{item["score"]:.4f}</span></li>'
        )


def _item(user: Mapping[str, Any], item_id: str, mark: bool = True) -> str:
    text = user["texts"].get(item_id, "")
    mark_html = _TARGET if mark and item_id == user["target"] else ""
    return (
        f'<span class="find"><span class="soft">{html.escape(item_id)}</span> '
        f"{html.escape(text)}</span>{mark_html}"
    )


def _class(is_target: bool) -> str:
    return ' class="target"' if is_target else ""


def _date(date: str) -> str:
    return f'<span class="soft">{html.escape(date)}</span> ' if date else ""
