"""Tables and sentences on evaluations, as plain text for terminals."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calrec_jax.metrics import METRICS

INTERVALS = "below each value: its 95 % interval over users; ties are broken at random"


def result_table(result: Mapping[str, Any]) -> str:
    """The metrics of a metrics.json beside its baselines, with 95 % intervals, as plain text."""
    model = result["model"]
    differences = {f"{model} - {name}": values for name, values in result["paired"].items()}
    width = max(map(len, [model, *result["baselines"], *differences]))
    lines = [
        f"{result['domain']} {result['split']}: {result['n']} users, {result['items']} items",
        heading(width),
    ]
    for model_name, values in {model: result["metrics"], **result["baselines"]}.items():
        lines += rows(model_name, width, values, "value")
    lines.append("")
    for model_name, values in differences.items():
        lines += rows(model_name, width, values, "delta", "+")
    return "\n".join([*lines, "", INTERVALS, *choices(result)])


def show(text: str) -> None:
    """Prints a text; characters that the terminal's encoding lacks are written as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def heading(width: int, metrics: Sequence[str] = METRICS) -> str:
    """The names of `metrics`, above columns that begin after `width` characters."""
    return " " * width + "".join(f"{metric:>14}" for metric in metrics)


def rows(
    name: str,
    width: int,
    values: Mapping[str, Mapping[str, float]],
    key: str,
    sign: str = "",
    metrics: Sequence[str] = METRICS,
) -> list[str]:
    """Two lines: the values of one model, and their intervals below them.

    Args:
      name: of the model, in a column of `width` characters.
      values: {metric: {key, "low", "high"}}.
      sign: "+" where values without a minus get a plus.
    """
    centres = [f"{values[metric][key]:{sign}.4f}" for metric in metrics]
    intervals = [
        f"{short(values[metric]['low'])},{short(values[metric]['high'])}" for metric in metrics
    ]
    return [
        f"{name:<{width}}" + "".join(f"{x:>14}" for x in centres),
        " " * width + "".join(f"{x:>14}" for x in intervals),
    ]


def short(value: float, sign: str = "") -> str:
    """The value with four decimals, without the zero before the point."""
    return f"{value:{sign}.4f}".replace("0.", ".", 1)


def users(count: int) -> str:
    """The number with its noun: "1 user", "2 users"."""
    return f"{count:,} user" if count == 1 else f"{count:,} users"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, with columns as wide as their longest cell."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def choices(result: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each weight that a metrics.json says was chosen on validation."""
    for domain, chosen in result["choices"].items():
        prefix = f"{domain}: " if len(result["choices"]) > 1 else ""
        for name, choice in chosen.items():
            if name == result["model"]:
                parts = f"BM25 + {choice['weight']:g} x dense"
            else:
                parts = f"{choice['part']} + {choice['weight']:g} x BM25"
            here = ", on whom it is measured here" if result["split"] == "validation" else ""
            yield (
                f"{prefix}{name}: {parts}, chosen by NDCG@10 of {choice['users']:,} validation "
                f"users{here}"
            )
