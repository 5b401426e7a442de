"""Every command of docs/version-control.md, in order, and what the page says that it prints."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cofuse.cli.app import application
from cofuse.errors import CofuseError

PAGE = Path(__file__).parents[2] / "docs" / "version-control.md"
# What differs from run to run, or from one version of a library to the next.
CHANGING = [
    (re.compile(r"\b[0-9a-f]{64}\b"), "ID" * 32),
    (re.compile(r"\b[0-9a-f]{12}\b"), "ID" * 6),
    (re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d UTC)?"), "DATE"),
    (re.compile(r"(cofuse|numpy): \S+$", re.MULTILINE), r"\1: VERSION"),
    (re.compile(r"(- model: (ours|theirs)\s+){2}"), "- model: BOTH"),  # in the order of their ids
    (re.compile(r"^made .*", re.MULTILINE), "made"),
]


def same(text: str) -> str:
    for pattern, word in CHANGING:
        text = pattern.sub(word, text)
    return text.strip()


def blocks() -> Iterator[tuple[str, str]]:
    for block in re.finditer(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield block.group(1), block.group(2)


def ran(line: str) -> str:
    words = shlex.split(line)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            application(words[1])(words[1:], standalone_mode=False)
        except CofuseError as error:
            print(f"cofuse: {error}")
    return out.getvalue()


def page() -> Iterator[tuple[str, str, str]]:
    """Each command, what the page says that it prints, and what it prints."""
    for language, text in blocks():
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for entry in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, said = entry.partition("\n")
            yield line, said, ran(line)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COFUSE_AUTHOR", raising=False)
    count = 0
    for line, said, printed in page():
        assert same(printed) == same(said), line
        count += 1
    assert count > 20


def main() -> None:
    """Write what the commands print into the page: `python tests/cli/test_version_control_page.py`."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        text, at = PAGE.read_text(encoding="utf-8"), 0
        for line, said, printed in page():
            old, new = f"$ {line}\n{said}", f"$ {line}\n{printed.replace(folder, '').strip()}".strip()
            new = re.sub(r"[ \t]+$", "", new, flags=re.MULTILINE) + "\n"
            at = text.index(old, at)
            text = text[:at] + new + text[at + len(old) :]
            at += len(new)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
