"""A `gcloud` that records its calls, and answers what a test has prepared."""

import os
import pathlib
import subprocess
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
TPU = ROOT / "launch" / "tpu.sh"

# The answers to a verb, such as `describe` or `ssh`, are the files in its folder. Each is used
# once, the last one from then on. Line 1 of an answer is run by bash, the rest is printed.
_GCLOUD = r"""#!/usr/bin/env bash
printf '%s\0' "$#" "$@" >>"$FAKE_CLOUD/calls"
case "$1 $2" in
  'storage cp' | 'storage cat') verb=$2 ;;
  *) verb=$4 ;;
esac
if [[ "$1 $2 $3" == 'storage cp -' ]]; then
  cat >"$FAKE_CLOUD/$(basename "$4")"
elif [[ $verb == cp ]]; then
  cp "$3" "$FAKE_CLOUD/$(basename "$4")"
fi
answers=("$FAKE_CLOUD/$verb"/*)
[[ -e ${answers[0]} ]] || exit 0
answer=$(cat "${answers[0]}")
((${#answers[@]} == 1)) || rm "${answers[0]}"
first=${answer%%$'\n'*}
[[ $answer == "$first" ]] || printf '%s\n' "${answer#*$'\n'}"
eval "$first"
"""

OK = "exit 0"
FAILS = "echo 'ERROR: (gcloud) no network' >&2; exit 1"
NOT_FOUND = "echo 'ERROR: (gcloud) NOT_FOUND: Resource was not found.' >&2; exit 1"


def prints(text: str) -> str:
    """The answer that succeeds with `text`."""
    return f"exit 0\n{text}"


class FakeCloud:
    """Holds the fake's folder; commands run with it first on PATH."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "cloud"
        self.home = folder / "home"
        self.programs = folder / "bin"
        for path in (self.folder, self.home, self.programs):
            path.mkdir()
        self.program("gcloud", _GCLOUD)
        self.env = os.environ | {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "FAKE_CLOUD": str(self.folder),
            "CALREC_POLL_SECONDS": "0",
        }

    def program(self, name: str, text: str) -> None:
        """Puts an executable on the PATH."""
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def answers(self, **verbs: list[str]) -> None:
        """Prepares the answers to each verb, in order; the last one is used again and again."""
        for verb, answers in verbs.items():
            folder = self.folder / verb
            folder.mkdir()
            for i, answer in enumerate(answers):
                (folder / f"{i:03}").write_text(answer + "\n")

    def calls(self) -> list[list[str]]:
        """The arguments of every call so far."""
        path = self.folder / "calls"
        words = path.read_text().split("\0")[:-1] if path.exists() else []
        calls = []
        while words:
            count = int(words[0])
            calls.append(words[1 : 1 + count])
            words = words[1 + count :]
        return calls

    def verbs(self) -> list[str]:
        """The verb of every call so far, without repeats in a row."""
        verbs = [call[1] if call[0] == "storage" else call[3] for call in self.calls()]
        return [verb for i, verb in enumerate(verbs) if verbs[i - 1 : i] != [verb]]

    def run(self, *argv: object, **more: Any) -> subprocess.CompletedProcess:
        """Runs a command to its end."""
        more = {"env": self.env, "capture_output": True, "text": True, "timeout": 60} | more
        return subprocess.run([str(word) for word in argv], **more)
