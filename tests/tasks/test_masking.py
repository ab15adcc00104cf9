"""Which words of a line are masked."""

import pytest

from tasks.masking import Mask


@pytest.mark.parametrize(
    "line, shown",
    [
        ("GET https://me:pass-word@host:80/x", "GET https://me:***@host:80/x"),
        ("postgresql+asyncpg://team:a%40b@db/x and s3://b/c", "postgresql+asyncpg://team:***@db/x and s3://b/c"),
        ("https://host:4200/a@b", "https://host:4200/a@b"),
        ("step 3: loss 0.5 @ 12:30", "step 3: loss 0.5 @ 12:30"),
        ("key=abcdefgh-long!", "key=***!"),
        ("tokens: abc, cats", "tokens: abc, cats"),
    ],
)
def test_secrets_alone_are_masked(line: str, shown: str) -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "abcdefgh",
        "MLFLOW_TRACKING_TOKEN": "abcdefgh-long",  # holds the other one
        "HF_TOKEN": "cats",  # too short to be a secret
        "TOKENIZERS_PARALLELISM": "12:30-no-secret",
        "HOME": "/home/abc",
    }
    assert Mask(environment)(line) == shown


def test_without_secrets_lines_stay() -> None:
    assert Mask({})("as it is") == "as it is"
