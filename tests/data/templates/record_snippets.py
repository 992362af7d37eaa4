#!/usr/bin/env python3
"""Records what Python's Jinja2, set up as transformers sets it up, makes of the snippets in snippets.json.

    record_snippets.py [FILE]      (needs the package jinja2, 3.1.6 or later)

The file is {"variables", "snippets"}. A snippet is {"source"} and gets "text", or "error" when Jinja2 refuses it. "ours"
stays as it is: {"text"} or {"error"} where this engine differs on purpose.
"""

import json
import sys
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_pass"), [], [], body).set_lineno(lineno)

    def _pass(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: "26 Jul 2024"
    return env


def main():
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("snippets.json"))
    data = json.loads(path.read_text(encoding="utf-8"))
    env = environment()
    rows = []
    for snippet in data["snippets"]:
        row = {"source": snippet["source"]}
        try:
            row["text"] = env.from_string(snippet["source"]).render(**data["variables"])
        except Exception as e:
            row["error"] = f"{type(e).__name__}: {e}"
        if "ours" in snippet:
            row["ours"] = snippet["ours"]
        rows.append(json.dumps(row, ensure_ascii=False))
    variables = json.dumps(data["variables"], ensure_ascii=False)
    path.write_text('{"variables": ' + variables + ',\n "snippets": [\n' + ",\n".join(rows) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
