#!/usr/bin/env bash
# Small demonstration of both bundles: simulate a cohort, generate, train, synthesise, measure, and write a page with all results.
[ -n "${BASH_VERSION:-}" ] || { echo "This script needs bash. Run: bash $0" >&2; exit 2; }
set -euo pipefail

SEED=1                                           # the shipped weights were trained on the heads of seed 0
SIZE=demo_2mm                                    # which shipped weights make the heads
SUBJECTS=20
COHORT="--spacing_mm 2 --protocol one"
FIRST=6                                          # heads on the first page
REQUESTS=12
SAMPLING="--steps 15 --guidance_scale 1.0 --batch_size 4"
TRAINING="--autoencoder_epochs 3 --diffusion_epochs 8 --val_interval 1"  # from scratch at 4 mm, to show how training goes
SPADE_TRAINING="--spade_visits 3"                # from scratch, as in configs/demo.json, but with fewer heads
VARIANTS=2
SLICES=42

full_settings() {
    SIZE=demo
    SUBJECTS=120
    COHORT="--spacing_mm 4"
    REQUESTS=64
    SAMPLING="--steps 15 --guidance_scale 1.0 --batch_size 16"
    # Training continues from the shipped weights on this cohort, at low learning rates, so that they keep what they learnt.
    TRAINING="--autoencoder_epochs 1 --autoencoder_lr 2e-4 --diffusion_epochs 3 --diffusion_lr 1e-4 --val_interval 1"
    SPADE_TRAINING=""
    VARIANTS=4
    SLICES=60
    PAIRS=100
    COMPONENTS="--feature_dimensions 10"         # of the FID; otherwise the size of the smallest set decides
    CHAIN="--sampler_name ddpm --steps 1000 --batch_size 16"     # all steps, as in the first row of the paper's table
    CHAIN_VOLUMES=16
    SWEEPS="--sweep ventricles_ml 10 150 --sweep age 46 80 --rows 6 --noises 1 --extrapolate"
    REGRESSOR_TRAINING="--regressor_epochs 3 --regressor_lr 2e-4 --val_interval 1"
    SEGMENTATION=""
}

tiny_settings() {
    SIZE=demo
    SUBJECTS=20
    COHORT="--spacing_mm 4"
    FIRST=4
    REQUESTS=8
    SAMPLING="--steps 10"
    TRAINING="--autoencoder_epochs 1 --autoencoder_lr 1e-4 --diffusion_epochs 1 --diffusion_lr 1e-5"
    SPADE_TRAINING="--spade_epochs 1 --fusion_epochs 1 --batch_norm_batches 2"
    VARIANTS=2
    SLICES=12
    PAIRS=10
    COMPONENTS=""
    CHAIN="--sampler_name ddpm --steps 1000 --batch_size 4"
    CHAIN_VOLUMES=4
    SWEEPS="--sweep ventricles_ml 10 150 --rows 2 --noises 1 --extrapolate"
    REGRESSOR_TRAINING="--regressor_epochs 3"
    SEGMENTATION="--steps 4"
}

usage() {
    cat <<'TEXT'
bash scripts/demo.sh [--output DIR] [--fresh] [--full] [--tiny] [--version]

  --output DIR  folder for all results (default: demo, or demo_full with --full)
  --fresh       delete the results of an earlier demo in this folder, and start over
  --full        run the whole evaluation of both papers, at 4 mm (more than 20 minutes)
  --tiny        use 20 subjects, 8 volumes and hardly any training, only to check that everything runs

After an interruption, run the same command again: it skips the steps that are done.
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd)
output=""
fresh=""
full=""
tiny=""
while [ $# -gt 0 ]; do
    case "$1" in
        --output)
            case "${2:-}" in "" | -*) echo "--output needs a folder, got '${2:-}'" >&2; exit 2 ;; esac
            output="$2"
            shift
            ;;
        --fresh) fresh=yes ;;
        --full) full=yes ;;
        --tiny) tiny=yes ;;
        -h | --help) usage; exit 0 ;;
        --version) sed -n 's/^    "version": "\(.*\)",$/\1/p' "$root/brain_ldm_bundle/configs/metadata.json"; exit 0 ;;
        *) usage >&2; echo "unknown option: $1. Give --output DIR, --fresh, --full or --tiny" >&2; exit 2 ;;
    esac
    shift
