"""Read documents, draw out what they say, and put it into one index.

Four steps, each a plain function from plain data to plain data, so that a swarm, a loop and a
test run the very same code: `parse` -> `extract` -> `analyze` -> `aggregate`. Nothing here
knows about the swarm. The order of the inputs decides the order of the output; given the same
files, the same Python and the same libraries, the result is equal to the byte.

A file that cannot be read or parsed is not an error: it travels on as
`{"name": ..., "failed": reason}` and becomes a named row of the report.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import tokenize
import warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import Any

Document = dict[str, Any]

SUFFIXES = {
    ".py": "python",
    ".txt": "text",
    ".md": "markdown",
    ".rst": "restructured text",
    ".html": "html",
    ".pdf": "pdf",
}
TERMS_PER_DOCUMENT_MAX = 64
POSTINGS_PER_TERM_MAX = 20
TOP_TERMS_MAX = 50

_WORD = re.compile(r"[^\W\d_][^\W_]{2,}")
_LINK = re.compile(r"https?://[^\s<>\"'`\])},;]+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_COMMON = frozenset(
    "the and for that this with are not from have was but you all can has will its any "
    "which when one use used than then they their there been into must may each only such "
    "also does would should could what where who how why were had his her our your out".split()
)


# ---- parse ----------------------------------------------------------------------------


def parse(item: Document) -> Document:
    """`{"name", "content": bytes}` to `{"name", "kind", "bytes", "text"}`."""
    name = item["name"]
    if "unreadable" in item:
        return {"name": name, "failed": f"unreadable: {item['unreadable']}"}
    content: bytes = item["content"]
    kind = SUFFIXES.get(PurePosixPath(name).suffix.lower())
    if kind is None:
        return {"name": name, "failed": "unreadable: unknown kind of file"}
    try:
        text = _READERS.get(kind, _read_text)(content)
    except (ValueError, SyntaxError) as error:
        return {"name": name, "failed": f"unreadable: {_reason(error)}"}
    return {"name": name, "kind": kind, "bytes": len(content), "text": text}


def _read_text(content: bytes) -> str:
    return content.decode("utf-8-sig")


def _read_python(content: bytes) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return io.TextIOWrapper(io.BytesIO(content), encoding, newline=None).read()


def _read_pdf(content: bytes) -> str:
    import pypdf  # Only where a PDF is met: it takes a while to import.
    import pypdf.errors

    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        return "\n".join(page.extract_text() for page in reader.pages)
    except (pypdf.errors.PyPdfError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"not a PDF that can be read: {_reason(error)}") from error


_READERS = {"python": _read_python, "pdf": _read_pdf}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


# ---- extract --------------------------------------------------------------------------


def extract(parsed: Document) -> Document:
    """The parsed text to its prose, docstrings, comments and identifiers."""
    if "failed" in parsed:
        return parsed
    found: Document = {
        "name": parsed["name"],
        "kind": parsed["kind"],
        "bytes": parsed["bytes"],
        "lines": parsed["text"].count("\n") + 1,
        "docstrings": [],
        "comments": [],
        "identifiers": {},
        "prose": "",
    }
    text = parsed["text"]
    try:
        if parsed["kind"] == "python":
            found |= _extract_python(text)
        elif parsed["kind"] == "html":
            found["prose"] = _extract_html(text)
        else:
            found["prose"] = text
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError) as error:
        return {"name": parsed["name"], "failed": f"unparsable: {_reason(error)}"}
    return found


def _extract_python(text: str) -> Document:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    docstrings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc:
                docstrings.append(doc)
    comments: list[str] = []
    identifiers: Counter[str] = Counter()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.append(token.string.lstrip("#! ").rstrip())
        elif token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            identifiers[token.string] += 1
    return {"docstrings": docstrings, "comments": comments, "identifiers": dict(identifiers)}


class _Prose(HTMLParser):
    """Collects the text that a reader of the page would see, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._hidden += 1
        self.parts.extend(f" {value} " for key, value in attrs if key == "href" and value)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style") and self._hidden:
            self._hidden -= 1

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _extract_html(text: str) -> str:
    reader = _Prose()
    reader.feed(text)
    reader.close()
    return "".join(reader.parts)


# ---- analyze --------------------------------------------------------------------------


def analyze(extracted: Document) -> Document:
    """What was drawn out, counted: terms, sizes, links."""
    if "failed" in extracted:
        return extracted
    prose = "\n".join([extracted["prose"], *extracted["docstrings"], *extracted["comments"]])
    terms: Counter[str] = Counter(
        word for word in (w.lower() for w in _WORD.findall(prose)) if word not in _COMMON
    )
    for identifier, count in extracted["identifiers"].items():
        for part in _PART.findall(identifier):
            if len(part) > 2 and part.lower() not in _COMMON:
                terms[part.lower()] += count
    ranked = sorted(terms.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "name": extracted["name"],
        "kind": extracted["kind"],
        "bytes": extracted["bytes"],
        "lines": extracted["lines"],
        "words": len(_WORD.findall(prose)),
        "docstrings": len(extracted["docstrings"]),
        "comments": len(extracted["comments"]),
        "identifiers": len(extracted["identifiers"]),
        "links": sorted({link.rstrip(".") for link in _LINK.findall(prose)}),
        "terms": [[term, count] for term, count in ranked[:TERMS_PER_DOCUMENT_MAX]],
    }


# ---- aggregate ------------------------------------------------------------------------

_SUMS = ("bytes", "lines", "words", "docstrings", "comments")


def aggregate(analyses: list[Document]) -> Document:
    """All analyses, in order, to one index and a report."""
    good = [a for a in analyses if "failed" not in a]
    postings: dict[str, list[list[Any]]] = {}
    totals: Counter[str] = Counter()
    for analysis in good:
        for term, count in analysis["terms"]:
            postings.setdefault(term, []).append([analysis["name"], count])
            totals[term] += count
    for entries in postings.values():
        entries.sort(key=lambda entry: (-entry[1], entry[0]))
        del entries[POSTINGS_PER_TERM_MAX:]
    top = sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_TERMS_MAX]
    return {
        "report": {
            "documents": len(analyses),
            "indexed": len(good),
            "failed": [
                {"name": a.get("name", "?"), "reason": _failure(a)}
                for a in analyses
                if "failed" in a
            ],
            "kinds": dict(Counter(a["kind"] for a in good)),
            "totals": {key: sum(a[key] for a in good) for key in _SUMS},
            "links": len({link for a in good for link in a["links"]}),
            "top_terms": [[term, count] for term, count in top],
            "largest": [
                [a["name"], a["bytes"]]
                for a in sorted(good, key=lambda a: (-a["bytes"], a["name"]))[:10]
            ],
        },
        "index": postings,
    }


def _failure(analysis: Document) -> str:
    return ": ".join(str(analysis[key]) for key in ("failed", "message") if key in analysis)


# ---- the plain run that a swarm is held against ---------------------------------------


def canonical(result: Document) -> bytes:
    """The one JSON text of `result`."""
    return json.dumps(result, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def run_plainly(items: list[Document]) -> Document:
    """All four steps over `items`, one after the other in this process."""
    return aggregate([analyze(extract(parse(item))) for item in items])
