"""`fedunlearn requests` and `fedunlearn receipt`, on real registers and outboxes."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from stories import NODES, OTHER, SERVER, at, signed, story

from fedunlearn import cli
from fedunlearn.commands.receipts import receipt
from fedunlearn.commands.register_standing import described
from fedunlearn.commands.requests import requests
from fedunlearn.deletion.events import Done, Fault, Filed, Opened, Refused, RoundDone, Waited
from fedunlearn.deletion.outbox import Outbox, desk
from fedunlearn.deletion.receipt import issue, verify
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.standing import standing
from fedunlearn.deletion.statement import Signed, Statement

ONE, TWO = "1" * 32, "2" * 32


def key_file(key: SigningKey, path: Path) -> Path:
    """Both halves, as `fedunlearn keys new` writes them."""
    path.touch(0o600)
    path.write_bytes(key._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.with_name(path.name + ".pub").write_text(f"{key.public.text} somebody@somewhere\n")
    return path


@dataclass
class Shell:
    """The command line in this process: exit code, standard output, standard error."""

    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["fedunlearn", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = self.capsys.readouterr()
        return code, shown.out, shown.err

    def right(self, *arguments: object) -> str:
        code, out, err = self(*arguments)
        assert (code, err) == (0, "")
        return out

    def wrong(self, *arguments: object) -> str:
        code, out, err = self(*arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        return err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.add_typer(requests)
    app.add_typer(receipt)
    monkeypatch.setattr(cli, "app", app)
    return Shell(capsys, monkeypatch)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    return key_file(SERVER, tmp_path / "server")


@pytest.fixture
def node(tmp_path: Path) -> Path:
    return key_file(NODES["a"], tmp_path / "node")


@pytest.fixture
def register(tmp_path: Path) -> Path:
    """In which the first request is done."""
    folder = tmp_path / "register"
    (_, opened), *others = story()
    assert isinstance(opened, Opened)
    with Register.create(folder, SERVER, opened) as writing:
        for _, event in others:
            writing.append(event)
        writing.append(Done(ONE, issue(writing.standing(), ONE, writing.head, SERVER, at(30))))
        writing.append(Filed("4" * 32, None, signed("4", "class:7", None, SERVER, reason="later").json))
    return folder


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


def new(shell: Shell, *arguments: object) -> str:
    """The id of a request that is filed."""
    out = shell.right("requests", "new", "--reason", "r", *arguments)
    request, id, *said = out.split()
    assert (request, said) in (("request", ["filed"]), ("request", ["was", "filed", "before"]))
    return id


def test_a_node_files_for_itself(shell: Shell, outbox: Path, node: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("4\n2\n")
    id = new(shell, "--scope", f"instances:{tmp_path / 'list'}", "--outbox", outbox, "--key", node)
    assert Outbox(outbox).meant(id).instances == (2, 4)
    told = shell.right(
        *("requests", "new", "--scope", f"instances:{tmp_path / 'list'}", "--reason", "r"),
        *("--outbox", outbox, "--key", node),
    )
    assert told == f"request {id} was filed before\n"
    gone = new(shell, "--scope", "class:3", "--outbox", outbox, "--key", node, "--deleted")
    (posted,) = (one for one in Outbox(outbox).entries() if one.signed.statement.id == gone)
    assert (posted.signed.statement.data, posted.signed.key) == ("deleted", NODES["a"].public.text)


@pytest.mark.parametrize(("scope", "client"), [("class:3", None), ("client", "a")])
def test_the_operator_files_on_the_servers_desk(
    shell: Shell, register: Path, server: Path, scope: str, client: str | None
) -> None:
    whom = ("--client", client) if client else ()
    id = new(shell, "--scope", scope, "--register", register, "--key", server, *whom)
    (sent,) = desk(register).exchange([])
    assert (sent["statement"]["id"], sent["statement"]["scope"], sent["statement"]["client"]) == (id, scope, client)
    assert sent["key"] == SERVER.public.text
    assert "on the desk" in shell.right("requests", "list", register)


def test_the_operator_files_while_the_server_works(shell: Shell, register: Path, server: Path) -> None:
    with Register.open(register, SERVER):
        id = new(shell, "--scope", "class:3", "--register", register, "--key", server)
        listed = json.loads(shell.right("requests", "list", register, "--json"))
    assert (listed[-1]["request"], listed[-1]["state"]) == (id, "on the desk")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--scope client --key NODE", "say where to file it: --outbox DIR at a node, or --register DIR at the server"),
        ("--scope client --key NODE --outbox O --register R", "say where to file it"),
        ("--scope client --key NODE --outbox O --client b", "a node files for itself alone: leave out --client"),
        (
            "--scope instances:x --key SERVER --register R",
            "named by the node that holds them: file it there",
        ),
        ("--scope client --key SERVER --register R", "say which client: --client NAME"),
        (
            "--scope class:3 --key SERVER --register R --client a",
            "wherever it is: leave out --client",
        ),
        ("--scope client --key SERVER --register R --client a --deleted", "only the node can say: leave out --deleted"),
        ("--scope class:3 --key NODE --register R", "and you gave SHA256:"),
        (
            "--scope client --client nobody --key SERVER --register R",
            "no client nobody was ever on the list; there are a, b",
        ),
        ("--scope client --key SERVER --outbox O", "a node files with its SuperNode's key, and this is a server's"),
        ("--scope client --key NODE --outbox R", "is a server's register, and no node's outbox"),
        ("--scope client --key NODE --outbox R/desk", "is in a server's register: a node's outbox is elsewhere"),
        ("--scope client --key NODE --outbox O --reason EMPTY", "say why, in one line"),
        ("--scope class:3 --key SERVER --register O", "there is no register"),
        ("--scope all --key NODE --outbox O", "write client, class:3 (a class's number) or instances:FILE"),
        ("--scope instances:/no/list --key NODE --outbox O", "/no/list cannot be read: No such file or directory"),
        ("--scope client --key /no/key --outbox O", "there is no key /no/key: make one with `fedunlearn keys new`"),
    ],
)
def test_requests_that_cannot_be_filed(
    shell: Shell, register: Path, outbox: Path, node: Path, server: Path, arguments: str, says: str
) -> None:
    places = {"NODE": node, "SERVER": server, "O": outbox, "R": register, "R/desk": register / "desk", "EMPTY": ""}
    words = [places.get(word, word) for word in arguments.split()]
    assert says in shell.wrong("requests", "new", "--reason", "r", *words)
    assert not outbox.exists()
    assert not (register / "desk").exists()


def test_in_a_simulation_there_is_no_list_of_clients(shell: Shell, server: Path, tmp_path: Path) -> None:
    folder = tmp_path / "simulated"
    Register.create(folder, SERVER, Opened({}, SERVER.public.text, {})).close()
    new(shell, "--scope", "client", "--client", "7", "--register", folder, "--key", server)


def test_who_has_left_the_list_can_still_be_forgotten(shell: Shell, register: Path, server: Path) -> None:
    with Register.open(register, SERVER) as writing:
        writing.enrol({"b": NODES["b"].public.text})
    new(shell, "--scope", "client", "--client", "a", "--register", register, "--key", server)


def test_listing_a_register(shell: Shell, register: Path) -> None:
    head, *rows = shell.right("requests", "list", register).splitlines()
    assert head.split() == ["Request", "State", "Since", "Scope", "Client", "Reason"]
    assert [row.split()[:2] for row in rows] == [
        ["11111111", "done"],
        ["22222222", "verified"],
        ["44444444", "filed"],
        ["33333333", "refused"],
    ]
    assert rows[3].endswith("nobody knows this key")
    listed = json.loads(shell.right("requests", "list", register, "--json"))
    assert [one["request"] for one in listed] == [ONE, TWO, "4" * 32, "3" * 32]
    assert [one["receipt"] for one in listed] == [True, False, False, False]
    assert list(listed[0]["times"]) == ["filed", "acknowledged", "unlearning", "recovering", "verified", "done"]
    assert (listed[1]["scope"], listed[1]["client"], listed[3]["why"]) == ("class:3", None, "nobody knows this key")


def test_listing_an_outbox(shell: Shell, outbox: Path, node: Path, tmp_path: Path) -> None:
    assert "there is no folder" in shell.wrong("requests", "list", outbox)
    outbox.mkdir(0o700)
    assert shell.right("requests", "list", outbox) == f"{outbox} holds no request\n"
    id = new(shell, "--scope", "class:3", "--outbox", outbox, "--key", node)
    head, row = shell.right("requests", "list", outbox).splitlines()
    assert head.split() == ["Request", "State", "Scope", "Client", "Reason"]
    assert row.split() == [id[:8], "not", "sent", "class:3", "r"]
    Outbox(outbox).exchange([{"request": id, "state": "refused", "why": "not on the list", "receipt": None}])
    (one,) = json.loads(shell.right("requests", "list", outbox, "--json"))
    assert (one["state"], one["why"], one["receipt"]) == ("refused", "not on the list", False)


def test_showing_one(shell: Shell, register: Path) -> None:
    told = shell.right("requests", "show", register, "1").splitlines()
    for line in (
        f"request        {ONE}",
        "scope          instances",
        "client         a",
        "reason         reason 1",
        "state          done",
        f"receipt        fedunlearn requests export {register} {ONE} -o FILE",
    ):
        assert line in told
    shown = json.loads(shell.right("requests", "show", register, ONE, "--json"))
    assert verify(shown["receipt"], SERVER.public) == []
    assert "why            nobody knows this key" in shell.right("requests", "show", register, "333")


def test_ids_can_be_shortened_as_far_as_one_fits(shell: Shell, register: Path) -> None:
    with Register.open(register, SERVER) as writing:
        id = "10" * 16
        asked = Signed.by(NODES["b"], Statement(id, "client", None, "r", at(0), "here"))
        writing.append(Filed(id, "b", asked.json), Refused("", None, "who?"))
    assert "2 requests begin with 1: give more digits" in shell.wrong("requests", "show", register, "1")
    assert f"request        {id}" in shell.right("requests", "show", register, "10")
    assert f"request        {ONE}" in shell.right("requests", "show", register, ONE)
    assert "no request in" in shell.wrong("requests", "show", register, "9")
    for command in (("show", register, ""), ("export", register, "", "-o", register / "x")):
        assert "say which request, by the first digits of its id" in shell.wrong("requests", *command)


def test_showing_where_a_service_stands(shell: Shell, register: Path, outbox: Path) -> None:
    told = shell.right("requests", "show", register).splitlines()
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"  # of these events: now
    for said, line in zip(
        [
            "rounds         2 of training, 3 of unlearnings",
            rf"last           recovery round 3 of unlearning 1, {time}; accuracy 91\.25 %",
            rf"unlearning     number 1: verified since {time}, 3 rounds",
            f"               {ONE}",
            f"               {TWO}",
            f"waiting        {'4' * 32}",
            r"absent         recovery round 3 of unlearning 1: a \(silent\)",
            "faults         none",
            "strangers      none",
        ],
        told,
        strict=True,
    ):
        if not said.startswith(" "):
            assert re.fullmatch(said, line)
    assert "is no register: say which request" in shell.wrong("requests", "show", register / "checkpoints")
    assert "there is no register" in shell.wrong("requests", "show", outbox)


def test_faults_waits_and_strangers_the_newest_twenty(shell: Shell, register: Path) -> None:
    with Register.open(register, SERVER) as writing:
        for number in range(25):
            writing.append(Fault("b", "silent", f"no answer {number}", "train", number))
            writing.append(Fault("", "stranger", f"node {number}: \x1b[2Jnobody's key", "train", number))
        writing.append(Waited("train", 25, "1 of 2 answered"))
        writing.append(RoundDone("train", 2, None, "m3", "m3", [], samples={"b": 1}, absent={"a": "not finite"}))
    shown = json.loads(shell.right("requests", "show", register, "--json"))
    assert [one["why"] for one in shown["faults"]] == ["1 of 2 answered", *(f"no answer {n}" for n in range(24, 5, -1))]
    assert [one["what"] for one in shown["faults"][:2]] == ["waited", "silent"]
    assert [one["detail"].split(":")[0] for one in shown["strangers"]] == [f"node {n}" for n in range(24, 4, -1)]
    assert shown["absent"][0] == {"phase": "train", "number": 2, "unlearning": None, "clients": {"a": "not finite"}}
    assert (shown["rounds"]["training"], shown["rounds"]["all"], shown["clients"]) == (3, 6, ["a", "b"])
    told = shell.right("requests", "show", register)
    assert "training round 26: waited (1 of 2 answered)\n" in told
    assert "training round 25: b: silent (no answer 24)\n" in told
    assert "node 24: \N{REPLACEMENT CHARACTER}[2Jnobody's key\n" in told


def test_how_far_an_unlearning_has_come() -> None:
    (_, opened), *others = story()
    events = [("2026-11-30T10:00:00+00:00", opened), *others]
    seen = []
    for end in range(len(events) + 1):
        under_way = described(standing(events[:end]))["unlearning"]
        if under_way and (under_way["state"], under_way["rounds"]) not in seen:
            seen.append((under_way["state"], under_way["rounds"]))
    assert seen == [
        *[("unlearning", 0), ("unlearning", 1), ("recovering", 2), ("recovering", 3), ("verified", 3)],
    ]


def test_an_empty_register_has_nothing_to_tell(shell: Shell, tmp_path: Path) -> None:
    Register.create(tmp_path / "new", SERVER, Opened({}, SERVER.public.text, {})).close()
    told = shell.right("requests", "show", tmp_path / "new").splitlines()
    assert told[:2] == ["rounds         0 of training, 0 of unlearnings", "unlearning     none is under way"]
    assert [line.split() for line in told[2:]] == [
        [name, "none"] for name in ("waiting", "absent", "faults", "strangers")
    ]


def test_files_that_cannot_be_written_are_named(shell: Shell, register: Path, tmp_path: Path) -> None:
    for command in (("export", register, "1"), ("page", register)):
        told = shell.wrong("requests", *command, "-o", tmp_path / "nowhere" / "x")
        assert told == f"fedunlearn: there is no folder {tmp_path}/nowhere to write x into: make it first\n"
        told = shell.wrong("requests", *command, "-o", register / "register.sqlite" / "x")
        assert told == f"fedunlearn: {register}/register.sqlite/x cannot be written: Not a directory\n"


def test_ports_that_cannot_be_served_on(shell: Shell, register: Path) -> None:
    assert "--port is where a page is served: give --serve too" in shell.wrong(
        "requests", "page", register, "--port", 0
    )
    assert not (register / "register.html").exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = shell.wrong("requests", "page", register, "--serve", "--port", port)
    assert told == f"fedunlearn: port {port} cannot be served on (Address already in use): choose another --port\n"


def test_what_is_not_there_is_a_mistake_and_no_problem(shell: Shell, server: Path, tmp_path: Path) -> None:
    none, public = tmp_path / "none", tmp_path / "server.pub"
    assert "there is no register in" in shell.wrong("requests", "verify", none, "--key", public)
    assert f"{none} cannot be read" in shell.wrong("receipt", "verify", none, "--key", public)


def test_checks_for_scripts(shell: Shell, register: Path, server: Path, tmp_path: Path) -> None:
    path, public, other = tmp_path / "receipt.json", tmp_path / "server.pub", key_file(OTHER, tmp_path / "other")
    shell.right("requests", "export", register, "1", "-o", path)
    sound = shell.right("requests", "verify", register, "--key", public, "--receipt", path, "--json")
    assert json.loads(sound) == {"register": str(register), "events": 15, "warnings": [], "problems": []}
    code, out, _ = shell("requests", "verify", register, "--key", f"{other}.pub", "--receipt", path, "--json")
    found = json.loads(out)
    assert (code, len(found["problems"]), len(found["warnings"])) == (1, 1, 1)
    checked = json.loads(shell.right("receipt", "verify", path, "--key", public, "--json"))
    fingerprint = SERVER.public.fingerprint
    assert checked == {"receipt": str(path), "key": fingerprint, "problems": [], "audit": "nothing found"}
    code, out, _ = shell("receipt", "verify", path, "--key", f"{other}.pub", "--json")
    told = json.loads(out)
    assert (code, told["key"], len(told["problems"]), told["audit"]) == (1, OTHER.public.fingerprint, 1, None)


def test_a_receipt_from_the_register_and_from_the_nodes_outbox(
    shell: Shell, register: Path, server: Path, tmp_path: Path
) -> None:
    path, public = tmp_path / "receipt.json", tmp_path / "server.pub"
    assert shell.right("requests", "export", register, "1", "-o", path) == f"receipt: {path}\n"
    assert next(iter(json.loads(path.read_text()))) == "audit"
    assert shell.right("receipt", "verify", path, "--key", public) == (
        f"{path}: signed by {SERVER.public.fingerprint}, unchanged; audit: nothing found\n"
    )
    assert shell.right("receipt", "show", path).startswith("Audit           nothing found\n")

    box = Outbox(tmp_path / "box")
    id = box.file("client", "r", NODES["a"]).id
    message = "there is a receipt once it is done"
    assert message in shell.wrong("requests", "export", box.folder, id, "-o", tmp_path / "none")
    box.exchange([{"request": id, "state": "done", "why": "", "receipt": json.loads(path.read_text())}])
    shell.right("requests", "export", box.folder, id[:6], "-o", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert message in shell.wrong("requests", "export", register, "2", "-o", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_wrong_receipt_is_exit_code_1(shell: Shell, register: Path, server: Path, tmp_path: Path) -> None:
    path, public = tmp_path / "receipt.json", tmp_path / "server.pub"
    shell.right("requests", "export", register, "1", "-o", path)
    code, out, err = shell("receipt", "verify", path, "--key", key_file(OTHER, tmp_path / "other").with_suffix(".pub"))
    assert (code, err) == (1, "")
    assert SERVER.public.fingerprint in out
    assert OTHER.public.fingerprint in out
    path.write_text(path.read_text().replace("nothing found", "cannot tell"))
    code, out, err = shell("receipt", "verify", path, "--key", public)
    assert (code, out, err) == (
        *(1, f"{path}: the signature does not fit: the receipt was changed after it was signed, get it again\n", ""),
    )
    assert "holds a private key: give the public one" in shell.wrong("receipt", "verify", path, "--key", server)
    path.write_text(path.read_text()[:300])
    for command in (("verify", path, "--key", public), ("show", path)):
        assert "is no JSON" in shell.wrong("receipt", *command)


def test_a_register_held_against_keys_and_receipts(shell: Shell, register: Path, server: Path, tmp_path: Path) -> None:
    path, public = tmp_path / "receipt.json", tmp_path / "server.pub"
    shell.right("requests", "export", register, "1", "-o", path)
    sound = shell.right("requests", "verify", register, "--key", public, "--receipt", path)
    assert sound == f"{register}: 15 events, as its server wrote them\n"
    *warnings, checked = shell.right("requests", "verify", register).splitlines()
    assert [warning.split(" given")[0] for warning in warnings] == [
        "warning: no public key was",
        "warning: no receipt was",
    ]
    assert f"{checked}\n" == sound
    code, out, _ = shell(
        "requests", "verify", register, "--key", key_file(OTHER, tmp_path / "other.key").with_suffix(".key.pub")
    )
    assert code == 1
    assert "\nproblem: no key that is trusted" in out
    changed = json.loads(path.read_text())
    changed["register"]["count"] = 1000
    path.write_text(json.dumps(changed))
    told = shell.right("requests", "verify", register, "--key", public, "--receipt", path)
    assert [line.split(" (")[0] for line in told.splitlines()] == [  # whoever can write JSON accuses nobody
        f"warning: receipt 1 is not signed by the key {SERVER.public.fingerprint} that it names",
        "warning: no receipt was given that counts: a copy of an older day would look the same; give a recent one",
        sound.strip(),
    ]
    del changed["signature"]
    path.write_text(json.dumps({**changed, "signature": SERVER.sign("receipt", changed)}))
    code, out, _ = shell("requests", "verify", register, "--key", public, "--receipt", path)
    assert code == 1
    assert out.startswith("problem: receipt 1: it was issued when the register had 1000 events, and there are 15")


def test_what_others_wrote_moves_no_cursor(shell: Shell, register: Path) -> None:
    with Register.open(register, SERVER) as writing:
        writing.append(Refused("x\x1b[1A", "a\r", "why\x1b[2J\nnot"))
    for command in (("list", register), ("show", register, "x")):
        told = shell.right("requests", *command)
        assert "".join(told.splitlines()).isprintable()
        assert "why\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}not" in told


@pytest.mark.parametrize("command", [("list",), ("show", "1"), ("export", "1", "-o", "FILE")])
def test_a_damaged_register_is_one_sentence(
    shell: Shell, register: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (register / "register.sqlite").write_bytes(b"nothing like it" * 1000)
    name, *others = command
    assert shell.wrong("requests", name, register, *others).startswith("fedunlearn: ")


WITHOUT = """
import sys
sys.modules["cryptography"] = None
import typer
from fedunlearn import cli
from fedunlearn.commands import receipts, requests
cli.app = typer.Typer(pretty_exceptions_enable=False)
cli.app.add_typer(requests.requests)
cli.app.add_typer(receipts.receipt)
cli.main()
"""


@pytest.mark.parametrize(
    "command",
    [
        "requests list .",
        "requests new --scope client --reason r --key k --outbox o",
        "requests verify .",
        "receipt show r",
    ],
)
def test_without_cryptography_it_says_what_to_install(tmp_path: Path, command: str) -> None:
    arguments = [sys.executable, "-W", "ignore", "-c", WITHOUT, *command.split()]
    told = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 2
    assert told.stderr == "fedunlearn: keys need the package cryptography: pip install 'fedunlearn[flower]'\n"


def test_neither_waits_for_torch() -> None:
    code = "import sys, fedunlearn.commands.requests, fedunlearn.commands.receipts; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "cryptography"} & set(loaded)
