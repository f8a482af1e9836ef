"""Score files of other libraries, in and out, all signed as the BIF: what moves the outcome up.

`read_devinterp_run` makes a run of the losses that devinterp's chains have left.

`read_scores` opens anybody's matrix; the others know a library's own files. `bif.interop.quanda`
holds an explainer for quanda and is imported by its own name.
"""

from bif.interop.bergson import read_bergson_scores, write_bergson_scores
from bif.interop.devinterp import read_devinterp_run
from bif.interop.kronfluence import read_kronfluence_scores
from bif.interop.plain import read_scores
from bif.interop.scores import ImportedScores

__all__ = [
    "ImportedScores",
    "read_bergson_scores",
    "read_devinterp_run",
    "read_kronfluence_scores",
    "read_scores",
    "write_bergson_scores",
]
