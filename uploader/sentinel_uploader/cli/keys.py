"""`sentinel-uploader keys`: makes, lists and withdraws the keys of collectors."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from sentinel_protocol.common.settings.sources import add_arguments, resolve
from sentinel_uploader.app.settings import KEYS, key_store
from sentinel_uploader.cli.console import write_output
from sentinel_uploader.server.key_store import ClientEntry, KeyStore

_DESCRIPTION = """Keys of the uploader and of the clients that it lets in.

  keys init             make the uploader's own pair
  keys add NAME         make a client's pair and put it on the list; prints the settings of the client's collectors
  keys list             who is on the list, and who was
  keys revoke NAME      take a client off the list: within a second it is out, also of open connections"""


def run_keys(words: list[str], environ: Mapping[str, str]) -> int:
    """Run one of the `keys` commands; raises `UsageError`."""
    parser = argparse.ArgumentParser(
        prog="sentinel-uploader keys",
        description=_DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="init|add|list|revoke")
    for name in ("init", "add", "list", "revoke"):
        command = commands.add_parser(name, allow_abbrev=False)
        add_arguments(command, (KEYS,))
        if name in {"add", "revoke"}:
            command.add_argument("name", metavar="NAME", help="letters, digits, '.', '_' and '-'")
        if name == "add":
            command.add_argument("--replace", action="store_true", help="a new key for a name that has or had one")
        if name == "list":
            command.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(words)
    store = key_store(resolve((KEYS,), args, environ, None)["keys"], environ)
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
        write_output(json.dumps([_described(entry) for entry in entries], indent=2) + "\n")
        return
    rows = [("client", "state", "since", "public key")]
    rows += [(entry.name, _state(entry), _utc(entry.changed_at), entry.error or entry.key.hex()) for entry in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    write_output("\n".join(lines) + "\n")


def _described(entry: ClientEntry) -> dict[str, str]:
    return {
        "client": entry.name,
        "state": _state(entry),
        "since": _utc(entry.changed_at),
        "public_key": entry.key.hex(),
        "trouble": entry.error,
    }


def _state(entry: ClientEntry) -> str:
    if entry.is_revoked:
        return "revoked"
    return "unusable" if entry.error else "active"


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
