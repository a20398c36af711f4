"""Writes the table of values in README.md from the comments of values.yaml: ``python helm/millrace/values_table.py``."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
BEGIN, END = "<!-- values: made by values_table.py -->\n", "<!-- end of values -->\n"


def comments(text: str) -> dict[str, str]:
    """The comment above each key, by the key's path (``webserver.readOnly.enabled``)."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []  # indentation and name of the keys around the line
    pending: list[str] = []
    for line in text.splitlines():
        if comment := re.match(r" *# ?(.*)", line):
            pending.append(comment[1].strip())
            continue
        if key := re.match(r"( *)([A-Za-z][\w-]*):", line):
            path = [part for part in path if part[0] < len(key[1])] + [(len(key[1]), key[2])]
            if pending:
                found[".".join(name for _, name in path)] = " ".join(pending)
        pending = []
    return found


def rows(text: str) -> list[tuple[str, str, str]]:
    """Key, default and meaning of every documented value, in the file's order."""
    values = yaml.safe_load(text)
    return [(key, _default(_at(values, key)), meaning) for key, meaning in comments(text).items()]


def table(text: str) -> str:
    """The rows as Markdown."""
    lines = [f"| `{key}` | {default} | {_escape(meaning)} |\n" for key, default, meaning in rows(text)]
    return "".join(["| value | default | meaning |\n", "|---|---|---|\n", *lines])


def readme(text: str, values: str) -> str:
    """*text* with the table of *values* between the markers."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(values) + END + rest.split(END)[1]


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _default(value: Any) -> str:
    if isinstance(value, dict) and value and not {"requests", "limits"} & value.keys():
        return ""  # its keys have rows of their own, or the meaning says it
    text = json.dumps(value)
    return f"`{_escape(text)}`" if len(text) <= 100 else "see values.yaml"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    file = HERE / "README.md"
    file.write_text(readme(file.read_text(), (HERE / "values.yaml").read_text()))
