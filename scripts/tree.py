"""Keeps README's tree true: a line for each Python file, taken from how the file opens.

`python scripts/tree.py` rewrites the lines; with `--check` it only says whether they are right. Lines of other files are written by hand and stay.
Knows nothing of what the files do.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PACKAGES = ("flows", "tasks", "mgm_lora", "recipes", "benchmarks")
_TREE = re.compile(r"(?<=\n## Tree\n```\n).*?(?=```\n)", re.DOTALL)
_WIDTH = 38


def main() -> int:
    """Rewrites the tree, or checks it; 1 where it isn't true."""
    before = README.read_text(encoding="utf-8")
    after = _TREE.sub(lambda found: _with_python_lines(found.group()), before)
    if before == after:
        return 0
    if "--check" in sys.argv[1:]:
        print("README's tree doesn't say what files there are: run `python scripts/tree.py`", file=sys.stderr)
        return 1
    README.write_text(after, encoding="utf-8")
    return 0


def _with_python_lines(tree: str) -> str:
    """Blocks of hand-written lines stay where they are; each package's block is made anew, in the place of its first line."""
    blocks = [block for block in tree.strip("\n").split("\n\n") if block]
    kept = [block for block in blocks if not block.startswith(tuple(f"{package}/" for package in PACKAGES))]
    made = ["\n".join(_lines(package)) for package in PACKAGES]
    return "\n\n".join([*kept[:-1], *made, kept[-1]]) + "\n"


def _lines(package: str) -> Iterator[str]:
    for path in sorted((ROOT / package).rglob("*.py"), key=lambda path: (len(path.parts), path.as_posix())):
        if path.name != "__init__.py":
            name = path.relative_to(ROOT).as_posix()
            yield f"{name:<{_WIDTH}}{_opening(path)}" if len(name) < _WIDTH else f"{name}  {_opening(path)}"


def _opening(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"[.:;](?:\s|$)", " ".join(text.split()), maxsplit=1)[0]


if __name__ == "__main__":
    sys.exit(main())
