# shellcheck shell=bash
# Steps of a script that runs jobs in demo/, one after the other. Before: $steps, how many there are.
warehouse=demo/warehouse
summaries=demo/summaries  # the last lines of the jobs
number=0
began=$SECONDS

announce() { # TITLE
  number=$((number + 1))
  printf '\n[%d/%d, %d s] %s\n' "$number" "$steps" "$((SECONDS - began))" "$1"
}

job() { # NAME OPTION...: show the command and run it; its summary goes to $summaries/NAME.json
  local name=$1 status=0
  shift
  echo "  python jobs/$name.py$(printf ' %q' "$@")"
  python "jobs/$name.py" "$@" >"$summaries/$name.out" || status=$?
  tail -n 1 "$summaries/$name.out" >"$summaries/$name.json"
  if [ "$status" -ne 0 ]; then
    echo "jobs/$name.py ended with exit code $status; its last words are above." >&2
    exit "$status"
  fi
}

value() { # NAME KEY...: one value of the last summary of that job
  python -c '
import json, sys
value = json.load(open(sys.argv[1]))
for key in sys.argv[2:]:
    value = value[key]
print(f"{value:.3f}" if isinstance(value, float) else value)' "$summaries/$1.json" "${@:2}"
}

draw() { # IMAGES_PER_CLASS: the sample in demo/sources, and nothing else in demo/, unless it is there already
  local drawn="$1 images a class"
  # Drawings of another number, or of a run that was stopped, are no use: begin afresh.
  if [ "$(cat demo/drawn 2>/dev/null)" != "$drawn" ]; then
    rm -rf demo
  fi
  mkdir -p "$summaries"
  announce "Draw synthetic radiographs in the layouts of the four sources"
  if [ -e demo/drawn ]; then
    echo "  demo/sources is there already"
  else
    job sample --out demo/sources --images-per-class "$1"
    echo "$drawn" >demo/drawn
  fi
}

curate() { # the sample, into $warehouse
  announce "Curate: read, select, group duplicates, split by patient, audit, publish"
  job curate --warehouse "$warehouse" --image-size 96 --nih demo/sources/nih --covid demo/sources/covid \
    --pneumonia demo/sources/pneumonia --tuberculosis demo/sources/tuberculosis
}
