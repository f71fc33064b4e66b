#!/usr/bin/env bash
# How much data it takes: models of shares of the drawn images, on the same test images. What `make learning-curve` runs.
# Each takes as many steps: a share of a half is passed over twice as often.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

images_per_class=$1
epochs=$2
parts=(8 4 2 1)
steps=$((4 + ${#parts[@]}))
source scripts/steps.sh

draw "$images_per_class"
curate

models=()
for part in "${parts[@]}"; do
  announce "Train on one part in $part of the train split"
  job train --warehouse "$warehouse" --models demo/models --train-share "$(python -c "print(1 / $part)")" \
    --epochs $((epochs * part))
  models+=(--model "$(value train model)")
done

announce "Score the test images with all of them, in one pass"
job score --warehouse "$warehouse" "${models[@]}" --split test

announce "Evaluate by share, and write the report"
job evaluate --warehouse "$warehouse" --by-share --report demo/learning-curve.html
sed '$d' "$summaries/evaluate.out"
echo "Done in $((SECONDS - began)) s. The report is demo/learning-curve.html."