done
[ -n "$output" ] || output="$root/demo${full:+_full}"
[ -z "$full" ] || full_settings
[ -z "$tiny" ] || tiny_settings
shipped="$root/brain_ldm_bundle/models"
for file in "$shipped/${SIZE}_autoencoder.pt" "$shipped/${SIZE}_model.pt"; do
    if [ ! -f "$file" ]; then
        echo "$file: no such file, but the demo samples with these weights. Clone the project again, or copy the file from a clone" >&2
        exit 1
    fi
done

# The file .made_by_demo shows that a demo made this folder, and with which settings.
settings="version 3${full:+, full}, $SIZE, cohort '$COHORT' of $SUBJECTS subjects and seed $SEED, requests $REQUESTS, \
training '$TRAINING', sampling '$SAMPLING', chain '${CHAIN:-}' ${CHAIN_VOLUMES:-}, sweeps '${SWEEPS:-}', regressor \
'${REGRESSOR_TRAINING:-}', spade '$SPADE_TRAINING'"
mark="$output/.made_by_demo"
if [ -n "$fresh" ] && [ -f "$mark" ]; then
    rated=$(find "$output"/{,spade_}reader_study/results -name '[!.]*.tsv' 2> /dev/null || true)
    if [ -n "$rated" ]; then
        printf 'People rated slices of the earlier demo. Move their files elsewhere first:\n%s\n' "$rated" >&2
        exit 1
    fi
    rm -rf "$output"
fi
if [ -d "$output" ] && [ -n "$(ls -A "$output")" ] && [ ! -f "$mark" ]; then
    echo "$output holds files that this demo did not make. Choose another folder with --output DIR" >&2
    exit 1
fi
if [ -f "$mark" ] && [ "$(cat "$mark")" != "$settings" ]; then
    echo "$output holds a demo with other settings ($(cat "$mark")). Add --fresh to replace it, or --output DIR" >&2
    exit 1
fi
if ! mkdir -p "$output"; then
    echo "$output: this folder cannot be made. Choose another with --output DIR" >&2
    exit 1
fi
output=$(cd "$output" && pwd)
mark="$output/.made_by_demo"
if [ ! -f "$mark" ] && ! { echo "*" > "$output/.gitignore" && echo "$settings" > "$mark"; }; then
    rm -f "$output/.gitignore" "$mark"
    echo "$output: cannot be written. Make room or choose another folder with --output DIR" >&2
    exit 1
fi
cd "$root"

# --- Steps ----------------------------------------------------------------------------------------------------------

number=0
doing="starting"

passed=" "
state() { { cat "$output/$1" 2> /dev/null || true; } | cksum; }

# A step is skipped if its mark exists and holds the checksum of its result. If a step runs, all later steps run, too.
step() {  # NAME RESULT DESCRIPTION COMMAND...
    local other
    number=$((number + 1))
    doing="[$number/$STEPS] $3"
    passed="$passed$1 "
    printf '\n%s\n' "$doing"
    if [ -f "$output/.done/$1" ] && [ "$(cat "$output/.done/$1")" = "$(state "$2")" ]; then
        echo "      done before"
        return
    fi
    mkdir -p "$output/.done"
    for other in "$output/.done"/*; do
        case "$passed" in *" ${other##*/} "*) ;; *) rm -f "$other" ;; esac
    done
    "${@:4}"
    state "$2" > "$output/.done/$1"
}

on_exit() {
    local status=$?
    if [ "$status" -ne 0 ]; then
        printf '\nStopped in step %s\nSee the messages above. The same command continues from here; with --fresh it starts over.\n' \
            "$doing" >&2
    fi
}
trap on_exit EXIT

lines=()
read_lines() {  # lines of the standard input to the array `lines`; macOS has bash 3.2, which lacks mapfile
    local line
    lines=()
    while IFS= read -r line; do lines+=("$line"); done
}

bundle() {  # run a workflow of a bundle: FOLDER [RUN_ID] SETTINGS...
    (cd "$1" && python -m monai.bundle run "${@:2}")
}

train() {  # COHORT FOLDER SETTINGS...
    # shellcheck disable=SC2086  # TRAINING is several words
    bundle brain_ldm_bundle training --config_file "['configs/train.json','configs/demo.json']" --dataset_dir "$1" \
        --models_dir "$2" --output_dir "$output/training" --cache_dir "$output/cache" $TRAINING "${@:3}"
}

train_little() {
    # The networks of configs/demo.json learn at 4 mm, because a few steps at 2 mm show nothing.
    python scripts/make_demo_data.py "$output/training/data" --subjects "$SUBJECTS" --spacing_mm 4 --seed "$SEED"
    train "$output/training/data" "$output/training/models"
}

