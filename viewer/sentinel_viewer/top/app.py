"""The screen of `top`: only what has changed is drawn again."""

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import DataTable, Footer, Input, Static

from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_viewer.live.watch import LiveEntry
from sentinel_viewer.output import units
from sentinel_viewer.top.lines import COLUMNS, KEYS, filtered, sorted_entries


class TopApp(App[str | None]):
    """Shows what `look` returns, every `interval_s` seconds; ends with the run that was chosen, if one was."""

    TITLE = "sentinel-stream top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #summary { height: 1; padding: 0 1; }
    #filter { display: none; height: 3; }
    #filter.shown { display: block; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("s", "sort", "sort by the next column"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("escape", "clear_filter", "no filter", show=False),
        Binding("o", "choose", "open the report"),
    ]

    def __init__(self, look: Callable[[], list[LiveEntry]], interval_s: float, *, sort: str = "cpu") -> None:
        super().__init__()
        self._look = look
        self._interval_s = interval_s
        self._entries: list[LiveEntry] = []
        self._shown: dict[str, list[str]] = {}
        self._order: list[str] = []
        self._sorted_by = sort
        self._words = ""
        self._failure = ""

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        with Vertical():
            yield Static(id="summary")
            yield Input(id="filter", placeholder="words of run, job, host, state")
            runs: DataTable[Text] = DataTable(id="runs", cursor_type="row", zebra_stripes=True)
            yield runs
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        for column in COLUMNS:
            self._runs.add_column(column.head, key=column.key)
        self._runs.focus()
        self._refresh_in_thread()
        self.set_interval(self._interval_s, self._refresh_in_thread)

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._sorted_by = KEYS[(KEYS.index(self._sorted_by) + 1) % len(KEYS)]
        self._show()

    def action_filter(self) -> None:
        """Ask for words."""
        box = self.query_one("#filter", Input)
        box.add_class("shown")
        box.focus()

    def action_clear_filter(self) -> None:
        """Show all runs again."""
        box = self.query_one("#filter", Input)
        box.value = ""
        box.remove_class("shown")
        self._runs.focus()

    def action_choose(self) -> None:
        """End with the run under the cursor."""
        self._runs.action_select_cursor()

    def on_input_changed(self, changed: Input.Changed) -> None:
        """Filter while words are typed."""
        self._words = changed.value
        self._show()

    def on_input_submitted(self) -> None:
        """Go back to the runs and keep the filter."""
        self._runs.focus()

    def on_data_table_header_selected(self, selected: "DataTable.HeaderSelected") -> None:
        """Sort by the column that was clicked."""
        self._sorted_by = str(selected.column_key.value)
        self._show()

    def on_data_table_row_selected(self, selected: "DataTable.RowSelected") -> None:
        """End with the run that was chosen."""
        self.exit(selected.row_key.value)

    @property
    def _runs(self) -> "DataTable[Text]":
        found: DataTable[Text] = self.query_one("#runs", DataTable)
        return found

    def _refresh_in_thread(self) -> None:
        self.run_worker(self._refresh_entries, thread=True, exclusive=True, group="look")

    def _refresh_entries(self) -> None:
        try:
            entries, failure = self._look(), ""
        except SentinelStreamError as error:
            entries, failure = self._entries, str(error)
        self.call_from_thread(self._take, entries, failure)

    def _take(self, entries: list[LiveEntry], failure: str) -> None:
        self._entries, self._failure = entries, failure
        self._show()

    def _show(self) -> None:
        entries = sorted_entries(filtered(self._entries, self._words), self._sorted_by)
        lines = {one.run_id: [column.text(one) for column in COLUMNS] for one in entries}
        if list(lines) == self._order:
            self._change_cells(lines)
        else:
            self._replace_rows(lines)
        self._shown, self._order = lines, list(lines)
        self.query_one("#summary", Static).update(self._summary(entries))

    def _change_cells(self, lines: dict[str, list[str]]) -> None:
        for run_id, cells in lines.items():
            for key, old, new in zip(KEYS, self._shown[run_id], cells, strict=True):
                if old != new:
                    self._runs.update_cell(run_id, key, _cell(new), update_width=len(new) > len(old))

    def _replace_rows(self, lines: dict[str, list[str]]) -> None:
        runs = self._runs
        chosen = self._order[runs.cursor_row] if 0 <= runs.cursor_row < len(self._order) else None
        with self.batch_update():
            scroll = runs.scroll_y
            runs.clear()
            for run_id, cells in lines.items():
                runs.add_row(*map(_cell, cells), key=run_id)
            if chosen in lines:
                # The cursor stays with its run, wherever that has gone.
                runs.move_cursor(row=list(lines).index(chosen), animate=False, scroll=False)
                runs.scroll_to(y=scroll, animate=False)

    def _summary(self, entries: list[LiveEntry]) -> str:
        cores = sum(one.cores or 0.0 for one in entries)
        waiting = sum(one.rows_waiting for one in entries)
        troubled = sum(1 for one in entries if one.trouble)
        parts = [
            units.counted(len(entries), "run") + (f" of {len(self._entries)}" if self._words else ""),
            f"{units.cores(cores)} cores",
            f"{units.counted(waiting, 'row')} waiting",
            f"sorted by {self._sorted_by}",
        ]
        if troubled:
            parts.append(f"{troubled} in trouble")
        if self._failure:
            parts.append(self._failure)
        return " · ".join(parts).replace("[", "\\[")


def _cell(text: str) -> Text:
    """Return text as it is: a name in brackets is no markup."""
    return Text(text, no_wrap=True)
