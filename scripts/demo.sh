#!/usr/bin/env bash
# The whole chain on drawn radiographs, in demo/: what `make demo` runs, with the environment's Python first on PATH.
# A second run keeps the drawings and the tables, and trains, scores and evaluates one more model.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

images_per_class=$1
epochs=$2
steps=6
source scripts/steps.sh

draw "$images_per_class"
curate

announce "Train a classifier in two processes (the longest step)"
job train --warehouse "$warehouse" --models demo/models --epochs "$epochs"
model=$(value train model)
version=$(value train model_version)

announce "Score the images of all splits: val decides from when on a class counts as found"
job score --warehouse "$warehouse" --model "$model" --split all

announce "Evaluate against the labels, and write the report"
job evaluate --warehouse "$warehouse" --model-version "$version" --report demo/report.html

announce "Ask in SQL: how many test images of each class were recognised?"
question="SELECT label, count(*) AS images, sum(CASE WHEN predicted_label = label THEN 1 ELSE 0 END) AS recognised,
  round(avg(confidence), 2) AS mean_confidence
FROM images JOIN predictions USING (image_id)
WHERE split = 'test' AND model_version = '$version' GROUP BY label ORDER BY label"
echo "$question" | sed 's/^/  /'
python jobs/query.py --warehouse "$warehouse" "$question"

cat <<END

Done in $((SECONDS - began)) s.
  CCE on test          $(value evaluate outputs cce)   (categorical cross-entropy in nats; lower is better)
  knowing the source   $(value evaluate outputs cce_source_only)   (on the same rows, by the class shares of each source alone)
  a glance at borders  $(value evaluate outputs cce_border_only)   (on the same rows, a small model of borders and 16x16 thumbnails)
  knowing nothing      $(value evaluate outputs cce_prior)   (on the same rows, by the class shares of train)
  report               demo/report.html

Try next:
  why files were left out   .venv/bin/python jobs/query.py --warehouse $warehouse "SELECT source, reason, count(*) AS files FROM rejects GROUP BY ALL"
  an SQL prompt             .venv/bin/python jobs/query.py --warehouse $warehouse
  score a folder of files   .venv/bin/python jobs/score.py --warehouse $warehouse --model $model --input demo/sources/tuberculosis
  your own copies           .venv/bin/python jobs/curate.py --warehouse DIR --nih DIR --pneumonia DIR ...
END