train_on() {
    train "$output/data" "$output/models" --init_autoencoder "$shipped/${SIZE}_autoencoder.pt" --init_diffusion "$shipped/${SIZE}_model.pt"
}

train_regressor() {
    local start="$shipped/demo_regressor.pt"
    [ -f "$start" ] || start=""
    # shellcheck disable=SC2086
    bundle brain_ldm_bundle training --config_file "['configs/train_regressor.json','configs/demo_regressor.json']" \
        --dataset_dir "$output/data" --models_dir "$output/models" --output_dir "$output/training/regressor" \
        --cache_dir "$output/cache" ${start:+--init_regressor "$start"} $REGRESSOR_TRAINING
}

request() {
    python scripts/make_requests.py "$output/data/participants.tsv" "$output/requests.tsv" --rows "$REQUESTS"
}

request_more() {
    request
    # shellcheck disable=SC2086
    python scripts/make_requests.py "$output/data/participants.tsv" "$output/sweeps.tsv" $SWEEPS
}

sample() {  # TABLE FOLDER SETTINGS...
    bundle brain_ldm_bundle --config_file configs/inference.json --requests "$1" --models_dir "$output/models" \
        --output_dir "$2" "${@:3}"
}

generate() {  # [TABLE]
    # shellcheck disable=SC2086
    sample "${1:-$output/requests.tsv}" "$output/generated" $SAMPLING
}

generate_first() {
    mkdir -p "$output/models"
    cp "$shipped/${SIZE}_autoencoder.pt" "$output/models/autoencoder.pt"
    cp "$shipped/${SIZE}_model.pt" "$output/models/model.pt"
    head -n $((FIRST + 1)) "$output/requests.tsv" > "$output/first_requests.tsv"
    generate "$output/first_requests.tsv"
    cp "$output/generated/participants.tsv" "$output/first_made.tsv"  # the step with all heads changes participants.tsv
}

generate_more() {
    # shellcheck disable=SC2086
    sample "$output/sweeps.tsv" "$output/sweeps" $SAMPLING
    head -n $((CHAIN_VOLUMES + 1)) "$output/requests.tsv" > "$output/requests_1000.tsv"
    # shellcheck disable=SC2086
    sample "$output/requests_1000.tsv" "$output/generated_1000" $CHAIN
}

test_scans() {  # one path per line
    awk -F '\t' -v data="$output/data" '
        NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
        $column["split"] == "test" { print data "/" $1 "/anat/" $1 "_T1w.nii.gz" }' "$output/data/participants.tsv"
}

measure_volumes() {  # TABLE, then what to measure
    # The demo does not stop if volumes cannot be measured, because the page counts them.
    rm -f "$1"
    python scripts/measure_volumes.py "${@:2}" --output "$1" || [ -f "$1" ]
}

read_covariates() {  # TABLE FOLDER
    bundle brain_ldm_bundle predicting --config_file "['configs/train_regressor.json','configs/demo_regressor.json']" \
        --dataset_dir "$output/data" --models_dir "$output/models" --cache_dir "$output/cache" \
        --output_dir "$output/evaluation/brain_ldm" --predict_dir "$2" --predictions "$1"
}

measure() {
    measure_volumes "$output/generated_volumes.tsv" "$output/generated"
    read_lines < <(test_scans)
    measure_volumes "$output/cohort_volumes.tsv" ${lines[@]+"${lines[@]}"}  # bash 3.2 takes an empty array for unset
}

measure_more() {
    measure_volumes "$output/sweeps_volumes.tsv" "$output/sweeps"
    read_covariates "$output/sweeps_ages.tsv" "$output/sweeps"
    read_covariates "$output/generated_ages.tsv" "$output/generated"
}

