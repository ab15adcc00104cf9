"""Makes .dvc/plots/offline.html anew: the page that `dvc plots` fills in, with Vega inside, so that it needs no network.

DVC's own page loads Vega from a content network. The packages come from npm at the exact versions here, which must be of the major versions that
DVC's templates are written for. Knows nothing of the plots.
"""

import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / ".dvc" / "plots" / "offline.html"
PACKAGES = {  # in the order in which they are loaded, with the SHA-256 of the file that is taken
    "vega": ("5.33.1", "463f3db6a40b20e9747b4ed38f37ed0add508838f9141b1cf8366784b07b30c8"),
    "vega-lite": ("5.23.0", "58c27358e26f2d319cf62f45bc17a4c8362f08645001df2ec8d341eee4097c7f"),
    "vega-embed": ("6.29.0", "12d02acfbe3ec59ef9a37dd4822a2e04e2961b5bbb671bbe661d2221715b99da"),
}
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh_tag}
<title>DVC plots</title>
<!-- Made by scripts/plots_page.py; don't edit. Vega, Vega-Lite and Vega-Embed: see NOTICE. -->
"""
TAIL = """<style>
body { margin: 1.5rem; font: 16px/1.5 system-ui, sans-serif; background: #fff; color: #1b1c1e; }
body > div { margin-bottom: 2rem; overflow-x: auto; }
</style>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def main() -> None:
    """Fetches the packages and writes the page."""
    with tempfile.TemporaryDirectory() as folder:
        scripts = [_script(name, version, digest, Path(folder)) for name, (version, digest) in PACKAGES.items()]
    PAGE.write_text(HEAD + "".join(f"<script>{script}</script>\n" for script in scripts) + TAIL, encoding="utf-8")
    print(f"{PAGE.name}: {PAGE.stat().st_size / 1e6:.2f} MB")


def _script(name: str, version: str, digest: str, folder: Path) -> str:
    subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(folder / f"{name}-{version}.tgz") as package:
        member = package.extractfile(f"package/build/{name}.min.js")
        assert member is not None
        content = member.read()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise SystemExit(f"{name} {version}: expected SHA-256 {digest}, found {found}; is the version right?")
    text = content.decode("utf-8")
    assert "</script" not in text
    return text.partition("\n//# sourceMappingURL")[0]


if __name__ == "__main__":
    main()
