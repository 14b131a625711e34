#!/bin/sh
# Speed and accuracy of a model on a binary data set: cpp/run.sh MODEL DATA [THREADS [OPTIONS...]]
set -eu
[ $# -ge 2 ] || { echo "usage: cpp/run.sh MODEL DATA [THREADS [OPTIONS...]]" >&2; exit 2; }
model=$1 data=$2 threads=${3:-1}
shift "$(($# < 3 ? $# : 3))"
here=$(cd "$(dirname "$0")/.." && pwd)
exec "$here/build/native/quantrim_bench" --infer_model "$model" --infer_data "$data" \
  --num_threads "$threads" --batch_size 1 --warmup_size 20 "$@"
