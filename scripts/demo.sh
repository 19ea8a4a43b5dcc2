#!/usr/bin/env bash
# Everything once, small, with both bundles: a simulated cohort, training, generation, evaluation, pictures and a page.
set -euo pipefail

SUBJECTS=120
SEED=1                                           # other people than the shipped weights were trained on (seed 0)
REQUESTS=64
# Some steps more on this cohort, from the shipped weights: gently, or they would forget what they know.
TRAINING="--autoencoder_epochs 1 --autoencoder_lr 2e-4 --diffusion_epochs 3 --diffusion_lr 1e-4 --val_interval 1"
SAMPLING="--steps 50 --guidance_scale 1.0 --batch_size 16"
SPADE_TRAINING=""                                # as in configs/demo.json, from scratch
VARIANTS=4

usage() {
    cat <<'TEXT'
bash scripts/demo.sh [--output DIR] [--fresh] [--tiny]

  --output DIR  where everything goes (default: demo)
  --fresh       delete what an earlier demo made there, and start over
  --tiny        20 subjects, 8 volumes, hardly any training: only to see that it runs

Run again after an interruption: what is done is kept.
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd)
output="$root/demo"
fresh=""
while [ $# -gt 0 ]; do
    case "$1" in
        --output) [ $# -gt 1 ] || { echo "--output needs a folder" >&2; exit 2; }; output="$2"; shift ;;
        --fresh) fresh=yes ;;
        --tiny)
            SUBJECTS=20
            REQUESTS=8
            TRAINING="--autoencoder_epochs 1 --diffusion_epochs 1"
            SAMPLING="--steps 4"
            SPADE_TRAINING="--spade_epochs 1 --fusion_epochs 1 --batch_norm_batches 2"
            ;;
        -h | --help) usage; exit 0 ;;
        *) echo "unknown option: $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done

# The folder is ours alone: the mark says who made it, and with which settings.
settings="subjects $SUBJECTS of seed $SEED, requests $REQUESTS, training '$TRAINING', sampling '$SAMPLING', spade '$SPADE_TRAINING'"
mark="$output/.made_by_demo"
if [ -n "$fresh" ] && [ -f "$mark" ]; then
    rm -rf "$output"
fi
if [ -d "$output" ] && [ -n "$(ls -A "$output")" ] && [ ! -f "$mark" ]; then
    echo "$output holds something that this demo did not make. Choose another folder with --output DIR" >&2
    exit 1
fi
if [ -f "$mark" ] && [ "$(cat "$mark")" != "$settings" ]; then
    echo "$output holds a demo of other settings ($(cat "$mark")). Add --fresh to replace it, or --output DIR" >&2
    exit 1
fi
mkdir -p "$output"
output=$(cd "$output" && pwd)
echo "$settings" > "$output/.made_by_demo"
echo "*" > "$output/.gitignore"
cd "$root"

# --- Steps ----------------------------------------------------------------------------------------------------------

STEPS=11
number=0
doing="starting"

step() {  # NAME DESCRIPTION COMMAND...
    number=$((number + 1))
    doing="[$number/$STEPS] $2"
    printf '\n%s\n' "$doing"
    if [ -e "$output/.done/$1" ]; then
        echo "      done before"
        return
    fi
    "${@:3}"
    mkdir -p "$output/.done"
    touch "$output/.done/$1"
}

on_exit() {
    local status=$?
    if [ "$status" -ne 0 ]; then
        printf '\nStopped in step %s\nSee the messages above. The same command goes on from here, with --fresh it starts over.\n' \
            "$doing" >&2
    fi
}
trap on_exit EXIT

bundle() {  # run a workflow of a bundle: FOLDER [RUN_ID] SETTINGS...
    (cd "$1" && python -m monai.bundle run "${@:2}")
}

train() {
    local models="$root/brain_ldm_bundle/models" start=""
    if [ -f "$models/demo_autoencoder.pt" ] && [ -f "$models/demo_model.pt" ]; then
        start=yes
    fi
    # shellcheck disable=SC2086  # TRAINING is several words
    bundle brain_ldm_bundle training --config_file "['configs/train.json','configs/demo.json']" --dataset_dir "$output/data" \
        --models_dir "$output/models" --output_dir "$output/training" --cache_dir "$output/cache" \
        ${start:+--init_autoencoder "$models/demo_autoencoder.pt" --init_diffusion "$models/demo_model.pt"} $TRAINING
}

