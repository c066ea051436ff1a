"""The pages in a browser, where there is one: nothing overflows, and users can be searched."""

from __future__ import annotations

import html
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pytest
from report_case import RANKS, claim, evaluate, example

from calrec_jax.report import compare, comparison_page, run_page

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]
_HARNESS = """<!doctype html><meta charset="utf-8">
<iframe srcdoc="{page}" style="border: 0; width: {width}px; height: 900px"></iframe>
<pre></pre>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const set = (control, value) => {{
    control.value = value;
    control.dispatchEvent(new Event(control.matches("[data-metrics] *") ? "change" : "input"));
  }};
  let found;
  try {{ found = (() => {{ {script} }})(); }} catch (error) {{ found = String(error); }}
  document.querySelector("pre").textContent = JSON.stringify(found);
}});
</script>"""


def browse(path: pathlib.Path, folder: pathlib.Path, width: int, script: str) -> Any:
    """What a script returns that runs beside a page of a given width, as JSON."""
    harness = folder / "harness.html"
    page = html.escape(path.read_text("utf-8"))
    harness.write_text(_HARNESS.format(page=page, width=width, script=script), "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    command = [
        CHROMIUM,
        *flags.split(),
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width + 100},1000",
        "--dump-dom",
        harness.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    return json.loads(html.unescape(found))


@pytest.fixture
def model_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run with long words everywhere, and 45 users."""
    model_dir = claim(tmp_path / ("long" * 30))
    ranks = {f"u{n}": RANKS["abcd"[n % 4]] for n in range(45)}
    long = "word" * 100
    texts = {f"i{n}": f"Title: {long} {n}" for n in range(8)}
    users = [
        example(
            user,
            rank,
            texts=texts,
            generated=[{"text": f"{long} of {user}", "logprob": -1.0}],
            slices={"purchase": "repeat" if n % 4 == 3 else "new", "domain": "toys"},
        )
        for n, (user, rank) in enumerate(ranks.items())
    ]
    purchases = {user: "repeat" if n % 4 == 3 else "new" for n, user in enumerate(ranks)}
    for name in ("test", "long" * 20):
        evaluate(model_dir, ranks, name=name, purchases=purchases, examples=users)
    (model_dir / "config.gin").write_text(f"A.b = '{long * 3}'\n")
    return model_dir


WIDTHS = """
  all("details").forEach((x) => { x.open = true; x.hidden = false; });
  return [page.documentElement.scrollWidth, page.documentElement.clientWidth];
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(
    model_dir: pathlib.Path, tmp_path: pathlib.Path, width: int
) -> None:
    path = tmp_path / "both.html"
    evaluations = [model_dir / "eval" / name for name in ("test", "long" * 20)]
    comparison_page.write_page(compare.compare(evaluations), path)
    for page in (run_page.write(model_dir), path):
        content, window = browse(page, tmp_path, width, WIDTHS)
        assert content <= window <= width


def test_users_are_searched_chosen_and_paged(
    model_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = browse(
        run_page.write(model_dir),
        tmp_path,
        800,
        """
        const box = page.querySelector("[data-users]");
        const [search, rank, purchase] = box.querySelectorAll("input, select");
        const [previous, next] = box.querySelectorAll("button");
        const found = {};
        const note = (name) => {
          const shown = [...box.querySelectorAll("details")].filter((x) => !x.hidden);
          found[name] = [
            box.querySelector("output").textContent,
            shown.length,
            shown[0]?.querySelector(".find").textContent ?? null,
            previous.disabled,
            next.disabled,
          ];
        };
        note("start");
        next.click(); note("second"); next.click(); note("third"); previous.click();
        set(rank, "1"); note("first rank");
        set(rank, "more"); note("beyond");
        set(purchase, "new"); note("nobody");
        set(rank, ""); set(purchase, ""); set(search, "OF  U4"); note("search");
        set(search, "oldest first"); note("headings");
        set(search, ""); note("all");
        return found;
        """,
    )
    assert found == {
        "start": ["1 to 20 of 45 users", 20, "u0", True, False],
        "second": ["21 to 40 of 45 users", 20, "u20", False, False],
        "third": ["41 to 45 of 45 users", 5, "u40", False, True],
        "first rank": ["12 found, of 45 users", 12, "u0", True, True],
        "beyond": ["11 found, of 45 users", 11, "u3", True, True],
        "nobody": ["0 found, of 45 users", 0, None, True, True],
        "search": ["6 found, of 45 users", 6, "u4", True, True],
        "headings": ["0 found, of 45 users", 0, None, True, True],
        "all": ["1 to 20 of 45 users", 20, "u0", True, False],
    }


def test_slices_show_the_metric_that_is_chosen(
    model_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = browse(
        run_page.write(model_dir),
        tmp_path,
        800,
        """
        const box = page.querySelector("[data-metrics]");
        const shown = () => [...box.querySelectorAll("[data-metric]")].filter((x) => !x.hidden)
          .map((x) => x.dataset.metric);
        const before = shown();
        set(box.querySelector("select"), "mrr");
        return [before, shown(), all(".controls").some((x) => x.hidden)];
        """,
    )
    assert found == [["ndcg@10"], ["mrr"], False]
