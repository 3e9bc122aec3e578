"""What the README promises of the scripts, done by the scripts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from readme import README, block_of, masked

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False
    )


def pdf_of(lines: list[str]) -> bytes:
    """A PDF of one page with these lines, written by hand (ISO 32000-1, 7.5)."""
    text = " T* ".join(f"({line}) Tj" for line in lines)
    stream = f"BT /F1 12 Tf 14 TL 72 720 Td {text} ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    xref = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        xref,
    )
    return out


def test_the_readme_may_show_any_coordinator_and_no_other_words() -> None:
    """Voters elect whom they like; who it was must not make the comparison fail."""
    shown = block_of(README.read_text(), "hands")
    coordinator, voter = "coordinator,worker  ", "voter,worker        "
    assert coordinator in shown
    elsewhere = shown.replace(voter, "?", 1).replace(coordinator, voter, 1)
    assert elsewhere.count("?") == 1
    elsewhere = elsewhere.replace("?", coordinator)
    assert elsewhere != shown
    assert masked(elsewhere) == masked(shown)
    assert masked(shown.replace("blue", "red")) != masked(shown)
    assert masked(shown.replace("voter,worker", "observer", 1)) != masked(shown)


@pytest.mark.long
def test_the_readme_shows_what_the_commands_print() -> None:
    """Runs the demo over the standard library, and the block typed by hand."""
    done = run("./scripts/readme", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_the_demo_runs_over_a_folder_of_pdfs_and_texts(tmp_path: Path) -> None:
    for number in range(120):
        words = [f"document {number} line {line} of the archive" for line in range(40)]
        (tmp_path / f"paper{number:03}.pdf").write_bytes(pdf_of(words))
        (tmp_path / f"note{number:03}.txt").write_text("\n".join(words) * 20)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing of the kind")
    (tmp_path / "readme.md").write_text("# Title\nSee https://example.org/x.\n")
    (tmp_path / "page.html").write_text("<p>A <a href='https://example.org/y'>page</a></p>")
    done = run("./scripts/demo", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not indexed: broken.pdf: unreadable" in done.stdout
    assert "indexed 242 of 243 documents" in done.stdout
    assert "equal to a plain run" in done.stdout


def test_the_demo_says_when_there_is_too_little_to_show(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one")
    done = run("./scripts/demo", str(tmp_path))
    assert done.returncode == 2
    assert "give at least" in done.stderr
    assert run("./scripts/demo", str(tmp_path / "missing")).returncode == 2