evaluate() {
    local folder="$output/evaluation/brain_ldm" sweeps=() argument
    # shellcheck disable=SC2086
    bundle brain_ldm_bundle --config_file configs/evaluate.json --dataset_dir "$output/data" --models_dir "$output/models" \
        --output_dir "$folder" --cache_dir "$output/cache" --pairs "$PAIRS" $COMPONENTS \
        --reconstructions_dir "$output/reconstructions" \
        --samples "{'LDM, 1000 steps':'$output/generated_1000','LDM, 15 steps':'$output/generated'}"
    # An audit that finds copies exits with an error. The demo continues, because the page shows the result.
    rm -f "$folder/memorisation.section.json"
    bundle brain_ldm_bundle auditing --config_file configs/evaluate.json --dataset_dir "$output/data" \
        --models_dir "$output/models" --output_dir "$folder" --cache_dir "$output/cache" --audited_dir "$output/generated" ||
        [ -f "$folder/memorisation.section.json" ]
    measure_volumes "$output/reconstructed_volumes.tsv" "$output/reconstructions"
    read_covariates "$output/reconstructed_ages.tsv" "$output/reconstructions"
    for argument in $SWEEPS; do
        case "$argument" in ventricles_ml | age) sweeps+=(--sweep "$argument") ;; esac
    done
    sweeps+=(--sweep brain_normalised_ml)  # --extrapolate goes beyond its range
    python scripts/conditioning.py "$output/generated" --measured "$output"/generated_{volumes,ages}.tsv \
        --real "$output/data" --real_measured "$output/cohort_volumes.tsv" "$folder/regressor.tsv" \
        --reconstructed "$output/reconstructions" --reconstructed_measured "$output"/reconstructed_{volumes,ages}.tsv \
        --sweeps "$output/sweeps" --sweeps_measured "$output"/sweeps_{volumes,ages}.tsv ${sweeps[@]+"${sweeps[@]}"} --output "$folder"
}

train_spade() {
    # shellcheck disable=SC2086
    bundle spade_fusion_bundle training --config_file "['configs/train.json','configs/demo.json']" \
        --dataset_dir "$output/data" --models_dir "$output/spade/models" --output_dir "$output/spade/training" \
        --cache_dir "$output/spade/cache" $SPADE_TRAINING
}

from_maps() {  # MAPS FOLDER SETTINGS...
    bundle spade_fusion_bundle --config_file configs/inference.json --models_dir "$output/spade/models" --label_maps "$1" \
        --output_dir "$2" "${@:3}"
}

synthesise_little() {
    from_maps "$output/data" "$output/spade/test" --split test --variants "$VARIANTS"
}

synthesise() {
    local name=sub-0009  # first subject of the test split
    from_maps "$output/data/derivatives/labels/$name/anat/${name}_dseg.nii.gz" "$output/spade/synthetic" --variants "$VARIANTS"
    from_maps "$output/data" "$output/spade/training_data" --split train
    from_maps "$output/data" "$output/spade/test" --split test
}

score_spade() {
    bundle spade_fusion_bundle --config_file configs/evaluate.json --dataset_dir "$output/data" \
        --models_dir "$output/spade/models" --output_dir "$output/evaluation/spade_fusion" --cache_dir "$output/spade/cache"
}

evaluate_spade() {
    local folder="$output/evaluation/spade_fusion"
    score_spade
    # shellcheck disable=SC2086
    bundle spade_fusion_bundle --config_file "['configs/segmentation.json','configs/demo_segmentation.json']" \
        --dataset_dir "$output/data" --synthetic_dir "$output/spade/training_data" --output_dir "$folder" \
        --cache_dir "$output/spade/cache" $SEGMENTATION
}

make_study() {  # NAME SYNTHETIC
    python scripts/reader_study.py make --real "$output/data" --split test --synthetic "$2" --slices "$SLICES" --output "$output/$1"
    python scripts/reader_study.py rate "$output/$1/page/reader_study.html" --output "$output/$1/computed"
    mkdir -p "$output/$1/results"  # folder for the files that people save
}

make_studies() {
    make_study reader_study "$output/generated"
    make_study spade_reader_study "$output/spade/test"
}

score_study() {  # NAME BUNDLE TITLE; scores the computed readers, and people if they saved files
    read_lines < <(find "$output/$1/computed" "$output/$1/results" -name '[!.]*.tsv' | sort)
    python scripts/reader_study.py score "$output/$1/key/key.tsv" ${lines[@]+"${lines[@]}"} --partial --title "$3" \
        --output "$output/evaluation/$2/reader_study"
}

report() {  # further settings
    python scripts/report.py "$output/generated" --real "$output/data" --viewer 5 --viewer_scans 4 --output "$output/report.html" "$@"
}

measure_first() {
    measure_volumes "$output/first_volumes.tsv" "$output/generated"
}

first_report() {
    if [ -n "$full" ]; then
        report --measured "$output/generated_volumes.tsv" --real_measured "$output/cohort_volumes.tsv" \
            --training "$output/training"
    else
        report --measured "$output/first_volumes.tsv"
    fi
}

score_studies() {
    score_study reader_study brain_ldm "Reader study: latent diffusion (Figure 4C)"
    score_study spade_reader_study spade_fusion "Reader study: SPADE fusion (Figure 4C)"
}

