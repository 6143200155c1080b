"""`fedunlearn keys`: what people see of keys."""

from __future__ import annotations

import builtins
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from registers import OPENED

from fedunlearn import cli
from fedunlearn.commands.keys import keys
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.signing import KeyProblem, PublicKey, SigningKey
from fedunlearn.deletion.verification import verify


@pytest.fixture(autouse=True)
def _app(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.add_typer(keys)
    monkeypatch.setattr(cli, "app", app)


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """The command's exit code, and all that it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedunlearn", "keys", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out + told.err


@pytest.mark.parametrize(("flags", "kind"), [([], "ssh-ed25519"), (["--node"], "ecdsa-sha2-nistp384")])
def test_a_key_is_made_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], kind: str
) -> None:
    file = tmp_path / "server.key"
    code, told = said(capsys, "new", file, *flags)
    public = PublicKey.load(tmp_path / "server.key.pub")
    assert (code, public.text.split()[0]) == (0, kind)
    assert f"fingerprint: {public.fingerprint}\n" in told
    assert f"public key: {file}.pub\n" in told
    assert file.stat().st_mode & 0o777 == 0o600
    for either in (file, f"{file}.pub"):
        assert said(capsys, "show", either) == (0, f"{public.text}\nfingerprint: {public.fingerprint}\n")
        shown = json.loads(said(capsys, "show", either, "--json")[1])
        assert shown == {"key": public.text, "fingerprint": public.fingerprint}


def test_a_fingerprint_is_the_one_that_ssh_keygen_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of RFC 8032's first test vector, by ``ssh-keygen -lf``."""
    file = tmp_path / "vector.pub"
    file.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea\n")
    assert "SHA256:bbXpuKG6zhzdmnxq256TlqzFBzRl2f6OOg722cYNbU8" in said(capsys, "show", file)[1]


def test_what_is_wrong_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "server.key"
    said(capsys, "new", file)
    before = file.read_bytes()
    code, told = said(capsys, "new", file)
    assert (code, file.read_bytes()) == (2, before)
    assert told == f"fedunlearn: {file} is there already: a key is never overwritten, choose another name\n"
    assert said(capsys, "show", tmp_path / "none")[1].startswith(f"fedunlearn: there is no key {tmp_path}/none")
    assert said(capsys, "show", tmp_path)[1] == f"fedunlearn: {tmp_path} cannot be read as a key: Is a directory\n"
    nowhere = f"fedunlearn: there is no folder {tmp_path}/nowhere to keep a key in: make it first\n"
    assert said(capsys, "new", tmp_path / "nowhere" / "key") == (2, nowhere)
    assert said(capsys, "new", file / "key") == (
        2,
        f"fedunlearn: the key {file}/key cannot be written: Not a directory\n",
    )


@pytest.mark.parametrize("content", ["root:x:0:0:root:/root:/bin/bash\n", "ssh-ed25519 AAAAC3Nz", ""])
def test_what_is_no_key_is_not_to_be_chmodded(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    file = tmp_path / "damaged.pub"
    file.write_text(content)
    os.chmod(file, 0o644)
    code, told = said(capsys, "show", file)
    assert (code, told.startswith(f"fedunlearn: {file}: this is no public key: give a line such as")) == (2, True)
    with pytest.raises(KeyProblem, match="holds no private key without a password"):
        SigningKey.load(file)


def test_a_private_key_that_others_can_read_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key"
    said(capsys, "new", file)
    os.chmod(file, 0o640)
    sentence = f"fedunlearn: others can read the private key {file}: chmod 600 {file}\n"
    assert said(capsys, "show", file) == (2, sentence)


def test_a_register_is_signed_with_another_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("old", "new"):
        said(capsys, "new", tmp_path / name)
    old, new = (SigningKey.load(tmp_path / name) for name in ("old", "new"))
    folder = tmp_path / "register"
    command = ("rotate", folder, "--key", tmp_path / "old", "--new", tmp_path / "new")
    with Register.create(folder, old, type(OPENED)({}, old.public.text, {})):
        assert "is written by process" in said(capsys, *command)[1]
    code, told = said(capsys, *command)
    assert code == 0
    assert f"is signed with {new.public.fingerprint} from event 1 on" in told
    assert f"put {tmp_path}/new where its app looks for its key (keep {tmp_path}/old.pub)" in told
    assert "--key" not in told  # Flower starts the server, and has no such option
    assert Register.read(folder).head.key == new.public.fingerprint
    assert verify(folder, [old.public]).problems == []
    code, told = said(capsys, *command)
    assert (code, "give that one" in told) == (2, True)


def test_without_cryptography_one_sentence_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **named)

    for module in [name for name in sys.modules if name.startswith("fedunlearn.deletion.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    sentence = "fedunlearn: keys need the package cryptography: pip install 'fedunlearn[flower]'\n"
    assert said(capsys, "new", tmp_path / "key") == (2, sentence)
    assert said(capsys, "show", tmp_path / "key") == (2, sentence)
    assert said(capsys, "rotate", tmp_path, "--key", tmp_path / "a", "--new", tmp_path / "b") == (2, sentence)
