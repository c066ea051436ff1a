"""The BOS, EOS and padding tokens of a tokenizer.json, by the family of the model."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Collection, Iterable, Mapping

from calrec_jax.errors import CalrecError


@dataclasses.dataclass(frozen=True)
class Family:
    """The special tokens that a family of models uses; "" where it has none.

    Attributes:
      also: further special tokens by which the family is recognised.
    """

    bos_token: str
    eos_token: str
    pad_token: str
    also: tuple[str, ...] = ()

    @property
    def marks(self) -> set[str]:
        """The special tokens that a tokenizer.json of this family has."""
        return {self.bos_token, self.eos_token, self.pad_token, *self.also} - {""}


FAMILIES: Mapping[str, Family] = {
    "gemma": Family("<bos>", "<eos>", "<pad>"),
    "gpt2": Family("<|endoftext|>", "<|endoftext|>", ""),
    "llama2": Family("<s>", "</s>", "", also=("<unk>",)),  # and Mistral
    "llama3": Family("<|begin_of_text|>", "<|end_of_text|>", ""),
    "phi3": Family("<s>", "<|endoftext|>", "<|endoftext|>", also=("<|assistant|>",)),
    "qwen": Family("", "<|endoftext|>", "<|endoftext|>", also=("<|im_start|>",)),
    "t5": Family("", "</s>", "<pad>", also=("<unk>",)),
}


def special_tokens(
    path: pathlib.Path,
    family: str | None,
    arguments: Mapping[str, str | None],
    ids: Mapping[str, int],
    special: Collection[str],
) -> dict[str, str]:
    """{"bos_token", "eos_token", "pad_token": the token, "" for none} of a tokenizer.json.

    `arguments` take precedence over a tokenizer_config.json beside the file, and that over the
    family.

    Args:
      path: the tokenizer.json.
      family: a key of FAMILIES; None: the family whose special tokens the file has, if BOS or EOS
        is given neither in `arguments` nor in tokenizer_config.json.
      arguments: {"bos_token", "eos_token", "pad_token": the token, "" for none, None: not given}.
      ids: {token: id} of the whole vocabulary.
      special: the tokens that the file marks as special. A family is recognised by these alone:
        HTML's <s> and </s> are ordinary tokens of Gemma.

    Raises:
      CalrecError: there is no such family or none is recognised, there is no EOS, or a token is not
        in the vocabulary.
    """
    given = _configured(path.parent / "tokenizer_config.json", arguments)
    given |= {role: token for role, token in arguments.items() if token is not None}
    if family is None and {"bos_token", "eos_token"} <= given.keys():
        defaults = Family("", "", "")
    else:
        defaults = _recognise(path, special) if family is None else _family_named(family)
    tokens = {role: given.get(role, getattr(defaults, role)) for role in arguments}
    _check(path, tokens, ids)
    return tokens


def _configured(path: pathlib.Path, roles: Iterable[str]) -> dict[str, str]:
    """{role: token} of the `roles` that a tokenizer_config.json has; null becomes "", for none."""
    if not path.is_file():
        return {}
    config = read_object(path)
    tokens = {}
    for role in roles:
        token = config.get(role)
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None and not isinstance(token, str):
            raise CalrecError(f"{path}: {role} is {token!r}, and not a string")
        if role in config:
            tokens[role] = token or ""
    return tokens


def _family_named(name: str) -> Family:
    if name not in FAMILIES:
        raise CalrecError(f"no family {name!r} of tokenizers; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _recognise(path: pathlib.Path, special: Collection[str]) -> Family:
    """The family whose special tokens are all in `special`.

    Where the tokens of one such family include those of another, it is the former.
    """
    marks = {name: f.marks for name, f in FAMILIES.items() if f.marks <= set(special)}
    names = [name for name in marks if not any(marks[name] < other for other in marks.values())]
    if len(names) == 1:
        return FAMILIES[names[0]]
    problem = f"could be of {' and '.join(names)}" if names else "are of no family that is known"
    raise CalrecError(
        f"the special tokens of {path} {problem}: give family (one of {', '.join(FAMILIES)}), or "
        f"name bos_token, eos_token and pad_token ('' for none)"
    )


def _check(path: pathlib.Path, tokens: Mapping[str, str], ids: Mapping[str, int]) -> None:
    """Raises CalrecError where there is no EOS, or tokens are not in the vocabulary."""
    if not tokens["eos_token"]:
        raise CalrecError(f"{path} has no EOS, and no item would end: name its eos_token")
    for role, token in tokens.items():
        if token and token not in ids:
            raise CalrecError(
                f"{path} has no token {token!r}, which is to be its {role}: name another {role}, "
                f"or give the file's own family"
            )


def read_object(path: pathlib.Path) -> dict:
    """The JSON object in the file at `path`. Raises CalrecError where there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CalrecError(f"no {path.name} can be read at {path}: {error.strerror}") from error
    except (RecursionError, ValueError) as error:
        raise CalrecError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CalrecError(f"{path} holds no JSON object")
    return content
