"""Keep runs on disk; no other part of the library opens files.

A run's folder holds `run.json` (the manifest), `traces.zarr` (losses at every draw), where asked
for `weights.zarr`, `checkpoints/` (what it takes to go on), and at the end `influence.zarr`,
`diagnostics.zarr`, `summary.json` and `report.html`.  Scores that come from no run of chains, such
as responses, are a folder with `influence.zarr` and `scores.json`, and with a run's folder
`unfinished` until they are whole.  `.bif` lists what bif has made.
"""

from bif.store.bank_arrays import BankLayout, BankPartStore
from bif.store.banks import BANK, BankFolder, open_bank, read_bank_part
from bif.store.checkpoints import BlockStore, Commit
from bif.store.folder import (
    CALIBRATION,
    INFLUENCE,
    MANIFEST,
    REPORT,
    SCORES,
    SUMMARY,
    DamagedRun,
    FilesFailed,
    Folder,
    FolderInUse,
    discard_output,
    folder_at,
)
from bif.store.manifests import RUN, differences
from bif.store.marks import mark, marked_names, refuse_foreign
from bif.store.results import (
    claim_summary,
    load_dataset,
    plain,
    refuse_foreign_calibration,
    save_dataset,
    write_calibration,
    write_summary,
)
from bif.store.run import (
    OnExisting,
    RunFolder,
    SharedRun,
    copy_run,
    in_words,
    is_complete,
    open_run,
    progress,
    read_run,
    refuse_occupied,
    remove_run,
    reopen_run,
    share_run,
)
from bif.store.scores import (
    ScoresFolder,
    holds_scores,
    open_scores,
    read_scores,
    unfinished,
    write_scores,
)
from bif.store.stages import (
    STAGES,
    TRAJECTORY,
    StagesFolder,
    holds_stages,
    open_stages,
    stage_runs,
)
from bif.store.weights import save_weights

__all__ = [
    "BANK",
    "CALIBRATION",
    "INFLUENCE",
    "MANIFEST",
    "REPORT",
    "RUN",
    "SCORES",
    "STAGES",
    "SUMMARY",
    "TRAJECTORY",
    "BankFolder",
    "BankLayout",
    "BankPartStore",
    "BlockStore",
    "Commit",
    "DamagedRun",
    "FilesFailed",
    "Folder",
    "FolderInUse",
    "OnExisting",
    "RunFolder",
    "ScoresFolder",
    "SharedRun",
    "StagesFolder",
    "claim_summary",
    "copy_run",
    "differences",
    "discard_output",
    "folder_at",
    "holds_scores",
    "holds_stages",
    "in_words",
    "is_complete",
    "load_dataset",
    "mark",
    "marked_names",
    "open_bank",
    "open_run",
    "open_scores",
    "open_stages",
    "plain",
    "progress",
    "read_bank_part",
    "read_run",
    "read_scores",
    "refuse_foreign",
    "refuse_foreign_calibration",
    "refuse_occupied",
    "remove_run",
    "reopen_run",
    "save_dataset",
    "save_weights",
    "share_run",
    "stage_runs",
    "unfinished",
    "write_calibration",
    "write_scores",
    "write_summary",
]
