"""Where a row's picture is: base64, a data URL, bytes, the URL of an allowed host, or a path below the allowed folder.

What comes out is an RGB picture that was decoded under limits, as training and scores decode it. It knows no rows and no model.
"""

import base64
import binascii
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mgm_lora.errors import PictureError, RefusedError
from mgm_lora.model.pictures import open_picture
from mgm_lora.serving.fetching import fetch
from mgm_lora.serving.limits import ServingLimits, variable
from mgm_lora.serving.refusals import NOT_ALLOWED, TOO_LARGE, UNUSABLE, WRONG_KIND

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded of what strangers send: others of PIL's run programs, or are rarely looked after."""


def picture_bytes(value: str | bytes, *, limits: ServingLimits) -> bytes:
    """The bytes of a picture's file, undecoded.

    Raises:
        RefusedError: it is in no such place, not allowed, or too large.
    """
    if isinstance(value, bytes):
        return _within(value, limits=limits)
    if value.startswith("data:"):
        return _of_data_url(value, limits=limits)
    if value.startswith(("http://", "https://")):
        return fetch(value, limits=limits)
    path = _path_below(limits.pictures, value)
    if path is not None:
        return _of_file(path, limits=limits)
    content = _of_base64(value, limits=limits)
    if content is not None:
        return content
    raise _no_place(value, limits=limits)


def decode_picture(content: bytes, *, file: Path, limits: ServingLimits) -> None:
    """Writes the picture that bytes hold into a file without loss, upright and in RGB.

    Raises:
        RefusedError: they are no picture of `FORMATS`, a broken one, or one of too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
    except UnidentifiedImageError as error:
        raise RefusedError(
            f"no picture: asked for {', '.join(FORMATS)}, found {content[:16]!r}", status=WRONG_KIND
        ) from error
    except Image.DecompressionBombError as error:
        raise RefusedError(f"the picture is too large: {error}", status=TOO_LARGE) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise RefusedError(f"the picture can't be decoded: {error}", status=UNUSABLE) from error
    if width * height > limits.max_pixels:
        raise RefusedError(
            f"the picture has {width} x {height} pixels, allowed are {limits.max_pixels} ({variable('max_pixels')})",
            status=TOO_LARGE,
        )
    file.write_bytes(content)
    try:
        opened = open_picture(file)
    except PictureError as error:
        raise RefusedError(str(error).replace(f"'{file}'", "the picture"), status=UNUSABLE) from error
    opened.save(file, "PPM")


def _of_data_url(url: str, *, limits: ServingLimits) -> bytes:
    head, comma, text = url.partition(",")
    content = _of_base64(text, limits=limits) if comma and head.endswith(";base64") else None
    if content is None:
        raise RefusedError(
            f"the data URL '{url[:40]}' does not hold base64: write data:image/jpeg;base64,...", status=UNUSABLE
        )
    return content


def _of_base64(text: str, *, limits: ServingLimits) -> bytes | None:
    if len(text) * 3 // 4 > limits.max_picture_bytes + 3:
        raise _too_large(limits)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # the latter: letters beyond ASCII
        return None
    return _within(content, limits=limits)


def _of_file(path: Path, *, limits: ServingLimits) -> bytes:
    try:
        with path.open("rb") as file:
            return _within(file.read(limits.max_picture_bytes + 1), limits=limits)
    except OSError as error:
        raise RefusedError(f"the picture '{path.name}' can't be read: {error.strerror}", status=UNUSABLE) from error


def _path_below(folder: Path | None, text: str) -> Path | None:
    """The file that a text names in the folder; none where it names none, or the folder is none."""
    if folder is None:
        return None
    try:
        root, path = folder.resolve(), (folder / text).resolve()  # of links too: they may lead out
        if path.is_relative_to(root):
            return path if path.is_file() else None
    except (OSError, ValueError):  # base64 is too long for a name
        return None
    if "." in text:  # no base64
        raise RefusedError(
            f"'{text[:60]}' leads out of the folder of pictures: name one by its path below that folder",
            status=NOT_ALLOWED,
        )
    return None


def _within(content: bytes, *, limits: ServingLimits) -> bytes:
    if len(content) > limits.max_picture_bytes:
        raise _too_large(limits)
    return content


def _too_large(limits: ServingLimits) -> RefusedError:
    return RefusedError(
        f"the picture's file is larger than {limits.max_picture_bytes} bytes ({variable('max_picture_bytes')})",
        status=TOO_LARGE,
    )


def _no_place(text: str, *, limits: ServingLimits) -> RefusedError:
    if limits.pictures is None and "." in text:
        return RefusedError(
            f"'{text[:60]}' may be a path, but this server reads none ({variable('pictures')} allows a folder): send the picture as base64",
            status=NOT_ALLOWED,
        )
    path = ", nor a picture's path below the server's folder" if limits.pictures is not None else ""
    return RefusedError(f"'{text[:60]}' is neither base64, a data URL, nor a http(s) URL{path}", status=UNUSABLE)
