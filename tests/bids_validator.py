"""The validator of the BIDS project, and those of its findings that a writer of a data set can mend."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

# No tool can know the authors or the tags of a study, and no scanner made these images. A table's sidecar describes columns.
NOT_OURS = ("NO_AUTHORS", "TOO_FEW_AUTHORS", "HEDVersion")
SCANNER = "rules.sidecars.mri."


def problems(folder: Path) -> list[str]:
    """Return the errors and warnings about a data set and the data sets in its `derivatives`."""
    command = shutil.which("bids-validator-deno", path=Path(sys.executable).parent)
    assert command, "install it: pip install -r requirements-dev.txt -c constraints.txt"
    found = []
    for dataset in [folder, *sorted(folder.glob("derivatives/*"))]:
        environment = os.environ | {"DENO_NO_UPDATE_CHECK": "1"}
        process = subprocess.run([command, dataset, "--format", "json"], env=environment, capture_output=True, text=True)
        assert process.stdout, process.stderr
        for issue in json.loads(process.stdout)["issues"]["issues"]:
            kind, place = {issue["code"], issue.get("subCode")}, issue.get("location", "")
            ours = not kind & set(NOT_OURS) and not issue.get("rule", "").startswith(SCANNER)
            ours &= not (kind & {"Description"} and place.endswith(".tsv"))
            if ours or issue["severity"] == "error":
                found.append(" ".join([issue["severity"], *sorted(map(str, kind)), place, issue.get("issueMessage", "")]))
    return found
