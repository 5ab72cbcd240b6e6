"""`sentinel-stream completion`: what a shell needs to complete commands, options and runs."""

from sentinel_viewer.cli import options
from sentinel_viewer.output.console import write
from sentinel_viewer.output.text_table import printable

_SHELLS = ("bash", "zsh", "fish")
_NAMES = "names"
_NEWEST = 200

# Options come from a command's own help: they cannot be out of date.
_BASH = r"""
_sentinel_stream() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words
    COMPREPLY=()
    case $before in
        --runs | --spool | -o | --output) COMPREPLY=($(compgen -f -- "$current")); return ;;
        --format) COMPREPLY=($(compgen -W "csv json parquet" -- "$current")); return ;;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="COMMANDS"
    elif [ "${current#-}" != "$current" ]; then
        words=$(sentinel-stream "$command" --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]*' | sort -u)
    else
        case $command in
            show | report | open | compare | export | rm) words=$(sentinel-stream completion names 2>/dev/null) ;;
            completion) words="bash zsh fish" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _sentinel_stream sentinel-stream
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit" + _BASH
_FISH = r"""
function __sentinel_stream_options
    sentinel-stream (commandline -opc)[2] --help 2>/dev/null | string match -ra -- '--[a-z][a-z-]*' | sort -u
end
complete -c sentinel-stream -f -n __fish_use_subcommand -a 'COMMANDS'
complete -c sentinel-stream -f -n '__fish_seen_subcommand_from show report open compare export rm' \
    -a '(sentinel-stream completion names 2>/dev/null)'
complete -c sentinel-stream -n 'not __fish_use_subcommand; and string match -q -- "-*" (commandline -ct)' \
    -a '(__sentinel_stream_options)'
"""


def run(words: list[str]) -> int:
    """Write a script for a shell, or the names of runs for such a script."""
    parser = options.parser(
        "completion",
        "Write a script that completes commands, options and runs.",
        examples="  source <(sentinel-stream completion bash)       # in ~/.bashrc\n"
        "  source <(sentinel-stream completion zsh)        # in ~/.zshrc\n"
        "  sentinel-stream completion fish | source        # in ~/.config/fish/config.fish\n",
    )
    parser.add_argument("shell", choices=(*_SHELLS, _NAMES), metavar="SHELL", help=", ".join(_SHELLS))
    args = parser.parse_args(words)
    if args.shell == _NAMES:
        runs = options.library(args).runs()[-_NEWEST:]
        jobs = dict.fromkeys(run.job for run in reversed(runs))
        names = ["latest", *jobs, *(run.run_id for run in reversed(runs))]
        write("".join(f"{name}\n" for name in names if _is_word(name)))
        return 0
    from sentinel_viewer.cli.main import COMMANDS

    script = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[args.shell]
    write(script.replace("COMMANDS", " ".join(COMMANDS)).lstrip())
    return 0


def _is_word(name: str) -> bool:
    """Whether a name can stand in a shell's command line as it is; others are named by their ids."""
    return bool(name) and name == printable(name) and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