generate() {
    # shellcheck disable=SC2086  # SAMPLING is several words
    bundle brain_ldm_bundle --config_file configs/inference.json --requests "$output/requests.tsv" \
        --models_dir "$output/models" --output_dir "$output/generated" $SAMPLING
}

evaluate() {
    bundle brain_ldm_bundle --config_file configs/evaluate.json --dataset_dir "$output/data" \
        --models_dir "$output/models" --output_dir "$output/reconstruction" --cache_dir "$output/cache"
}

test_scans() {  # one path per line
    awk -F '\t' -v data="$output/data" '
        NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
        $column["split"] == "test" { print data "/" $1 "/anat/" $1 "_T1w.nii.gz" }' "$output/data/participants.tsv"
}

measure() {
    # Volumes that cannot be measured are no reason to stop: the page counts them.
    rm -f "$output/generated_volumes.tsv" "$output/cohort_volumes.tsv"
    python scripts/measure_volumes.py "$output/generated" --output "$output/generated_volumes.tsv" ||
        [ -f "$output/generated_volumes.tsv" ]
    test_scans | tr '\n' '\0' | xargs -0 python scripts/measure_volumes.py --output "$output/cohort_volumes.tsv"
}

report() {
    python scripts/report.py "$output/generated" --measured "$output/generated_volumes.tsv" \
        --real "$output/data" --real_measured "$output/cohort_volumes.tsv" \
        --reconstruction "$output/reconstruction/reconstruction.json" --training "$output/training" \
        --output "$output/report.html"
}

train_spade() {
    # shellcheck disable=SC2086  # SPADE_TRAINING is several words
    bundle spade_fusion_bundle training --config_file "['configs/train.json','configs/demo.json']" \
        --dataset_dir "$output/data" --models_dir "$output/spade/models" --output_dir "$output/spade/training" \
        --cache_dir "$output/spade/cache" $SPADE_TRAINING
}

synthesise() {
    local name=sub-0009  # the first of the test split
    bundle spade_fusion_bundle --config_file configs/inference.json --models_dir "$output/spade/models" \
        --label_maps "$output/data/derivatives/labels/$name/anat/${name}_dseg.nii.gz" --variants "$VARIANTS" \
        --output_dir "$output/spade/synthetic"
}

evaluate_spade() {
    bundle spade_fusion_bundle --config_file configs/evaluate.json --dataset_dir "$output/data" \
        --models_dir "$output/spade/models" --output_dir "$output/spade/evaluation" --cache_dir "$output/spade/cache"
}

number=1
doing="[1/$STEPS] Set up Python (minutes the first time, about 2 GB to download)"
printf '%s\n' "$doing"
. scripts/setup.sh

step data "Simulate a cohort: $SUBJECTS heads at 4 mm, volumes known (about 1 minute)" \
    python scripts/make_demo_data.py "$output/data" --subjects "$SUBJECTS" --spacing_mm 4 --seed "$SEED"
step training "Train the autoencoder, then the diffusion model (about 5 minutes)" train
step requests "Draw $REQUESTS plausible requests from the cohort (seconds)" \
    python scripts/make_requests.py "$output/data/participants.tsv" "$output/requests.tsv" --rows "$REQUESTS"
step generation "Generate $REQUESTS volumes (about 1 minute)" generate
step evaluation "Reconstruct the test scans, beside the mean scan (seconds)" evaluate
step measurement "Measure the generated volumes and the test scans (about 1 minute)" measure
step report "Write the page and the picture (seconds)" report
step spade_training "Train three SPADE GANs and the fusion on the cohort's label maps (about 5 minutes)" train_spade
step spade_synthesis "Make $VARIANTS anatomies of one label map, and their T1w (seconds)" synthesise
step spade_evaluation "Compare synthetic T1w of the test maps with the scans (seconds)" evaluate_spade

printf '\nDone. Look at\n  %s\n  %s\n  %s\nAll images are synthetic. For research, not for clinical use.\n' \
    "$output/report.html" "$output/report.png" "$output/spade/evaluation"
