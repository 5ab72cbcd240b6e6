"""`sentinel-uploader keys`: creates, lists and revokes the keys of collectors."""

import argparse
import os
import sys
from collections.abc import Mapping

from sentinel_protocol.common.settings.sources import add_arguments, resolve
from sentinel_protocol.common.time_text import utc_text
from sentinel_uploader.admin.status_table import align
from sentinel_uploader.app.factory import key_store
from sentinel_uploader.app.settings import KEYS as KEYS_DIR
from sentinel_uploader.cli.command import Command
from sentinel_uploader.cli.console import write_json, write_output
from sentinel_uploader.server.key_store import ClientEntry, KeyStore

_COMMANDS = {
    "init": "create the uploader's key pair",
    "add": "create a client's key pair and put it on the list; prints the settings of the client's collectors",
    "list": "list the clients, revoked ones included",
    "revoke": "take a client off the list; its open connections are closed within a second",
}


def _make_parser(prog: str, _summary: str) -> argparse.ArgumentParser:
    description = "Keys of the uploader and of its clients."
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, title="commands", metavar="|".join(_COMMANDS))
    for name, meaning in _COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=meaning, allow_abbrev=False)
        add_arguments(command, (KEYS_DIR,))
        if name in {"add", "revoke"}:
            command.add_argument("name", metavar="NAME", help="letters, digits, '.', '_' and '-'")
        if name == "add":
            command.add_argument("--replace", action="store_true", help="a new key for a name that has or had one")
        if name == "list":
            command.add_argument("--json", action="store_true", help="for programs")
    return parser


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    store = key_store(resolve((KEYS_DIR,), args, environ, None)["keys"], environ)
    if args.command == "init":
        write_output(f"made {store.directory}, server key {store.init().hex()}\n")
    elif args.command == "add":
        _add(store, args.name, replace=args.replace)
    elif args.command == "revoke":
        store.revoke(args.name)
        write_output(f"revoked {args.name}: a running uploader lets it go within a second\n")
    else:
        _list(store.clients(), as_json=args.json)
    return 0


def _add(store: KeyStore, name: str, *, replace: bool) -> None:
    secret = os.path.abspath(store.add(name, replace=replace))
    write_output(f"SENTINEL_SERVER_KEY={store.server_pair().public.hex()}\nSENTINEL_KEY={secret}\n")
    print(
        f"{name} is on the list. The two lines are the environment of its collectors; carry {secret} there "
        "(mode 0600), name its new place in the second line, and delete it here.",
        file=sys.stderr,
    )


def _list(entries: list[ClientEntry], *, as_json: bool) -> None:
    if as_json:
        write_json([_described(entry) for entry in entries])
        return
    rows = [("client", "state", "since", "public key")]
    rows += [
        (entry.name, _state(entry), utc_text(entry.changed_at, "seconds"), entry.error or entry.key.hex())
        for entry in entries
    ]
    write_output("\n".join(align(rows)) + "\n")


def _described(entry: ClientEntry) -> dict[str, str]:
    return {
        "client": entry.name,
        "state": _state(entry),
        "since": utc_text(entry.changed_at, "seconds"),
        "public_key": entry.key.hex(),
        "trouble": entry.error,
    }


def _state(entry: ClientEntry) -> str:
    if entry.is_revoked:
        return "revoked"
    return "unusable" if entry.error else "active"


KEYS = Command("init, add NAME, list, revoke NAME: clients that may connect over a network", _run, "…", _make_parser)
