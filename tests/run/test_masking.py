"""Secrets do not get through, and what training code needs does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhub_sdk.domain.values import Frozen, Opaque
from modelhub_sdk.run import masking


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://user:pass@host/x.git", "https://host/x.git"),
        ("https://ghp@host/x", "https://host/x"),
        ("git@host:x.git", "git@host:x.git"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("ssh://git:pw@host/x", "ssh://host/x"),
        ("https://u:p@ss@host/", "https://host/"),
        ("https://u:pa/ss@host/x", "https://host/x"),
        ("u:p@proxy:3128", "proxy:3128"),
        ("abfss://c@a.dfs/x", "abfss://c@a.dfs/x"),
        ("http://h:80/x@y", "http://h:80/x@y"),
        (
            "s3://b/k?X-Amz-Signature=ab&a=1&X-Amz-Credential=z",
            "s3://b/k?X-Amz-Signature=***&a=1&X-Amz-Credential=***",
        ),
        ("https://h/b?sv=1&sig=abc", "https://h/b?sv=1&sig=***"),
        ("https://h/?%74oken=x", "https://h/?%74oken=***"),
        ("https://h/#access_token=1", "https://h/#access_token=***"),
        ("https://h?next=http%3A%2F%2Fu%3Ap%40h", "https://h?next=***"),
        ("jdbc:postgresql://h/db?user=x&password=y", "jdbc:postgresql://h/db?user=x&password=***"),
        ("", ""),
        ("://", "://"),
    ],
)
def test_url(url: str, masked: str) -> None:
    """A URL loses users, passwords and signatures, and nothing else."""
    assert masking.url(url) == masked


SECRET = [
    "token",
    "hf_token",
    "hfToken",
    "HF_TOKEN",
    "key",
    "my_key",
    "api_key",
    "apikey",
    "API-KEY",
    "access_key",
    "aws_access_key_id",
    "private_key",
    "auth",
    "proxy_auth",
    "password",
    "db_password",
    "dbpassword",
    "password2",
    "passwd",
    "pwd",
    "db_pass",
    "pass",
    "secret",
    "client_secret",
    "credentials",
    "api_keys",
    "auth.token",
    "github_pat",
]
HARMLESS = [
    "max_tokens",
    "num_tokens",
    "tokenizer",
    "key_size",
    "n_keys",
    "keyword",
    "keywords",
    "monkey",
    "author",
    "authority",
    "top_k",
    "token_type",
    "pad_token",
    "eos_token",
    "label_key",
    "sort_key",
    "public_key",
    "first_pass",
    "bypass",
    "keys",
    "epoch",
]


@pytest.mark.parametrize("name", SECRET)
def test_secret_names(name: str) -> None:
    """Text under a secret name is masked, in parameters and on command lines of all forms."""
    assert masking.mapping({name: "hunter"}) == {name: "***"}
    for argv in ([f"--{name}", "hunter"], [f"--{name}=hunter"], [f"{name}=hunter"]):
        assert "hunter" not in masking.command(argv)
        assert "hunter" not in masking.line(" ".join(["python", "-u", "t.py", *argv, "--lr", "1"]))


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names(name: str) -> None:
    """The names of real hyperparameters keep their values."""
    assert masking.mapping({name: "some"}) == {name: "some"}
    assert masking.command([f"--{name}", "some"]) == f"--{name} some"
    assert masking.command([f"{name}=some"]) == f"{name}=some"
    for line in (f"x --{name} some", f"x --{name}=some", f"{name}=some x"):
        assert masking.line(line) == line


def test_numbers() -> None:
    """Numbers stay under weak names and where the name goes on; a password of digits does not."""
    plain = {"seed_key": 3, "token": 1.5, "password_length": 12, "secret": True, "auth": None, "key": ""}
    assert masking.mapping(plain) == plain
    assert masking.mapping({"seed_key": "3", "password": 1234}) == {"seed_key": "3", "password": "***"}


def test_nested() -> None:
    """Nested values are looked into, keep their types, and are masked whole under a strong name."""
    given_ = {
        "db": Frozen({"password": "x", "url": "postgresql://u:p@h/d"}),
        "urls": ("https://u:p@h", 1),
        "list": ["password=x"],
        "token": ["a", "b"],
        "credentials": {"user": 3},
        "note": Opaque("T", "https://u:p@h"),
        "my_key": Opaque("T", "x"),
        3: "x",
    }
    found = masking.mapping(given_)
    assert found == {
        "db": {"password": "***", "url": "postgresql://h/d"},
        "urls": ("https://h", 1),
        "list": ["password=***"],
        "token": ["***", "***"],
        "credentials": "***",
        "note": Opaque("T", "https://h"),
        "my_key": "***",
        3: "x",
    }
    assert isinstance(found["db"], Frozen)


def test_a_mapping_in_itself() -> None:
    """A mapping that contains itself ends."""
    loop: dict[str, object] = {"password": "x"}
    loop["again"] = loop
    assert "'x'" not in repr(masking.mapping(loop))


def test_command() -> None:
    """A command line is quoted for a shell; only secrets are gone."""
    argv = ["python", "t.py", "--token", "-abc", "--use-auth", "--lr", "1", "-p", "8", "a b", "-u", "me:pw"]
    assert masking.command(argv) == "python t.py --token '***' --use-auth --lr 1 -p 8 'a b' -u '***'"
    assert masking.command(["-u", "train.py"]) == "-u train.py"
    assert masking.command(["-H", "Authorization: Bearer abc.def"]) == "-H 'Authorization: ***'"
    assert masking.command(["git", "clone", "https://a:b@h/x"]) == "git clone https://h/x"
    assert masking.command(["\udcff"]).encode()


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("a --api-key=x; b && TOKEN=y c", "a --api-key=***; b && TOKEN=*** c"),
        ("curl -u me:pw https://a:b@h/x", "curl -u *** https://h/x"),
        (
            'a -token x\nb --password \'l o\' --secret "q\\" r"',
            "a -token ***\nb --password '***' --secret \"***\"",
        ),
        ("a '--password=x y'", "a '--password=***'"),
        ("a --use-auth --lr 1 --token '' -p 8", "a --use-auth --lr 1 --token '' -p 8"),
    ],
)
def test_line(line: str, masked: str) -> None:
    """A line for a shell loses what the words of a command lose, and stays a line for a shell."""
    assert masking.line(line) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password=abc host=h", "password=*** host=h"),
        ("connection to 'postgresql://u:p@h/d' failed", "connection to 'postgresql://h/d' failed"),
        ("{'token': 'abc', 'a': 1}", "{'token': '***', 'a': 1}"),
        ("401 for url: https://h/?token=a&b=1", "401 for url: https://h/?token=***&b=1"),
        ("AccountKey=abc==;X=1", "AccountKey=***;X=1"),
        ("bad hf_abcdefghijklmnopqrstuvwxyz0123", "bad ***"),
        ("sent Bearer abc.def-12345", "sent Bearer ***"),
        ("KeyError: 'label'", "KeyError: 'label'"),
        ("Unexpected key: foo", "Unexpected key: foo"),
        ("password=''", "password=''"),
        ("bearer of news", "bearer of news"),
    ],
)
def test_text(text: str, masked: str) -> None:
    """Free text loses its secrets and stays readable."""
    assert masking.text(text) == masked


@given(st.text())
def test_rubbish(text: str) -> None:
    """Nothing raises, whatever the text is, and what is masked stays as it is when masked again."""
    masking.url(text)
    masking.text(text)
    masking.command([text, "--token", text])
    masking.line(text)
    assert masking.mapping({"password": text})["password"] in ("***", "")
