"""Makes requirements.lock anew: exact versions and hashes of everything that pyproject.toml asks for, extras included.

uv resolves, the CUDA build of torch included, which must fit the lock too; what is here only leaves torch and its CUDA
libraries out of the file, because these depend on the build that a machine gets (requirements-torch.txt pins torch).
Versions already in the lock stay where they still fit: `--upgrade` renews all of them, `--upgrade-package NAME` one.
Knows nothing of addresses, and writes none.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PLATFORM = "x86_64-manylinux_2_28"
HEAD = f"""\
# Exact versions and hashes of one environment that works: Python 3.11, Linux x86_64 ({PLATFORM}).
# Made by `make lock` from pyproject.toml, extras included; don't edit. torch is pinned in requirements-torch.txt.
"""
DEPENDS_ON_BUILD = re.compile(r"(torch|triton|nvidia-(?!ml-py).*|cuda-.*)==")


def main() -> None:
    """Resolves, and replaces requirements.lock if that went well."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / LOCK.name
        if LOCK.exists():
            shutil.copy(LOCK, draft)  # uv keeps the versions that it finds in its output file
        _resolve(draft, uv_options=sys.argv[1:])
        kept = [package for package in _packages(draft) if not DEPENDS_ON_BUILD.match(package)]
        draft.write_text(HEAD + "".join(kept), encoding="utf-8")
        shutil.copy(draft, LOCK)
    print(f"{LOCK.name}: {len(kept)} packages")


def _resolve(draft: Path, *, uv_options: list[str]) -> None:
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--all-extras"),
        *("--constraint", "requirements-torch.txt", "--python-version", "3.11", "--python-platform", PLATFORM),
        *("--generate-hashes", "--no-header", "--no-annotate", "--quiet", "--output-file", str(draft)),
        *uv_options,
    ]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(f"uv found no versions that fit together (exit code {code}); {LOCK.name} is unchanged")


def _packages(draft: Path) -> list[str]:
    """One text per package: its line and the lines of its hashes."""
    return re.split(r"(?m)^(?=[A-Za-z0-9])", draft.read_text(encoding="utf-8"))[1:]


if __name__ == "__main__":
    main()
