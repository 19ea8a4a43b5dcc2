#!/usr/bin/env bash
# Serve both bundles in MONAI Label, with the cohort and weights of scripts/demo.sh. See scripts/monailabel_app/README.md
[ -n "${BASH_VERSION:-}" ] || { echo "This script needs bash. Run: bash $0" >&2; exit 2; }
set -euo pipefail

usage() {
    cat <<'TEXT'
bash scripts/start_monailabel.sh [--demo DIR] [--port N] [--host ADDRESS] [--version]

  --demo DIR      output folder of scripts/demo.sh (default: demo); the server's files go to DIR/label
  --port N        port of the server (default: 8000)
  --host ADDRESS  address of the server (default: 127.0.0.1, this computer only). The server does not ask for a password

The server runs until Ctrl+C. It uses the active virtual environment if that has MONAI Label. Otherwise it makes .venv-label.
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd)
demo="$root/demo"
port=8000
host=127.0.0.1
while [ $# -gt 0 ]; do
    case "$1" in
        --demo | --port | --host)
            [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
            declare "${1#--}=$2"
            shift
            ;;
        -h | --help) usage; exit 0 ;;
        --version) sed -n 's/^    "version": "\(.*\)",$/\1/p' "$root/brain_ldm_bundle/configs/metadata.json"; exit 0 ;;
        *) usage >&2; echo "unknown option: $1. Give --demo DIR, --port N or --host ADDRESS" >&2; exit 2 ;;
    esac
    shift
done

for made in data/participants.tsv models/model.pt models/autoencoder.pt spade/models/model.pt; do
    if ! [ -f "$demo/$made" ]; then
        echo "$demo/$made: no such file. Run first: bash scripts/demo.sh. If its output is elsewhere, add --demo DIR" >&2
        exit 1
    fi
done
demo=$(cd "$demo" && pwd)

has_label() { "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("monailabel") is None)' 2>/dev/null; }
python=python
if ! has_label python; then
    python="$root/.venv-label/bin/python"
    if ! has_label "$python"; then
        found=$(command -v python3.11 || command -v python3.10) ||
            { echo "MONAI Label needs Python 3.11 or 3.10, and neither was found" >&2; exit 1; }
        echo "Installing MONAI Label into $root/.venv-label (some minutes, about 2 GB)"
        "$found" -m venv --clear "$root/.venv-label"
        "$python" -m pip install --quiet --requirement "$root/requirements.txt" --constraint "$root/constraints.txt"
        "$python" -m pip install --quiet --no-deps --requirement "$root/requirements-monailabel.txt"
    fi
fi

# Clients can store labels, delete images and train. They work on copies, so that the demo does not change.
label="$demo/label"
if ! [ -f "$label/.complete" ]; then
    echo "Copying the cohort to $label/studies, because MONAI Label needs all images in one folder"
    rm -rf "$label"
    mkdir -p "$label/studies/labels/final" "$label/app"
    for image in "$demo"/data/sub-*/anat/sub-*_T1w.nii.gz; do
        name=$(basename "$image" _T1w.nii.gz)
        cp "$image" "$label/studies"
        cp "$demo"/data/derivatives/*/"$name/anat/${name}_dseg.nii.gz" "$label/studies"
        cp "$label/studies/${name}_dseg.nii.gz" "$label/studies/labels/final/${name}_T1w.nii.gz"
    done
    touch "$label/.complete"
fi
refresh() { # FILE FOLDER: copy the file unless the folder has one that is as new (from the demo or from training in the server)
    mkdir -p "$2"
    if [ "$1" -nt "$2/$(basename "$1")" ]; then
        cp "$1" "$2/.incomplete"
        mv "$2/.incomplete" "$2/$(basename "$1")"
    fi
}
refresh "$demo/models/model.pt" "$label/app/model/brain_ldm_bundle/models"
refresh "$demo/models/autoencoder.pt" "$label/app/model/brain_ldm_bundle/models"
refresh "$demo/spade/models/model.pt" "$label/app/model/spade_fusion_bundle/models"

cp "$root/scripts/monailabel_app/main.py" "$label/app"
for bundle in brain_ldm_bundle spade_fusion_bundle; do
    rm -rf "$label/app/model/$bundle"/{configs,scripts}
    cp -r "$root/$bundle/configs" "$root/$bundle/scripts" "$label/app/model/$bundle"
done
# MONAI Label reads one config file, so merge the demo's settings into train.json.
"$python" - "$label/app/model/spade_fusion_bundle/configs" <<'PYTHON'
import json, pathlib, sys
configs = pathlib.Path(sys.argv[1])
train, demo = (json.loads((configs / name).read_text()) for name in ("train.json", "demo.json"))
(configs / "train.json").write_text(json.dumps(train | demo, indent=4))
PYTHON

if ! "$python" -W ignore -c 'import torchvision.utils' 2>/dev/null; then
    export PYTHONPATH="$root/scripts/monailabel_app/stub${PYTHONPATH:+:$PYTHONPATH}"
fi
cat <<TEXT

MONAI Label starts at http://$host:$port. This page describes its API. Logs are below and in $label/app/logs.
For example, run in another window:

  curl -X POST "http://$host:$port/infer/spade_fusion_bundle?image=sub-0009_dseg&output=image" -F 'params={}' -o t1w.nii.gz
  curl -X POST "http://$host:$port/infer/brain_ldm_bundle?image=sub-0009_T1w&output=image" \\
      -F 'params={"age":70,"sex":"F","ventricles_ml":120,"brain_normalised_ml":1450,"strength":0.6}' -o edited.nii.gz

All images that it makes are synthetic. For research, not for clinical use. Ctrl+C ends the server.

TEXT
cd "$label"
# By default, MONAI Label lets every page that is open in a browser on this computer use the server. A setting prevents this, but
# version 0.8.5 prints all settings when it starts and trains, and cannot print this one. So the setting exists only while the
# server's module reads it.
start="from monailabel.config import settings; settings.MONAI_LABEL_CORS_ORIGINS = ['http://$host:$port']; import monailabel.app; \
settings.MONAI_LABEL_CORS_ORIGINS = []; from monailabel.main import Main; Main().run()"
exec "$python" -W ignore -c "$start" start_server --app "$label/app" --studies "$label/studies" --host "$host" --port "$port" \
    --conf models spade_fusion_bundle,brain_ldm_bundle