last_report() {
    score_studies
    if [ -n "$full" ]; then
        report --measured "$output"/generated_{volumes,ages}.tsv --evaluation "$output/evaluation" \
            --real_measured "$output/cohort_volumes.tsv" "$output/evaluation/brain_ldm/regressor.tsv" \
            --synthetic "$output/spade/synthetic" --training "$output/training" "$output/spade/training"
    else
        report --measured "$output/generated_volumes.tsv" --evaluation "$output/evaluation" \
            --real_measured "$output/cohort_volumes.tsv" --synthetic "$output/spade/test" \
            --training "$output/training" "$output/spade/training" --training_note "These trainings were short, at 4 mm. The \
SPADE GANs and the fusion made the T1w from label maps. Weights that are part of the project made the generated heads."
    fi
}

STEPS=14
[ -z "$full" ] || STEPS=16
number=1
doing="[1/$STEPS] Set up Python (minutes the first time; on Linux 5.3 GB on disk, 1.5 GB with the CPU build of PyTorch)"
printf '%s\n' "$doing"
. scripts/setup.sh

# shellcheck disable=SC2086
step data data/participants.tsv "Simulate a cohort of $SUBJECTS heads with known volumes (seconds)" \
    python scripts/make_demo_data.py "$output/data" --subjects "$SUBJECTS" $COHORT --seed "$SEED"

little_steps() {
    step requests requests.tsv "Draw $REQUESTS plausible requests from the cohort (seconds)" request
    step generation first_made.tsv "Generate $FIRST heads with the weights of this project (half a minute)" generate_first
    step measurement first_volumes.tsv "Measure the generated heads (seconds)" measure_first
    step first_report first_volumes.tsv "Write a first page, $output/report.html (seconds)" first_report
    step more_generation generated/participants.tsv "Generate the other heads (half a minute)" generate
    step more_measurement cohort_volumes.tsv "Measure all generated heads, and the test scans (half a minute)" measure
    step training training/models/model.pt "Train a small autoencoder and diffusion model for a moment (half a minute)" train_little
    step spade_training spade/models/model.pt "Train three SPADE GANs and the fusion on the cohort's label maps (1 to 2 minutes)" \
        train_spade
    step spade_synthesis spade/test/participants.tsv "Make T1w from the label maps of the test split (seconds)" synthesise_little
    step evaluation evaluation/spade_fusion/scores.tsv "Compare synthetic T1w with the scans (half a minute)" score_spade
}

full_steps() {
    step training models/model.pt "Train the autoencoder, then the diffusion model (about 1 minute)" train_on
    step requests sweeps.tsv "Draw $REQUESTS plausible requests from the cohort, and sweeps (seconds)" request_more
    step generation generated/participants.tsv "Generate $REQUESTS volumes (about 1 minute)" generate
    step measurement cohort_volumes.tsv "Measure the generated volumes and the test scans (half a minute)" measure
    step first_report generated_volumes.tsv "Write a first page, $output/report.html (seconds)" first_report
    step regressor models/regressor.pt "Train a network that predicts age and volumes from a scan (seconds)" train_regressor
    step more_generation generated_1000/participants.tsv "Generate sweeps, and $CHAIN_VOLUMES volumes by all 1000 steps (about 4 minutes)" \
        generate_more
    step more_measurement sweeps_volumes.tsv "Measure the sweeps, and predict age from all generated volumes (half a minute)" \
        measure_more
    step evaluation evaluation/brain_ldm/memorisation.section.json \
        "Compare with real scans: Table 1, conditioning, copies (about 1 minute)" evaluate
    step spade_training spade/models/model.pt "Train three SPADE GANs and the fusion on the cohort's label maps (about 3 minutes)" \
        train_spade
    step spade_synthesis spade/test/participants.tsv \
        "Make $VARIANTS anatomies from one label map, and T1w from training and test maps (about 2 minutes)" synthesise
    step spade_evaluation evaluation/spade_fusion/scores.tsv \
        "Compare synthetic T1w with the scans, and train segmenters on both (about 2 minutes)" evaluate_spade
}

if [ -n "$full" ]; then full_steps; else little_steps; fi
step studies reader_study/key/key.tsv "Write the pages of two reader studies, and let simple rules rate them (seconds)" make_studies
rm -f "$output/.done/report"                     # this step runs every time, because people may have rated since
step report report.html "Score the reader studies, and write the page with all results (seconds)" last_report

printf '\nDone. Look at\n  %s\n  %s\nand, to rate slices yourself,\n  %s\n  %s\nAll images are synthetic. For research, not for clinical use.\n' \
    "$output/report.html" "$output/report.png" "$output"/{,spade_}reader_study/page/reader_study.html
