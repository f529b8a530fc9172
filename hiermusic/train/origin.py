"""Which data a run is trained on: remembered, so that it is told where they change between two starts."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hiermusic.data.audio_records import differences
from hiermusic.data.pipeline import in_use
from hiermusic.errors import UserError, write_atomically


def note(workdir: Path, path: str, tell: Callable[[str], None]) -> None:
    """Tells how the data of a run differ from those of its last start, then remembers them in `workdir/data.json`.

    Args:
      workdir: of the run.
      path: its `data.path`; what was made of it lies under `workdir/data`.
      tell: gets one line; a run that is killed before it returns is told again.
    """
    records = in_use(path, workdir / "data") if path else None
    if records is None or not (records / "info.json").is_file():
        return
    digest = hashlib.sha256((records / "info.json").read_bytes()).hexdigest()
    now = {"path": path, "records": str(records), "sha256": digest}
    before = None
    notes = workdir / "data.json"
    with suppress(OSError, ValueError, RecursionError):
        before = json.loads(notes.read_text())
    if before == now:
        return
    if isinstance(before, dict) and before.get("sha256") not in (None, digest):
        what = _differences(records, Path(str(before.get("records", records))))
        tell(f"{path} holds other data than this run was last trained on{what}: it goes on with what is there now")
    write_atomically(notes, json.dumps(now, indent=1) + "\n")


def _differences(records: Path, before: Path) -> str:
    """How many tracks differ, where the records of before are still to be seen."""
    with suppress(UserError, OSError):
        new, gone = differences(records, before)
        if new or gone:
            return f" ({new} of its tracks are new or other, {gone} are gone)"
    return ""
